"""The likelihood of audio given its mel, and the loss that training minimises."""

import math

import jax
import jax.numpy as jnp


def loss(z: jax.Array, log_det: jax.Array, sigma: float = 1.0) -> jax.Array:
    """The original's scalar: (sum z^2 / (2 sigma^2) - sum log_det) / z.size.

    z `[B, N, G]`, log_det `[B]`. The negative log-likelihood per sample, less the constant
    0.5 ln(2 pi) + ln(sigma).
    """
    return (jnp.sum(z * z) / (2 * sigma**2) - jnp.sum(log_det)) / z.size


def log_likelihood(z: jax.Array, log_det: jax.Array, sigma: float = 1.0) -> jax.Array:
    """`[B]`: ln p(audio | mel) in nats per sample, all constants included, z ~ N(0, sigma^2)."""
    n = z.shape[1] * z.shape[2]
    energy = jnp.sum(z * z, axis=(1, 2)) / (2 * sigma**2)
    return (log_det - energy) / n - loss_constant(sigma)


def loss_constant(sigma: float = 1.0) -> float:
    """What `loss` leaves out: log-likelihood in nats per sample = -(loss + this)."""
    return 0.5 * math.log(2 * math.pi) + math.log(sigma)
