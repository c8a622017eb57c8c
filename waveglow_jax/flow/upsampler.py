"""The upsampler: from the mel's frames to the conditioning at every step of the flow.

Arrays: mel `[B, F, M]`, conditioning `[B, N, D]`. Parameters keep their dtype; `dtype` is the
compute dtype of the matmuls, which accumulate in float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import Params
from waveglow_jax.flow.wn_kernels import exact, matmul


def torch_like_init() -> nn.initializers.Initializer:
    """Uniform within 1 / sqrt(fan_in): how the original's convolutions start."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Upsampler(nn.Module):
    """Transposed convolution of the mel along time: stride `stride`, the tail cut off.

    Step n = f * stride + r of the result is the sum over j of mel[f - j] @ kernel[j * stride + r],
    frames before the first being absent: one matmul with the last few frames side by side.
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
    """`[taps, M, M]` -> `[frames that overlap, stride, M, M]`, zeros after the taps."""
    overlap = -(-kernel.shape[0] // stride)
    kernel = jnp.pad(kernel, ((0, overlap * stride - kernel.shape[0]), (0, 0), (0, 0)))
    return kernel.reshape(overlap, stride, *kernel.shape[1:])


def frames_seen(mel: jax.Array, overlap: int) -> jax.Array:
    """mel `[B, F, M]` -> `[B, F, overlap * M]`: each frame and those before it, else zeros."""
    past = jnp.pad(mel, ((0, 0), (overlap - 1, 0), (0, 0)))
    frames = mel.shape[1]
    seen = [past[:, overlap - 1 - j : overlap - 1 - j + frames] for j in range(overlap)]
    return jnp.concatenate(seen, axis=-1)


def with_frames_behind(mel: jax.Array, config: Config) -> jax.Array:
    """mel `[B, F, M]` with its last frame repeated as often as the last block may need.

    Where `Config.block` divides the hop, no block ends after the last frame, and the mel is
    returned as it is.
    """
    hop, block = config.data.hop_length, config.block
    frames, behind = mel.shape[1], -(-(block - math.gcd(hop, block)) // hop)
    # Indexed, which jax2onnx can convert for a free number of frames, unlike padding at the edge.
    return mel[:, jnp.minimum(jnp.arange(frames + behind), frames - 1)] if behind else mel


def with_upsampler(upsample: Params, cond: Params, config: Config, dtype: Any) -> Params:
    """The upsampler and the conditioning layer after it as one layer of the frames that overlap.

    Both are linear, so that step r of a frame is one matmul of its own with them. kernel `[1,
    overlap * M, hop / G * 2 C]` in `dtype`, for the conditioning of `frames_seen`, a row per frame.
    For conditioning at the sample rate, this takes overlap * M multiplications per step and output
    in place of G * M.
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


def upsampler_network(config: Config, dtype: Any) -> Upsampler:
    """The config's upsampler: to the sample rate, or to that of the groups."""
    glow, hop = config.waveglow, config.data.hop_length
    per = 1 if glow.conditioning == "sample" else glow.n_group
    return Upsampler(glow.upsample_kernel // per, hop // per, dtype)


def conditioning_channels(config: Config) -> int:
    """D, the channels of the conditioning at each step."""
    glow = config.waveglow
    return glow.n_mel_channels * (glow.n_group if glow.conditioning == "sample" else 1)


def squeeze_conditioning(upsampled: jax.Array, config: Config, n_steps: int) -> jax.Array:
    """`[B, time, M] -> [B, n_steps, D]`, what a conditioner sees; cut to the signal's length.

    From the sample rate: channel = mel * group + position in the group, as the original has it.
    """
    if config.waveglow.conditioning == "group":
        return upsampled[:, :n_steps]
    group = config.waveglow.n_group
    batch, _, bins = upsampled.shape
    grouped = upsampled[:, : n_steps * group].reshape(batch, n_steps, group, bins)
    return grouped.transpose(0, 1, 3, 2).reshape(batch, n_steps, bins * group)
