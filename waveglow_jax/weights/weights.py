"""The result of every reader of weights."""

from dataclasses import dataclass, field, replace
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import Params
from waveglow_jax.weights.moments import Moments


@dataclass(frozen=True)
class Weights:
    """A config and its float32 parameters, with information about their file.

    params: NumPy or JAX arrays, not yet on a device. kind: the container and its content.
    generation: how a published checkpoint names its layers; "" for our own files. notes: what was
    assumed or left out, one sentence each. training: iteration, epoch, learning rate and the like,
    if the file has them. moments: Adam's, if they were requested and the file has them.
    """

    config: Config
    params: Params = field(repr=False)
    kind: str
    generation: str = ""
    notes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    moments: Moments | None = field(default=None, repr=False)


def with_alternating_halves(weights: Weights) -> Weights:
    """The same weights read as the oldest class, whose odd flows swap the halves' roles."""
    if weights.config.waveglow.alternating_halves:
        return weights
    glow = replace(weights.config.waveglow, alternating_halves=True)
    return replace(
        weights,
        config=replace(weights.config, waveglow=glow),
        notes=(*weights.notes, "the halves change roles in odd flows (the oldest class)"),
    )


def with_moments(weights: Weights, moments: Moments | str | None) -> Weights:
    """The same weights with Adam's moments, or with a note that gives the reason for none."""
    if isinstance(moments, str):
        return replace(weights, notes=(*weights.notes, f"optimizer state left out: {moments}"))
    return replace(weights, moments=moments)
