"""Claims a run's folder, and leaves it as it was if the run cannot start."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waveglow_jax.config import Config, config_to_json, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES
from waveglow_jax.training.lock import LOCK


@contextmanager
def no_trace_of_a_failure(run: Path) -> Iterator[None]:
    """Empties the folder if it was empty before and the run failed before its first step.

    The caller holds the lock, whose release removes a folder that contains nothing else.
    """
    new = not _content(run)
    try:
        yield
    except Exception:
        metrics = run / "metrics.jsonl"
        if new and not (metrics.exists() and metrics.stat().st_size):
            for path in _content(run):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        raise


def _content(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.name != LOCK] if run.is_dir() else []


def claim_folder(run: Path, config: Config) -> None:
    """Writes config.json; if there is one, checks first that its model and data are the same.

    Raises UserError if they are not, and for a folder of recordings, among which no run may lie.
    """
    path = run / "config.json"
    if path.exists():
        before = load_config(path)
        changes = [
            *_changes(before.waveglow, config.waveglow, "waveglow_config"),
            *_changes(before.data, config.data, "data_config"),
        ]
        if changes:
            field, held, wanted = changes[0]
            raise UserError(
                f"{run}: holds a run with {field} {held}, not {wanted}; choose another --output or "
                "the same config"
            )
    elif any(each.suffix.lower() in AUDIO_SUFFIXES for each in _content(run)):
        raise UserError(f"{run}: holds recordings and no run; choose another --output")
    write_text(path, config_to_json(config))


def _changes(before: Any, now: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields the dotted name and both values of each field in which two sections differ."""
    for name in (field.name for field in dataclasses.fields(now)):
        held, wanted = getattr(before, name), getattr(now, name)
        if dataclasses.is_dataclass(held) and dataclasses.is_dataclass(wanted):
            yield from _changes(held, wanted, f"{where}.{name}")
        elif held != wanted:
            yield f"{where}.{name}", held, wanted
