"""Saves and resumes a run bit-exactly; keeps the last few checkpoints and the best one.

Only the run's first process uses this module: the state is the same in all processes.
"""

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.training.step import TrainState, init_state
from waveglow_jax.weights.manifest import MANIFEST, DamagedError, verify, write_manifest
from waveglow_jax.weights.run import (
    VALIDATION_LOSS,
    checkpoint_folders,
    partly_deleted,
    restoring,
)

DISK_MARGIN = 16 * 2**20
"""Free bytes required beyond the arrays, for metadata, metrics and TensorBoard."""


@dataclass
class Plateau:
    """Validation so far: the lowest loss, the validations since then, the last one's step."""

    best: float | None = None
    since_best: int = 0
    validated_at: int = -1


@dataclass
class Progress:
    """What a checkpoint stores beside the state, as JSON.

    position: how many clips of the run's fixed order have been trained on, whatever the number of
    devices. data: the corpus's fingerprint; None in checkpoints older than the fingerprint.
    """

    plateau: Plateau
    position: int
    data: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self.plateau), "position": self.position, "data": self.data}

    @staticmethod
    def from_json(host: dict[str, Any], position: int) -> "Progress":
        data, position = host.pop("data", None), host.pop("position", position)
        return Progress(Plateau(**host), position, data)


class NotSavedError(UserError):
    """A checkpoint could not be written to disk; the earlier ones are intact."""


class Checkpoints:
    """The checkpoints of a run; a context manager that finishes the last save.

    The constructor moves damaged checkpoints out of the way: `told` says which, and where they are
    now. It raises UserError if there were checkpoints and all of them are damaged.
    """

    def __init__(self, run: Path, config: Config):
        self._run, self._config = run, config
        self.told = _set_damaged_aside(run)
        # Orbax warns of checkpoints without a validation loss, which are intended, and logs a
        # traceback for every error that it raises.
        self._verbosity = absl.logging.get_verbosity()
        absl.logging.set_verbosity(absl.logging.FATAL)
        self._manager = _manager(run, config.train.keep_checkpoints)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()
        absl.logging.set_verbosity(self._verbosity)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: Progress, validation_loss: float | None) -> None:
        """Saves the state under its step unless that is saved already; returns once it is on disk.

        Raises NotSavedError if the disk does not take it, and UserError if the parameters are not
        finite; the earlier checkpoints stay intact in both cases.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if not bool(_all_finite(state.params)):
            raise UserError(f"step {step}: parameters are not finite; not saved")
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + DISK_MARGIN
        voice, rest = _split(jax.tree.map(np.asarray, state))
        metrics = None if validation_loss is None else {VALIDATION_LOSS: validation_loss}
        items = ocp.args.Composite(
            voice=ocp.args.StandardSave(voice),
            rest=ocp.args.StandardSave(rest),
            host=ocp.args.JsonSave(progress.to_json()),
        )
        try:
            if (free := shutil.disk_usage(self._manager.directory).free) < needed:
                raise OSError(f"it takes {needed:,} bytes, {free:,} are free")
            saved = self._manager.save(step, args=items, metrics=metrics, force=True)
            self._manager.wait_until_finished()
            write_manifest(Path(self._manager.directory) / str(step))
        except (OSError, ValueError) as error:  # a full disk is a ValueError in tensorstore
            with suppress(OSError):  # the next start removes what this cannot
                self._remove_unfinished(step)
            raise NotSavedError(
                f"{self._manager.directory}: checkpoint of step {step} not saved "
                f"({_last_clause(error)}); free some space"
            ) from error
        if not saved:
            raise UserError(f"{self._manager.directory}: checkpoint of step {step} was refused")

    def _remove_unfinished(self, step: int) -> None:
        # Each writer that failed after the first one would log a traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        folder = Path(self._manager.directory)
        unfinished = [*folder.glob("*.orbax-checkpoint-tmp*")]
        if (folder / str(step)).exists() and not (folder / str(step) / MANIFEST).exists():
            unfinished.append(folder / str(step))
        for left in unfinished:
            shutil.rmtree(left, ignore_errors=True)
        self._manager.reload()

    def restore(self, step: int) -> tuple[TrainState, Progress]:
        """Bit-exact state (NumPy) and progress of a step.

        Raises UserError if the checkpoint belongs to another config.
        """
        shapes = jax.eval_shape(lambda: init_state(self._config))
        voice, rest = _split(jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes))
        items = ocp.args.Composite(
            voice=ocp.args.StandardRestore(voice),
            rest=ocp.args.StandardRestore(rest),
            host=ocp.args.JsonRestore(),
        )
        with restoring(Path(self._manager.directory) / str(step)):
            restored = self._manager.restore(step, args=items)
            position = step * self._config.train.batch_size
            progress = Progress.from_json(restored["host"], position)
        return _join(restored["voice"], restored["rest"]), progress


def _manager(run: Path, keep: int) -> ocp.CheckpointManager:
    """A manager that keeps the last `keep` checkpoints and that of the lowest validation loss."""

    def loss(metrics: dict[str, float]) -> float:
        return metrics[VALIDATION_LOSS]

    best = BestN(get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
        best_fn=loss,  # without it the losses are not written, and the next start has none
        best_mode="min",
        create=False,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="checkpoints"
        ),
    )
    folder = (run / "checkpoints").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another") from error
    with restoring(folder):
        return ocp.CheckpointManager(folder, item_names=("voice", "rest", "host"), options=options)


def _set_damaged_aside(run: Path) -> list[str]:
    """Moves damaged checkpoints to RUN/damaged/, so that the run resumes from the one before.

    Returns a sentence about each, and about an undamaged one without a manifest. From the latest
    checkpoint back to the first undamaged one, all files are verified; of those older than that,
    only the parts that orbax reads at once. Raises UserError if none is undamaged.
    """
    for remains in partly_deleted(run):
        shutil.rmtree(remains, ignore_errors=True)
    folders, told = checkpoint_folders(run), []
    whole = None
    for folder in reversed(folders):
        try:
            verified = verify(folder, parts=None if whole is None else ["metrics", "host"])
        except DamagedError as damage:
            aside = _set_aside(run, folder)
            told.append(f"{damage}; the checkpoint of step {folder.name} is now {aside}")
            continue
        if whole is None:
            whole = folder
            if not verified:
                told.append(
                    f"{folder}: has no {MANIFEST} (written before there was one, or killed just "
                    "then); read without checking it"
                )
    if folders and whole is None:
        raise UserError(
            f"{run}: no checkpoint is whole; {told[0]}; put back a copy of the run, or train into "
            "another folder"
        )
    return told


def _set_aside(run: Path, folder: Path) -> Path:
    aside = run / "damaged" / folder.name
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        return folder.rename(aside)
    except OSError as error:
        raise UserError(
            f"{folder}: damaged, and cannot be moved to {aside} ({error.strerror}); make the run's "
            "folder writable"
        ) from error


def _split(state: TrainState) -> tuple[Any, dict[str, Any]]:
    """The voice, and everything in the state that the voice does not contain."""
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
    """The system's message at the end of a chain of errors, such as 'No space left on device'."""
    words = str(error).split(" [")[0].split(": ")[-1]
    return getattr(error, "strerror", None) or words.strip()


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
