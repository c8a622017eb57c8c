"""One-direction networks of the flow: WN, the coupling's conditioner, and the mel's upsampler.

Arrays: x `[B, N, C]`, mel `[B, F, M]`, conditioning `[B, N, D]`, mask `[B, N]`. Parameters keep
their dtype; `dtype` is that of the products (bfloat16 or float16 sum in float32).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import EXACT

Params = Mapping[str, Any]


def torch_like_init() -> nn.initializers.Initializer:
    """Uniform within 1 / sqrt(fan_in): how the original's convolutions start."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class WN(nn.Module):
    """Dilated, gated convolutions as in WaveNet (arXiv 1609.03499), without causality.

    Layer i has dilation 2^i; the conditioning is added before the gate tanh * sigmoid; every layer
    but the last feeds a residual, each adds to the skip sum. The last 1x1 layer starts at zero, so
    that a new flow is the identity.

    What is linear from one layer to the next is computed as one layer, which changes nothing but
    rounding: the skip sum is seen by the last layer alone, so each layer adds straight to the few
    outputs (`skip @ end`); the first dilated layer sees the first 1x1 layer alone, so it sees its
    few inputs. A seventh of all products less.
    """

    n_out: int
    n_layers: int
    n_channels: int
    n_skip_channels: int
    kernel_size: int
    dtype: Any = jnp.float32
    phases: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, conditioning: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """x `[B, N, C]`, conditioning `[B, N / phases, D]` -> `[B, N, n_out]`.

        `phases` steps share a row of the conditioning where its layers include the upsampler
        (`with_upsampler`); otherwise each has its own.

        With a mask, steps outside are zero wherever a convolution sees them, just as it sees zeros
        beyond the ends of an unpadded signal. The one place where backends go separate ways, each
        in the form that it is fastest in; the results differ by rounding alone.
        """
        params = self._layers(x.shape[-1], conditioning.shape[-1])
        return jax.lax.platform_dependent(
            params,
            x,
            conditioning,
            mask,
            cpu=partial(_layer_after_layer, dtype=self.dtype),
            default=partial(_halves_apart, dtype=self.dtype),
        )

    def _layers(self, n_in: int, n_conditioning: int) -> Params:
        """Every layer's `{kernel, bias}` by its name."""
        channels, skips = self.n_channels, self.n_skip_channels
        layers = {}

        def add(name: str, seen: int, features: int, **rest: Any) -> None:
            layers[name] = Layer(features, name=name, **rest)(seen)

        add("start", n_in, channels)
        for i in range(self.n_layers):
            add(f"in_layer_{i}", channels, 2 * channels, taps=self.kernel_size)
            add(f"cond_layer_{i}", n_conditioning, 2 * channels, phases=self.phases)
            last = i == self.n_layers - 1
            add(f"res_skip_layer_{i}", channels, skips if last else channels + skips)
        add("end", skips, self.n_out, kernel_init=nn.initializers.zeros_init())
        return layers


