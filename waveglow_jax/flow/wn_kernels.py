"""WN's arithmetic: the forward pass of its layers, its backward pass, and matmuls of low precision.

Arrays: x `[B, N, C]`, conditioning `[B, N, D]`, mask `[B, N]`. `Kernels` says how a backend
computes; the results differ only in rounding (tests/test_wavenet.py runs all forms on the CPU).
docs/measurements/tpu.md has the measurements that led to these forms.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from waveglow_jax.flow.bijections import EXACT, Params


@dataclass(frozen=True)
class Kernels:
    """The form in which a backend computes WN.

    compute: the dtype of matmul operands, and of the residuals that the backward pass needs.
    accumulation: the dtype of sums, tanh and sigmoid, which is that of x.
    between: the dtype in which a matmul writes its result for the next operation.
    stream: the dtype of h between the layers.
    halves_apart: one matmul each for filter and gate, so that tanh and sigmoid fuse with one.
    conditioning_when_due: a layer's matmul of the conditioning waits for the layer before.
    stacks: `_side_by_side` stacks and reshapes instead of concatenating.
    tile: the number of clips from which on the backward pass uses native convolutions; 0: never.
    """

    compute: Any
    accumulation: Any
    between: Any
    stream: Any
    halves_apart: bool = False
    conditioning_when_due: bool = False
    stacks: bool = False
    tile: int = 0

    def fills_tiles(self, x: jax.Array) -> bool:
        """Whether the batch is large enough to lay clips beside each other in a TPU's tiles, in
        which case a native convolution copies no shifted cotangent."""
        return 0 < self.tile <= len(x)


def kernels_for(backend: str, dtype: Any, accumulation: Any) -> Kernels:
    """The form that is fastest on a "cpu", a "gpu" or a "tpu", for this compute dtype.

    Accelerators wait for memory between matmuls: GPUs therefore write every result in the compute
    dtype, TPUs only h. TPUs have a matmul each for filter and gate, the others one for both.
    """
    accumulation = jnp.dtype(accumulation)
    compute = min(jnp.dtype(dtype), accumulation, key=lambda d: d.itemsize)
    if backend == "gpu":
        return Kernels(compute, accumulation, between=compute, stream=compute)
    form = partial(Kernels, compute, accumulation, between=accumulation)
    if backend == "tpu":
        return form(stream=compute, halves_apart=True, tile=8)  # a tile has eight rows
    return form(stream=accumulation, conditioning_when_due=True, stacks=True)


def _keep(h: jax.Array, mask: jax.Array | None) -> jax.Array:
    # Selected, not multiplied: 0 * inf and 0 * NaN would be NaN.
    return h if mask is None else jnp.where(mask[:, :, None] > 0, h, 0)


def wn_on(
    params: Params,
    x: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    dtype: Any,
    backend: str,
) -> jax.Array:
    """WN `[B, N, n_out]` from its plain parameters, in the form for a "cpu", a "gpu" or a "tpu"."""
    how = kernels_for(backend, dtype, x.dtype)
    inputs, weights = _with_bias(x, mask), _weights(params, how)
    outputs = _outputs if how.compute == how.accumulation else _low_precision_outputs
    out = outputs(weights, inputs, conditioning, mask, how)
    return out + _end_bias(params)[None, None].astype(how.accumulation)


def _outputs(*arguments: Any) -> jax.Array:
    """`[B, N, n_out]` without its bias, from `_layer_after_layer`'s arguments."""
    return _layer_after_layer(*arguments)[0]


