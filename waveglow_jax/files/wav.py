"""Writes recordings as 16-bit WAV files, whole or not at all.

Audio is mono here, `[T]` floating point in [-1, 1].
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.paths import local_path


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as int16 of the same shape: multiplied by 32768, rounded and clipped."""
    scaled = np.rint(np.asarray(samples, dtype=np.float32) * np.float32(32768))
    return np.clip(scaled, -32768, 32767).astype(np.int16)


def write_wav(path: str | Path, samples: np.ndarray, sampling_rate: int) -> None:
    """Writes a mono 16-bit WAV file, whole or not at all, and creates its folders.

    samples: `[T]` floating point, full scale 1 (see `to_int16`).
    sampling_rate: in Hz.

    Raises UserError if samples are not finite, are too many for the format (4 GiB), or if the file
    cannot be written; ValueError if they are not one-dimensional floats.
    """
    write_wav_blocks(local_path(path), [np.asarray(samples)], sampling_rate)


def write_wav_blocks(path: str | Path, blocks: Iterable[np.ndarray], sampling_rate: int) -> None:
    """`write_wav` for samples in blocks `[n]`; writes each block as soon as it arrives."""
    form = struct.pack("<HHIIHH", 1, 1, sampling_rate, 2 * sampling_rate, 2, 16)

    def header(size: int) -> bytes:
        riff = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + form
        return riff + b"data" + struct.pack("<I", size)

    # soundfile would not report a full disk, so this code writes the file itself.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        size = 0
        file.write(header(size))
        for block in blocks:
            content = pcm16(block, path)
            size += len(content)
            if size + 36 > 0xFFFFFFFF:
                raise UserError(f"{path}: not written, too long for a WAV file; split the input")
            file.write(content)
        file.seek(0)
        file.write(header(size))


def pcm16(samples: np.ndarray, path: str | Path) -> bytes:
    """Samples `[T]` in [-1, 1] as 16-bit little-endian PCM, for the file `path`.

    Raises UserError if they are not finite, ValueError if they are not one-dimensional floats.
    """
    if samples.ndim != 1 or samples.dtype.kind in "iub":
        raise ValueError(f"samples must be [T] floats, got {samples.shape} {samples.dtype}")
    if not np.isfinite(samples).all():
        raise UserError(
            f"{path}: not written, its samples are not all finite numbers; the mel is probably of "
            "another convention: see `doctor` (python -m waveglow_jax doctor RECORDING MEL)"
        )
    return to_int16(samples).astype("<i2", copy=False).tobytes()
