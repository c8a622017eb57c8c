"""A flow of our bijections on a toy density: train it, invert it, check its log-determinant.

python docs/explanation/toy_flow.py

The density is a banana: x = (a, a^2 + b / 2), a and b normal. Start from here: a conditioner may be
any function, its parameters any pytree. (docs/explanation/latent.md says what to expect.)
"""

import jax
import jax.numpy as jnp
import optax

from waveglow_jax.flow import bijections as flow
from waveglow_jax.flow.likelihood import log_likelihood


def points(key, n):
    a, b = jax.random.normal(key, (2, n))
    density = jnp.log(2) - jnp.log(2 * jnp.pi) - (a**2 + b**2) / 2
    return jnp.stack([a, a**2 + b / 2], axis=-1)[:, None], density  # [B, 1 step, 2 channels], [B]


def layer(key):
    rotation = jnp.linalg.qr(jax.random.normal(key, (2, 2)))[0]
    return {"conv": rotation, "in": jax.random.normal(key, (2, 32)), "out": jnp.zeros((32, 2))}


def conditioner(params):
    def network(half):
        ones = jnp.ones_like(half)
        hidden = jnp.tanh(jnp.concatenate([half, ones], axis=-1) @ params["in"])
        return jnp.split(hidden @ params["out"], 2, axis=-1)  # shift, log_s

    return network


def forward(params, x):
    log_det = 0
    for each in params:
        x, of_conv = flow.invertible_conv_forward(each["conv"], x)
        x, of_coupling = flow.coupling_forward(conditioner(each), x)
        for local in (of_conv, of_coupling):
            log_det += flow.total_log_det(local, x.shape[:2])
    return x, log_det


def inverse(params, z):
    for each in reversed(params):
        z, _ = flow.coupling_inverse(conditioner(each), z)
        z, _ = flow.invertible_conv_inverse(jnp.linalg.inv(each["conv"]), z)
    return z


def main(steps=3000):
    params = [layer(key) for key in jax.random.split(jax.random.key(0), 2)]
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(state, key):
        def loss(params):
            return -log_likelihood(*forward(params, points(key, 512)[0])).mean()

        updates, adam = optimizer.update(jax.grad(loss)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), adam), None

    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)

    x, density = points(jax.random.key(2), 4096)
    z, log_det = forward(params, x)
    jacobian = jax.vmap(jax.jacobian(lambda x: forward(params, x.reshape(1, 1, 2))[0].ravel()))
    exact = jnp.linalg.slogdet(jacobian(x.reshape(-1, 2)))[1]
    found = {
        "nats per point": 2 * log_likelihood(z, log_det).mean(),
        "the density's own": density.mean(),
        "largest round-trip error": jnp.abs(inverse(params, z) - x).max(),
        "largest log-determinant error": jnp.abs(log_det - exact).max(),
    }
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    return found


if __name__ == "__main__":
    main()
