"""The reverse pass as an ONNX file, by way of jax2onnx (extra `onnx`).

    import onnxruntime
    voice = onnxruntime.InferenceSession("voice.onnx")
    (audio,) = voice.run(None, {"z": sigma * noise, "mel": mel})

Inputs, output and free sizes are those of `export`. What jax2onnx 0.17 cannot convert is put in
another form before it sees it: see `_converted_form`.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from waveglow_jax.audio.files import replacing
from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import Params, inverse_prepared, prepare_inverse
from waveglow_jax.synthesis.export import input_shapes

_INLINED = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def write_onnx(path: Path, config: Config, params: Params) -> None:
    """The reverse pass in float32, weights included, written whole or not at all.

    Raises UserError if the converter is missing, or cannot convert the config's whitening.
    """
    if config.waveglow.mel_whitening and not config.waveglow.whitening_order:
        raise UserError(
            "waveglow_config.mel_whitening has no order: its blocks are factored one by one, and "
            "jax2onnx factors a known number alone; export without .onnx for jax.export"
        )
    try:
        from jax2onnx import to_onnx
    except ImportError:
        raise UserError(
            "ONNX needs the library jax2onnx: pip install 'waveglow-jax[onnx]'"
        ) from None
    prepared = jax.tree.map(np.asarray, jax.jit(prepare_inverse)(params))
    shapes = input_shapes(config)
    traced = jax.make_jaxpr(lambda z, mel: inverse_prepared(prepared, config, z, mel)[0])(*shapes)

    def reverse(z: jax.Array, mel: jax.Array) -> jax.Array:
        return _evaluated(traced.jaxpr, traced.consts, [z, mel])[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants in float64, which it then narrows
        model = to_onnx(
            reverse,
            shapes,
            model_name="waveglow",
            input_names=["z", "mel"],
            output_names=["audio"],
        )
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """What the program computes of the values, without the steps that nothing depends on."""
    wanted, needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            needed.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

    def value(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else known[v]

    for eqn in reversed(needed):
        results = _converted_form(eqn, [value(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, results, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _converted_form(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """One step, in a form that jax2onnx converts for free sizes."""
    name, parameters = eqn.primitive.name, eqn.params
    match name:
        case "platform_index":
            platforms = parameters["platforms"]
            return [next(i for i, p in enumerate(platforms) if p is None or "cpu" in p)]
        case "cond" if isinstance(values[0], int):
            branch = parameters["branches"][values[0]]
            return _evaluated(branch.jaxpr, branch.consts, values[1:])
        case "jit" | "custom_jvp_call" | "custom_vjp_call":
            inside = parameters[_INLINED[name]]
            return _evaluated(inside.jaxpr, inside.consts, values)
        case "scan":
            return _scan(parameters, values)
        case "pad":
            return [_padded(values[0], values[1], parameters["padding_config"])]
        case "concatenate":  # ONNX takes a size of 0 for one to copy
            axis = parameters["dimension"]
            parts = [v for v in values if not (type(v.shape[axis]) is int and not v.shape[axis])]
            return [jax.lax.concatenate(parts, axis) if len(parts) > 1 else parts[0]]
        case "rem":
            return [values[0] - jax.lax.div(*values) * values[1]]
        case "convert_element_type" if parameters["new_dtype"] == np.complex64:
            return values  # of a spectrum without phase, for the step below
        case "fft":
            return [_real_inverse_fft(values[0], parameters)]
    results = eqn.primitive.bind(*values, **parameters)
    return results if eqn.primitive.multiple_results else [results]


def _scan(parameters: dict[str, Any], values: list[Any]) -> list[Any]:
    inside = parameters["jaxpr"]
    fixed, carried = _constants_and_carries(parameters)
    consts, start, xs = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _evaluated(inside.jaxpr, inside.consts, [*consts, *carry, *x])
        return results[:carried], results[carried:]

    length = None if xs else parameters["length"]  # which may be unknown
    end, ys = jax.lax.scan(step, start, xs, length=length, reverse=parameters["reverse"])
    return [*end, *ys]


def _constants_and_carries(parameters: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many are carried from step to step."""
    if "ft_in" in parameters:  # since JAX 0.11
        constants, carries, _ = parameters["ft_in"].unpack()
        return len(constants), len(carries)
    return parameters["num_consts"], parameters["num_carry"]


def _padded(x: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """By concatenation."""
    for axis, (before, after, between) in enumerate(config):
        if min(before, after) < 0 or between:
            raise NotImplementedError(f"padding by {config}")
        edge = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
        sizes = [[n if i == axis else 1 for i in range(x.ndim)] for n in (before, after)]
        sides = [edge * np.zeros(size, x.dtype) + value if size[axis] else None for size in sizes]
        parts = [part for part in (sides[0], x, sides[1]) if part is not None]
        x = jax.lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _real_inverse_fft(spectrum: Any, parameters: dict[str, Any]) -> Any:
    """Of a spectrum without phase, as a sum of cosines: ONNX has no complex numbers."""
    (size,) = parameters["fft_lengths"]
    if parameters["fft_type"] != jax.lax.FftType.IRFFT or jnp.iscomplexobj(spectrum):
        raise NotImplementedError(f"a Fourier transform of type {parameters['fft_type']}")
    bins, lags = np.arange(size // 2 + 1), np.arange(size)
    weights = np.where((bins == 0) | (bins == size // 2), 1, 2) / size
    turns = np.outer(bins, lags) % size / size
    cosines = weights[:, None] * np.cos(2 * math.pi * turns)
    return jnp.matmul(spectrum, cosines.astype(np.float32), precision="highest")
