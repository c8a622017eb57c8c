"""The steps of the flow, in one order for all traversals: forward, inverse, and layer by layer.

Arrays: the state between two steps `[B, N, G]`, N = T / group. A step works on its last `channels`
channels; those before them are early outputs, which have left the flow and are part of z.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from waveglow_jax.config import Config, WNConfig
from waveglow_jax.flow.bijections import (
    Params,
    coupling_forward,
    coupling_inverse,
    invertible_conv_forward,
    invertible_conv_inverse,
    squeeze,
    unsqueeze,
)
from waveglow_jax.flow.conditioner import Conditioner
from waveglow_jax.flow.weight_norm import weight_norm
from waveglow_jax.flow.whitening import whitening_of
from waveglow_jax.flow.wn import WN_CONDITIONER


@flax.struct.dataclass
class Context:
    """The inputs that a bijection may depend on besides its parameters and the signal.

    conditioning `[B, N, D]`, or `[B, N / phases, D]` where the conditioners include the upsampler
    (`waveglow.conditioning_of`); mask `[B, N]` or None; dtype: the conditioner's compute dtype;
    swapped: whether the second half conditions the first. The last two and config are static.
    """

    config: Config = flax.struct.field(pytree_node=False)
    conditioning: Any = None
    mask: jax.Array | None = None
    dtype: Any = flax.struct.field(pytree_node=False, default=jnp.float32)
    swapped: bool = flax.struct.field(pytree_node=False, default=False)


Direction = Callable[[Any, jax.Array, Context], tuple[jax.Array, jax.Array]]
"""(parameters, x `[B, N, C]`, context) -> (result `[B, N, C]`, local log_det)."""


@dataclass(frozen=True)
class Bijection:
    """A building block of the flow: both directions, and how its parameters are made.

    kind: its name in reports. name: the key of its parameters in those of a flow. init: (key,
    config, channels) -> the parameters that `forward` takes. prepare: these -> the parameters that
    `inverse` takes, computed once for many calls. log_det has the form that `total_log_det` takes.
    """

    kind: str
    forward: Direction
    inverse: Direction
    name: str = ""
    init: Callable[[jax.Array, Config, int], Any] = lambda key, config, channels: {}
    prepare: Callable[[Any], Any] = lambda params: params


@flax.struct.dataclass
class Step:
    """A bijection with its parameters, at its place in the flow: a pytree.

    flow: the number of its flow, -1 for the whitening. channels: the number of channels that it
    works on.
    """

    params: Any
    context: Context
    bijection: Bijection = flax.struct.field(pytree_node=False)
    flow: int = flax.struct.field(pytree_node=False)
    channels: int = flax.struct.field(pytree_node=False)

    def forward(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.bijection.forward(self.params, x, self.context)

    def inverse(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.bijection.inverse(self.params, y, self.context)


class LogDet(NamedTuple):
    """The local log-determinant of one step, in the form that `total_log_det` takes."""

    kind: str
    flow: int
    local: jax.Array


def flow_steps(flows: Sequence[Params], context: Context, whitening: Any = None) -> Iterator[Step]:
    """The steps from audio to z: the whitening, then each flow's bijections.

    flows: the parameters of each flow, prepared ones for `Step.inverse`. whitening: the result of
    `whitening_given`, or None for the part of the flow after the whitening.
    """
    glow = context.config.waveglow
    if whitening is not None:
        yield Step(whitening, context, WHITENING, -1, glow.n_group)
    for k, params in enumerate(flows):
        here = replace(context, swapped=glow.halves_swapped(k))
        for bijection in BIJECTIONS:
            yield Step(params.get(bijection.name), here, bijection, k, glow.channels(k))


# ------------------------------------------------------------------------------ whitening


def whitening_given(
    mel: jax.Array,
    config: Config,
    n_samples: int,
    past: jax.Array | None = None,
    first_frame: int = 0,
) -> Any:
    """Parameters of `WHITENING`: (the mel's spectra, past), or None without a whitening.

    past: the samples `[B, order]` before the audio, or None. first_frame: the frame of the mel at
    the audio's first hop.
    """
    form = whitening_of(config)
    return None if form is None else (form.of_mel(mel, config, n_samples, first_frame), past)


def _whiten(given: Any, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    form, (spectrum, past) = whitening_of(context.config), given
    assert form is not None
    y, log_det = form.forward(spectrum, unsqueeze(x), past)
    return squeeze(y, x.shape[-1]), log_det


def _colour(given: Any, y: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    form, (spectrum, past) = whitening_of(context.config), given
    assert form is not None
    x, log_det = form.inverse(spectrum, unsqueeze(y), past)
    return squeeze(x, y.shape[-1]), log_det


WHITENING = Bijection("whitening", _whiten, _colour)


# ------------------------------------------------------------------------------ 1x1 convolution


def _rotation(key: jax.Array, config: Config, channels: int) -> jax.Array:
    """A random rotation `[C, C]`, det +1."""
    rotation = jnp.linalg.qr(jax.random.normal(key, (channels, channels)))[0]
    return rotation.at[:, 0].multiply(jnp.sign(jnp.linalg.det(rotation)))


CONVOLUTION = Bijection(
    "1x1 convolution",
    lambda weight, x, context: invertible_conv_forward(weight, x),
    lambda prepared, y, context: invertible_conv_inverse(prepared["inverse"], y),
    "conv",
    _rotation,
    lambda weight: {"inverse": jnp.linalg.inv(weight)},
)


# ------------------------------------------------------------------------------ coupling


CONDITIONERS: dict[type, Conditioner] = {WNConfig: WN_CONDITIONER}
"""The conditioner of each class of hyper-parameters that a config's `WN_config` may have."""


def conditioner_of(config: Config) -> Conditioner:
    """The conditioner of the config's couplings."""
    return CONDITIONERS[type(config.waveglow.WN_config)]


def shift_and_scale(
    prepared: Params, half: jax.Array, context: Context
) -> tuple[jax.Array, jax.Array]:
    """(shift, log_s) of a coupling; `prepared` has the weight norm folded."""
    config = context.config
    return conditioner_of(config).apply(
        prepared, half, context.conditioning, context.mask, config, context.dtype
    )


def _couple(params: Params, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    network = partial(shift_and_scale, weight_norm(params), context=context)
    return coupling_forward(network, x, context.swapped)


def _uncouple(prepared: Params, y: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
    network = partial(shift_and_scale, prepared, context=context)
    return coupling_inverse(network, y, context.swapped)


COUPLING = Bijection(
    "coupling",
    _couple,
    _uncouple,
    "wn",
    lambda key, config, channels: conditioner_of(config).init(key, config, channels // 2),
    weight_norm,
)

BIJECTIONS = (CONVOLUTION, COUPLING)
"""The bijections of every flow, in the order from audio to z."""
