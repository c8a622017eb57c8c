"""How invertible is it really: round trips in every precision, and the layer that is to blame.

Arrays: audio `[T]`, mel `[F, M]`; inside, states `[1, N, G]` (`lab/layers.py`). Errors are taken in
float64. Everything here needs `jax_enable_x64`, or its float64 would be float32.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import Params, forward, init
from waveglow_jax.lab.layers import (
    CONVOLUTION,
    KINDS,
    Layer,
    layers_of,
    run_forward,
    run_inverse,
)
from waveglow_jax.lab.precisions import FLOAT32, FLOAT64, PRECISIONS, Precision

BLAMED = ("float32", "bfloat16 in WN")
STRESSED = ("float64", "float32", "bfloat16 in WN")
SIGMAS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.0)
CONDITIONS = (1e2, 1e4, 1e6, 1e8)
POWER_ITERATIONS = 12
CLOSE_SAMPLES = 4096
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Signal:
    """A piece of audio `[T]`, the mel `[F + 1, M]` under which it is encoded, F = T / hop, and the
    samples before it, `past`."""

    name: str
    audio: np.ndarray
    mel: np.ndarray
    past: np.ndarray


@dataclass(frozen=True)
class Error:
    """What came back less what was given. SNR: the given signal's power over the error's.

    bits_lost: of the significand's bits, those that the RMS error eats up. snr_db and bits_lost are
    None where the error or the signal is zero; all are None if anything is not finite.
    """

    max: float | None
    rms: float | None
    snr_db: float | None
    bits_lost: float | None


@dataclass(frozen=True)
class RoundTrip:
    """audio: audio -> z -> audio. latent: z -> audio -> z. forward: z against float64's.

    Nats per sample: log_det_error against float64's; log_det_residue, that of both ways together.
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
    """A layer's part in a round trip audio -> z -> audio in one precision.

    Relative to the RMS of the state: forward, its own error against float64 from the same input;
    there_and_back, through it and its inverse alone; injected, what it adds on the way back to the
    error that reaches it: the error behind it, less that before it carried by the exact inverse.
    at_audio: the RMS of that addition, carried to the audio by the exact layers; share: of the
    sum of all such squares.
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
    """All layers of one precision. rms: of the audio's error after the round trip; unexplained: of
    its difference to the sum of what the layers add, relative to it (0: the errors do add up)."""

    precision: str
    rms: float
    unexplained: float
    layers: list[LayerError]


@dataclass(frozen=True)
class Depth:
    """Relative RMS errors of the states, from the audio (0) to z (last), in one precision.

    forward: against float64's on the way to z. back: on the way from z against those of the way
    there. The bounds are what the layers' own errors and local Lipschitz constants K allow:
    e(l + 1) <= K(l) e(l) + own error of layer l, and likewise back.
    """

    precision: str
    forward: list[float]
    back: list[float]
    forward_bound: list[float]
    back_bound: list[float]


@dataclass(frozen=True)
class LayerShape:
    """How a layer stretches space at this recording: local Lipschitz constants of both directions
    (a 1x1 convolution's are exact, the others' by power iteration, from below), their product.

    Of a convolution: ln|det W|, and the largest entry of W W^-1 - I with W^-1 in float32. Of a
    coupling: the range of log_s.
    """

    layer: str
    kind: str
    forward: float
    inverse: float
    condition: float
    log_abs_det: float | None = None
    inverse_residue: float | None = None
    log_s_min: float | None = None
    log_s_max: float | None = None


@dataclass(frozen=True)
class JacobianCheck:
    """ln|det| in nats over `samples` samples, float64: ours, and of the Jacobian by autodiff."""

    samples: int
    log_det: float
    autodiff: float


@dataclass(frozen=True)
class Stress:
    """A round trip (`way`) that asks more than speech does, in one precision."""

    name: str
    way: str
    precision: str
    error: Error


@dataclass(frozen=True)
class Report:
    """Everything that was measured; `seconds` of audio, `close_samples` for all that looks into the
    layers. whole_forward and whole_inverse: local Lipschitz constants of the whole flow."""

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
    """Measures everything; signals of one length, the first of them the one that is looked into.

    close_samples: how much of it, at its loudest; a multiple of the hop. model: its name in the
    report. Raises ValueError without signals or without `jax_enable_x64`.
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


# ------------------------------------------------------------------------------ signals


