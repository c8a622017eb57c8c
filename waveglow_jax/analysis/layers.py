"""The flow taken apart: one invertible layer after another, each in the precision asked for.

Arrays: state `[1, N, G]`, N = T / group steps. What has left the flow stays in the state's first
channels, so the state between any two layers has the size of the audio, and after the last it is z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.analysis.precisions import Precision, emulated
from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import (
    coupling_forward,
    coupling_inverse,
    invertible_conv_forward,
    invertible_conv_inverse,
    whitening_factors,
    whitening_forward,
    whitening_inverse,
)
from waveglow_jax.flow.prediction import prediction_forward, prediction_inverse, predictor_of_mel
from waveglow_jax.flow.waveglow import check_shapes, conditioner_of, conditioning_of
from waveglow_jax.flow.wavenet import Params, weight_norm

WHITENING, CONVOLUTION, COUPLING = "whitening", "1x1 convolution", "coupling"
KINDS = (WHITENING, CONVOLUTION, COUPLING)


@dataclass(frozen=True)
class Layer:
    """One bijection of the state `[1, N, G]`, with both directions: `x -> (y, log_det [1])`.

    flow: its number, -1 for the whitening. channels: the last so many of the state, which it works
    on. log_s: of a coupling, `x -> log_s [1, N, C / 2]` (in either direction x's own halves).
    """

    kind: str
    flow: int
    channels: int
    forward: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    inverse: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    log_s: Callable[[jax.Array], jax.Array] | None = None

    @property
    def name(self) -> str:
        return self.kind if self.flow < 0 else f"flow {self.flow} {self.kind}"


def layers_of(
    params: Params,
    config: Config,
    mel: np.ndarray,
    n_samples: int,
    precision: Precision,
    past: np.ndarray | None = None,
) -> list[Layer]:
    """The layers from audio to z under one mel `[F, M]`, all in that precision.

    past `[order]`: the samples before the audio, for a whitening that predicts. Parameters are
    prepared as for synthesis: weight norm folded and W inverted in the stream's dtype. The
    whitening is never emulated: FFT and recursion have no form with fewer bits.
    Float64 needs `jax_enable_x64`. Raises ValueError for shapes that do not fit.
    """
    glow, stream = config.waveglow, precision.stream
    check_shapes(config, (1, n_samples), (1, *mel.shape))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, stream), params)
    frames = jnp.asarray(mel, stream)[None]
    steps = n_samples // glow.n_group
    upsample = {"upsample": params["upsample"]}
    conditioning = _conditioning(upsample, frames, config, steps, precision)
    layers = []
    if glow.mel_whitening:
        layers.append(_whitening_layer(frames, config, n_samples, past))
    for k, flow in enumerate(params["flows"]):
        layers.append(_convolution_layer(flow["conv"], config, k, precision))
        layers.append(_coupling_layer(weight_norm(flow["wn"]), conditioning, config, k, precision))
    return layers


def run_forward(layers: Sequence[Layer], x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """The states before the first layer, between them and after the last; each layer's log_det."""
    states, log_dets = [x], []
    for layer in layers:
        x, log_det = layer.forward(x)
        states.append(x)
        log_dets.append(log_det)
    return states, log_dets


def run_inverse(layers: Sequence[Layer], z: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """As `run_forward`, back: states and log_dets in the order of the layers, states[-1] = z."""
    states, log_dets = [z], []
    for layer in reversed(layers):
        z, log_det = layer.inverse(z)
        states.append(z)
        log_dets.append(log_det)
    return states[::-1], log_dets[::-1]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _conditioning(
    upsample: Params, mel: jax.Array, config: Config, steps: int, precision: Precision
) -> jax.Array:
    def run(upsample: Params, mel: jax.Array) -> jax.Array:
        return conditioning_of(upsample, config, mel, steps, precision.products)

    return emulated(run, precision)(upsample, mel)


# ------------------------------------------------------------------------------ the layers


def _whitening_layer(
    mel: jax.Array, config: Config, n_samples: int, past: np.ndarray | None
) -> Layer:
    spectrum = _spectrum(mel, config, n_samples)
    before = None if past is None else jnp.asarray(past, mel.dtype)[None]

    def layer(inverse: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, log_det = _whitened(spectrum, before, x.reshape(1, -1), config, inverse)
        return y.reshape(x.shape), log_det

    group = config.waveglow.n_group
    return Layer(WHITENING, -1, group, partial(layer, False), partial(layer, True))


@partial(jax.jit, static_argnums=(1, 2))
def _spectrum(mel: jax.Array, config: Config, n_samples: int) -> Any:
    """What the mel tells the whitening: a predictor, or the blocks' factors."""
    of_mel = predictor_of_mel if config.waveglow.whitening.order else whitening_factors
    return of_mel(mel, config, n_samples)


@partial(jax.jit, static_argnums=(3, 4))
def _whitened(
    spectrum: Any, past: jax.Array | None, audio: jax.Array, config: Config, inverse: bool
) -> tuple[jax.Array, jax.Array]:
    if config.waveglow.whitening.order:
        direction = prediction_inverse if inverse else prediction_forward
        return direction(spectrum, audio, past)
    return (whitening_inverse if inverse else whitening_forward)(spectrum, audio)


def _convolution_layer(weight: jax.Array, config: Config, k: int, precision: Precision) -> Layer:
    channels = config.waveglow.channels(k)
    weights = {False: weight, True: jax.jit(jnp.linalg.inv)(weight)}

    def layer(inverse: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _on_last(channels, x, partial(_convolved, weights[inverse], precision, inverse))

    return Layer(CONVOLUTION, k, channels, partial(layer, False), partial(layer, True))


def _convolved(
    weight: jax.Array, precision: Precision, inverse: bool, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _convolved_jit(weight, x, precision, inverse)


@partial(jax.jit, static_argnums=(2, 3))
def _convolved_jit(
    weight: jax.Array, x: jax.Array, precision: Precision, inverse: bool
) -> tuple[jax.Array, jax.Array]:
    direction = invertible_conv_inverse if inverse else invertible_conv_forward
    return emulated(direction, precision)(weight, x)


def _coupling_layer(
    wn: Params, conditioning: jax.Array, config: Config, k: int, precision: Precision
) -> Layer:
    channels, swapped = config.waveglow.channels(k), config.waveglow.halves_swapped(k)

    def conditioned(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = jnp.split(x[..., -channels:], 2, axis=-1)[int(swapped)]
        return _conditioned(wn, conditioning, half, config, precision)

    def layer(inverse: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The conditioner is compiled once for both directions: they differ in three operations.
        shift, log_s = conditioned(x)

        def coupled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _coupled(shift, log_s, x, precision, inverse, swapped)

        return _on_last(channels, x, coupled)

    return Layer(
        COUPLING,
        k,
        channels,
        partial(layer, False),
        partial(layer, True),
        lambda x: conditioned(x)[1],
    )


@partial(jax.jit, static_argnums=(3, 4))
def _conditioned(
    wn: Params, conditioning: jax.Array, half: jax.Array, config: Config, precision: Precision
) -> tuple[jax.Array, jax.Array]:
    def run(wn: Params, conditioning: jax.Array, half: jax.Array) -> tuple[jax.Array, jax.Array]:
        return conditioner_of(wn, config, conditioning, None, precision.products)(half)

    return emulated(run, precision)(wn, conditioning, half)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _coupled(
    shift: jax.Array,
    log_s: jax.Array,
    x: jax.Array,
    precision: Precision,
    inverse: bool,
    swapped: bool,
) -> tuple[jax.Array, jax.Array]:
    direction = coupling_inverse if inverse else coupling_forward

    def run(shift: jax.Array, log_s: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return direction(lambda half: (shift, log_s), x, swapped=swapped)

    return emulated(run, precision)(shift, log_s, x)


def _on_last(
    channels: int,
    x: jax.Array,
    bijection: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """A bijection on the state's last channels; those before them have left."""
    y, log_det = bijection(x[..., -channels:])
    return jnp.concatenate([x[..., :-channels], y], axis=-1), log_det
