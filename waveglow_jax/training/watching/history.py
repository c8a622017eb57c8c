"""Reads a run's metrics.jsonl, of any version and even while it is written, as columns."""

import itertools
import json
import math
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.errors import UserError

COLUMNS = (
    *("step", "loss", "gradient_norm", "update_norm", "parameter_norm", "learning_rate"),
    *("skipped", "data_wait", "samples_per_second", "peak_memory"),
)


@dataclass(frozen=True)
class History:
    """What a run has recorded so far.

    steps: each of COLUMNS `[n]` float64, one number per training step; NaN where it was not
    recorded. validations, sessions: their lines in order, each with its step. non_finite: how many
    steps had a loss or gradient that was not finite. unreadable: how many lines are damaged, except
    for the last one. cut: whether the last line is incomplete, because it is being written or a
    kill cut it off.
    """

    steps: dict[str, np.ndarray]
    validations: tuple[dict[str, Any], ...]
    sessions: tuple[dict[str, Any], ...]
    non_finite: int
    unreadable: int
    cut: bool

    @property
    def last_step(self) -> int:
        told = [v["step"] for v in self.validations[-1:]] + [s["step"] for s in self.sessions[-1:]]
        return max([0, *told, *map(int, self.steps["step"][-1:])])


def read_history(path: Path) -> History:
    """Reads a metrics.jsonl. Raises UserError if there is none or it cannot be read."""
    columns = {name: array("d") for name in COLUMNS}
    validations, sessions = [], []
    non_finite = unreadable = 0
    cut = False
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                unreadable += cut  # the damaged line before was not the last one
                line = _parsed(text)
                cut = line is None
                if line is None:
                    continue
                if "session" in line:
                    sessions.append({"step": line["step"], **line["session"]})
                elif "loss" in line:
                    non_finite += line["loss"] is None or line.get("gradient_norm", 0) is None
                    for name, column in columns.items():
                        column.append(_number(line.get(name)))
                elif "validation_loss" in line:
                    validations.append(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); a run writes it from its start on"
        ) from None
    steps = {name: np.array(column) for name, column in columns.items()}
    return History(steps, tuple(validations), tuple(sessions), non_finite, unreadable, cut)


def _parsed(text: str) -> dict[str, Any] | None:
    """The line as a JSON object with a step, or None if it is not one."""
    try:
        line = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    session, loss = line.get("session", {}), line.get("validation_loss")
    if not isinstance(session, dict) or not isinstance(loss, int | float | None):
        return None
    return line if isinstance(session.get("total_steps"), int | None) else None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 16 else float(digits)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def window_means(values: np.ndarray, count: int = 50, least: int = 20) -> np.ndarray:
    """`[n] -> [w, 4]`: first and last index, mean and standard error of w equal stretches.

    There are at most `count` stretches of at least `least` values each. Mean and error ignore
    values that are not finite, and a stretch without finite ones is left out.
    """
    n_windows = max(1, min(count, len(values) // least)) if len(values) else 0
    borders = np.linspace(0, len(values), n_windows + 1).astype(int)
    rows = []
    for first, end in itertools.pairwise(borders):
        finite = values[first:end][np.isfinite(values[first:end])]
        if len(finite):
            rows.append((first, end - 1, finite.mean(), finite.std() / math.sqrt(len(finite))))
    return np.array(rows).reshape(-1, 4)
