"""The signals, weights and initial states that round trips start from.

Arrays: audio `[T]`, mel `[F, M]`; states `[1, N, G]` (`layers.py`).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.analysis.layers import Layer, layers_of
from waveglow_jax.analysis.precisions import Precision
from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import Params, init

SIGMAS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Signal:
    """A piece of audio `[T]`, the mel `[F + 1, M]` that conditions its encoding, and its past.

    F = T / hop. past: the samples before the audio, as many as the whitening's order.
    """

    name: str
    audio: np.ndarray
    mel: np.ndarray
    past: np.ndarray


def signal_of(
    name: str, audio: np.ndarray, mel: np.ndarray, config: Config, n_samples: int
) -> Signal:
    """The loudest `n_samples` of a recording `[T]` with its mel `[F, M]`.

    The cuts lie on frame boundaries, whole periods (`Config.period`) apart, and the signal's mel
    has one frame more than its hops.
    """
    hop = config.data.hop_length
    frames = config.whole_frames(n_samples)
    energy = np.add.reduceat(np.square(audio, dtype=np.float64), np.arange(0, len(audio), hop))
    total = np.convolve(energy[: len(audio) // hop], np.ones(frames), mode="valid")
    first = int(np.argmax(total[: len(mel) - frames]))
    order = config.waveglow.whitening_order
    before = np.concatenate([np.zeros(order, np.float32), audio[: first * hop]])
    return Signal(
        name,
        audio[first * hop : (first + frames) * hop],
        mel[first : first + frames + 1],
        before[len(before) - order :],
    )


def excerpt(signal: Signal, config: Config, n_samples: int) -> Signal:
    """A signal's loudest `n_samples`, or the whole signal if it is shorter."""
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
    """The flow's layers conditioned on the signal's mel, or on `mel` if it is given."""
    mel = signal.mel if mel is None else mel
    return layers_of(params, config, mel, len(signal.audio), precision, signal.past)


def representable(x: jax.Array, precision: Precision) -> jax.Array:
    """x rounded to a value that the precision can represent.

    A round trip starts from such values so that rounding its input does not count as its error.
    """
    if precision.values is None:
        return x
    return jax.lax.reduce_precision(x, *precision.values)


def latent_of(
    config: Config, n_samples: int, precision: Precision, sigma: float = 1.0
) -> jax.Array:
    """Float32 normal noise `[1, N, G]` from seed 0, the same for every precision up to rounding."""
    group = config.waveglow.n_group
    z = np.random.default_rng(0).normal(0, sigma, (1, n_samples // group, group))
    return representable(jnp.asarray(z.astype(np.float32), precision.stream), precision)


def random_params(config: Config, seed: int = 0) -> Params:
    """Float32 parameters of an untrained model in which no layer is the identity.

    The parameters are those of `init` with three changes, where n is standard normal: each W is a
    rotation whose columns are scaled by exp(0.2 n), biases are 0.1 n, and the kernel of WN's last
    layer, which `init` sets to zero, is n / sqrt(skip channels).
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


def stress_signals(audio: np.ndarray) -> dict[str, np.ndarray]:
    """Silence, a clipped signal and impulses, by name, which replace the audio under its mel."""
    impulses = np.zeros_like(audio)
    impulses[:: max(1, len(audio) // 16)] = 1
    loud = audio * (10 / np.abs(audio).max())
    return {
        "silence": np.zeros_like(audio),
        "clipped: peak at 10, cut at 1": np.clip(loud, -1, 1),
        "impulses of height 1": impulses,
    }


def with_condition(params: Params, flow: int, condition: float) -> Params:
    """The same parameters, except that one flow's W has the given condition number.

    Its singular values are spaced evenly on a log scale, and its determinant is unchanged.
    """
    weight = np.asarray(params["flows"][flow]["conv"], np.float64)
    left, singular, right = np.linalg.svd(weight)
    spread = np.geomspace(math.sqrt(condition), 1 / math.sqrt(condition), len(singular))
    spread *= math.exp(np.log(singular).mean())
    flows = list(params["flows"])
    flows[flow] = {**flows[flow], "conv": (left * spread) @ right}
    return {**params, "flows": flows}
