"""One-direction networks of the flow: WN, the coupling's conditioner, and the mel's upsampler.

Arrays: x `[B, N, C]`, mel `[B, F, M]`, conditioning `[B, N, D]`, mask `[B, N]`. Parameters keep
their dtype; `dtype` is that of the products, whose sums are in float32.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import EXACT

Params = Mapping[str, Any]

SUBLANES = 8
"""Rows of a TPU's tile."""


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

    def __call__(
        self, x: jax.Array, conditioning: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """x `[B, N, C]`, conditioning `[B, N / phases, D]` -> `[B, N, n_out]`.

        `phases` steps share a row of the conditioning where its layers include the upsampler
        (`with_upsampler`); otherwise each has its own.

        With a mask, steps outside are zero wherever a convolution sees them, just as it sees zeros
        beyond the ends of an unpadded signal. Backends differ by rounding alone.
        """
        params = self.layers(x.shape[-1], conditioning.shape[-1])
        return jax.lax.platform_dependent(
            params,
            x,
            conditioning,
            mask,
            cpu=partial(_wn, dtype=self.dtype, backend="cpu"),
            tpu=partial(_wn, dtype=self.dtype, backend="tpu"),
            default=partial(_wn, dtype=self.dtype, backend="gpu"),
        )

    @nn.compact
    def layers(self, n_in: int, n_conditioning: int) -> Params:
        """Every layer's `{kernel, bias}` by its name. `init` needs this method alone."""
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


def _wn(
    params: Params,
    x: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    dtype: Any,
    backend: str,
) -> jax.Array:
    """WN from its plain parameters, as "cpu", "gpu" or "tpu" are fastest with it.

    TPUs have a product each for filter and gate, so that tanh and sigmoid end a product; the others
    have one for both. Between products, CPUs keep x's dtype, TPUs `dtype` for h, and GPUs `dtype`
    for whatever a product gives: it goes through memory there. TPUs have convolutions of their own
    in the backward pass from `SUBLANES` clips on (docs/measurements/tpu.md).
    """
    wide = x.dtype
    narrow = min(jnp.dtype(dtype), wide, key=lambda d: d.itemsize)
    inputs, weights = _with_bias(x, mask), _weights(params, wide, backend)
    outputs = _outputs if narrow == wide else _low_precision_outputs
    out = outputs(weights, inputs, conditioning, mask, narrow, backend)
    return out + _end_bias(params)[None, None].astype(wide)


def _outputs(*arguments: Any) -> jax.Array:
    """`[B, N, n_out]` without its bias, of `_layer_after_layer`'s arguments."""
    return _layer_after_layer(*arguments)[0]


def _layer_after_layer(
    weights: Params,
    inputs: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    narrow: Any,
    backend: str,
) -> tuple[jax.Array, list[tuple[jax.Array, ...]]]:
    """The outputs without their bias, and what their slope needs of each layer: what the taps see,
    tanh and sigmoid. inputs `[B, N, C_in + 1]`.

    Operands of products and what rests between them in `narrow`; sums, tanh and sigmoid in inputs'
    dtype.
    """
    wide = inputs.dtype
    between = _between(narrow, wide, backend)
    h, kept = matmul(inputs, weights["widen"], narrow, wide), []
    out: Any = 0
    for i, layer in enumerate(weights["layers"]):
        conditions = conditioning, layer["cond"]
        if backend == "cpu":
            conditions = _not_before(h, *conditions)
        seen = (h if i else inputs).astype(narrow)
        filtered, gate = _gate(seen, *conditions, layer, 2**i, backend)
        kept.append(tuple(v.astype(narrow) for v in (seen, filtered, gate)))
        activated = filtered * gate
        if "res" in layer:
            residual = matmul(activated, layer["res"], narrow, between)
            h = _keep(h + residual + layer["res_bias"][None, None].astype(wide), mask)
            # Between their products accelerators wait for memory: half the bytes, half the wait.
            h = h if backend == "cpu" else h.astype(narrow)
        out = out + matmul(activated, layer["end"], narrow, wide)
    return out, kept


def _gate(
    seen: jax.Array,
    conditioning: jax.Array,
    cond: tuple[jax.Array, ...],
    layer: Params,
    dilation: int,
    backend: str,
) -> tuple[jax.Array, jax.Array]:
    """tanh and sigmoid, each `[B, N, C]`, of a dilated convolution of what is seen and a 1x1 one of
    the conditioning."""
    narrow, wide = seen.dtype, conditioning.dtype
    between = _between(narrow, wide, backend)
    by_taps = _side_by_side(_shifted(seen, dilation, _taps(layer["in"][0], seen)), backend)
    sums = [
        matmul(by_taps, of_taps, narrow, between).astype(wide)
        + matmul(conditioning, of_conditioning, narrow, between).reshape(*seen.shape[:2], -1)
        + bias[None, None].astype(wide)
        for of_taps, of_conditioning, bias in zip(layer["in"], cond, layer["bias"], strict=True)
    ]
    if backend != "tpu":
        filtered, gate = jnp.split(sums[0], 2, axis=-1)
        return jnp.tanh(filtered), jax.nn.sigmoid(gate)
    # Each ends a product. The barrier holds what the first leaves to the few bytes of its dtype.
    filtered = jax.lax.optimization_barrier(jnp.tanh(sums[0]).astype(narrow))
    return filtered, jax.nn.sigmoid(sums[1]).astype(narrow)


def _low_precision_fwd(
    weights: Params,
    inputs: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    narrow: Any,
    backend: str,
) -> tuple[jax.Array, tuple[Any, ...]]:
    out, kept = _layer_after_layer(weights, inputs, conditioning, mask, narrow, backend)
    rounded = jax.tree.map(lambda w: w.astype(narrow) if w.ndim > 1 else w, weights)
    return out, (rounded, inputs, conditioning, mask, kept)


def _low_precision_bwd(
    narrow: Any, backend: str, saved: tuple[Any, ...], g: jax.Array
) -> tuple[Params, jax.Array, jax.Array, None]:
    # Autodiff alone would keep float32 gates and the taps' inputs, multiply float32 slopes, add the
    # taps' shares up shifted, and each layer's slope of the conditioning to those before it.
    weights, inputs, conditioning, mask, kept = saved
    wide, g = inputs.dtype, g.astype(narrow)
    dh: Any = None
    between = _between(narrow, wide, backend)
    together = backend != "tpu" or _fills_tiles(inputs, backend)
    d_layers: list[dict[str, Any]] = []
    slopes: list[list[jax.Array]] = []
    for i, (layer, (seen, filtered, gate)) in reversed(
        list(enumerate(zip(weights["layers"], kept, strict=True)))
    ):
        activated = filtered * gate
        d_layer: dict[str, Any] = {"end": _of_kernel(activated, g, wide)}
        d_activated = matmul(g, _transposed(layer["end"]), narrow, between).astype(wide)
        if "res" in layer:
            d_activated = d_activated + matmul(dh, _transposed(layer["res"]), narrow, between)
            d_layer["res"] = _of_kernel(activated, dh, wide)
            d_layer["res_bias"] = dh.astype(wide).sum(axis=(0, 1))
        t, s = filtered.astype(wide), gate.astype(wide)
        of_halves = [
            (d_activated * s * (1 - t * t)).astype(narrow),
            (d_activated * t * s * (1 - s)).astype(narrow),
        ]
        if backend != "tpu":
            of_halves = [_side_by_side(of_halves, backend)]
        of_taps = [
            _back_through_taps(seen, slope, kernel, 2**i, between, wide, backend)
            for slope, kernel in zip(of_halves, layer["in"], strict=True)
        ]
        d_seen: Any = sum(of_half for of_half, _ in of_taps)
        d_layer["in"] = tuple(of_half for _, of_half in of_taps)
        d_layer["bias"] = tuple(slope.astype(wide).sum(axis=(0, 1)) for slope in of_halves)
        if i:
            dh = _keep(d_seen if dh is None else dh + d_seen, mask).astype(narrow)
        d_layers.insert(0, d_layer)
        slopes.insert(0, [slope.reshape(*conditioning.shape[:2], -1) for slope in of_halves])

    d_inputs, d_widen = d_seen.astype(wide), jnp.zeros_like(weights["widen"], wide)
    if dh is not None:
        d_inputs = d_inputs + matmul(dh, _transposed(weights["widen"]), narrow, wide)
        d_widen = _of_kernel(inputs.astype(narrow), dh, wide)
    d_conditioning: Any = 0
    for layers in [range(len(kept))] if together else [[i] for i in range(len(kept))]:
        # One product for all layers: the sum over them is its own. Elsewhere one a layer: the
        # slopes of all would be copied beside each other.
        of_layers = _side_by_side([slope for i in layers for slope in slopes[i]], backend)
        conds = [cond for i in layers for cond in weights["layers"][i]["cond"]]
        back = jnp.concatenate([cond.T for cond in conds])
        d_conditioning = d_conditioning + matmul(of_layers, back, narrow, wide)
        d_kernels = _of_kernel(conditioning.astype(narrow), of_layers, wide)
        d_conds = jnp.split(d_kernels, len(conds), axis=-1)
        for i in layers:
            d_layers[i]["cond"] = tuple(d_conds.pop(0) for _ in slopes[i])
    return {"widen": d_widen, "layers": d_layers}, d_inputs, d_conditioning, None


_low_precision_outputs = jax.custom_vjp(_outputs, nondiff_argnums=(4, 5))
_low_precision_outputs.defvjp(_low_precision_fwd, _low_precision_bwd)


def _back_through_taps(
    seen: jax.Array,
    slope: jax.Array,
    kernel: jax.Array,
    dilation: int,
    between: Any,
    wide: Any,
    backend: str,
) -> tuple[jax.Array, jax.Array]:
    """A dilated convolution's slopes of what it saw `[B, N, C_in]` and of its kernel
    `[taps * C_in, C]`, from that of its result `[B, N, C]`."""
    taps = _taps(kernel, seen)
    # The first is itself a convolution, with the taps reversed.
    by_tap = kernel.reshape(taps, -1, slope.shape[-1])[::-1].transpose(0, 2, 1)
    if not _fills_tiles(seen, backend):
        shifted = _side_by_side(_shifted(slope, dilation, taps), backend)
        d_seen = matmul(shifted, by_tap.reshape(-1, by_tap.shape[-1]), slope.dtype, between)
        d_kernel = _of_kernel(seen, shifted, wide).reshape(seen.shape[-1], taps, -1)
        return d_seen, d_kernel[:, ::-1].transpose(1, 0, 2).reshape(kernel.shape)
    d_seen = jax.lax.conv_general_dilated(
        slope,
        by_tap,
        window_strides=(1,),
        padding=((dilation * (taps // 2),) * 2,),
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        preferred_element_type=wide,
    )
    by_taps = [_of_kernel(shifted, slope, wide) for shifted in _shifted(seen, dilation, taps)]
    return d_seen, jnp.concatenate(by_taps)


def _between(narrow: Any, wide: Any, backend: str) -> Any:
    """The dtype of what a product gives to the next: GPUs wait for the memory that it takes."""
    return narrow if backend == "gpu" else wide


def _not_before(
    h: jax.Array, conditioning: jax.Array, cond: tuple[jax.Array, ...]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The conditioning and its kernels as they are, but only once h is there.

    Nothing in their product depends on the layers before: left alone, XLA computes every layer's
    share of it at the start and keeps them all. On CPUs it drops a barrier; so one number decides,
    that cannot be above and below zero, about the smaller of the two: the kernels, where an export
    leaves the lengths free.
    """
    never = (h[0, 0, 0] > 0) & (h[0, 0, 0] < 0)
    size = conditioning.size
    if not jax.export.is_symbolic_dim(size) and size < cond[0].size:
        return jnp.where(never, 0, conditioning), cond
    return conditioning, tuple(jnp.where(never, 0, kernel) for kernel in cond)


def _of_kernel(x: jax.Array, slope: jax.Array, wide: Any) -> jax.Array:
    """`[C_in, C_out]`: the slope of the kernel in x `[..., C_in]` @ kernel."""
    return jnp.einsum("...i,...o->io", x, slope, preferred_element_type=wide)


def _fills_tiles(x: jax.Array, backend: str) -> bool:
    """Whether there are clips enough for a TPU to lay beside each other: it then copies no shifted
    slope."""
    return backend == "tpu" and len(x) >= SUBLANES


def _taps(kernel: jax.Array, seen: jax.Array) -> int:
    return kernel.shape[0] // seen.shape[-1]


def _shifted(h: jax.Array, dilation: int, taps: int) -> list[jax.Array]:
    """h `[B, N, C]` as each tap sees it, zeros beyond the ends."""
    reach, n = dilation * (taps // 2), h.shape[1]
    padded = jnp.pad(h, ((0, 0), (reach, reach), (0, 0)))
    return [padded[:, k * dilation : k * dilation + n] for k in range(taps)]


def _side_by_side(parts: list[jax.Array], backend: str) -> jax.Array:
    """Arrays of one width concatenated along the channels."""
    if backend != "cpu":
        return jnp.concatenate(parts, axis=-1)
    stacked = _stacked_as_bits if parts[0].dtype.itemsize == 2 else _stacked
    return stacked(parts).reshape(*parts[0].shape[:-1], -1)


def _stacked(parts: list[jax.Array]) -> jax.Array:
    # Before a reshape the same as concatenated, but on CPUs ten times as fast.
    return jnp.stack(parts, axis=-2)


@jax.custom_jvp
def _stacked_as_bits(parts: list[jax.Array]) -> jax.Array:
    # XLA on CPUs would take 16-bit floats to float32 and back, at twenty times the cost.
    bits = _stacked([jax.lax.bitcast_convert_type(part, jnp.uint16) for part in parts])
    return jax.lax.bitcast_convert_type(bits, parts[0].dtype)


_stacked_as_bits.defjvp(lambda parts, slopes: (_stacked_as_bits(*parts), _stacked(*slopes)))


def _with_bias(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`[B, N, C_in + 1]`: a constant 1 beside the inputs, absent beyond the ends, carries the first
    layer's bias."""
    return _keep(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1), mask)


def _weights(params: Params, dtype: Any, backend: str) -> Params:
    """`widen` `[C_in + 1, C]`, and of each layer the gate's (one each for filter and gate on TPUs,
    else one for both), `res` where it is not the last, and skip and end as one."""
    start, end = params["start"], params["end"]["kernel"][0]
    widen = jnp.concatenate([start["kernel"][0], start["bias"][None]])
    channels, skips = widen.shape[-1], len(end)

    def columns(kernel: jax.Array) -> tuple[jax.Array, ...]:
        seen = kernel.shape[0] * kernel.shape[1]
        if backend != "tpu":
            return (kernel.reshape(seen, -1).astype(dtype),)
        halves = jnp.split(kernel.reshape(seen, -1, 2 * channels), 2, axis=-1)
        return tuple(half.reshape(seen, -1).astype(dtype) for half in halves)

    def of_layer(i: int) -> Params:
        conv, cond, both = (params[f"{name}_layer_{i}"] for name in ("in", "cond", "res_skip"))
        bias = conv["bias"] + cond["bias"]
        layer = {
            "in": columns(conv["kernel"] if i else exact(widen[None], conv["kernel"])),
            "cond": columns(cond["kernel"]),
            "bias": (bias,) if backend != "tpu" else tuple(jnp.split(bias, 2)),
            "end": exact(both["kernel"][0, :, -skips:], end).astype(dtype),
        }
        if i < _depth(params) - 1:
            layer["res"] = both["kernel"][0, :, :channels].astype(dtype)
            layer["res_bias"] = both["bias"][:channels]
        return layer

    return {"widen": widen.astype(dtype), "layers": [of_layer(i) for i in range(_depth(params))]}


def _end_bias(params: Params) -> jax.Array:
    """`[n_out]`: what the biases of all skips and of the end come to."""
    kernel = params["end"]["kernel"][0]
    skips = sum(
        params[f"res_skip_layer_{i}"]["bias"][-len(kernel) :] for i in range(_depth(params))
    )
    return exact(skips, kernel) + params["end"]["bias"]


def _depth(params: Params) -> int:
    return sum(name.startswith("in_layer_") for name in params)


def exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full precision, for products of weights."""
    return jnp.matmul(a, b, precision=EXACT)


def matmul(x: jax.Array, w: jax.Array, dtype: Any, result: Any = None) -> jax.Array:
    """x @ w with operands rounded to `dtype`, summed and returned in `result`, or in x's dtype."""
    dtype, result = jnp.dtype(dtype), jnp.dtype(result or x.dtype)
    if dtype.itemsize >= max(result.itemsize, 4):
        return jnp.matmul(x, w, precision=EXACT)
    return _low_precision_matmul(x, w, dtype, result)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _low_precision_matmul(x: jax.Array, w: jax.Array, dtype: Any, result: Any) -> jax.Array:
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=result)


def _low_precision_matmul_fwd(
    x: jax.Array, w: jax.Array, dtype: Any, result: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Of the operands only the rounded ones are kept, of the others their dtypes.
    dtypes = jnp.zeros(0, x.dtype), jnp.zeros(0, w.dtype)
    y = _low_precision_matmul(x, w, dtype, result)
    return y, (x.astype(dtype), w.astype(dtype), *dtypes)


def _low_precision_matmul_bwd(
    dtype: Any, result: Any, saved: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Autodiff alone would multiply the float32 cotangent: both operands rounded keep the backward
    # pass on the fast units too.
    x, w, like_x, like_w = saved
    g = g.astype(dtype)
    dx = jnp.matmul(g, _transposed(w), preferred_element_type=result)
    dw = _of_kernel(x, g, result)
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
