"""Export of the reverse pass to an ONNX file with jax2onnx (extra `onnx`).

    import onnxruntime
    voice = onnxruntime.InferenceSession("voice.onnx")
    (audio,) = voice.run(None, {"z": sigma * noise, "mel": mel})

Inputs, output and free sizes are those of `export`. Operations that jax2onnx 0.17 cannot convert
are rewritten first: see `_converted_form`.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.flow.waveglow import Params, inverse_prepared, of_frames, prepare_inverse
from waveglow_jax.jaxprs import evaluate, plainly, scan_inputs
from waveglow_jax.synthesis.export import input_shapes


def write_onnx(path: Path, config: Config, params: Params) -> None:
    """Writes the reverse pass in float32, weights included, whole or not at all.

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

    def traced_form(z: jax.Array, mel: jax.Array) -> jax.Array:
        audio, _ = inverse_prepared(prepared, config, z, mel)
        return of_frames(audio, mel.shape[1], config)

    traced = jax.make_jaxpr(traced_form)(*shapes)

    def reverse(z: jax.Array, mel: jax.Array) -> jax.Array:
        return evaluate(traced, [z, mel], _converted_form)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about float64 constants, which it converts to float32
        model = to_onnx(
            reverse,
            shapes,
            model_name="waveglow",
            input_names=["z", "mel"],
            output_names=["audio"],
        )
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _converted_form(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Evaluates one equation in a form that jax2onnx can convert for free sizes."""
    name, parameters = eqn.primitive.name, eqn.params
    match name:
        case "platform_index":
            platforms = parameters["platforms"]
            return [next(i for i, p in enumerate(platforms) if p is None or "cpu" in p)]
        case "scan":
            return _scan(eqn, values)
        case "pad":
            return [_padded(values[0], values[1], parameters["padding_config"])]
        case "concatenate":  # ONNX reads a size of 0 as "copy this size"
            axis = parameters["dimension"]
            parts = [v for v in values if not (type(v.shape[axis]) is int and not v.shape[axis])]
            return [jax.lax.concatenate(parts, axis) if len(parts) > 1 else parts[0]]
        case "rem":
            return [values[0] - jax.lax.div(*values) * values[1]]
        case "convert_element_type" if parameters["new_dtype"] == np.complex64:
            return values  # a spectrum without phase, for the "fft" case below
        case "fft":
            return [_real_inverse_fft(values[0], parameters)]
    return plainly(eqn, values, _converted_form)


def _scan(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    parameters = eqn.params
    fixed, carried = scan_inputs(eqn)
    consts, start, xs = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = evaluate(parameters["jaxpr"], [*consts, *carry, *x], _converted_form)
        return results[:carried], results[carried:]

    length = None if xs else parameters["length"]  # the length may be symbolic
    end, ys = jax.lax.scan(step, start, xs, length=length, reverse=parameters["reverse"])
    return [*end, *ys]


def _padded(x: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """Pads x by concatenation. Raises NotImplementedError for negative or interior padding."""
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
    """Inverse FFT of a real spectrum (phase 0) as a sum of cosines: ONNX has no complex numbers."""
    (size,) = parameters["fft_lengths"]
    if parameters["fft_type"] != jax.lax.FftType.IRFFT or jnp.iscomplexobj(spectrum):
        raise NotImplementedError(f"a Fourier transform of type {parameters['fft_type']}")
    bins, lags = np.arange(size // 2 + 1), np.arange(size)
    weights = np.where((bins == 0) | (bins == size // 2), 1, 2) / size
    turns = np.outer(bins, lags) % size / size
    cosines = weights[:, None] * np.cos(2 * math.pi * turns)
    return jnp.matmul(spectrum, cosines.astype(np.float32), precision="highest")