def _layer_after_layer(
    weights: Params,
    inputs: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    how: Kernels,
) -> tuple[jax.Array, list[tuple[jax.Array, ...]]]:
    """The outputs without their bias, and each layer's residuals for the backward pass: the inputs
    of its taps, tanh and sigmoid. inputs `[B, N, C_in + 1]`.
    """
    h, residuals = matmul(inputs, weights["widen"], how.compute, how.accumulation), []
    out: Any = 0
    for i, layer in enumerate(weights["layers"]):
        conditions = conditioning, layer["cond"]
        if how.conditioning_when_due:
            conditions = _not_before(h, *conditions)
        seen = (h if i else inputs).astype(how.compute)
        filtered, gate = _gate(seen, *conditions, layer, 2**i, how)
        residuals.append(tuple(v.astype(how.compute) for v in (seen, filtered, gate)))
        activated = filtered * gate
        if "res" in layer:
            residual = matmul(activated, layer["res"], how.compute, how.between)
            bias = layer["res_bias"][None, None].astype(how.accumulation)
            h = _keep(h + residual + bias, mask).astype(how.stream)
        out = out + matmul(activated, layer["end"], how.compute, how.accumulation)
    return out, residuals


def _gate(
    seen: jax.Array,
    conditioning: jax.Array,
    cond: tuple[jax.Array, ...],
    layer: Params,
    dilation: int,
    how: Kernels,
) -> tuple[jax.Array, jax.Array]:
    """tanh and sigmoid, each `[B, N, C]`, of the sum of a dilated convolution of `seen` and a 1x1
    convolution of the conditioning."""
    by_taps = _side_by_side(_shifted(seen, dilation, _taps(layer["in"][0], seen)), how)
    sums = [
        matmul(by_taps, of_taps, how.compute, how.between).astype(how.accumulation)
        + matmul(conditioning, of_conditioning, how.compute, how.between).reshape(
            *seen.shape[:2], -1
        )
        + bias[None, None].astype(how.accumulation)
        for of_taps, of_conditioning, bias in zip(layer["in"], cond, layer["bias"], strict=True)
    ]
    if not how.halves_apart:
        filtered, gate = jnp.split(sums[0], 2, axis=-1)
        return jnp.tanh(filtered), jax.nn.sigmoid(gate)
    # The barrier makes XLA:TPU write the first result in its small dtype (jaxlib 0.10). It can go
    # when `preflight` estimates the same time and memory without it.
    filtered = jax.lax.optimization_barrier(jnp.tanh(sums[0]).astype(how.compute))
    return filtered, jax.nn.sigmoid(sums[1]).astype(how.compute)


def _low_precision_fwd(
    weights: Params,
    inputs: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    how: Kernels,
) -> tuple[jax.Array, tuple[Any, ...]]:
    out, residuals = _layer_after_layer(weights, inputs, conditioning, mask, how)
    rounded = jax.tree.map(lambda w: w.astype(how.compute) if w.ndim > 1 else w, weights)
    return out, (rounded, inputs, conditioning, mask, residuals)


def _low_precision_bwd(
    how: Kernels, saved: tuple[Any, ...], g: jax.Array
) -> tuple[Params, jax.Array, jax.Array, None]:
    # Autodiff alone would save float32 gates and the taps' inputs, multiply float32 cotangents, add
    # the taps' shares shifted, and add each layer's cotangent of the conditioning to those before.
    weights, inputs, conditioning, mask, residuals = saved
    g, dh = g.astype(how.compute), None
    d_layers: list[dict[str, Any]] = []
    cotangents: list[list[jax.Array]] = []
    for i, (layer, of_layer) in reversed(
        list(enumerate(zip(weights["layers"], residuals, strict=True)))
    ):
        d_layer, halves = _back_through_gate(layer, of_layer, g, dh, how)
        of_taps = [
            _back_through_taps(of_layer[0], half, kernel, 2**i, how)
            for half, kernel in zip(halves, layer["in"], strict=True)
        ]
        d_seen: Any = sum(of_half for of_half, _ in of_taps)
        d_layer["in"] = tuple(of_half for _, of_half in of_taps)
        d_layer["bias"] = tuple(half.astype(how.accumulation).sum(axis=(0, 1)) for half in halves)
        if i:
            dh = _keep(d_seen if dh is None else dh + d_seen, mask).astype(how.compute)
        d_layers.insert(0, d_layer)
        cotangents.insert(0, [half.reshape(*conditioning.shape[:2], -1) for half in halves])

    d_inputs = d_seen.astype(how.accumulation)
    d_widen = jnp.zeros_like(weights["widen"], how.accumulation)
    if dh is not None:
        back = matmul(dh, _transposed(weights["widen"]), how.compute, how.accumulation)
        d_inputs = d_inputs + back
        d_widen = _of_kernel(inputs.astype(how.compute), dh, how.accumulation)
    d_conditioning, d_conds = _back_through_conditioning(weights, conditioning, cotangents, how)
    d_layers = [{**d, "cond": cond} for d, cond in zip(d_layers, d_conds, strict=True)]
    return {"widen": d_widen, "layers": d_layers}, d_inputs, d_conditioning, None


