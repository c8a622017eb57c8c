"""Conversion of recordings of any kind to a training corpus: mono 16-bit WAV files of one rate.

Sub-folders stay. Unusable recordings are left out with their reason, never repaired: see `prepare`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soxr

from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, Input, find_inputs, find_unread, with_rivals
from waveglow_jax.files.sound import read_samples
from waveglow_jax.files.wav import write_wav
from waveglow_jax.text import read_json

PREPARED = "prepare.json"
LEFT_OUT = "left_out.txt"

# A recording is clipped if more than this share of a channel's samples lies at full scale, in runs
# of at least three. A peak normaliser leaves single samples at full scale; a flat top is damage.
_CLIPPED_SHARE = 0.001
_FULL_SCALE = 32766 / 32768
# A recording is silent if it never exceeds -60 dB of full scale, where 16 bits leave 33 steps for a
# whole voice. This is far stricter than `read_audio`, because a requested level would amplify such
# noise to a recording.
_SILENT_PEAK = 0.001
_PEAK = 0.95
# Limits in Hz: the converter would accept a thousandfold change, and use memory accordingly.
_RATES = (1000, 768_000)
# In dB of full scale. Below it 16 bits resolve almost nothing.
_LOWEST_LEVEL = -60.0
# Frames more than this many dB below the loudest are pauses, which do not affect the level.
_ACTIVE_DB = 40.0
_FRAME_SECONDS = 0.02
# A killed run repeats at most this many files.
_WRITTEN_EVERY = 500


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`.

    written: number of files converted by this run.
    kept: number of files that an earlier run had already converted.
    left_out: (input path, reason) of each file not used, including files of formats that are not
        read.
    seconds: duration of the audio in the files written and kept.
    rivals: number of files left out because another input would have the same output.
    """

    written: int
    kept: int
    left_out: tuple[tuple[str, str], ...]
    seconds: float
    rivals: int = 0


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    sampling_rate: int = 22050,
    level_dbfs: float | None = None,
    min_seconds: float = 0.5,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Converts recordings to mono 16-bit WAV files of one rate under `output`.

    inputs: as for `find_inputs`. Channels are averaged, and soxr (VHQ) changes the rate.
    sampling_rate: of the output, in Hz.
    level_dbfs: RMS level for the active parts (20 ms frames less than 40 dB below the loudest), in
        dB relative to full scale; it is lowered where the peak would exceed 0.95. None: levels do
        not change.
    min_seconds: shorter recordings are left out.
    workers: threads; decoding and resampling run in parallel.
    progress: called with (files done, files in all) after each file.

    A recording is left out, with the reason in the report and in `output/left_out.txt`, if it is of
    a format that is not read (.m4a and such, in the folders and globs given), unreadable, cut
    short, not finite, too short, silent (never above -60 dB of full scale), clipped (more than 0.1%
    of a channel's samples at full scale in runs of three or more), or if another input would have
    the same output.

    A second run converts only what is new or changed: `output/prepare.json` records the settings
    and each source's size and time. Outputs of sources that are not among `inputs` this time stay.

    Raises UserError if a setting is out of bounds, if the inputs cannot be found or lie inside
    `output`, if `output` was made with other settings or from other files of the same names, or if
    it cannot be written.
    """
    output, settings = Path(output), _Settings(sampling_rate, level_dbfs, min_seconds)
    _check_settings(settings)
    items = with_rivals(find_inputs(inputs, AUDIO_SUFFIXES, with_outputs=False))
    unread = find_unread(inputs)
    done = _read_manifest(output, settings)
    alone = [item for item in items if item.rival is None]
    _check_places(alone, output, done)
    results = _convert_all(alone, output, settings, done, workers, progress)
    for item in items:
        if item.rival is not None:
            results[item.path] = _Result(reason=f"would have the same output as {item.rival}")
    # The report follows the order of the inputs, not the order in which threads finished them.
    found = [(str(item.path), results[item.path]) for item in items]
    left_out = [(path, result.reason) for path, result in found if result.note is None]
    left_out += [(str(path), reason) for path, reason in unread]
    write_text(output / LEFT_OUT, "".join(f"{path}\t{reason}\n" for path, reason in left_out))
    notes = [result.note for _, result in found if result.note is not None]
    kept = sum(result.kept for _, result in found)
    seconds = sum(note["samples"] / sampling_rate for note in notes)
    rivals = len(items) - len(alone)
    return PrepareReport(len(notes) - kept, kept, tuple(left_out), seconds, rivals)


@dataclass(frozen=True)
class _Settings:
    """The settings of a run, which the manifest records; see `prepare`."""

    sampling_rate: int
    level_dbfs: float | None
    min_seconds: float


@dataclass(frozen=True)
class _Result:
    """The result for one input.

    note: its entry in the manifest; None if it was left out, for this reason. kept: whether an
    earlier run had converted it.
    """

    note: dict | None = None
    reason: str = ""
    kept: bool = False


def _convert_all(
    items: Sequence[Input],
    output: Path,
    settings: _Settings,
    done: dict[str, dict],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[Path, _Result]:
    """Converts the inputs in threads and keeps the manifest; the result of each, by its path.

    done: the manifest's entries before.
    """
    noted, results, written = dict(done), {}, 0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = {
            pool.submit(_convert, item, output, settings, done.get(_place(item))): item
            for item in items
        }
        try:
            for count, future in enumerate(as_completed(futures), 1):
                item, result = futures[future], future.result()
                results[item.path] = result
                if result.note is not None:
                    noted[_place(item)] = result.note
                    written += not result.kept
                elif noted.pop(_place(item), None):  # usable in an earlier run, and has changed
                    (output / _place(item)).unlink(missing_ok=True)
                if written and count % _WRITTEN_EVERY == 0:
                    _write_manifest(output, settings, noted)
                if progress:
                    progress(count, len(items))
        finally:
            # After an error or an interrupt, the next run need not repeat what is finished.
            pool.shutdown(wait=False, cancel_futures=True)
            _write_manifest(output, settings, noted)
    return results


def _place(item: Input) -> str:
    """The output's path below the output folder, which is its key in the manifest."""
    return item.relative.with_suffix(".wav").as_posix()


def _convert(item: Input, output: Path, settings: _Settings, before: dict | None) -> _Result:
    """Converts one input, unless an earlier run has. before: its entry in the manifest."""
    target = output / _place(item)
    try:
        source = _identity(item.path)
        if _is_done(target, source, before):
            return _Result(before, kept=True)
        samples, rate = read_samples(item.path)
    except UserError as error:
        # Only the reason: the report names the file, and leaving it out is the remedy.
        named = str(UserError(f"{item.path}: "))
        return _Result(reason=str(error).removeprefix(named).split("; ")[0])
    if reason := _unusable(samples, rate, settings.min_seconds):
        return _Result(reason=reason)
    samples = _resampled(samples.mean(axis=1), rate, settings.sampling_rate)
    if settings.level_dbfs is not None:
        samples = _levelled(samples, settings.sampling_rate, settings.level_dbfs)
    write_wav(target, samples, settings.sampling_rate)
    return _Result({**source, "samples": len(samples)})


def _check_settings(settings: _Settings) -> None:
    sampling_rate, level_dbfs = settings.sampling_rate, settings.level_dbfs
    low, high = _RATES
    if not low <= sampling_rate <= high:
        raise UserError(f"the rate {sampling_rate} must be from {low} to {high} Hz")
    if level_dbfs is not None and not _LOWEST_LEVEL <= level_dbfs <= 0:
        raise UserError(
            f"the level {level_dbfs:g} must be from {_LOWEST_LEVEL:g} to 0 dB relative to full "
            "scale; -22 is usual"
        )


def _check_places(items: list[Input], output: Path, done: dict[str, dict]) -> None:
    """Refuses inputs inside the output folder, and to overwrite the output of another source."""
    inside = os.path.realpath(output) + os.sep
    for item in items:
        real = os.path.realpath(item.path)
        if real.startswith(inside):
            raise UserError(
                f"{item.path}: lies inside the output folder {output}; choose an output folder "
                "outside of the inputs"
            )
        before = done.get(_place(item))
        # A source that has been moved does not count as another one.
        if before and before["source"] != real and os.path.exists(before["source"]):
            raise UserError(
                f"{item.path}: {output} already holds a file of that name, made from "
                f"{before['source']}; choose another output folder, or give the folder above both"
            )


def _identity(path: Path) -> dict:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return {
        "source": os.path.realpath(path),
        "source_size": found.st_size,
        "source_mtime_ns": found.st_mtime_ns,
    }


def _is_done(target: Path, source: dict, before: dict | None) -> bool:
    if before is None or not target.is_file():
        return False
    same = all(before[key] == source[key] for key in ("source_size", "source_mtime_ns"))
    return same and target.stat().st_size == 44 + 2 * before["samples"]


def _unusable(samples: np.ndarray, rate: int, min_seconds: float) -> str:
    """Why a recording [T, C] is left out; empty if it is not."""
    if not np.isfinite(samples).all():
        return "holds samples that are not finite numbers"
    seconds = len(samples) / rate
    if seconds < min_seconds:
        return f"too short: {seconds:.2f} s, at least {min_seconds:g} s wanted"
    if np.abs(samples.mean(axis=1)).max() < _SILENT_PEAK:
        return "silent"
    share = _clipped_share(samples)
    if share > _CLIPPED_SHARE:
        return f"clipped: {100 * share:.2f}% of its samples are flat at full scale"
    return ""


def _clipped_share(samples: np.ndarray) -> float:
    """The share of samples [T, C] in runs of 3 or more at full scale, in the worst channel."""
    at = np.abs(samples) >= _FULL_SCALE
    run = at[:-2] & at[1:-1] & at[2:]
    in_run = np.zeros_like(at)
    for offset in range(3):
        in_run[offset : len(at) - 2 + offset] |= run
    return float(in_run.mean(axis=0).max())


def _resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="VHQ")


