"""Claims a run's folder, and leaves it as it was if the run cannot start."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waveglow_jax.config import Config, config_to_dict, config_to_json, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import write_text
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
    """Writes config.json; if there is one, checks first that its model and data are the same."""
    path = run / "config.json"
    if path.exists():
        before = config_to_dict(load_config(path))
        now = config_to_dict(config)
        for section in ("waveglow_config", "data_config"):
            for field, value in now[section].items():
                if before[section][field] != value:
                    raise UserError(
                        f"{run}: holds a run with {section}.{field} {before[section][field]}, "
                        f"not {value}; choose another --output or the same config"
                    )
    write_text(path, config_to_json(config))
