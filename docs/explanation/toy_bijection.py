"""A bijection of the flow in its own file: a trained scale for every channel.

y = exp(s) x at every step, so that log_det = sum s per step. The one line that puts it into every
flow:

    BIJECTIONS = (CONVOLUTION, SCALE, COUPLING)  # in flow/steps.py

tests/test_replaceable.py holds its log-determinant against the Jacobian's.
"""

import jax.numpy as jnp

from waveglow_jax.flow.steps import Bijection


def forward(log_scale, x, context):
    return x * jnp.exp(log_scale)[None, None], log_scale.sum()


def inverse(log_scale, y, context):
    return y * jnp.exp(-log_scale)[None, None], -log_scale.sum()


def init(key, config, channels):
    return jnp.zeros(channels)


SCALE = Bijection("scale", forward, inverse, "scale", init)