def _levelled(samples: np.ndarray, sampling_rate: int, level_dbfs: float) -> np.ndarray:
    """Scales [T] so that its active frames have this RMS level, or a lower one at peak 0.95."""
    size = max(1, int(_FRAME_SECONDS * sampling_rate))
    count = max(1, len(samples) // size)
    frames = samples[: count * size].astype(np.float64).reshape(count, -1)
    power = np.square(frames).mean(axis=1)
    active = power[power >= power.max() * 10 ** (-_ACTIVE_DB / 10)].mean()
    peak = float(np.abs(samples).max())
    gain = _PEAK / peak
    if active > 0:  # 0 if all sound lies in the incomplete last frame
        gain = min(gain, 10 ** (level_dbfs / 20) / float(np.sqrt(active)))
    return samples * np.float32(gain)


def _read_manifest(output: Path, settings: _Settings) -> dict[str, dict]:
    """Reads earlier runs' entry of each output, by its relative path; refuses other settings."""
    path = output / PREPARED
    if not path.exists():
        return {}
    content = read_json(path)
    try:
        before, files = content["settings"], content["files"]
        keys = {"source", "source_size", "source_mtime_ns", "samples"}
        valid = isinstance(before, dict) and all(keys <= note.keys() for note in files.values())
    except (TypeError, KeyError, AttributeError):
        valid = False
    if not valid:
        raise UserError(f"{path}: not written by this program; choose another output folder")
    changed = [
        f"{name} {before.get(name)} then and {value} now"
        for name, value in asdict(settings).items()
        if before.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{path}: the folder was made with other settings ({', '.join(changed)}); choose "
            "another output folder, or delete this one"
        )
    return files


def _write_manifest(output: Path, settings: _Settings, files: dict[str, dict]) -> None:
    content = {"settings": asdict(settings), "files": dict(sorted(files.items()))}
    write_text(output / PREPARED, json.dumps(content, indent=1) + "\n")
