"""How exactly the flow inverts: round trips in every precision, and each layer's error share.

Arrays: audio `[T]`, mel `[F, M]`; internally, states `[1, N, G]` (`analysis/layers.py`). Errors are
computed in float64. Everything here needs `jax_enable_x64`; without it, JAX would replace float64
by float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.analysis.differences import Error, error_of, relative, rms
from waveglow_jax.analysis.layers import KINDS, Layer, run_forward, run_inverse
from waveglow_jax.analysis.lipschitz import (
    JacobianCheck,
    LayerShape,
    jacobian_check,
    lipschitz_constants,
)
from waveglow_jax.analysis.precisions import FLOAT64, PRECISIONS, Precision
from waveglow_jax.analysis.signals import (
    SIGMAS,
    Signal,
    excerpt,
    latent_of,
    layers_at,
    representable,
    state_of,
    stress_signals,
    with_condition,
)
from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import Params

BLAMED = ("float32", "bfloat16 in WN")
STRESSED = ("float64", "float32", "bfloat16 in WN")
CONDITIONS = (1e2, 1e4, 1e6, 1e8)
CLOSE_SAMPLES = 4096
Progress = Callable[[str], None]


@dataclass(frozen=True)
class RoundTrip:
    """The errors of both round trips of one signal in one precision.

    audio: the error of audio -> z -> audio. latent: the error of z -> audio -> z. forward: the
    error of z against the z computed in float64.
    In nats per sample: log_det_error is the error of the forward log_det against float64's;
    log_det_residue is the sum of the forward and inverse log_dets, which should be 0.
    """

    signal: str
    precision: str
    audio: Error
    latent: Error
    forward: Error
    log_det_error: float
    log_det_residue: float


@dataclass(frozen=True)
class LayerError:
    """A layer's contribution to the error of a round trip audio -> z -> audio in one precision.

    Three errors are relative to the RMS of the state. forward: the layer's own error against
    float64 from the same input. there_and_back: the error after the layer and its inverse alone.
    injected: what the layer adds in the inverse pass to the error that it receives, which is the
    error of its output minus the error of its input mapped through the exact inverse.
    at_audio: the RMS of the injected error once the exact layers have mapped it to the audio.
    share: the square of at_audio over the sum of these squares of all layers.
    """

    layer: str
    kind: str
    precision: str
    forward: float
    there_and_back: float
    injected: float
    at_audio: float
    share: float


@dataclass(frozen=True)
class Blame:
    """The errors of all layers in one precision.

    rms: the RMS of the audio's error after the round trip. unexplained: the RMS of the difference
    between that error and the sum of what the layers add, relative to rms (0: the sum explains all
    of the error).
    """

    precision: str
    rms: float
    unexplained: float
    layers: list[LayerError]


@dataclass(frozen=True)
class Depth:
    """Relative RMS errors of the states, from the audio (index 0) to z (last), in one precision.

    forward: the errors of the forward pass's states against float64's. back: the errors of the
    inverse pass's states against the forward pass's. The bounds follow from the layers' own errors
    and their local Lipschitz constants K: e(l + 1) <= K(l) e(l) + own error of layer l, and
    likewise for the inverse pass.
    """

    precision: str
    forward: list[float]
    back: list[float]
    forward_bound: list[float]
    back_bound: list[float]


@dataclass(frozen=True)
class Stress:
    """The error of one round trip (`way`: "audio" or "latent") that is harder than speech."""

    name: str
    way: str
    precision: str
    error: Error


@dataclass(frozen=True)
class Report:
    """Everything that `analyse` measures.

    seconds: length of each signal. close_samples: length of the excerpt that the layer-wise
    measurements use. whole_forward, whole_inverse: local Lipschitz constants of the whole flow.
    """

    model: str
    signals: list[str]
    seconds: float
    close_samples: int
    round_trips: list[RoundTrip]
    blamed: list[Blame]
    depths: list[Depth]
    shapes: list[LayerShape]
    whole_forward: float
    whole_inverse: float
    log_dets: dict[str, dict[str, float]]
    jacobian: JacobianCheck
    stress: list[Stress]


def analyse(
    params: Params,
    config: Config,
    signals: Sequence[Signal],
    model: str = "",
    close_samples: int = CLOSE_SAMPLES,
    precisions: Sequence[Precision] = PRECISIONS,
    progress: Progress = lambda stage: None,
) -> Report:
    """Measures everything that the report holds.

    signals: signals of one length; the first of them is analysed layer by layer. close_samples:
    length of its loudest excerpt, which that analysis uses; a multiple of the hop. model: the
    model's name in the report. Raises ValueError without signals, for signals of different lengths,
    or without `jax_enable_x64`.
    """
    if not jax.config.jax_enable_x64:
        raise ValueError("jax_enable_x64 is off: nothing would be float64")
    if len({len(signal.audio) for signal in signals}) != 1:
        raise ValueError("signals of one length are needed, at least one")
    progress("round trips")
    trips = [trip for signal in signals for trip in round_trips(params, config, signal, precisions)]
    progress("layer by layer")
    close = excerpt(signals[0], config, close_samples)
    exact = layers_at(params, config, close, FLOAT64)
    shapes, whole = lipschitz_constants(params, config, close)
    chosen = [p for p in precisions if p.name in BLAMED]
    blamed = [blame(params, config, close, p, exact) for p in chosen]
    progress("error against depth")
    depths = [depth_of(params, config, close, p, exact, shapes) for p in precisions]
    log_dets = {p.name: log_det_errors(params, config, close, p, exact) for p in precisions}
    progress("Jacobian")
    checked = jacobian_check(params, config, close)
    progress("stress")
    stressed = [p for p in precisions if p.name in STRESSED]
    return Report(
        model=model,
        signals=[signal.name for signal in signals],
        seconds=len(signals[0].audio) / config.data.sampling_rate,
        close_samples=len(close.audio),
        round_trips=trips,
        blamed=blamed,
        depths=depths,
        shapes=shapes,
        whole_forward=whole[0],
        whole_inverse=whole[1],
        log_dets=log_dets,
        jacobian=checked,
        stress=stress(params, config, close, signals[1:], stressed),
    )


def round_trips(
    params: Params, config: Config, signal: Signal, precisions: Sequence[Precision]
) -> list[RoundTrip]:
    """Both round trips of a signal in each precision."""
    n = len(signal.audio)
    exact = layers_at(params, config, signal, FLOAT64)
    trips = []
    for precision in precisions:
        layers = layers_at(params, config, signal, precision)
        x = representable(state_of(signal.audio, config, precision), precision)
        states, log_dets = run_forward(layers, x)
        back, back_log_dets = run_inverse(layers, states[-1])
        z = latent_of(config, n, precision)
        sound, _ = run_inverse(layers, z)
        again, _ = run_forward(layers, sound[0])
        truth, true_log_dets = run_forward(exact, x.astype("float64"))
        total, back_total, true_total = map(_total, (log_dets, back_log_dets, true_log_dets))
        bits = precision.significand
        trips.append(
            RoundTrip(
                signal.name,
                precision.name,
                audio=error_of(back[0], x, bits),
                latent=error_of(again[-1], z, bits),
                forward=error_of(states[-1], truth[-1], bits),
                log_det_error=abs(total - true_total) / n,
                log_det_residue=abs(total + back_total) / n,
            )
        )
    return trips


def _total(log_dets: Sequence[jax.Array]) -> float:
    return float(sum(float(each[0]) for each in log_dets))


def _there_and_back(
    params: Params, config: Config, signal: Signal, precision: Precision, exact: Sequence[Layer]
) -> tuple[list[Layer], list[jax.Array], list[jax.Array], list[jax.Array]]:
    """The layers in a precision, and the states before, between and after them in three passes.

    These are the forward pass, its inverse from where that ends, and the forward pass of `exact`,
    the same layers in float64, from the same audio.
    """
    layers = layers_at(params, config, signal, precision)
    x = representable(state_of(signal.audio, config, precision), precision)
    truth, _ = run_forward(exact, x.astype("float64"))
    there, _ = run_forward(layers, x)
    back, _ = run_inverse(layers, there[-1])
    return layers, there, back, truth


def blame(
    params: Params, config: Config, signal: Signal, precision: Precision, exact: Sequence[Layer]
) -> Blame:
    """How much error every layer adds to a round trip. exact: the same layers in float64."""
    layers, there, back, truth = _there_and_back(params, config, signal, precision, exact)
    found, total = [], jnp.zeros_like(truth[0])
    for depth, (layer, true_layer) in enumerate(zip(layers, exact, strict=True)):
        here, beyond, came_back, came_from = (
            state.astype("float64")
            for state in (there[depth], there[depth + 1], back[depth], back[depth + 1])
        )
        carried = true_layer.inverse(came_from)[0] - true_layer.inverse(beyond)[0]
        added = came_back - here - carried
        at_audio = run_inverse(exact[:depth], truth[depth] + added)[0][0] - truth[0]
        total = total + at_audio
        alone = layer.inverse(there[depth + 1])[0].astype("float64") - here
        found.append(
            LayerError(
                layer=layer.name,
                kind=layer.kind,
                precision=precision.name,
                forward=relative(beyond, true_layer.forward(here)[0]),
                there_and_back=rms(alone) / rms(here),
                injected=rms(added) / rms(here),
                at_audio=rms(at_audio),
                share=0.0,
            )
        )
    squares = sum(each.at_audio**2 for each in found)
    error = np.asarray(back[0], np.float64) - np.asarray(there[0])
    return Blame(
        precision.name,
        rms=rms(error),
        unexplained=rms(error - total) / rms(error),
        layers=[replace(each, share=each.at_audio**2 / squares) for each in found],
    )


def depth_of(
    params: Params,
    config: Config,
    signal: Signal,
    precision: Precision,
    exact: Sequence[Layer],
    shapes: Sequence["LayerShape"],
) -> Depth:
    """Errors of the states in the forward and the inverse pass, with their bounds."""
    layers, there, back, truth = _there_and_back(params, config, signal, precision, exact)
    sizes = [rms(state) for state in there]
    forward_bound, back_bound = [0.0], [0.0]
    for k, (layer, true_layer, shape) in enumerate(zip(layers, exact, shapes, strict=True)):
        own = rms(np.asarray(there[k + 1]) - true_layer.forward(there[k].astype("float64"))[0])
        forward_bound.append(shape.forward * forward_bound[-1] + own)
        k = len(layers) - 1 - k
        layer, shape = layers[k], shapes[k]
        own = rms(np.asarray(layer.inverse(there[k + 1])[0], np.float64) - np.asarray(there[k]))
        back_bound.append(shape.inverse * back_bound[-1] + own)
    return Depth(
        precision.name,
        forward=[relative(*pair) for pair in zip(there, truth, strict=True)],
        back=[relative(*pair) for pair in zip(back, there, strict=True)],
        forward_bound=[b / size for b, size in zip(forward_bound, sizes, strict=True)],
        back_bound=[b / size for b, size in zip(back_bound[::-1], sizes, strict=True)],
    )


def log_det_errors(
    params: Params, config: Config, signal: Signal, precision: Precision, exact: Sequence[Layer]
) -> dict[str, float]:
    """|log_det - float64's| in nats per sample on one audio, by kind of layer and for "all"."""
    x = representable(state_of(signal.audio, config, precision), precision)
    layers = layers_at(params, config, signal, precision)
    ours = run_forward(layers, x)[1]
    theirs = run_forward(exact, x.astype("float64"))[1]
    off = [float(a[0]) - float(b[0]) for a, b in zip(ours, theirs, strict=True)]
    by_kind = {
        kind: [each for each, layer in zip(off, layers, strict=True) if layer.kind == kind]
        for kind in KINDS
    }
    errors = {kind: abs(sum(each)) / x.size for kind, each in by_kind.items() if each}
    return {**errors, "all": abs(sum(off)) / x.size}


