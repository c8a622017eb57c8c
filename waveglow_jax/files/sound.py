"""Reads recordings with full validation. All sound enters this program through this module.

Audio is mono here, `[T]` float32 in [-1, 1], except for `read_samples`. Every fault of a file
raises a `UserError` of one line that begins with the file's name, whatever the libraries below
raise. An oddity of a file that is read all the same gives a `FileWarning`.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from waveglow_jax.errors import FileWarning, UserError, why
from waveglow_jax.files.containers import Container, inspect
from waveglow_jax.files.inputs import CONVERT
from waveglow_jax.paths import check_no_device, local_path

# A recording that never exceeds this is silent: it is a third of the smallest 16-bit step.
SILENCE = 1e-5
# Decoders of lossy formats overshoot full scale by a little, which is clipped. Samples far beyond
# it were never in [-1, 1] (16-bit values stored as floats, say), and clipping would destroy them.
_OVERSHOOT = 2.0
# All recordings have rates in this range (Hz). A damaged header may give a rate outside it, and
# resampling from 1 Hz would fill the memory.
_RATES = (1000, 1_000_000)
# Limits of the bytes that a file may decode to: a constant, and a factor per byte of the file. Only
# silence compresses further.
_MOST_DECODED, _MOST_GROWTH = 64 << 20, 512
# FLAC has 36 bits for the number of samples; this value or a larger one means "not known".
_UNKNOWN = 2**36 - 1
# Values decoded at a time: 1 MiB.
_BLOCK = 1 << 18
# Samples that a decoder of MP3 may leave out at the start or the end of a file: two frames.
_MP3_EDGE = 2 * 1152


def prepare_command(rate: int) -> str:
    """The command that makes mono recordings of this rate in Hz; 22050 is its default."""
    return f"python -m waveglow_jax prepare IN -o OUT{'' if rate == 22050 else f' --rate {rate}'}"


def read_samples(path: str | Path) -> tuple[np.ndarray, int]:
    """A whole recording of any rate and number of channels: `[T, C]` float32, and its rate in Hz.

    The values are as decoded: they are not clipped, and only their number is checked. Raises
    UserError if the file is missing, unreadable, truncated or empty. Warns (FileWarning) where
    truncation cannot be detected.
    """
    with _opened(path) as sound:
        return _whole(sound), sound.rate


def read_audio(path: str | Path, sampling_rate: int, *, convert: bool = False) -> np.ndarray:
    """A mono recording, `[T]` float32 in [-1, 1].

    sampling_rate: the rate in Hz that the file must have.
    convert: accept other rates and several channels too, with a FileWarning that reports the
        conversion: channels are averaged, and soxr (VHQ) changes the rate.

    Raises UserError if the file is missing, unreadable, truncated, empty or silent, if it holds
    samples that are not finite or far beyond full scale, or, without `convert`, if it has another
    rate or more than one channel. Warns as `read_samples` does.
    """
    path = local_path(path)
    with _opened(path) as sound:
        if not convert:
            _check_form(sound, sampling_rate)
        samples, rate = _in_range(_whole(sound), path), sound.rate
    if convert and (samples.shape[1], rate) != (1, sampling_rate):
        channels = f" in {samples.shape[1]} channels" if samples.shape[1] > 1 else ""
        note = f"{path}: {rate} Hz{channels}, taken as {sampling_rate} Hz mono"
        warnings.warn(note, FileWarning, stacklevel=2)
    samples = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="VHQ").clip(-1.0, 1.0)
    if np.abs(samples).max() < SILENCE:
        raise UserError(f"{path}: silent throughout; leave it out")
    return samples


def audio_frames(path: str | Path, sampling_rate: int, *, convert: bool = False) -> int:
    """The number of samples of a mono recording; decodes it only where nothing else gives it.

    convert: as for `read_audio`; the result is the number after the conversion, or one more.
    Raises UserError as `read_audio` does for faults that show without decoding: missing,
    unreadable, truncated, empty, another rate, more than one channel. Warns as it does, but not
    about a conversion.
    """
    with _opened(path) as sound:
        if convert:
            return -(-_length(sound, path) * sampling_rate // sound.rate)
        _check_form(sound, sampling_rate)
        return _length(sound, path)


def read_clip(path: str | Path, start: int, stop: int) -> np.ndarray:
    """Samples `start` up to `stop` of a mono recording, `[stop - start]` float32 in [-1, 1].

    Only these samples are decoded, or, where a clip would not be exact otherwise, all samples
    before them too (see `decoded_from_start`). Raises UserError if the file does not hold all of
    them or has more than one channel, or if they are not finite or far beyond full scale.
    """
    with _opened(path, warn=False) as sound:
        _check_mono(sound)
        there, samples = sound.frames, None
        if 0 <= start < stop and (there is None or stop <= there):
            samples = _decode(sound, start, stop)
            there = start + len(samples)
        if samples is None or len(samples) != stop - start:
            known = "fewer" if there is None else there
            raise UserError(
                f"{path}: samples {start} to {stop} asked for, it has {known}; "
                "the file has changed or is cut short, start again with it whole"
            )
        return _in_range(samples[:, 0], path)


def decoded_from_start(path: str | Path) -> bool:
    """Whether `read_clip` decodes all before the clip, as it does for Ogg, MP3 and a few codecs.

    After a seek into the middle of these, a decoder does not give the samples that it gives when it
    decodes from the start.
    """
    with _opened(path, warn=False) as sound:
        return not sound.seeks


# ------------------------------------------------------------------------------ opening


class _File(soundfile.SoundFile):
    """Reads on without seeking. soundfile itself seeks after each read of a seekable file."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class _Sound:
    """An open recording.

    files: its parts, to be decoded one after the other.
    frames: the number of samples that must be there; None if only decoding gives it.
    counted: the number of samples that should be there, except for a frame or two; None if unknown.
    sure: whether `frames` is reliable without decoding.
    seeks: whether the decoder gives the same samples after a seek as from the start.
    most: the number of samples that a file of this size may decode to.
    """

    path: Path
    files: tuple[_File, ...]
    rate: int
    channels: int
    format: str
    frames: int | None
    counted: int | None
    sure: bool
    seeks: bool
    most: int


