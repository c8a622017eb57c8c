"""Saving and resuming a run: its state to the bit, the last few and the best."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.training.step import TrainState, init_state
from waveglow_jax.weights.run import (
    VALIDATION_LOSS,
    checkpoint_manager,
    not_of_this_config,
    on_one_device,
)

DISK_MARGIN = 16 * 2**20
"""Bytes that must be free beyond the arrays: metadata, metrics, TensorBoard."""


@dataclass
class Plateau:
    """What the host knows of validation: lowest loss, validations since, the last one's step."""

    best: float | None = None
    since_best: int = 0
    validated_at: int = -1


class Checkpoints:
    """The checkpoints of a run; use as a context so that the last save is finished."""

    def __init__(self, run: Path, config: Config):
        self._config = config
        self._manager = checkpoint_manager(run, config.train.keep_checkpoints)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, plateau: Plateau, validation_loss: float | None) -> None:
        """Saves the state under its step unless it is there already; returns when it is on disk.

        Raises UserError if the parameters are not finite or the disk does not take it; the
        checkpoints before are intact then.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if not bool(_all_finite(state.params)):
            raise UserError(f"step {step}: parameters are not finite; not saved")
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + DISK_MARGIN
        if (free := shutil.disk_usage(self._manager.directory).free) < needed:
            raise self._not_saved(step, f"it takes {needed:,} bytes, {free:,} are free")
        voice, rest = _split(state)
        metrics = None if validation_loss is None else {VALIDATION_LOSS: validation_loss}
        items = ocp.args.Composite(
            voice=ocp.args.StandardSave(voice),
            rest=ocp.args.StandardSave(rest),
            host=ocp.args.JsonSave(vars(plateau)),
        )
        try:
            saved = self._manager.save(step, args=items, metrics=metrics, force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # tensorstore tells of a full disk by a ValueError
            self._remove_unfinished()
            raise self._not_saved(step, _last_clause(error)) from error
        if not saved:
            raise UserError(f"{self._manager.directory}: checkpoint of step {step} was refused")

    def _not_saved(self, step: int, why: str) -> UserError:
        return UserError(
            f"{self._manager.directory}: checkpoint of step {step} not saved ({why}); free some "
            "space and run the same command again, it goes on from the last checkpoint"
        )

    def _remove_unfinished(self) -> None:
        for left in Path(self._manager.directory).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        # The writers that failed beside the first one would tell so by a traceback each.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def restore(self, step: int) -> tuple[TrainState, Plateau]:
        """State and plateau of a step, to the bit. Raises UserError for another config's."""
        shapes = jax.eval_shape(lambda: init_state(self._config))
        voice, rest = _split(shapes)
        items = ocp.args.Composite(
            voice=ocp.args.StandardRestore(on_one_device(voice)),
            rest=ocp.args.StandardRestore(on_one_device(rest)),
            host=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError) as error:
            raise not_of_this_config(self._manager, step, error) from error
        return _join(restored["voice"], restored["rest"]), Plateau(**restored["host"])


def _split(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """The voice, and all that it does not hold already."""
    rest = {k: v for k, v in vars(state).items() if k != "ema" and v is not None}
    if state.ema is None:
        del rest["params"]
    return state.voice, rest


def _join(voice: Any, rest: dict[str, Any]) -> TrainState:
    params = rest.pop("params", None)
    if params is None:
        return TrainState(params=voice, ema=None, **rest)
    return TrainState(params=params, ema=voice, **rest)


def _last_clause(error: Exception) -> str:
    """The operating system's words at the end of a long chain: 'No space left on device'."""
    words = str(error).split(" [")[0].split(": ")[-1]
    return getattr(error, "strerror", None) or words.strip()


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
