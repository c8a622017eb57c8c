"""Evaluates any number of systems against the recordings that their audio was made from.

The rows always include the recordings themselves, and baselines that turn the same mels into audio
without a network: Griffin-Lim, and noise corrected towards the mel.
"""

import hashlib
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.alignment import align
from waveglow_jax.evaluation.baselines import BASELINES, make_baseline
from waveglow_jax.evaluation.compared import Compared, baseline_among, compared_of, name_of, sources
from waveglow_jax.evaluation.made import Made, add_record, file_state, read_records
from waveglow_jax.evaluation.metrics import METRICS, OF_SIGNALS, measure, missing_packages
from waveglow_jax.evaluation.results import Evaluation, Row, Summary
from waveglow_jax.evaluation.statistics import bootstrap_mean
from waveglow_jax.evaluation.systems import (
    RECORDINGS,
    System,
    files_by_name,
    is_audio_folder,
    make_with_weights,
)
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import check_outside
from waveglow_jax.files.sound import audio_frames, read_audio, read_samples
from waveglow_jax.interrupts import deaf_children

# Increased whenever a metric's definition changes, so that older rows are measured again.
_EDITION = 1
AUDIO = "audio"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Progress = Callable[[str, int, int], None]


def evaluate(
    reference: str | Path,
    systems: Sequence[System],
    output: str | Path,
    *,
    baselines: Sequence[str] = BASELINES,
    baseline: str | None = None,
    griffin_lim_iterations: int = 32,
    noise_corrections: int = 32,
    files: int | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Measures every system on every recording of `reference`; writes output/files.jsonl.

    reference: a folder of mono recordings of one rate; a system's files are matched to them by
        their path below its folder, without the suffix.
    baselines: the rows that need no weights, one or more of `systems.BASELINES`.
    baseline: the row that the others are compared with, per file; None means Griffin-Lim or, if
        that is not a row, the first row after the recordings.
    files: how many recordings are used, from the first on; None means all. workers: the number of
        processes that measure (1: no extra process).
    progress: called with (stage, done, total).

    A repeated run resumes: it reuses whatever was made or measured from the same files.
    Unreadable and unmatched files are listed in `left_out`. Raises UserError if no file is left,
    for two systems of one name, for an unknown baseline or none, for weights that cannot be read or
    do not match the rate, for an output that lies in a folder of recordings, and if the output
    cannot be written.
    """
    output = Path(output)
    for folder in [reference, *(s.source for s in systems if is_audio_folder(s.source))]:
        check_outside(output / AUDIO, folder)
    compared = compared_of(systems, baselines, griffin_lim_iterations, noise_corrections)
    baseline = baseline_among(compared.names, baseline)
    references, unreadable = _references(reference, compared.rate, files)
    missing = missing_packages()
    keys = tuple(key for key in OF_SIGNALS if key not in missing)

    with _processes(workers) as executor:
        made, unmatched = _make_all(compared, references, output / AUDIO, executor, progress)
        measured, unmeasured = _measure_all(
            references, made, compared.rate, keys, output, executor, progress
        )
    rows = [_with_made(row, made[row.system], compared.rate, references) for row in measured]
    evaluation = Evaluation(
        reference=name_of(reference),
        sampling_rate=compared.rate,
        names=tuple(references),
        baseline=baseline,
        griffin_lim_iterations=griffin_lim_iterations if "griffin-lim" in baselines else None,
        noise_corrections=noise_corrections if "noise" in baselines else None,
        machine=_machine(),
        summaries=tuple(_summaries(sources(compared, reference), rows, baseline)),
        rows=tuple(rows),
        left_out=(*unreadable, *unmatched, *unmeasured),
        missing=missing,
        audio={name: made[name].files for name in compared.names},
    )
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_text(output / "files.jsonl", text)
    return evaluation


def _references(
    folder: str | Path, rate: int, files: int | None
) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """The first `files` recordings that can be used, and the reasons why others cannot."""
    usable: dict[str, Path] = {}
    left_out = []
    for name, path in files_by_name(folder).items():
        if files is not None and len(usable) >= files:
            break
        try:
            if len(read_audio(path, rate)) < rate // 2:
                raise UserError(f"{path}: shorter than half a second")
            usable[name] = path
        except UserError as error:
            left_out.append(_reason(path, error))
    if not usable:
        raise UserError(f"{folder}: no usable recording; {left_out[0][0]}: {left_out[0][1]}")
    return usable, left_out


def _reason(path: Path, error: Exception) -> tuple[str, str]:
    return str(path), str(error).removeprefix(f"{path}: ").split("; ")[0]


def _make_all(
    compared: Compared,
    references: dict[str, Path],
    output: Path,
    executor: Executor | None,
    progress: Progress,
) -> tuple[dict[str, Made], list[tuple[str, str]]]:
    """The audio of every row, made where it does not exist yet, and the files that are missing."""
    made = {RECORDINGS: Made(references, {})}
    left_out = []
    for each in compared.baselines:
        made[each.name] = make_baseline(
            each, references, compared.rate, output, executor, partial(progress, each.name)
        )
    for system in compared.systems:
        if system.name in compared.voices:
            voice = compared.voices[system.name]
            made[system.name] = make_with_weights(
                system, voice, references, output, partial(progress, system.name)
            )
        else:
            found, unmatched = _matched(system, references)
            left_out += unmatched
            made[system.name] = Made(found, {})
    return made, left_out


def _matched(
    system: System, references: dict[str, Path]
) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    assert system.source is not None  # a folder of recordings
    found = files_by_name(system.source)
    shared = {name: found[name] for name in references if name in found}
    if not shared:
        raise UserError(
            f"--system {system.name}: no file in {system.source} has the name of a reference, "
            f"such as {next(iter(references))}; rename them"
        )
    without = [name for name in references if name not in found]
    return shared, [
        (f"{system.name}: {name}", f"no such file in {system.source}") for name in without
    ]


def _machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
        model = lines[0] if lines else model
    except OSError:  # not Linux
        pass
    return f"{os.cpu_count()} CPU cores ({model})"


@contextmanager
def _processes(workers: int) -> Iterator[Executor | None]:
    if workers <= 1:
        yield None
        return
    # The workers are spawned because a fork of a process that runs JAX may hang. Each has one
    # thread because libraries that start one thread per core would slow each other down.
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield executor
    except BrokenProcessPool:
        raise UserError(
            "evaluate: the system stopped a process that measures, most likely for lack of memory; "
            "--workers 1 needs least. If it happens again, a damaged cache of numba can be the "
            "reason: set NUMBA_CACHE_DIR to a new folder. What was measured is kept"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measure_all(
    references: dict[str, Path],
    made: dict[str, Made],
    rate: int,
    keys: tuple[str, ...],
    output: Path,
    executor: Executor | None,
    progress: Progress,
) -> tuple[list[Row], list[tuple[str, str]]]:
    """One row per system and file, in order, and the files that could not be read."""
    records = output / "measured.jsonl"
    kept = {record.get("of"): record for record in read_records(records)}
    jobs = {}
    for system, audio in made.items():
        for name, path in audio.files.items():
            of = _identity(system, name, references[name], path, rate, keys)
            jobs[system, name] = (of, references[name], path, rate, keys)
    todo = {key: job for key, job in jobs.items() if job[0] not in kept}
    for count, (key, found) in enumerate(_results(todo, executor), 1):
        line = {"of": todo[key][0], **found}
        add_record(records, line)
        kept[line["of"]] = line
        progress("measuring", count, len(todo))
    rows, unreadable = [], []
    for (system, name), (of, _, path, *_) in jobs.items():
        line = kept[of]
        if "left_out" in line:
            unreadable.append((str(path), line["left_out"]))
        else:
            fields = {key: value for key, value in line.items() if key != "of"}
            rows.append(Row(system=system, name=name, **fields))
    return rows, unreadable


def _identity(
    system: str, name: str, reference: Path, path: Path, rate: int, keys: tuple[str, ...]
) -> str:
    parts = [_EDITION, system, name, file_state(reference), file_state(path), rate, keys]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _results(
    todo: dict[tuple[str, str], tuple], executor: Executor | None
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    if executor is None:
        yield from ((key, measure_file(*job[1:])) for key, job in todo.items())
        return
    with deaf_children():
        futures = {executor.submit(measure_file, *job[1:]): key for key, job in todo.items()}
    for future in as_completed(futures):
        yield futures[future], future.result()


def measure_file(reference: Path, path: Path, rate: int, keys: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a `Row` for one file, or {"left_out": reason} if it cannot be used."""
    try:
        truth = read_audio(reference, rate)
        audio, own_rate = read_output(path, rate)
        aligned = align(truth, audio, rate)
        if len(aligned.reference) < rate // 2:
            raise ValueError("less than half a second is shared with the recording")
    except ValueError as error:  # includes UserError
        return {"left_out": _reason(path, error)[1]}
    values, reasons = measure(aligned.reference, aligned.output, rate, keys)
    return {
        "values": values,
        "reasons": reasons,
        "offset": aligned.offset,
        "length_difference": aligned.length_difference,
        "gain_db": aligned.gain_db,
        "resampled_from": own_rate if own_rate != rate else 0,
    }


def read_output(path: Path, rate: int) -> tuple[np.ndarray, int]:
    """Samples `[T]` at `rate`, and the file's own rate, which may differ for other vocoders."""
    samples, own_rate = read_samples(path)
    if own_rate == rate:
        return read_audio(path, rate), rate
    if samples.shape[1] != 1 or not np.isfinite(samples).all():
        raise UserError(f"{path}: {samples.shape[1]} channels, or not finite; one is expected")
    import soxr

    return soxr.resample(samples[:, 0].astype(np.float64), own_rate, rate), own_rate


def _with_made(row: Row, made: Made, rate: int, references: dict[str, Path]) -> Row:
    """The row with the values that come from making its audio: real-time factor and likelihood."""
    values = dict(row.values)
    if row.name in made.seconds:
        values["rtf"] = made.seconds[row.name] * rate / audio_frames(references[row.name], rate)
    if row.name in made.nats:
        values["nats"] = made.nats[row.name]
    ordered = {metric.key: values[metric.key] for metric in METRICS if metric.key in values}
    return Row(**{**row.__dict__, "values": ordered})


def _summaries(sources: dict[str, str], rows: Sequence[Row], baseline: str) -> Iterator[Summary]:
    by_system = {name: {r.name: r for r in rows if r.system == name} for name in sources}
    for system, source in sources.items():
        own = by_system[system]
        means, differences = {}, {}
        for metric in METRICS:
            values = {n: r.values[metric.key] for n, r in own.items() if metric.key in r.values}
            if values:
                means[metric.key] = bootstrap_mean(np.array(list(values.values())))
            against = {
                n: value - by_system[baseline][n].values[metric.key]
                for n, value in values.items()
                if n in by_system[baseline] and metric.key in by_system[baseline][n].values
            }
            if against and system != baseline:
                differences[metric.key] = bootstrap_mean(np.array(list(against.values())))
        offsets = [row.offset for row in own.values()] or [0]
        gains = [row.gain_db for row in own.values()] or [0.0]
        yield Summary(
            system=system,
            source=source,
            files=len(own),
            means=means,
            differences=differences,
            offsets=(min(offsets), max(offsets)),
            gains_db=(min(gains), max(gains)),
        )