@contextmanager
def _opened(path: str | Path, warn: bool = True) -> Iterator[_Sound]:
    path = Path(path)
    try:
        if os.path.isdir(path):
            raise UserError(f"{path}: a folder where a recording was expected")
        check_no_device(path)
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{path}: the file is empty; copy it again or leave it out")
        container = inspect(path)
        if warn and container.note:
            warnings.warn(container.note, FileWarning, stacklevel=4)
        with ExitStack() as stack:
            if container.mpeg:
                stack.enter_context(_without_mpg123())
            files = tuple(
                stack.enter_context(_sound_file(source, path))
                for source in _sources(path, container)
            )
            yield _sound(path, size, container, files)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {why(error)}") from error
    except soundfile.LibsndfileError as error:
        said = error.error_string.strip().rstrip(".")
        raise UserError(f"{path}: damaged or cut short ({said}); copy it again") from error
    except Exception as error:  # any kind: one file must not end a run over many
        raise UserError(
            f"{path}: cannot be decoded ({type(error).__name__}: {why(error)}); copy it again or "
            "leave it out"
        ) from error


def _sources(path: Path, container: Container) -> list[str | bytes | io.BytesIO]:
    if container.parts:
        memory = _Unending if container.mpeg else io.BytesIO
        return [memory(part) for part in container.parts]
    # The name is in bytes, because soundfile refuses a str that is not UTF-8. Windows has only
    # names that are.
    return [os.fsencode(path) if os.name == "posix" else str(path)]