class Layer(nn.Module):
    """Kernel `[taps, C_in, C_out]` and bias `[C_out]` of a layer that sees so many channels.

    With phases, its kernel gives so many successive steps, `[taps, C_in, phases * C_out]`.
    """

    features: int
    taps: int = 1
    phases: int = 1
    kernel_init: nn.initializers.Initializer = torch_like_init()

    @nn.compact
    def __call__(self, seen: int) -> Params:
        shape = (self.taps, seen, self.phases * self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return {"kernel": kernel, "bias": bias}


def _keep(h: jax.Array, mask: jax.Array | None) -> jax.Array:
    # Chosen, not multiplied: what is not finite outside would come through a product.
    return h if mask is None else jnp.where(mask[:, :, None] > 0, h, 0)


def _layer_after_layer(
    params: Params, x: jax.Array, conditioning: jax.Array, mask: jax.Array | None, dtype: Any
) -> jax.Array:
    """What CPUs run: one layer after another, the first dilated one straight from WN's inputs."""
    start, end = params["start"], params["end"]
    channels, skips = start["kernel"].shape[-1], end["kernel"].shape[-2]
    inputs, widen = _with_bias(start, x, mask)
    h, out = matmul(inputs, widen, dtype), end["bias"][None, None].astype(x.dtype)
    for i in range(_depth(params)):
        conv, cond, both = (params[f"{name}_layer_{i}"] for name in ("in", "cond", "res_skip"))
        kernel = conv["kernel"] if i else exact(widen[None], conv["kernel"])
        gates = dilated_conv(h if i else inputs, kernel, 2**i, dtype)
        seen = _not_before(h, conditioning)
        gates = gates + matmul(seen, cond["kernel"][0], dtype).reshape(gates.shape)
        gates = gates + (conv["bias"] + cond["bias"])[None, None].astype(x.dtype)
        filtered, gate = jnp.split(gates, 2, axis=-1)
        activated = jnp.tanh(filtered) * jax.nn.sigmoid(gate)
        if i < _depth(params) - 1:
            residual = matmul(activated, both["kernel"][0, :, :channels], dtype)
            bias = both["bias"][None, None, :channels].astype(x.dtype)
            h = _keep(h + residual + bias, mask)
        skip = exact(both["kernel"][0, :, -skips:], end["kernel"][0])
        out = out + matmul(activated, skip, dtype)
        out = out + exact(both["bias"][None, None, -skips:], end["kernel"]).astype(x.dtype)
    return out


def _halves_apart(
    params: Params, x: jax.Array, conditioning: jax.Array, mask: jax.Array | None, dtype: Any
) -> jax.Array:
    """What accelerators run: filter and gate are a product each, so that tanh and sigmoid end a
    product. Activations and weights rest in `dtype` between the products, which sum in x's own."""
    wide = x.dtype
    narrow = min(jnp.dtype(dtype), wide, key=lambda d: d.itemsize)
    depth = _depth(params)
    gated = _gated if narrow == wide else _low_precision_gated

    def product(h: jax.Array, kernel: jax.Array) -> jax.Array:
        return matmul(h, kernel, narrow, wide)

    inputs, widen = _with_bias(params["start"], x, mask)
    h, out = product(inputs, widen), _end_bias(params)[None, None].astype(wide)
    for i in range(depth):
        weights = _weights(params, i, narrow)
        if i == 0:
            from_inputs = exact(widen[None], params["in_layer_0"]["kernel"]).astype(narrow)
            weights["gate"]["in"] = _halves(from_inputs, widen.shape[1])
        seen = h if i else inputs.astype(narrow)
        activated = gated(seen, conditioning, weights["gate"], 2**i)
        if i < depth - 1:
            residual = product(activated, weights["res"])
            residual = residual + weights["res_bias"][None, None].astype(wide)
            h = _keep(h + residual, mask).astype(narrow)
        out = out + product(activated, weights["end"])
    return out


def _not_before(h: jax.Array, conditioning: jax.Array) -> jax.Array:
    """The conditioning as it is, but only once h is there.

    Nothing in it depends on the layers before: left alone, XLA computes every layer's share of it
    at the start and keeps them all. On CPUs it drops a barrier; so one number decides, that cannot
    be above and below zero.
    """
    one = h[:1, :1, :1]
    return jnp.where((one > 0) & (one < 0), 0, conditioning)


def _gated(h: jax.Array, conditioning: jax.Array, weights: Params, dilation: int) -> jax.Array:
    """tanh * sigmoid of a dilated convolution of h and a 1x1 one of the conditioning.

    h `[B, N, C_in]`, conditioning `[B, N / phases, D]` -> `[B, N, C]` in h's dtype. Sums, tanh and
    sigmoid in conditioning's dtype.
    """
    filtered, gate = _halves_of_gate(h, conditioning, weights, dilation)
    return filtered * gate


def _halves_of_gate(
    h: jax.Array, conditioning: jax.Array, weights: Params, dilation: int
) -> tuple[jax.Array, jax.Array]:
    # By themselves: tanh and sigmoid are then the end of a product each, not one more pass. The
    # barrier holds what the first leaves to the few bytes of its dtype.
    wide = conditioning.dtype
    seen = _seen_by_taps(h, dilation, _taps(h, weights))
    filtered, gate = (
        matmul(seen, conv, h.dtype, wide)
        + matmul(conditioning.astype(h.dtype), cond, h.dtype, wide).reshape(*h.shape[:2], -1)
        + bias[None, None].astype(wide)
        for conv, cond, bias in zip(*map(weights.get, ("in", "cond", "bias")), strict=True)
    )
    filtered = jax.lax.optimization_barrier(jnp.tanh(filtered).astype(h.dtype))
    return filtered, jax.nn.sigmoid(gate).astype(h.dtype)


_low_precision_gated = jax.custom_vjp(_gated, nondiff_argnums=(3,))


def _low_precision_gated_fwd(h, conditioning, weights, dilation):
    filtered, gate = _halves_of_gate(h, conditioning, weights, dilation)
    return filtered * gate, (h, conditioning, weights, filtered, gate)


def _low_precision_gated_bwd(dilation, saved, g):
    # Autodiff alone would keep the taps' inputs and float32 gates, multiply by half and half, and
    # add the taps' shares up shifted. A convolution's slope is itself one, with the taps reversed.
    h, conditioning, weights, filtered, gate = saved
    narrow, wide, taps = h.dtype, conditioning.dtype, _taps(h, weights)
    g, t, s = (v.astype(wide) for v in (g, filtered, gate))
    slopes = (g * s * (1 - t * t)).astype(narrow), (g * t * s * (1 - s)).astype(narrow)

    def seen(v: jax.Array) -> jax.Array:
        return _seen_by_taps(v, dilation, taps)

    def reversed_taps(conv: jax.Array) -> jax.Array:
        by_tap = conv.reshape(taps, h.shape[-1], -1)[::-1]
        return by_tap.transpose(0, 2, 1).reshape(-1, h.shape[-1])

    # A product a half: all six taps' inputs side by side would be laid out in memory first.
    dh = sum(
        matmul(seen(slope), reversed_taps(conv), narrow, wide)
        for slope, conv in zip(slopes, weights["in"], strict=True)
    )
    of_rows = [slope.reshape(*conditioning.shape[:2], -1) for slope in slopes]
    back = jnp.concatenate([cond.T for cond in weights["cond"]])
    d_conditioning = matmul(jnp.concatenate(of_rows, axis=-1), back, narrow, wide)

    def of_kernel(x: jax.Array, slope: jax.Array) -> jax.Array:
        precision = EXACT if narrow == wide else None
        return jnp.einsum(
            "...i,...o->io", x, slope, preferred_element_type=wide, precision=precision
        ).astype(narrow)

    d_weights = {
        "in": tuple(of_kernel(seen(h), slope) for slope in slopes),
        "cond": tuple(of_kernel(conditioning.astype(narrow), slope) for slope in of_rows),
        "bias": tuple(
            slope.astype(wide).sum(axis=(0, 1)).astype(bias.dtype)
            for slope, bias in zip(slopes, weights["bias"], strict=True)
        ),
    }
    return dh.astype(narrow), d_conditioning, d_weights


_low_precision_gated.defvjp(_low_precision_gated_fwd, _low_precision_gated_bwd)


def _taps(h: jax.Array, weights: Params) -> int:
    return weights["in"][0].shape[0] // h.shape[-1]


def _seen_by_taps(h: jax.Array, dilation: int, taps: int) -> jax.Array:
    """`[B, N, C] -> [B, N, taps * C]`: h as each tap sees it, zeros beyond the ends."""
    return jnp.concatenate(_shifted(h, dilation, taps), axis=-1)


def _shifted(h: jax.Array, dilation: int, taps: int) -> list[jax.Array]:
    reach, n = dilation * (taps // 2), h.shape[1]
    padded = jnp.pad(h, ((0, 0), (reach, reach), (0, 0)))
    return [padded[:, k * dilation : k * dilation + n] for k in range(taps)]


def _with_bias(start: Params, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`[B, N, C_in + 1]` and `[C_in + 1, C]`: a constant 1 beside the inputs, absent beyond the
    ends, carries the first layer's bias."""
    inputs = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    widen = jnp.concatenate([start["kernel"][0], start["bias"][None]])
    return _keep(inputs, mask), widen.astype(x.dtype)


def _weights(params: Params, i: int, dtype: Any) -> dict[str, jax.Array]:
    """Those of layer i: the gate's halves apart, skip and end as one; the last layer's residual is
    empty. Kernels in `dtype`."""
    conv, cond, both = (params[f"{name}_layer_{i}"] for name in ("in", "cond", "res_skip"))
    end, channels = params["end"]["kernel"][0], params["start"]["kernel"].shape[-1]
    skips = len(end)
    return {
        "gate": {
            "in": _halves(conv["kernel"].astype(dtype), channels),
            "cond": _halves(cond["kernel"].astype(dtype), channels),
            "bias": tuple(jnp.split(conv["bias"] + cond["bias"], 2)),
        },
        "res": both["kernel"][0, :, :-skips].astype(dtype),
        "res_bias": both["bias"][:-skips],
        "end": exact(both["kernel"][0, :, -skips:], end).astype(dtype),
    }


def _halves(kernel: jax.Array, channels: int) -> tuple[jax.Array, jax.Array]:
    """Filter and gate apart: `[taps, C_in, phases * 2 C]` -> twice `[taps * C_in, phases * C]`."""
    seen = kernel.shape[0] * kernel.shape[1]
    of_phases = kernel.reshape(seen, -1, 2 * channels)
    return tuple(half.reshape(seen, -1) for half in jnp.split(of_phases, 2, axis=-1))


def _end_bias(params: Params) -> jax.Array:
    """`[n_out]`: what the biases of all skips and of the end come to."""
    kernel = params["end"]["kernel"][0]
    skips = sum(
        params[f"res_skip_layer_{i}"]["bias"][-len(kernel) :] for i in range(_depth(params))
    )
    return exact(skips, kernel) + params["end"]["bias"]


def _depth(params: Params) -> int:
    return sum(name.startswith("in_layer_") for name in params)


def dilated_conv(x: jax.Array, kernel: jax.Array, dilation: int, dtype: Any) -> jax.Array:
    """`[B, N, C_in]`, kernel `[taps, C_in, C_out]` -> `[B, N, C_out]`, zeros beyond the ends.

    One product with the taps' inputs side by side: stacked, not concatenated along the channels,
    which is the same but on CPUs ten times as slow.
    """
    taps, channels, features = kernel.shape
    seen = jnp.stack(_shifted(x, dilation, taps), axis=2)
    seen = seen.reshape(*x.shape[:2], taps * channels)
    return matmul(seen, kernel.reshape(taps * channels, features), dtype)


def exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full precision, for products of weights."""
    return jnp.matmul(a, b, precision=EXACT)


def matmul(x: jax.Array, w: jax.Array, dtype: Any, result: Any = None) -> jax.Array:
    """x @ w with operands rounded to `dtype`, summed and returned in `result`, or in x's dtype."""
    dtype, result = jnp.dtype(dtype), jnp.dtype(result or x.dtype)
    if dtype.itemsize >= result.itemsize:
        return jnp.matmul(x, w, precision=EXACT)
    return _low_precision_matmul(x, w, dtype, result)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _low_precision_matmul(x: jax.Array, w: jax.Array, dtype: Any, result: Any) -> jax.Array:
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=result)


def _low_precision_matmul_fwd(x, w, dtype, result):
    # Of the operands only the rounded ones are kept, of the others their dtypes.
    dtypes = jnp.zeros(0, x.dtype), jnp.zeros(0, w.dtype)
    y = _low_precision_matmul(x, w, dtype, result)
    return y, (x.astype(dtype), w.astype(dtype), *dtypes)


def _low_precision_matmul_bwd(dtype, result, saved, g):
    # Autodiff alone would multiply the float32 cotangent: both operands rounded keep the backward
    # pass on the fast units too.
    x, w, like_x, like_w = saved
    g = g.astype(dtype)
    dx = jnp.matmul(g, _transposed(w), preferred_element_type=result)
    dw = jnp.einsum("...i,...o->io", x, g, preferred_element_type=result)
    return dx.astype(like_x.dtype), dw.astype(like_w.dtype)


def _transposed(w: jax.Array) -> jax.Array:
    def laid_out_anew(w: jax.Array) -> jax.Array:
        # Not just relabelled as transposed: that is what the CPU's fast kernel needs.
        return jax.lax.optimization_barrier(w.T.reshape(-1)).reshape(w.shape[::-1])

    return jax.lax.platform_dependent(w, cpu=laid_out_anew, default=jnp.transpose)


_low_precision_matmul.defvjp(_low_precision_matmul_fwd, _low_precision_matmul_bwd)


def weight_norm(params: Params) -> Params:
    """Every `{v, g, bias}` of a tree as `{kernel, bias}`: kernel = g v / |v| a output channel.

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


class Upsampler(nn.Module):
    """Transposed convolution of the mel along time: stride `stride`, the tail cut off.

    Step n = f * stride + r of the result is the sum over j of mel[f - j] @ kernel[j * stride + r],
    frames before the first being absent: one product with the last few frames side by side.
    kernel `[taps, M, M]`.
    """

    taps: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        """mel `[B, F, M]` -> `[B, F * stride, M]`."""
        batch, frames, bins = mel.shape
        kernel = self.param("kernel", torch_like_init(), (self.taps, bins, bins))
        bias = self.param("bias", nn.initializers.zeros_init(), (bins,))
        kernel = _by_frames(kernel, self.stride).transpose(0, 2, 1, 3)
        seen = frames_seen(mel, len(kernel))
        up = matmul(seen, kernel.reshape(-1, self.stride * bins), self.dtype)
        return up.reshape(batch, frames * self.stride, bins) + bias[None, None].astype(up.dtype)


def _by_frames(kernel: jax.Array, stride: int) -> jax.Array:
    """`[taps, M, M]` -> `[frames that overlap, stride, M, M]`, zeros behind the taps."""
    overlap = -(-kernel.shape[0] // stride)
    kernel = jnp.pad(kernel, ((0, overlap * stride - kernel.shape[0]), (0, 0), (0, 0)))
    return kernel.reshape(overlap, stride, *kernel.shape[1:])


def frames_seen(mel: jax.Array, overlap: int) -> jax.Array:
    """mel `[B, F, M]` -> `[B, F, overlap * M]`: each frame and those before it, else zeros."""
    past = jnp.pad(mel, ((0, 0), (overlap - 1, 0), (0, 0)))
    frames = mel.shape[1]
    seen = [past[:, overlap - 1 - j : overlap - 1 - j + frames] for j in range(overlap)]
    return jnp.concatenate(seen, axis=-1)


def with_upsampler(upsample: Params, cond: Params, config: Config, dtype: Any) -> Params:
    """The upsampler and a conditioning layer after it as one layer of the frames that overlap.

    Both are linear: step r of a frame sees them through one product of its own. kernel `[1,
    overlap * M, hop / G * 2 C]` in `dtype`, for `frames_seen` and WN's `phases`. For conditioning
    at the sample rate, this takes overlap * M products a step and output in place of G * M.
    """
    group, hop = config.waveglow.n_group, config.data.hop_length
    kernel = _by_frames(upsample["kernel"], hop)
    overlap, _, seen, bins = kernel.shape
    kernel = kernel.reshape(overlap, hop // group, group, seen, bins).transpose(0, 3, 1, 4, 2)
    kernel = matmul(kernel.reshape(-1, bins * group), cond["kernel"][0], dtype)
    bias = exact(jnp.repeat(upsample["bias"], group), cond["kernel"][0])
    return {
        "kernel": kernel.reshape(1, overlap * seen, -1).astype(dtype),
        "bias": cond["bias"] + bias,
    }


def wn_network(config: Config, n_half: int, dtype: Any, phases: int = 1) -> WN:
    """The conditioner of a coupling over 2 * n_half channels."""
    wn = config.waveglow.WN
    sizes = wn.n_layers, wn.n_channels, wn.skip_channels, wn.kernel_size
    return WN(2 * n_half, *sizes, dtype, phases)


def upsampler_network(config: Config, dtype: Any) -> Upsampler:
    """The config's upsampler: to the sample rate, or to that of the groups."""
    glow, hop = config.waveglow, config.data.hop_length
    per = 1 if glow.conditioning == "sample" else glow.n_group
    return Upsampler(glow.upsample_kernel // per, hop // per, dtype)


def conditioning_channels(config: Config) -> int:
    glow = config.waveglow
    return glow.n_mel_channels * (glow.n_group if glow.conditioning == "sample" else 1)


def squeeze_conditioning(upsampled: jax.Array, config: Config, n_steps: int) -> jax.Array:
    """`[B, time, M] -> [B, n_steps, D]`, what WN sees; cut to the signal's length.

    From the sample rate: channel = mel * group + position in the group, as the original has it.
    """
    if config.waveglow.conditioning == "group":
        return upsampled[:, :n_steps]
    group = config.waveglow.n_group
    batch, _, bins = upsampled.shape
    grouped = upsampled[:, : n_steps * group].reshape(batch, n_steps, group, bins)
    return grouped.transpose(0, 1, 3, 2).reshape(batch, n_steps, bins * group)
