"""Mean opinion scores from results: which raters count, the confidence intervals, the agreement.

A result is the JSON object that the page creates; see `read_result`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.errors import UserError, escaped
from waveglow_jax.evaluation.statistics import Estimate, crossed_mean
from waveglow_jax.text import number_of, read_json


@dataclass(frozen=True)
class Ratings:
    """N ratings, arrays `[N]`: scores 1 to 5 (float64), system, rater and utterance (str)."""

    scores: np.ndarray
    systems: np.ndarray
    raters: np.ndarray
    utterances: np.ndarray


@dataclass(frozen=True)
class Scores:
    """The scores of a listening test.

    mos: mean opinion scores by system, in the key's order. raters: by name, the correlation of a
    rater's scores with the mean of the others'. rejected: (file, reason) of each result that does
    not count. agreement: Krippendorff's alpha for interval data, or None if no clip was rated twice
    or all ratings are equal.
    """

    mos: dict[str, Estimate]
    raters: dict[str, float | None]
    rejected: tuple[tuple[str, str], ...]
    agreement: float | None


def score(key_path: str | Path, results: Sequence[str | Path]) -> Scores:
    """Scores of the test with this key, from result files or folders of them (.json).

    A result does not count if its rater failed the hearing check, has already been counted or
    stopped before the end, or if it is not a complete result of this test. Each such result is
    listed with its reason.
    Raises UserError if the key cannot be read, a path is missing, or no result counts.
    """
    key = _read_key(Path(key_path))
    ratings, rejected = read_results(key, _result_files(results))
    if not len(ratings.scores):
        why = f"; {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
        raise UserError(f"{key_path}: none of the {len(rejected)} results counts{why}")
    return Scores(
        mos=mean_opinion_scores(ratings, key["systems"]),
        raters=rater_correlations(ratings),
        rejected=tuple(rejected),
        agreement=krippendorff_alpha(
            ratings.scores, np.char.add(np.char.add(ratings.systems, "\0"), ratings.utterances)
        ),
    )


def table(scores: Scores) -> str:
    """The model card's table, and a line about which raters counted and how well they agreed."""
    lines = ["| Model | Mean Opinion Score (MOS) | ratings |", "| --- | --- | --- |"]
    for system, found in scores.mos.items():
        half = "" if found.high is None else f" \N{PLUS-MINUS SIGN} {found.high - found.mean:.4f}"
        name = re.sub(r"([\\`*_\[\]<>|])", r"\\\1", escaped(system))
        lines.append(f"| {name} | {found.mean:.3f}{half} | {found.n} |")
    agreement = "not to be told" if scores.agreement is None else f"{scores.agreement:.3f}"
    lines += [
        "",
        f"95% intervals for new raters and new utterances; "
        f"{number_of(len(scores.raters), 'rater')} counted, "
        f"{len(scores.rejected)} results rejected; agreement (Krippendorff's alpha): {agreement}",
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------ results that count


def read_results(
    key: dict[str, Any], files: Sequence[Path]
) -> tuple[Ratings, list[tuple[str, str]]]:
    """The ratings of every result that counts, and (file, reason) of those that do not."""
    rows: list[tuple[float, str, str, str]] = []
    rejected: list[tuple[str, str]] = []
    seen: set[str] = set()
    for path in files:
        try:
            rater, ratings = read_result(key, path)
            if rater in seen:
                raise UserError(f"{path}: rater {rater} has been counted already")
        except UserError as error:
            rejected.append((str(path), str(error).removeprefix(f"{path}: ")))
            continue
        seen.add(rater)
        for file, given in ratings.items():
            clip = key["clips"][file]
            rows.append((given, clip["system"], rater, clip["utterance"]))
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    scores, *names = columns
    return Ratings(np.array(scores, np.float64), *(np.array(each, str) for each in names)), rejected


def read_result(key: dict[str, Any], path: Path) -> tuple[str, dict[str, int]]:
    """The rater and the scores by clip of one result.

    A result is {"test", "rater", "check": {clip: count heard}, "ratings": {clip: 1 to 5}}. Raises
    UserError with the reason if it does not count.
    """
    found = read_json(path)
    try:
        test, rater, check, ratings = (found[k] for k in ("test", "rater", "check", "ratings"))
        whole = isinstance(rater, str) and isinstance(check, dict) and isinstance(ratings, dict)
    except (TypeError, KeyError, IndexError):
        whole = False
    if not whole or not rater:
        raise UserError(f"{path}: is no result of a listening test")
    if test != key["test"]:
        raise UserError(f"{path}: is of another test, {str(test)[:40]!r}")
    right = sum(check.get(file) == answer for file, answer in key["check"].items())
    if right < key["check_needed"]:
        raise UserError(f"{path}: hearing check failed, {right} of {len(key['check'])} right")
    unknown = set(ratings) - set(key["clips"])
    if unknown:
        raise UserError(f"{path}: rates a clip that is not of the test, {min(unknown)[:40]!r}")
    if not all(type(given) is int and 1 <= given <= 5 for given in ratings.values()):
        raise UserError(f"{path}: holds a score that is none of 1 to 5")
    heard = {key["clips"][file]["utterance"] for file in ratings}
    if len(heard) != len(ratings):
        raise UserError(f"{path}: rates one utterance twice")
    if len(ratings) != key["ratings_each"]:
        raise UserError(f"{path}: stopped early, {len(ratings)} of {key['ratings_each']} rated")
    return rater, ratings


def _read_key(path: Path) -> dict[str, Any]:
    key = read_json(path)
    wanted = ("test", "systems", "check", "check_needed", "ratings_each", "clips")
    kinds = (str, list, dict, int, int, dict)
    whole = (
        isinstance(key, dict)
        and all(isinstance(key.get(name), kind) for name, kind in zip(wanted, kinds, strict=True))
        and all(isinstance(system, str) for system in key["systems"])
        and all(map(_is_clip, key["clips"].values()))
    )
    if not whole:
        raise UserError(f"{path}: is no key of a listening test; `listening-test make` writes it")
    return key


def _is_clip(clip: Any) -> bool:
    return isinstance(clip, dict) and all(
        isinstance(clip.get(name), str) for name in ("system", "utterance")
    )


def _result_files(results: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for each in map(Path, results):
        if each.is_dir():
            files += sorted(each.rglob("*.json"))
        elif each.is_file():
            files.append(each)
        else:
            raise UserError(f"{each}: no such file or folder; check the path")
    if not files:
        raise UserError(f"{', '.join(map(str, results))}: no results (.json) in it")
    return files


# ------------------------------------------------------------------------------ figures


def mean_opinion_scores(ratings: Ratings, systems: Sequence[str]) -> dict[str, Estimate]:
    """The mean and its 95% interval (`statistics.crossed_mean`) of each system that was rated."""
    found = {}
    for system in systems:
        own = ratings.systems == system
        if own.any():
            found[system] = crossed_mean(
                ratings.scores[own], ratings.raters[own], ratings.utterances[own]
            )
    return found


def krippendorff_alpha(scores: np.ndarray, units: np.ndarray) -> float | None:
    """Scores `[N]` and the rated units `[N]` -> 1 - observed / expected disagreement, at most 1.

    Disagreements are squared differences (interval data). Units with one score form no pair and do
    not count. Returns None if there is no pair or if all scores are equal. Krippendorff 2011,
    "Computing Krippendorff's alpha-reliability".
    """
    _, places, counts = np.unique(units, return_inverse=True, return_counts=True)
    paired = counts[places] > 1
    scores, places = np.asarray(scores, np.float64)[paired], places[paired]
    n = len(scores)
    if n < 2 or np.ptp(scores) == 0:
        return None
    # Over ordered pairs, sum (a - b)^2 = 2 (m sum a^2 - (sum a)^2).
    sums = np.bincount(places, scores)
    squares = np.bincount(places, scores**2)
    size = np.bincount(places)
    there = size > 0
    within = 2 * (size * squares - sums**2)[there] / (size[there] - 1)
    observed = within.sum() / n
    expected = 2 * (n * np.sum(scores**2) - np.sum(scores) ** 2) / (n * (n - 1))
    return float(1 - observed / expected)


def rater_correlations(ratings: Ratings) -> dict[str, float | None]:
    """Pearson's correlation of each rater's mean scores per system with those of the other raters.

    The correlation is None where it is not defined.
    """
    found: dict[str, float | None] = {}
    for rater in dict.fromkeys(ratings.raters.tolist()):
        own = ratings.raters == rater
        pairs = []
        for system in np.unique(ratings.systems[own]):
            its = ratings.systems == system
            if (its & ~own).any():
                pairs.append((ratings.scores[its & own].mean(), ratings.scores[its & ~own].mean()))
        first, second = np.array(pairs).reshape(-1, 2).T
        varied = len(first) > 2 and np.ptp(first) > 0 and np.ptp(second) > 0
        found[rater] = float(np.corrcoef(first, second)[0, 1]) if varied else None
    return found