class _Unending(io.BytesIO):
    """A stream that reports a far greater length than it has.

    libmpg123 guesses the number of samples from the length, and libsndfile stops there. libmpg123
    looks for a tag at the reported end, where it finds zeros.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._size = len(content)

    def _end(self) -> int:
        return 1000 * self._size + (1 << 20)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            return super().seek(self._end() + offset)
        return super().seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        end, place = self._end(), self.tell()
        if not end - 1024 <= place < end:
            return super().readinto(buffer)
        size = min(len(buffer), end - place)
        buffer[:size] = bytes(size)
        self.seek(place + size)
        return size


def _sound_file(source: str | bytes | io.BytesIO, path: Path) -> _File:
    try:
        return _File(source)
    except (soundfile.LibsndfileError, TypeError) as error:
        said = getattr(error, "error_string", str(error)).strip().rstrip(".")
        # libsndfile says this of a file that exists and is no MP3.
        said = "" if not said or "does not exist" in said else f" ({said})"
        raise UserError(
            f"{path}: not readable as audio{said}; copy it again or leave it out"
        ) from error


def _sound(path: Path, size: int, container: Container, files: tuple[_File, ...]) -> _Sound:
    first = files[0]
    forms = {(file.samplerate, file.channels) for file in files}
    if len(forms) > 1:
        said = ", ".join(f"{rate} Hz with {channels} channels" for rate, channels in sorted(forms))
        raise UserError(f"{path}: joined from recordings of several forms ({said}); take it apart")
    low, high = _RATES
    if not low <= first.samplerate <= high:
        raise UserError(
            f"{path}: says that its sampling rate is {first.samplerate} Hz, which no recording "
            "has; copy it again or leave it out"
        )
    known = len(files) == 1 and container.counted is None and 0 <= first.frames < _UNKNOWN
    if known and first.frames == 0:
        raise UserError(f"{path}: holds no samples; leave it out")
    plain = first.subtype.startswith(("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW"))
    packed = first.format in ("OGG", "MP3")
    most = (_MOST_DECODED + _MOST_GROWTH * size) // (4 * first.channels)
    return _Sound(
        path,
        files,
        first.samplerate,
        first.channels,
        first.format,
        first.frames if known else None,
        container.counted,
        container.sure and (plain or packed),
        known and plain and not packed,
        most,
    )


# ------------------------------------------------------------------------------ decoding


def _whole(sound: _Sound) -> np.ndarray:
    """All samples [T, C] float32; raises UserError if there are fewer than the header gives."""
    samples = _decode(sound, 0, None)
    promised = sound.frames
    if promised is None and sound.counted is not None:
        short = len(samples) < sound.counted - _MP3_EDGE
        promised = sound.counted if short else None
    if promised is not None and len(samples) != promised:
        raise UserError(
            f"{sound.path}: cut short, {len(samples)} of {promised} samples are there; "
            "copy it again"
        )
    if not len(samples):
        raise UserError(f"{sound.path}: holds no samples; leave it out")
    return samples


def _decode(sound: _Sound, start: int, stop: int | None) -> np.ndarray:
    """Samples start..stop (None: to the end) [n, C] float32; fewer where the sound ends earlier."""
    place = 0
    if sound.seeks and start:
        place = sound.files[0].seek(start)
    size = max(1, _BLOCK // sound.channels)
    blocks = [np.zeros((0, sound.channels), np.float32)]
    kept = 0
    for file in sound.files:
        while stop is None or place < stop:
            wanted = size if stop is None else min(size, stop - place)
            block = file.read(wanted, dtype="float32", always_2d=True)
            if not len(block):
                break
            block, place = block[max(0, start - place) :], place + len(block)
            kept += len(block)
            if kept > sound.most:
                raise UserError(
                    f"{sound.path}: unpacks to far more than a file of its size holds; "
                    f"leave it out, or convert it with: {CONVERT}"
                )
            blocks.append(block)
    return np.concatenate(blocks)


def _length(sound: _Sound, path: str | Path) -> int:
    """The number of samples of each channel, at the file's own rate."""
    if sound.frames is None or not sound.sure:
        return len(_whole(sound))
    if sound.format == "FLAC" and not len(_decode(sound, sound.frames - 1, sound.frames)):
        # FLAC's header gives a length even if the file is truncated: check that the end is there.
        raise UserError(f"{path}: cut short, its last sample is not there; copy it again")
    return sound.frames


def _check_mono(sound: _Sound) -> None:
    if sound.channels != 1:
        raise UserError(
            f"{sound.path}: {sound.channels} channels, one expected; mix down with: "
            f"{prepare_command(sound.rate)}"
        )


def _check_form(sound: _Sound, sampling_rate: int) -> None:
    if sound.rate != sampling_rate:
        raise UserError(
            f"{sound.path}: {sound.rate} Hz, {sampling_rate} expected; resample with: "
            f"{prepare_command(sampling_rate)}"
        )
    _check_mono(sound)


def _in_range(samples: np.ndarray, path: str | Path) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are not finite numbers; leave it out")
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > _OVERSHOOT:
        raise UserError(
            f"{path}: samples reach {peak:.6g} where full scale is 1; scale them and save it again"
        )
    return np.clip(samples, -1.0, 1.0)


# ------------------------------------------------------------------------------ quiet


_MPG123 = re.compile(
    rb"libmpg123|^Note: (Illegal|Trying|Skipped|Hit end|missing)"
    rb"|^Warning: (Real sample|Xing stream|Encountered more|Big change)"
)


class _Sieve:
    """Captures stderr while libmpg123, which cannot be silenced, runs in any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0

    def open(self) -> None:
        with self.lock:
            if not self.users:
                os.pread  # noqa: B018 - fails before anything changes: Windows has none
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the last user
                self.own = os.dup(2)
                os.dup2(self.file.fileno(), 2)
                self.passed = 0
            self.users += 1

    def close(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                os.dup2(self.own, 2)
            # pread leaves the file's position alone, which the writers to stderr share.
            size = os.fstat(self.file.fileno()).st_size - self.passed
            content = os.pread(self.file.fileno(), size, self.passed)
            whole = len(content) if not self.users else content.rfind(b"\n") + 1
            lines = io.BytesIO(content[:whole]).readlines()
            with open(self.own, "wb", closefd=False) as screen, suppress(OSError):
                screen.writelines(line for line in lines if not _MPG123.search(line))
            self.passed += whole
            if not self.users:
                os.close(self.own)
                self.file.close()


_SIEVE = _Sieve()


@contextmanager
def _without_mpg123() -> Iterator[None]:
    """Drops libmpg123's lines on stderr; the output of other code appears a moment later."""
    try:
        _SIEVE.open()
    except (OSError, AttributeError):  # no stderr, no space for it, or no pread on this system
        yield
        return
    try:
        yield
    finally:
        _SIEVE.close()
