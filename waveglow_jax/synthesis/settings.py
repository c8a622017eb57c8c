"""Settings of synthesis: temperature, seed, corrections and dtype, checked once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from waveglow_jax.config import DTYPES, LATENT, MAX_CONSISTENCY, SynthesisConfig

Consistency = int | Literal["latent"] | None
"""The consistency as callers give it; None means the voice's own."""


@dataclass(frozen=True)
class Settings:
    """The settings of `Voice.synthesize`. Raises ValueError for invalid values.

    sigma: the temperature. consistency: the number of corrections towards the mel, or "latent".
    denoise: the strength of the denoiser. dtype: the compute dtype of the matmuls inside WN.
    """

    sigma: float
    consistency: int | Literal["latent"]
    seed: int = 0
    denoise: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        for name, value in (("sigma", self.sigma), ("denoise", self.denoise)):
            if not np.isfinite(value) or value < 0:
                raise ValueError(f"{name} {value} must be a number of at least 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} must be from 0 to {2**32 - 1}")


def settings_of(
    own: SynthesisConfig,
    sigma: float | None = None,
    seed: int = 0,
    denoise: float = 0.0,
    dtype: str = "float32",
    consistency: Consistency = None,
) -> Settings:
    """Returns settings, with the voice's own for None. Raises ValueError as `Settings` does."""
    consistency = checked_consistency(own, consistency)
    return Settings(own.sigma if sigma is None else sigma, consistency, seed, denoise, dtype)


def checked_consistency(own: SynthesisConfig, chosen: Consistency) -> int | Literal["latent"]:
    """The chosen consistency, or the voice's own for None. Raises ValueError for invalid ones."""
    consistency = own.consistency if chosen is None else chosen
    if isinstance(consistency, str) and consistency == LATENT:
        return LATENT
    is_count = isinstance(consistency, int | np.integer) and not isinstance(consistency, bool)
    if is_count and 0 <= consistency <= MAX_CONSISTENCY:
        return int(consistency)
    raise ValueError(
        f"consistency {consistency!r} must be a whole number from 0 to {MAX_CONSISTENCY}, or "
        f"{LATENT!r}"
    )


def streamable(consistency: int | Literal["latent"]) -> int:
    """The number of corrections. Raises ValueError for "latent"."""
    if consistency == LATENT:
        raise ValueError(
            f"consistency {LATENT!r} needs the whole mel before the first sample and cannot be "
            "streamed; take a number, such as 32"
        )
    return consistency


def check_dtype(dtype: str) -> None:
    """Raises ValueError if the dtype is not one that synthesis supports."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