def stress(
    params: Params,
    config: Config,
    signal: Signal,
    others: Sequence[Signal],
    precisions: Sequence[Precision],
) -> list[Stress]:
    """Round trips of inputs that are harder than any recording, all derived from one signal.

    others: signals whose mels condition further round trips of this signal's audio.
    """
    n = len(signal.audio)
    found = []
    for precision in precisions:
        layers = layers_at(params, config, signal, precision)

        def trip(
            name: str,
            audio: np.ndarray,
            layers: Sequence[Layer] = layers,
            precision: Precision = precision,
        ) -> Stress:
            x = state_of(audio, config, precision)
            back = run_inverse(layers, run_forward(layers, x)[0][-1])[0][0]
            error = error_of(back, x, precision.significand)
            return Stress(name, "audio", precision.name, error)

        for sigma in SIGMAS:
            z = latent_of(config, n, precision, sigma)
            again = run_forward(layers, run_inverse(layers, z)[0][0])[0][-1]
            error = error_of(again, z, precision.significand)
            found.append(Stress(f"noise of sigma {sigma:g}", "latent", precision.name, error))
        found += [trip(name, audio) for name, audio in stress_signals(signal.audio).items()]
        for other in others:
            mel = other.mel[: len(signal.mel)]
            foreign = layers_at(params, config, signal, precision, mel=mel)
            name = f"the mel of another signal ({other.name})"
            found.append(trip(name, signal.audio, layers=foreign))
        for condition in CONDITIONS:
            worse = with_condition(params, config.waveglow.n_flows // 2, condition)
            bent = layers_at(worse, config, signal, precision)
            name = f"one W of condition {condition:.0e}"
            found.append(trip(name, signal.audio, layers=bent))
    return found