def _back_through_gate(
    layer: Params, of_layer: tuple[jax.Array, ...], g: jax.Array, dh: Any, how: Kernels
) -> tuple[dict[str, Any], list[jax.Array]]:
    """The cotangents of a layer's "end" and "res" weights, and those of the sums that its tanh and
    sigmoid see (one array where the halves are not apart), given those of the outputs and of h."""
    _, filtered, gate = of_layer
    activated = filtered * gate
    d_layer: dict[str, Any] = {"end": _of_kernel(activated, g, how.accumulation)}
    d_activated = matmul(g, _transposed(layer["end"]), how.compute, how.between)
    d_activated = d_activated.astype(how.accumulation)
    if "res" in layer:
        d_activated = d_activated + matmul(dh, _transposed(layer["res"]), how.compute, how.between)
        d_layer["res"] = _of_kernel(activated, dh, how.accumulation)
        d_layer["res_bias"] = dh.astype(how.accumulation).sum(axis=(0, 1))
    t, s = filtered.astype(how.accumulation), gate.astype(how.accumulation)
    halves = [
        (d_activated * s * (1 - t * t)).astype(how.compute),
        (d_activated * t * s * (1 - s)).astype(how.compute),
    ]
    return d_layer, halves if how.halves_apart else [_side_by_side(halves, how)]


def _back_through_conditioning(
    weights: Params, conditioning: jax.Array, cotangents: list[list[jax.Array]], how: Kernels
) -> tuple[jax.Array, list[tuple[jax.Array, ...]]]:
    """The cotangents of the conditioning and of each layer's "cond" weights."""
    d_conditioning: Any = 0
    d_conds: list[tuple[jax.Array, ...]] = []
    each = [[i] for i in range(len(cotangents))]
    # One matmul for all layers also sums over them. Where it would copy the cotangents of all
    # layers beside each other, there is one per layer.
    together = not how.halves_apart or how.fills_tiles(conditioning)
    for layers in [list(range(len(cotangents)))] if together else each:
        of_layers = _side_by_side([half for i in layers for half in cotangents[i]], how)
        conds = [cond for i in layers for cond in weights["layers"][i]["cond"]]
        back = jnp.concatenate([cond.T for cond in conds])
        d_conditioning = d_conditioning + matmul(of_layers, back, how.compute, how.accumulation)
        d_kernels = _of_kernel(conditioning.astype(how.compute), of_layers, how.accumulation)
        parts = jnp.split(d_kernels, len(conds), axis=-1)
        d_conds += [tuple(parts.pop(0) for _ in cotangents[i]) for i in layers]
    return d_conditioning, d_conds


_low_precision_outputs = jax.custom_vjp(_outputs, nondiff_argnums=(4,))
_low_precision_outputs.defvjp(_low_precision_fwd, _low_precision_bwd)


