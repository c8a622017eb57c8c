"""What every reader of weights gives back."""

from dataclasses import dataclass, field, replace
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import Params
from waveglow_jax.weights.moments import Moments


@dataclass(frozen=True)
class Weights:
    """A config and its float32 parameters, with what was found out about their file.

    params: NumPy or JAX arrays, not yet on a device. kind: the container and its content.
    generation: how a published checkpoint names its layers; "" for our own files. notes: what was
    assumed or left out, one sentence each. training: iteration, epoch, learning rate and the like,
    where the file says so. moments: Adam's, where they were asked for and are in the file.
    """

    config: Config
    params: Params = field(repr=False)
    kind: str
    generation: str = ""
    notes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    moments: Moments | None = field(default=None, repr=False)


def with_alternating_halves(weights: Weights) -> Weights:
    """The same weights read as the oldest class, whose halves change roles in odd flows."""
    if weights.config.waveglow.alternating_halves:
        return weights
    glow = replace(weights.config.waveglow, alternating_halves=True)
    return replace(
        weights,
        config=replace(weights.config, waveglow=glow),
        notes=(*weights.notes, "the halves change roles in odd flows (the oldest class)"),
    )


def with_moments(weights: Weights, moments: Moments | str | None) -> Weights:
    """The same weights with Adam's moments, or with a note of the reason why there are none."""
    if isinstance(moments, str):
        return replace(weights, notes=(*weights.notes, f"optimizer state left out: {moments}"))
    return replace(weights, moments=moments)