def signal_of(
    name: str, audio: np.ndarray, mel: np.ndarray, config: Config, n_samples: int
) -> Signal:
    """The loudest `n_samples` of a recording `[T]` with mel `[1 + T // hop, M]`, cut at frames."""
    hop = config.data.hop_length
    frames = n_samples // hop
    energy = np.add.reduceat(np.square(audio, dtype=np.float64), np.arange(0, len(audio), hop))
    total = np.convolve(energy[: len(audio) // hop], np.ones(frames), mode="valid")
    first = int(np.argmax(total))
    order = config.waveglow.whitening_order
    before = np.concatenate([np.zeros(order, np.float32), audio[: first * hop]])
    return Signal(
        name,
        audio[first * hop : (first + frames) * hop],
        mel[first : first + frames + 1],
        before[len(before) - order :],
    )


def excerpt(signal: Signal, config: Config, n_samples: int) -> Signal:
    """A signal's loudest `n_samples`, or all of it."""
    part = signal_of(
        signal.name, signal.audio, signal.mel, config, min(n_samples, len(signal.audio))
    )
    at_start = not part.past.any()
    return replace(part, past=signal.past) if at_start else part


def state_of(audio: np.ndarray, config: Config, precision: Precision) -> jax.Array:
    return jnp.asarray(audio, precision.stream).reshape(1, -1, config.waveglow.n_group)


def layers_at(
    params: Params, config: Config, signal: Signal, precision: Precision, mel: Any = None
) -> list[Layer]:
    """The flow's layers under the signal's mel, or under another one."""
    mel = signal.mel if mel is None else mel
    return layers_of(params, config, mel, len(signal.audio), precision, signal.past)


def representable(x: jax.Array, precision: Precision) -> jax.Array:
    """x as that precision can hold it: rounding what is given is no fault of the flow."""
    if precision.values is None:
        return x
    return jax.lax.reduce_precision(x, *precision.values)


def latent_of(
    config: Config, n_samples: int, precision: Precision, sigma: float = 1.0
) -> jax.Array:
    """Float32 normal noise `[1, N, G]`, seed 0, the same in every precision."""
    group = config.waveglow.n_group
    z = np.random.default_rng(0).normal(0, sigma, (1, n_samples // group, group))
    return representable(jnp.asarray(z.astype(np.float32), precision.stream), precision)


def random_params(config: Config, seed: int = 0) -> Params:
    """Float32 parameters of an untrained model at which every layer does something.

    As `init` has them, but: each W a rotation with its columns stretched by exp(0.2 n), biases
    0.1 n, and WN's last layer, which starts at zero, n / sqrt(skip channels); n standard normal.
    """
    rng = np.random.default_rng(seed)
    start = jax.jit(init, static_argnums=1)(jax.random.key(seed), config)

    def leaf(path: Any, value: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        value = np.asarray(value, np.float32)
        if name.endswith("conv"):
            return value * np.exp(0.2 * rng.normal(size=value.shape[1])).astype(np.float32)
        if name.endswith("end.kernel"):
            value = rng.normal(size=value.shape) / math.sqrt(value.shape[1])
        elif name.endswith("bias"):
            value = 0.1 * rng.normal(size=value.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, start)


# ------------------------------------------------------------------------------ errors


def error_of(found: Any, given: Any, significand: int) -> Error:
    """The error of arrays that should be equal, for a format with so many bits."""
    found, given = np.asarray(found, np.float64), np.asarray(given, np.float64)
    if not (np.isfinite(found).all() and np.isfinite(given).all()):
        return Error(None, None, None, None)
    with np.errstate(over="ignore"):
        off, size = rms(found - given), rms(given)
    top = float(np.abs(found - given).max())
    if not math.isfinite(off):
        return Error(None, None, None, None)
    if off == 0 or size == 0:
        return Error(top, off, None, None)
    kept = math.log2(size / off)
    return Error(top, off, 20 * math.log10(size / off), significand - kept)


def rms(x: Any) -> float:
    x = np.asarray(x, np.float64)
    return float(np.sqrt(np.mean(np.square(x))))


def relative(found: Any, given: Any) -> float:
    """RMS of the difference over RMS of what was given; infinite if anything is not finite."""
    found, given = np.asarray(found, np.float64), np.asarray(given, np.float64)
    if not (np.isfinite(found).all() and np.isfinite(given).all()):
        return math.inf
    return rms(found - given) / max(rms(given), 1e-300)


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


def blame(
    params: Params, config: Config, signal: Signal, precision: Precision, exact: Sequence[Layer]
) -> Blame:
    """What every layer adds to the error of a round trip. exact: the same layers in float64."""
    layers = layers_at(params, config, signal, precision)
    x = representable(state_of(signal.audio, config, precision), precision)
    truth, _ = run_forward(exact, x.astype("float64"))
    there, _ = run_forward(layers, x)
    back, _ = run_inverse(layers, there[-1])
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
    error = np.asarray(back[0], np.float64) - np.asarray(x)
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
    """Errors of the states on either way, with their bounds."""
    layers = layers_at(params, config, signal, precision)
    x = representable(state_of(signal.audio, config, precision), precision)
    truth, _ = run_forward(exact, x.astype("float64"))
    there, _ = run_forward(layers, x)
    back, _ = run_inverse(layers, there[-1])
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
    """By kind of layer, and "all": |log_det - float64's| in nats per sample, from one audio."""
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


# ------------------------------------------------------------------------------ geometry


def lipschitz_constants(
    params: Params, config: Config, signal: Signal
) -> tuple[list[LayerShape], tuple[float, float]]:
    """Every layer's shape at the signal, and the whole flow's Lipschitz constants both ways.

    Computed in float32, which power iteration bears well.
    """
    layers = layers_at(params, config, signal, FLOAT32)
    states, _ = run_forward(layers, state_of(signal.audio, config, FLOAT32))
    shapes = []
    for depth, layer in enumerate(layers):
        if layer.kind == CONVOLUTION:
            weight = np.asarray(params["flows"][layer.flow]["conv"])
            shapes.append(_convolution_shape(layer, weight, config.waveglow.n_group))
            continue
        ahead = spectral_norm(_without_log_det(layer.forward), states[depth])
        back = spectral_norm(_without_log_det(layer.inverse), states[depth + 1])
        shape = LayerShape(layer.name, layer.kind, ahead, back, ahead * back)
        if layer.log_s is not None:
            log_s = np.asarray(layer.log_s(states[depth]))
            shape = replace(shape, log_s_min=float(log_s.min()), log_s_max=float(log_s.max()))
        shapes.append(shape)
    whole = (
        spectral_norm(lambda x: run_forward(layers, x)[0][-1], states[0]),
        spectral_norm(lambda z: run_inverse(layers, z)[0][0], states[-1]),
    )
    return shapes, whole


def _without_log_det(
    direction: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Callable[[jax.Array], jax.Array]:
    return lambda x: direction(x)[0]


def _convolution_shape(layer: Layer, weight: np.ndarray, group: int) -> LayerShape:
    weight = weight.astype(np.float64)
    singular = np.linalg.svd(weight, compute_uv=False)
    inverse = np.asarray(jnp.linalg.inv(jnp.asarray(weight, "float32")), np.float64)
    # The state's other channels, which have left, pass as they are.
    least = 1.0 if layer.channels < group else 0.0
    return LayerShape(
        layer.name,
        layer.kind,
        forward=max(least, float(singular[0])),
        inverse=max(least, float(1 / singular[-1])),
        condition=float(singular[0] / singular[-1]),
        log_abs_det=float(np.log(singular).sum()),
        inverse_residue=float(np.abs(weight @ inverse - np.eye(len(weight))).max()),
    )


def spectral_norm(
    function: Callable[[jax.Array], jax.Array], at: jax.Array, iterations: int = POWER_ITERATIONS
) -> float:
    """The largest singular value of a function's Jacobian at a point: its local Lipschitz constant.

    Power iteration on J^T J by jvp and vjp; what it gives is never above the true value.
    """
    _, jvp = jax.linearize(function, at)
    vjp = jax.linear_transpose(jvp, at)
    direction = np.random.default_rng(0).normal(size=at.shape)
    norm = 0.0
    for _ in range(iterations):
        unit = jnp.asarray(direction / np.linalg.norm(direction), at.dtype)
        out = jvp(unit)
        norm = max(norm, float(jnp.linalg.norm(out.ravel())))
        direction = np.asarray(vjp(out)[0], np.float64)
    return norm


def jacobian_check(params: Params, config: Config, signal: Signal) -> JacobianCheck:
    """The whole flow's log_det over the signal's first samples, against autodiff's Jacobian."""
    glow = config.waveglow
    block = glow.mel_whitening.block if glow.mel_whitening else glow.n_group
    n = min(max(2 * block, 8 * glow.n_group), config.data.hop_length)
    n -= n % math.lcm(block, glow.n_group)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), params)
    mel = jnp.asarray(signal.mel[:2], "float64")[None]

    def latent(audio: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, log_det = forward(params, config, audio[None], mel, dtype="float64")
        return z.ravel(), log_det[0]

    jacobian, log_det = jax.jit(jax.jacfwd(latent, has_aux=True))(
        jnp.asarray(signal.audio[:n], "float64")
    )
    return JacobianCheck(n, float(log_det), float(np.linalg.slogdet(np.asarray(jacobian))[1]))


# ------------------------------------------------------------------------------ stress


def stress(
    params: Params,
    config: Config,
    signal: Signal,
    others: Sequence[Signal],
    precisions: Sequence[Precision],
) -> list[Stress]:
    """Round trips of what no recording asks for, made of one signal; others: whose mels it is also
    put under."""
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


def stress_signals(audio: np.ndarray) -> dict[str, np.ndarray]:
    """Silence, clipping and impulses in the place of a signal, under its mel."""
    impulses = np.zeros_like(audio)
    impulses[:: max(1, len(audio) // 16)] = 1
    loud = audio * (10 / np.abs(audio).max())
    return {
        "silence": np.zeros_like(audio),
        "clipped: peak at 10, cut at 1": np.clip(loud, -1, 1),
        "impulses of height 1": impulses,
    }


def with_condition(params: Params, flow: int, condition: float) -> Params:
    """The same parameters with one W's singular values spread evenly in log to that condition
    number, its determinant kept."""
    weight = np.asarray(params["flows"][flow]["conv"], np.float64)
    left, singular, right = np.linalg.svd(weight)
    spread = np.geomspace(math.sqrt(condition), 1 / math.sqrt(condition), len(singular))
    spread *= math.exp(np.log(singular).mean())
    flows = list(params["flows"])
    flows[flow] = {**flows[flow], "conv": (left * spread) @ right}
    return {**params, "flows": flows}
