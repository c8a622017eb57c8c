"""Reads mel files with full validation, and writes them whole or not at all.

A mel is `[F, M]` float32 (frames, bins) in memory and `[M, F]` in a file. Every fault of a file
raises a `UserError` of one line that begins with the file's name.
"""

from __future__ import annotations

import io
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from waveglow_jax.errors import UserError, why
from waveglow_jax.files.atomic import replacing
from waveglow_jax.files.torch_containers import InPieces
from waveglow_jax.files.torch_file import open_torch, tensors_in
from waveglow_jax.files.torch_values import said
from waveglow_jax.paths import check_no_device, local_path

# Limits of a compressed mel: bytes unpacked, and their ratio to the packed bytes. Only silence
# compresses further.
_MOST_UNPACKED, _MOST_GROWTH = 64 << 20, 20


def read_mel(path: str | Path, n_mel_channels: int) -> np.ndarray:
    """A mel-spectrogram, `[F, M]` float32, from .npy, .npz, .pt or .safetensors.

    The file holds `[M, F]`; `[1, M, F]` and `[F, M]` are recognised by shape (where both sizes
    equal M, `[M, F]` is assumed). .npz, .safetensors and a dict in a .pt: the only array, or the
    one named "mel".

    n_mel_channels: M, the number of bins that the model takes.

    Raises UserError if the file is missing, unreadable, truncated, a pickle, not floating point,
    empty, not finite, or has another number of bins. Nothing is unpickled, and sizes are checked
    against the file before memory is allocated.
    """
    path = local_path(path)
    mel = _read_array_file(Path(path), n_mel_channels)
    mel = mel.T if mel.shape[0] == n_mel_channels else mel
    with np.errstate(over="ignore"):
        mel = np.ascontiguousarray(mel, dtype=np.float32)
    if not np.isfinite(mel).all():
        raise UserError(f"{path}: holds values that are not finite numbers; compute the mel again")
    return mel


def read_any_mel(path: str | Path) -> np.ndarray:
    """The array of a mel file in any convention: `[A, B]` float64, unchanged.

    It may have any number of bins, either axis first, and non-finite values; otherwise it is read
    and refused as by `read_mel`.
    """
    return np.asarray(_read_array_file(Path(path), None), np.float64)


def _read_array_file(path: Path, n_mel_channels: int | None) -> np.ndarray:
    """The file's array `[A, B]`; A or B is n_mel_channels if that is given."""
    suffix = path.suffix.lower()
    readers = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".pt": _read_torch,
        ".safetensors": _read_safetensors,
    }
    if suffix not in readers:
        raise UserError(f"{path}: not a mel file; expected {', '.join(readers)}")
    try:
        if os.path.isdir(path):
            raise UserError(f"{path}: a folder where a mel file was expected")
        check_no_device(path)
        mel = readers[suffix](path, n_mel_channels)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {why(error)}") from error
    # [1, M, F] is squeezed before the caller identifies the axes.
    return mel[0] if mel.ndim == 3 else mel


def _check_array(
    path: Path, shape: tuple[int, ...], kind: str, n_mel_channels: int | None, name: str
) -> None:
    """Refuses arrays that cannot be a mel, by the header alone. kind: NumPy's dtype.kind."""
    if kind == "O":
        raise UserError(
            f"{path}: holds Python objects, which are never unpickled; save plain floats"
        )
    if kind != "f":
        raise UserError(f"{path}: holds {name}, log-mels are floating point; save it as float32")
    sizes = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    said = _said_shape(shape)
    if len(sizes) != 2:
        raise UserError(
            f"{path}: its shape is {said}, expected {n_mel_channels or 'bins'} x frames; "
            "save one mel per file"
        )
    if 0 in sizes:
        raise UserError(f"{path}: empty, its shape is {said}; leave it out")
    if n_mel_channels is not None and n_mel_channels not in sizes:
        raise UserError(
            f"{path}: {sizes[0]} mel bins (its shape is {said}), the model takes {n_mel_channels}; "
            "compute the mel with the model's settings"
        )


