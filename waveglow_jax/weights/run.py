"""The layout of a training run's folder, and the voice in its checkpoints.

RUN/config.json, RUN/checkpoints/STEP/ (orbax; item `voice` the parameters to synthesise with, item
`rest` what training needs besides, item `host` JSON), RUN/metrics.jsonl, RUN/tensorboard/.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from waveglow_jax.config import Config, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import Params, init
from waveglow_jax.weights.nvidia import Moments

VALIDATION_LOSS = "validation_loss"


def checkpoint_manager(run: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Keeps the last `keep` checkpoints and the one with the lowest validation loss.

    Without `keep` it is for reading only.
    """
    if keep is None:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
        best = BestN(
            get_metric_fn=lambda metrics: metrics[VALIDATION_LOSS],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
    return ocp.CheckpointManager(
        (run / "checkpoints").absolute(),
        item_names=("voice", "rest", "host"),
        options=options,
    )


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def load_run_voice(run: Path) -> tuple[Config, Params]:
    """Config and parameters of a run's best checkpoint, or of its latest if none was validated.

    Raises UserError if there is no checkpoint yet, or one of another config.
    """
    config = load_config(run / "config.json")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns of reading only, which is what we want
    try:
        with checkpoint_manager(run) as manager:
            step = best_step(manager)
            if step is None:
                raise UserError(f"{run}: holds no checkpoint yet; train it for longer")
            return config, restore_voice(manager, step, config)
    finally:
        logging.set_verbosity(verbosity)


def load_run_moments(run: Path) -> Moments | None:
    """Adam's state beside the parameters that `load_run_voice` gives, in their layout; None if the
    checkpoint holds none."""
    config = load_config(run / "config.json")
    with checkpoint_manager(run) as manager:
        folder = manager.directory / str(best_step(manager)) / "rest"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        in_memory = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree, is_leaf=_is_metadata
        )
        arguments = ocp.args.PyTreeRestore(item=None, restore_args=in_memory)
        rest = checkpointer.restore(folder, args=arguments)
    # Adam among the transformations, all parameters in one vector (`training/step.optimizer`).
    adam = next((part for part in rest["optimizer"] if part and "mu" in part), None)
    if adam is None:
        return None
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    return Moments(int(adam["count"]), *(_as_tree(adam[name], shapes) for name in ("mu", "nu")))


def _is_metadata(node: Any) -> bool:
    return not isinstance(node, dict | list | tuple)


def _as_tree(flat: np.ndarray, shapes: Any) -> Any:
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = np.split(flat, ends[:-1])
    parts = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


def best_step(manager: ocp.CheckpointManager) -> int | None:
    steps = manager.all_steps()
    validated = {step: manager.metrics(step) for step in steps}
    losses = {step: m[VALIDATION_LOSS] for step, m in validated.items() if m}
    return min(losses, key=losses.get) if losses else max(steps, default=None)


def restore_voice(manager: ocp.CheckpointManager, step: int, config: Config) -> Params:
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    arguments = ocp.args.Composite(voice=ocp.args.StandardRestore(on_one_device(shapes)))
    try:
        return manager.restore(step, args=arguments)["voice"]
    except (ValueError, KeyError) as error:
        raise not_of_this_config(manager, step, error) from error


def on_one_device(shapes: Any) -> Any:
    """An abstract tree that restores to the default device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def not_of_this_config(manager: ocp.CheckpointManager, step: int, error: Exception) -> UserError:
    return UserError(
        f"{manager.directory}/{step}: does not fit the run's config.json "
        f"({str(error).splitlines()[0][:200]}); restore the config it was trained with"
    )
