"""What the flow asks of a coupling's conditioner, so that another network can take WN's place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import Params


class ReceptiveField(NamedTuple):
    """Steps to either side that an output depends on: in all, and through the widest single layer.

    Signals with as many masked steps between them as the widest layer spans are independent.
    """

    total: int
    widest_layer: int


class Apply(Protocol):
    """The conditioner itself: half `[B, N, C]` -> (shift, log_s), both `[B, N, C]`."""

    def __call__(
        self,
        params: Params,
        half: jax.Array,
        conditioning: jax.Array,
        mask: jax.Array | None,
        config: Config,
        dtype: Any,
    ) -> tuple[jax.Array, jax.Array]: ...


@dataclass(frozen=True)
class Conditioner:
    """A kind of conditioner, as functions. C: the channels of the half that it sees.

    init: (key, config, C) -> trained parameters, a tree of dicts, with which a coupling is the
    identity. Layers {v, g, bias} have weight norm, which the flow folds for `apply` and `fold`.
    apply: (shift, log_s) from parameters and the conditioning `[B, N, D]`. With a mask `[B, N]`
    steps outside are zero wherever a layer sees other steps; `dtype` is the compute dtype.
    receptive_field: (config) -> that of one conditioner, in steps.
    flops: (config, C) -> FLOPs per step, as published.
    lively: (trained parameters, rng, std) -> the same with outputs that are not zero.
    faults: (trained parameters) -> a sentence for each layer that training has left unused.
    fold: (parameters, upsampler, config, dtype) -> parameters that include the upsampler, for a
    conditioning of `[B, N / phases, D]`: the frames that overlap (`frames_seen`).
    folded_size: (config, dtype) -> bytes of what `fold` makes for all flows; None where it saves no
    FLOPs, where the group does not divide the hop, or where there is no `fold`.
    """

    init: Callable[[jax.Array, Config, int], Params]
    apply: Apply
    receptive_field: Callable[[Config], ReceptiveField]
    flops: Callable[[Config, int], float]
    lively: Callable[[Params, np.random.Generator, float], Params]
    faults: Callable[[Params], list[str]] = lambda params: []
    fold: Callable[[Params, Params, Config, Any], Params] | None = None
    folded_size: Callable[[Config, Any], int | None] = lambda config, dtype: None
