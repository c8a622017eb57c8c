"""What callers give as arrays: of NumPy, JAX or PyTorch, and mels with either axis first."""

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class SupportsArray(Protocol):
    """An array of any library that NumPy can read, such as a tensor of PyTorch."""

    def __array__(self) -> Any: ...


def on_host(array: Any) -> np.ndarray:
    """The array of any library as one of NumPy, with its dtype (bfloat16 of PyTorch: float32)."""
    if hasattr(array, "detach"):  # PyTorch gives NumPy no gradient, no GPU memory and no bfloat16
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) == "torch.bfloat16" else array
    return np.asarray(array)


def frames_first(mel: Any, n_mel_channels: int) -> np.ndarray:
    """`[..., M, F]`, as files and other vocoders have it, or `[..., F, M]` -> `[..., F, M]`.

    The axes are told apart by their sizes: where both are M, the mel is taken as `[..., F, M]`.
    """
    mel = on_host(mel)
    bins_first = mel.ndim in (2, 3) and mel.shape[-2] == n_mel_channels != mel.shape[-1]
    return mel.swapaxes(-1, -2) if bins_first else mel
