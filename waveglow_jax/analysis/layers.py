"""The flow as a list of invertible layers, each computed in a given precision.

Arrays: state `[1, N, G]`, N = T / group steps. The early outputs stay in the state's first
channels, so the state between any two layers has the size of the audio, and after the last it is z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.analysis.precisions import FLOAT32, Precision, emulated
from waveglow_jax.config import Config
from waveglow_jax.flow import steps as flow
from waveglow_jax.flow.bijections import coupling_forward, coupling_inverse, total_log_det
from waveglow_jax.flow.steps import Context, Direction, Step, flow_steps
from waveglow_jax.flow.waveglow import Params, check_shapes, conditioning_of, prepare_inverse

KINDS = (flow.WHITENING.kind, flow.CONVOLUTION.kind, flow.COUPLING.kind)
WHITENING, CONVOLUTION, COUPLING = KINDS


@dataclass(frozen=True)
class Layer:
    """One bijection of the state `[1, N, G]`, with both directions: `x -> (y, log_det [1])`.

    flow: the flow's number, -1 for the whitening. channels: how many of the state's last channels
    the layer transforms. log_s: only for a coupling, `x -> log_s [1, N, C / 2]`, which accepts the
    input of either direction because the conditioning half is the same in both.
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
    """The layers from audio to z, conditioned on one mel `[F, M]`, all in the given precision.

    past `[order]`: the samples before the audio, for a whitening that predicts. The parameters are
    prepared as for synthesis: weight norm is folded, and W is inverted in the stream's dtype. The
    whitening is never emulated because FFT and recursion have no form with fewer bits.
    Float64 needs `jax_enable_x64`. Raises ValueError for shapes that do not match.
    """
    stream = precision.stream
    check_shapes(config, (1, n_samples), (1, *mel.shape))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, stream), params)
    prepared = jax.jit(prepare_inverse)(params)
    frames = jnp.asarray(mel, stream)[None]
    before = None if past is None else jnp.asarray(past, stream)[None]
    whitening = _whitening_given(frames, config, n_samples, before)
    steps = n_samples // config.waveglow.n_group
    upsample = {"upsample": params["upsample"]}
    conditioning = _conditioning(upsample, frames, config, steps, precision)
    context = Context(config, conditioning, None, precision.products)
    both = (flow_steps(each["flows"], context, whitening) for each in (params, prepared))
    return [_layer(ahead, back, precision) for ahead, back in zip(*both, strict=True)]


def run_forward(layers: Sequence[Layer], x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """The states before the first layer and after each layer, and each layer's log_det."""
    states, log_dets = [x], []
    for layer in layers:
        x, log_det = layer.forward(x)
        states.append(x)
        log_dets.append(log_det)
    return states, log_dets


def run_inverse(layers: Sequence[Layer], z: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """The inverse of `run_forward`.

    States and log_dets are in the order of the layers, so states[-1] = z.
    """
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


@partial(jax.jit, static_argnums=(1, 2))
def _whitening_given(mel: jax.Array, config: Config, n_samples: int, past: jax.Array | None) -> Any:
    return flow.whitening_given(mel, config, n_samples, past)


# ------------------------------------------------------------------------------ the layers


def _layer(ahead: Step, back: Step, precision: Precision) -> Layer:
    """The layer of a step; `ahead` has the original parameters, `back` the prepared ones."""
    if ahead.bijection == flow.COUPLING:
        return _coupling_layer(back, precision)
    if ahead.bijection == flow.WHITENING:
        precision = FLOAT32

    def layer(step: Step, direction: Direction, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def applied(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _applied(direction, step.params, x, step.context, precision)

        return _on_last(step.channels, x, applied)

    return Layer(
        ahead.bijection.kind,
        ahead.flow,
        ahead.channels,
        partial(layer, ahead, ahead.bijection.forward),
        partial(layer, back, back.bijection.inverse),
    )


@partial(jax.jit, static_argnums=(0, 4))
def _applied(
    direction: Direction, params: Any, x: jax.Array, context: Context, precision: Precision
) -> tuple[jax.Array, jax.Array]:
    def run(params: Any, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        y, log_det = direction(params, x, context)
        return y, total_log_det(log_det, (x.shape[0], x.shape[1]))

    return emulated(run, precision)(params, x, context)


def _coupling_layer(step: Step, precision: Precision) -> Layer:
    channels, swapped = step.channels, step.context.swapped

    def conditioned(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = jnp.split(x[..., -channels:], 2, axis=-1)[int(swapped)]
        return _conditioned(step.params, half, step.context, precision)

    def layer(inverse: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The conditioner is compiled once for both directions, which differ in three operations.
        shift, log_s = conditioned(x)

        def coupled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _coupled(shift, log_s, x, precision, inverse, swapped)

        return _on_last(channels, x, coupled)

    return Layer(
        COUPLING,
        step.flow,
        channels,
        partial(layer, False),
        partial(layer, True),
        lambda x: conditioned(x)[1],
    )


@partial(jax.jit, static_argnums=3)
def _conditioned(
    params: Params, half: jax.Array, context: Context, precision: Precision
) -> tuple[jax.Array, jax.Array]:
    return emulated(flow.shift_and_scale, precision)(params, half, context)


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
        y, log_det = direction(lambda half: (shift, log_s), x, swapped)
        return y, total_log_det(log_det, (x.shape[0], x.shape[1]))

    return emulated(run, precision)(shift, log_s, x)


def _on_last(
    channels: int,
    x: jax.Array,
    bijection: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
    """Applies a bijection to the state's last channels; the others are early outputs."""
    y, log_det = bijection(x[..., -channels:])
    return jnp.concatenate([x[..., :-channels], y], axis=-1), log_det
