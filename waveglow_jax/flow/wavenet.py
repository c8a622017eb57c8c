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
        beyond the ends of an unpadded signal.
        """

        def keep(h: jax.Array) -> jax.Array:
            # Chosen, not multiplied: what is not finite outside would come through a product.
            return h if mask is None else jnp.where(mask[:, :, None] > 0, h, 0)

        channels, skips, dtype = self.n_channels, self.n_skip_channels, self.dtype
        start, start_bias = Layer(channels, name="start")(x.shape[-1])
        end, end_bias = Layer(self.n_out, kernel_init=nn.initializers.zeros_init(), name="end")(
            skips
        )
        # A constant 1 beside the inputs carries the first layer's bias, absent beyond the ends.
        seen = keep(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1))
        widen = jnp.concatenate([start[0], start_bias[None]]).astype(x.dtype)
        h, out = matmul(seen, widen, dtype), end_bias[None, None].astype(x.dtype)
        for i in range(self.n_layers):
            last = i == self.n_layers - 1
            kernel, bias = Layer(2 * channels, self.kernel_size, name=f"in_layer_{i}")(channels)
            if i == 0:
                kernel = exact(widen[None], kernel)
            gates = dilated_conv(h if i else seen, kernel, 2**i, dtype)
            cond, cond_bias = Layer(2 * channels, phases=self.phases, name=f"cond_layer_{i}")(
                conditioning.shape[-1]
            )
            gates = gates + matmul(conditioning, cond[0], dtype).reshape(gates.shape)
            gates = gates + (bias + cond_bias)[None, None].astype(x.dtype)
            filtered, gate = jnp.split(gates, 2, axis=-1)
            activated = jnp.tanh(filtered) * jax.nn.sigmoid(gate)
            width = skips if last else channels + skips
            both, both_bias = Layer(width, name=f"res_skip_layer_{i}")(channels)
            if not last:
                residual = matmul(activated, both[0, :, :channels], dtype)
                h = keep(h + residual + both_bias[None, None, :channels].astype(x.dtype))
            out = out + matmul(activated, exact(both[0, :, -skips:], end[0]), dtype)
            out = out + exact(both_bias[None, None, -skips:], end).astype(x.dtype)
        return out


def torch_like_init() -> nn.initializers.Initializer:
    """Uniform within 1 / sqrt(fan_in): how the original's convolutions start."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Layer(nn.Module):
    """Kernel `[taps, C_in, C_out]` and bias `[C_out]` of a layer that sees so many channels.

    With phases, its kernel gives so many successive steps, `[taps, C_in, phases * C_out]`.
    """

    features: int
    taps: int = 1
    phases: int = 1
    kernel_init: nn.initializers.Initializer = torch_like_init()

    @nn.compact
    def __call__(self, seen: int) -> tuple[jax.Array, jax.Array]:
        shape = (self.taps, seen, self.phases * self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


def dilated_conv(x: jax.Array, kernel: jax.Array, dilation: int, dtype: Any) -> jax.Array:
    """`[B, N, C_in]`, kernel `[taps, C_in, C_out]` -> `[B, N, C_out]`, zeros beyond the ends.

    The one place where backends go separate ways, each in the form that it is fastest in.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_side_by_side, dilation=dilation, dtype=dtype),
        default=partial(_tap_by_tap, dilation=dilation, dtype=dtype),
    )


def _seen_by_taps(x: jax.Array, taps: int, dilation: int) -> list[jax.Array]:
    """What each tap sees of x: x shifted, `[B, N, C_in]`."""
    reach, n = dilation * (taps // 2), x.shape[1]
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    return [padded[:, k * dilation : k * dilation + n] for k in range(taps)]


def _side_by_side(x: jax.Array, kernel: jax.Array, dilation: int, dtype: Any) -> jax.Array:
    """One product with the taps' inputs side by side.

    Stacked, not concatenated along the channels, which is the same but ten times as slow.
    """
    taps, channels, features = kernel.shape
    seen = jnp.stack(_seen_by_taps(x, taps, dilation), axis=2)
    seen = seen.reshape(*x.shape[:2], taps * channels)
    return matmul(seen, kernel.reshape(taps * channels, features), dtype)


def _tap_by_tap(x: jax.Array, kernel: jax.Array, dilation: int, dtype: Any) -> jax.Array:
    """One product a tap, added up."""
    seen = _seen_by_taps(x, len(kernel), dilation)
    return sum(matmul(x_of_tap, w, dtype) for x_of_tap, w in zip(seen, kernel, strict=True))


def exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full precision, for products of weights."""
    return jnp.matmul(a, b, precision=EXACT)


def matmul(x: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    """x @ w with operands rounded to `dtype`, summed and returned in x's own dtype."""
    if jnp.dtype(dtype).itemsize >= jnp.dtype(x.dtype).itemsize:
        return jnp.matmul(x, w, precision=EXACT)
    return _low_precision_matmul(x, w, jnp.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _low_precision_matmul(x: jax.Array, w: jax.Array, dtype: Any) -> jax.Array:
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=x.dtype)


def _low_precision_matmul_fwd(x, w, dtype):
    return _low_precision_matmul(x, w, dtype), (x.astype(dtype), w.astype(dtype))


def _low_precision_matmul_bwd(dtype, saved, g):
    # Autodiff alone would multiply the float32 cotangent: both operands rounded keep the backward
    # pass on the fast units too.
    x, w = saved
    wide, g = g.dtype, g.astype(dtype)
    # Laid out anew, not just relabelled as transposed: that is what the CPU's fast kernel needs.
    w_t = jax.lax.optimization_barrier(w.T.reshape(-1)).reshape(w.shape[::-1])
    dx = jnp.matmul(g, w_t, preferred_element_type=wide)
    dw = jnp.einsum("...i,...o->io", x, g, preferred_element_type=wide)
    return dx, dw


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
