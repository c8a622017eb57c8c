"""Conversion of callers' arrays: from NumPy, JAX or PyTorch, and mels with either axis first."""

from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class SupportsArray(Protocol):
    """An array of any library that NumPy can read, such as a PyTorch tensor."""

    def __array__(self) -> Any: ...


def on_host(array: Any) -> np.ndarray:
    """Converts any library's array to NumPy; the dtype stays, but PyTorch's bfloat16 is float32.

    Raises TypeError for a path, which only looks like an array to NumPy.
    """
    if isinstance(array, str | PathLike):
        raise TypeError(f"{array}: a path is no array; wg.read_audio or wg.read_mel reads the file")
    if hasattr(array, "detach"):  # PyTorch hands NumPy no gradient, GPU memory or bfloat16
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) == "torch.bfloat16" else array
    return np.asarray(array)


def frames_first(mel: Any, n_mel_channels: int) -> np.ndarray:
    """Returns the mel as `[..., F, M]`; files and other vocoders have `[..., M, F]`.

    The sizes decide which axis is which: where both are M, the mel is taken as `[..., F, M]`.
    """
    mel = on_host(mel)
    bins_first = mel.ndim in (2, 3) and mel.shape[-2] == n_mel_channels != mel.shape[-1]
    return mel.swapaxes(-1, -2) if bins_first else mel


def check_mel(mel: np.ndarray, n_mel_channels: int, at_least: int = 1) -> None:
    """Raises ValueError for a mel that is not `[F, M]` of `at_least` frames, or not finite."""
    if mel.ndim != 2 or mel.shape[1] != n_mel_channels or len(mel) < at_least:
        samples = "; resynthesize takes samples" if mel.ndim == 1 else ""
        raise ValueError(f"a mel of shape {mel.shape} is not [frames, {n_mel_channels}]{samples}")
    check_finite(mel)


def check_finite(mel: np.ndarray) -> None:
    """Raises ValueError for a mel that holds values that are not finite."""
    if not np.isfinite(mel).all():
        raise ValueError("the mel holds values that are not finite")
