"""Weight normalisation: kernels of trained layers as directions and lengths."""

from collections.abc import Mapping

import jax.numpy as jnp

from waveglow_jax.flow.bijections import Params


def weight_norm(params: Params) -> Params:
    """Every `{v, g, bias}` of a tree as `{kernel, bias}`: kernel = g v / |v| per output channel.

    v `[taps, C_in, C_out]`, g `[C_out]` (Salimans & Kingma 2016, arXiv 1602.07868).
    """
    if "v" in params:
        v, g = params["v"], params["g"]
        norm = jnp.sqrt(jnp.sum(v * v, axis=(0, 1)))
        return {"kernel": v * (g / norm)[None, None], "bias": params["bias"]}
    return {k: weight_norm(p) if isinstance(p, Mapping) else p for k, p in params.items()}


def split_weight_norm(params: Params) -> Params:
    """Every `{kernel, bias}` of a tree as `{v, g, bias}` with g = |v|: the inverse at the start."""
    if "kernel" in params:
        v = params["kernel"]
        return {"v": v, "g": jnp.sqrt(jnp.sum(v * v, axis=(0, 1))), "bias": params["bias"]}
    return {k: split_weight_norm(p) if isinstance(p, Mapping) else p for k, p in params.items()}
