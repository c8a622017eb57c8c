"""A conditioner of two layers, a perceptron over time, in place of WN.

The one line that makes the flow use it, for configs whose `WN_config` is an `MLPConfig`:

    steps.CONDITIONERS[MLPConfig] = MLP_CONDITIONER

tests/test_replaceable.py trains, inverts and synthesises with it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from waveglow_jax.flow.conditioner import Conditioner, ReceptiveField
from waveglow_jax.flow.upsampler import conditioning_channels
from waveglow_jax.flow.wn_kernels import matmul


@dataclass(frozen=True)
class MLPConfig:
    """Each step sees `receptive_field` steps to either side. A config asks for all of these."""

    n_hidden: int = 32
    receptive_field: int = 1

    def inputs(self, half, conditioning):
        """How many numbers the hidden layer sees per step: the taps', the conditioning's, and 1."""
        return (2 * self.receptive_field + 1) * half + conditioning + 1

    def n_parameters(self, half, conditioning):
        return self.n_hidden * (self.inputs(half, conditioning) + 2 * half)

    def check(self):
        """Raises UserError for values that cannot be."""


def init(key, config, half):
    hidden = config.waveglow.WN.n_hidden
    inputs = config.waveglow.WN.inputs(half, conditioning_channels(config))
    kernel = jax.random.normal(key, (inputs, hidden)) / inputs**0.5
    return {"in": kernel, "out": jnp.zeros((hidden, 2 * half))}


def apply(params, half, conditioning, mask, config, dtype):
    span, steps = config.waveglow.WN.receptive_field, half.shape[1]
    if mask is not None:  # selected, not multiplied: what lies outside may not be finite
        half = jnp.where(mask[:, :, None] > 0, half, 0)
    padded = jnp.pad(half, ((0, 0), (span, span), (0, 0)))
    taps = [padded[:, k : k + steps] for k in range(2 * span + 1)]
    seen = jnp.concatenate([*taps, conditioning, jnp.ones_like(half[..., :1])], axis=-1)
    hidden = jnp.tanh(matmul(seen, params["in"], dtype))
    shift, log_s = jnp.split(matmul(hidden, params["out"], dtype), 2, axis=-1)
    return shift, log_s


def receptive_field(config):
    span = config.waveglow.WN.receptive_field
    return ReceptiveField(total=span, widest_layer=span)


def flops(config, half):
    return 2 * config.waveglow.WN.n_parameters(half, conditioning_channels(config))


def lively(params, rng, std):
    return {**params, "out": jnp.asarray(std * rng.normal(size=params["out"].shape), "float32")}


MLP_CONDITIONER = Conditioner(init, apply, receptive_field, flops, lively)