def _back_through_taps(
    seen: jax.Array, g: jax.Array, kernel: jax.Array, dilation: int, how: Kernels
) -> tuple[jax.Array, jax.Array]:
    """A dilated convolution's cotangents of what it saw `[B, N, C_in]` and of its kernel
    `[taps * C_in, C]`, from that of its result `[B, N, C]`."""
    taps = _taps(kernel, seen)
    # The first is itself a convolution, with the taps reversed.
    by_tap = kernel.reshape(taps, -1, g.shape[-1])[::-1].transpose(0, 2, 1)
    if not how.fills_tiles(seen):
        shifted = _side_by_side(_shifted(g, dilation, taps), how)
        d_seen = matmul(shifted, by_tap.reshape(-1, by_tap.shape[-1]), g.dtype, how.between)
        d_kernel = _of_kernel(seen, shifted, how.accumulation).reshape(seen.shape[-1], taps, -1)
        return d_seen, d_kernel[:, ::-1].transpose(1, 0, 2).reshape(kernel.shape)
    d_seen = jax.lax.conv_general_dilated(
        g,
        by_tap,
        window_strides=(1,),
        padding=((dilation * (taps // 2),) * 2,),
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        preferred_element_type=how.accumulation,
    )
    by_taps = [
        _of_kernel(shifted, g, how.accumulation) for shifted in _shifted(seen, dilation, taps)
    ]
    return d_seen, jnp.concatenate(by_taps)


def _not_before(
    h: jax.Array, conditioning: jax.Array, cond: tuple[jax.Array, ...]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The conditioning and its kernels unchanged, but available only once h is.

    Their matmul does not depend on the layers before. Left alone, XLA:CPU computes the matmuls of
    all layers at the start and holds all results at once. It also drops an optimization barrier. So
    each value is selected by a condition on h that never holds, and that XLA cannot evaluate. This
    is done for the smaller of the two: the kernels, where an export leaves the lengths symbolic.
    Seen with jaxlib 0.10 and 0.12.0.1. This function can go when a compiled WN takes no more
    temporary memory (`memory_analysis()`) with `conditioning_when_due` False, however many layers
    it has.
    """
    never = (h[0, 0, 0] > 0) & (h[0, 0, 0] < 0)
    size = conditioning.size
    if not jax.export.is_symbolic_dim(size) and size < cond[0].size:
        return jnp.where(never, 0, conditioning), cond
    return conditioning, tuple(jnp.where(never, 0, kernel) for kernel in cond)


def _of_kernel(x: jax.Array, g: jax.Array, dtype: Any) -> jax.Array:
    """`[C_in, C_out]`: the cotangent of the kernel in x `[..., C_in]` @ kernel."""
    return jnp.einsum("...i,...o->io", x, g, preferred_element_type=dtype)


def _taps(kernel: jax.Array, seen: jax.Array) -> int:
    return kernel.shape[0] // seen.shape[-1]


def _shifted(h: jax.Array, dilation: int, taps: int) -> list[jax.Array]:
    """h `[B, N, C]` as each tap sees it, zeros beyond the ends."""
    span, n = dilation * (taps // 2), h.shape[1]
    padded = jnp.pad(h, ((0, 0), (span, span), (0, 0)))
    return [padded[:, k * dilation : k * dilation + n] for k in range(taps)]


def _side_by_side(parts: list[jax.Array], how: Kernels) -> jax.Array:
    """Arrays of one shape concatenated along the channels."""
    if not how.stacks:
        return jnp.concatenate(parts, axis=-1)
    stacked = _stacked_as_bits if parts[0].dtype.itemsize == 2 else _stacked
    return stacked(parts).reshape(*parts[0].shape[:-1], -1)


def _stacked(parts: list[jax.Array]) -> jax.Array:
    # With the reshape that follows, this is a concatenation, but ten times as fast on XLA:CPU
    # (jaxlib 0.10; with 0.12.0.1 WN of 64 channels is as fast without). It can go with JAX 0.10, if
    # WN is no slower with `stacks` False.
    return jnp.stack(parts, axis=-2)


@jax.custom_jvp
def _stacked_as_bits(parts: list[jax.Array]) -> jax.Array:
    # XLA:CPU would convert 16-bit floats to float32 and back, at twenty times the cost (jaxlib
    # 0.10). It can go when `_stacked` of bfloat16 is as fast.
    bits = _stacked([jax.lax.bitcast_convert_type(part, jnp.uint16) for part in parts])
    return jax.lax.bitcast_convert_type(bits, parts[0].dtype)


_stacked_as_bits.defjvp(lambda parts, dots: (_stacked_as_bits(*parts), _stacked(*dots)))


def _with_bias(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`[B, N, C_in + 1]`: the inputs and a constant 1, which carries the first layer's bias and is
    0 outside the mask."""
    return _keep(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1), mask)


def _weights(params: Params, how: Kernels) -> Params:
    """The weights in the form that the layers take: `widen` `[C_in + 1, C]`, and for each layer
    those of the gate (one array each for filter and gate where the halves are apart, else one for
    both), `res` unless it is the last layer, and `end`, the product of skip and end."""
    dtype = how.accumulation
    start, end = params["start"], params["end"]["kernel"][0]
    widen = jnp.concatenate([start["kernel"][0], start["bias"][None]])
    channels, skips = widen.shape[-1], len(end)

    def columns(kernel: jax.Array) -> tuple[jax.Array, ...]:
        seen = kernel.shape[0] * kernel.shape[1]
        if not how.halves_apart:
            return (kernel.reshape(seen, -1).astype(dtype),)
        halves = jnp.split(kernel.reshape(seen, -1, 2 * channels), 2, axis=-1)
        return tuple(half.reshape(seen, -1).astype(dtype) for half in halves)

    def of_layer(i: int) -> Params:
        conv, cond, both = (params[f"{name}_layer_{i}"] for name in ("in", "cond", "res_skip"))
        bias = conv["bias"] + cond["bias"]
        layer = {
            "in": columns(conv["kernel"] if i else exact(widen[None], conv["kernel"])),
            "cond": columns(cond["kernel"]),
            "bias": tuple(jnp.split(bias, 2)) if how.halves_apart else (bias,),
            "end": exact(both["kernel"][0, :, -skips:], end).astype(dtype),
        }
        if i < _depth(params) - 1:
            layer["res"] = both["kernel"][0, :, :channels].astype(dtype)
            layer["res_bias"] = both["bias"][:channels]
        return layer

    return {"widen": widen.astype(dtype), "layers": [of_layer(i) for i in range(_depth(params))]}


def _end_bias(params: Params) -> jax.Array:
    """`[n_out]`: the sum of the contributions of all skips' biases and the end's bias."""
    kernel = params["end"]["kernel"][0]
    skips = sum(
        params[f"res_skip_layer_{i}"]["bias"][-len(kernel) :] for i in range(_depth(params))
    )
    return exact(skips, kernel) + params["end"]["bias"]


def _depth(params: Params) -> int:
    return sum(name.startswith("in_layer_") for name in params)


def exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in full precision, for matmuls of weights."""
    return jnp.matmul(a, b, precision=EXACT)


def matmul(x: jax.Array, w: jax.Array, dtype: Any, result: Any = None) -> jax.Array:
    """x @ w with operands rounded to `dtype`, accumulated and returned in `result` (x's dtype)."""
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
    # The residuals are the rounded operands, and the dtypes of the originals.
    dtypes = jnp.zeros(0, x.dtype), jnp.zeros(0, w.dtype)
    y = _low_precision_matmul(x, w, dtype, result)
    return y, (x.astype(dtype), w.astype(dtype), *dtypes)


def _low_precision_matmul_bwd(
    dtype: Any, result: Any, saved: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Autodiff alone would multiply the float32 cotangent. Rounding both operands keeps the backward
    # pass on the fast units, too.
    x, w, like_x, like_w = saved
    g = g.astype(dtype)
    dx = jnp.matmul(g, _transposed(w), preferred_element_type=result)
    dw = _of_kernel(x, g, result)
    return dx.astype(like_x.dtype), dw.astype(like_w.dtype)


def _transposed(w: jax.Array) -> jax.Array:
    def copied(w: jax.Array) -> jax.Array:
        # A transpose alone is only a relabelling, with which XLA:CPU does not choose its fast
        # matmul (jaxlib 0.10). It can go when a training step in bfloat16 is as fast with `w.T`.
        return jax.lax.optimization_barrier(w.T.reshape(-1)).reshape(w.shape[::-1])

    return jax.lax.platform_dependent(w, cpu=copied, default=jnp.transpose)


_low_precision_matmul.defvjp(_low_precision_matmul_fwd, _low_precision_matmul_bwd)