def _said_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _read_array(file: IO[bytes], size: int, path: Path, n_mel_channels: int | None) -> np.ndarray:
    """Reads an array in NumPy's format; checks its header against `size`, the bytes available."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format")
        if any(isinstance(size, bool) for size in shape):  # NumPy accepts a bool as an int
            raise ValueError(f"shape {shape}")
    # The header is parsed as Python, so an invalid one may raise any error of Python's parser.
    except (ValueError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise UserError(
            f"{path}: not a readable NumPy array; save it again with numpy.save"
        ) from error
    _check_array(path, shape, "O" if dtype.hasobject else dtype.kind, n_mel_channels, str(dtype))
    there, promised = size - file.tell(), int(np.prod(shape, dtype=object)) * dtype.itemsize
    if there < promised:
        raise UserError(f"{path}: cut short, {there} of {promised} bytes are there; copy it again")
    if there > promised:
        raise UserError(f"{path}: {there - promised} bytes too many for its shape; save it again")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _read_npy(path: Path, n_mel_channels: int | None) -> np.ndarray:
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: the file is empty; copy it again or leave it out")
    with open(path, "rb") as file:
        return _read_array(file, size, path, n_mel_channels)


def _read_npz(path: Path, n_mel_channels: int | None) -> np.ndarray:
    try:
        with open(path, "rb") as whole, zipfile.ZipFile(InPieces(whole)) as archive:
            names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
            member = archive.getinfo(_pick(path, names) + ".npy")
            if member.file_size > _MOST_UNPACKED + _MOST_GROWTH * member.compress_size:
                raise UserError(
                    f"{path}: unpacks to {member.file_size} bytes, far more than a mel would; "
                    "save it again with numpy.savez"
                )
            with archive.open(member) as file:
                return _read_array(file, member.file_size, path, n_mel_channels)
    except UserError:  # it is a ValueError too, and already has its message
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut short ({why(error)}); copy it again") from error
    except (NotImplementedError, RuntimeError) as error:  # another compression; encryption
        raise UserError(
            f"{path}: not a plain .npz ({why(error)}); save it again with numpy.savez"
        ) from error


def _read_torch(path: Path, n_mel_channels: int | None) -> np.ndarray:
    with open_torch(path) as file:
        tensors = tensors_in(file.tree)
        if not tensors:
            raise UserError(
                f"{path}: no tensor or array in it, but {said(file.tree)}; save the mel as a "
                "tensor: torch.save(torch.as_tensor(mel), FILE)"
            )
        tensor = _pick_tensor(path, tensors, n_mel_channels)
        _check_tensor(path, tensor, n_mel_channels)
        return file.array(tensor)


def _check_tensor(path: Path, tensor: Any, n_mel_channels: int | None) -> None:
    kind = "f" if "float" in tensor.dtype else "?"
    _check_array(path, tensor.shape, kind, n_mel_channels, tensor.dtype)


def _pick_tensor(path: Path, tensors: list[tuple[str, Any]], n_mel_channels: int | None) -> Any:
    """The tensor that is the mel: named "mel", the only one, or the only one of a mel's shape."""

    def could_be(tensor: Any) -> bool:
        try:
            _check_tensor(path, tensor, n_mel_channels)
        except UserError:
            return False
        return True

    every = [tensor for _, tensor in tensors]
    called_mel = [tensor for name, tensor in tensors if name.rpartition(".")[2] == "mel"]
    for some in (called_mel, every, list(filter(could_be, every))):
        if len(some) == 1:
            return some[0]
    first = [f"{name} of {_said_shape(each.shape)} {each.dtype}" for name, each in tensors[:4]]
    raise UserError(
        f"{path}: {len(tensors)} arrays, and it cannot be told which is the mel ({', '.join(first)}"
        f"{' ...' if len(tensors) > len(first) else ''}); save it by itself, or call it 'mel'"
    )


def _read_safetensors(path: Path, n_mel_channels: int | None) -> np.ndarray:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
    import safetensors

    os.stat(path)  # a missing file raises FileNotFoundError here
    try:
        # Opening checks the offsets of every tensor against the file's size.
        with safetensors.safe_open(path, framework="np") as file:
            name = _pick(path, list(file.keys()))
            header = file.get_slice(name)
            kind = "f" if header.get_dtype() in ("F16", "BF16", "F32", "F64") else "?"
            shape = tuple(header.get_shape())
            _check_array(path, shape, kind, n_mel_channels, header.get_dtype())
            return file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short ({why(error)}); copy it again") from error


def _pick(path: Path, names: list[str]) -> str:
    if "mel" in names:
        return "mel"
    if len(names) != 1:
        raise UserError(
            f"{path}: {len(names)} arrays and none is called 'mel'; save the mel under that name"
        )
    return names[0]


def write_mel(path: str | Path, mel: np.ndarray) -> None:
    """Writes a mel `[F, M]` as a .npy file that holds `[M, F]` float32, whole or not at all.

    Raises UserError if it is not finite or the file cannot be written; ValueError if it is not
    two-dimensional or the name does not end in .npy.
    """
    mel = np.asarray(mel, dtype=np.float32)
    if mel.ndim != 2 or Path(path).suffix.lower() != ".npy":
        raise ValueError(f"write_mel writes [F, M] to a .npy file, got {mel.shape} for {path}")
    if not np.isfinite(mel).all():
        raise UserError(f"{path}: not written, its values are not all finite numbers")
    # NumPy writes to memory first: if it writes an array straight to a file, its errors do not
    # give the reason.
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(mel.T), allow_pickle=False)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content.getbuffer())
