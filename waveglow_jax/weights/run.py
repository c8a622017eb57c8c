"""The layout of a training run's folder, and reading the voice in its checkpoints.

A run has RUN/config.json, RUN/checkpoints/STEP/, RUN/metrics.jsonl and RUN/tensorboard/. A
checkpoint is orbax's: item `voice` has the parameters for synthesis, item `rest` what else training
needs, items `host` and `metrics` are JSON, and SHA256SUMS covers all of them.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from waveglow_jax.config import Config, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import Params, parameter_shapes
from waveglow_jax.text import read_json
from waveglow_jax.trees import unravelled
from waveglow_jax.weights.manifest import MANIFEST, DamagedError, verify
from waveglow_jax.weights.moments import Moments

VALIDATION_LOSS = "validation_loss"


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def checkpoint_folders(run: Path) -> list[Path]:
    """The finished checkpoints of a run, in the order of their steps."""
    remains = partly_deleted(run)
    return [folder for folder in _steps(run) if folder not in remains]


def partly_deleted(run: Path) -> list[Path]:
    """The remains of old checkpoints whose deletion was interrupted.

    Every checkpoint has checksums or a description; one without either is partly deleted, because a
    deletion begins with one of these.
    """
    names = MANIFEST, "_CHECKPOINT_METADATA"
    return [p for p in _steps(run) if not any((p / name).exists() for name in names)]


def _steps(run: Path) -> list[Path]:
    found = (run / "checkpoints").glob("*")
    return sorted(
        (p for p in found if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name)
    )


def load_run_voice(run: Path) -> tuple[Config, Params]:
    """Config and parameters of a run's best checkpoint, or of its latest if none was validated.

    A damaged checkpoint is skipped with a warning. Raises UserError if there is no undamaged
    checkpoint, or if it belongs to another config.
    """
    config = load_config(run / "config.json")
    folder, damages = _best_whole(run)
    for damage in damages:
        warnings.warn(f"{damage}; took the checkpoint of step {folder.name}", stacklevel=2)
    return config, restore_voice(folder, config)


def _best_whole(run: Path) -> tuple[Path, list[str]]:
    """The best checkpoint with an undamaged voice, and the damage found on the way to it."""
    damages: list[str] = []
    for folder in _best_first(checkpoint_folders(run), damages):
        try:
            verify(folder, parts=["voice"])
        except DamagedError as damage:
            damages.append(str(damage))
        else:
            return folder, damages
    if damages:
        raise UserError(f"{run}: no checkpoint is whole: {damages[0]}; copy the run again")
    raise UserError(f"{run}: holds no checkpoint yet; train it for longer")


def _best_first(folders: list[Path], damages: list[str]) -> list[Path]:
    """Sorted by validation loss; those without a readable one come last, latest first."""
    losses: dict[Path, float] = {}
    for folder in reversed(folders):
        losses[folder] = np.inf
        path = folder / "metrics" / "metrics"
        try:
            verify(folder, parts=["metrics"])
        except DamagedError as damage:
            damages.append(str(damage))
            continue
        if path.exists():
            losses[folder] = _loss_in(path)
    return sorted(losses, key=losses.__getitem__)


def _loss_in(path: Path) -> float:
    """The loss in a checkpoint's metrics, which may hold anything if there are no checksums."""
    try:
        return float(read_json(path)[VALIDATION_LOSS])
    except (UserError, KeyError, IndexError, TypeError, ValueError, OverflowError):
        return np.inf


def load_run_moments(run: Path) -> Moments | None:
    """Adam's state in the checkpoint that `load_run_voice` reads, in the parameters' layout; None
    if the checkpoint has none."""
    config = load_config(run / "config.json")
    checkpoint, _ = _best_whole(run)
    verify(checkpoint, parts=["rest"])
    folder = checkpoint.absolute() / "rest"
    with restoring(checkpoint), ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        in_memory = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree, is_leaf=_is_metadata
        )
        arguments = ocp.args.PyTreeRestore(item=None, restore_args=in_memory)
        rest = checkpointer.restore(folder, args=arguments)
        # Adam is one of the transformations, with all parameters in one vector (`step.optimizer`).
        adam = next((part for part in rest["optimizer"] if part and "mu" in part), None)
        if adam is None:
            return None
        shapes = parameter_shapes(config)
        mean, square = (unravelled(adam[name], shapes) for name in ("mu", "nu"))
        return Moments(int(adam["count"]), mean, square)


def _is_metadata(node: Any) -> bool:
    return not isinstance(node, dict | list | tuple)


def restore_voice(folder: Path, config: Config) -> Params:
    shapes = parameter_shapes(config)
    with restoring(folder), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute() / "voice", on_one_device(shapes))


def on_one_device(shapes: Any) -> Any:
    """An abstract tree that makes orbax restore to the default device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Converts what orbax raises while it reads a checkpoint to a UserError that names the folder.

    Orbax documents no exception types: damaged files raise whatever its parts encounter.
    """
    hook = sys.unraisablehook
    # Orbax closes its event loop at the first error. Each read that is still pending then fails to
    # reach the loop and prints a traceback, sometimes after the error has been raised here.
    sys.unraisablehook = partial(_without_late_reads, hook)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # A part of a checkpoint has no metadata of its own, of which orbax warns through absl.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"{folder}: is damaged, or does not fit the run's config.json ({said[0][:200]}); copy "
            "the run again, or restore the config it was trained with"
        ) from error
    sys.unraisablehook = hook


def _without_late_reads(otherwise: Callable[[Any], Any], lost: Any) -> None:
    if str(lost.exc_value) != "Event loop is closed":
        otherwise(lost)
