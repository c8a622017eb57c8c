"""What an evaluation found: a row per file, a summary per system, and both with their settings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from waveglow_jax.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Row:
    """A file of a system. values: by metric key; reasons: why a metric has none.

    offset (samples, positive: the output was late), length_difference (samples) and gain_db are
    what alignment and levelling took; resampled_from is the file's own rate in Hz, 0 if it was
    the references'.
    """

    system: str
    name: str
    values: dict[str, float]
    reasons: dict[str, str]
    offset: int
    length_difference: int
    gain_db: float
    resampled_from: int


@dataclass(frozen=True)
class Summary:
    """A system over its files: means by metric key, and mean differences to the baseline's."""

    system: str
    source: str
    files: int
    means: dict[str, Estimate]
    differences: dict[str, Estimate]
    offsets: tuple[int, int]
    gains_db: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """Everything a report says. left_out: (file or system, why); missing: metric key -> why.

    griffin_lim_iterations and noise_corrections are None where that baseline is no row.
    """

    reference: str
    sampling_rate: int
    names: tuple[str, ...]
    baseline: str
    griffin_lim_iterations: int | None
    noise_corrections: int | None
    machine: str
    summaries: tuple[Summary, ...]
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]
    missing: dict[str, str]
    audio: dict[str, dict[str, Path]]


def summary_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The report's figures for another program: everything but the rows and where audio lies."""
    left = ("rows", "audio")
    return {key: value for key, value in asdict(evaluation).items() if key not in left}
