"""The results of an evaluation: a row per file, a summary per system, and the settings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from waveglow_jax.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Row:
    """The results for one file of a system.

    values: the metrics by key. reasons: why a metric has no value. offset (samples, positive: the
    output was late), length_difference (samples) and gain_db: the corrections by alignment and
    levelling, see `alignment.Aligned`. resampled_from: the file's own rate in Hz, or 0 if it equals
    that of the references.
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
    """A system's means over its files by metric key, and mean differences to the baseline's."""

    system: str
    source: str
    files: int
    means: dict[str, Estimate]
    differences: dict[str, Estimate]
    offsets: tuple[int, int]
    gains_db: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report contains.

    left_out: (file or system, reason). missing: metric key -> reason. griffin_lim_iterations and
    noise_corrections are None if that baseline is not a row.
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
    """The report's figures for other programs: everything except the rows and the audio paths."""
    left = ("rows", "audio")
    return {key: value for key, value in asdict(evaluation).items() if key not in left}
