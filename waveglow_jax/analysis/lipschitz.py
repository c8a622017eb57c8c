"""How much a layer can amplify a change of its input: Lipschitz constants and the Jacobian.

Arrays: states `[1, N, G]` (`layers.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.analysis.layers import CONVOLUTION, Layer, run_forward, run_inverse
from waveglow_jax.analysis.precisions import FLOAT32
from waveglow_jax.analysis.signals import Signal, layers_at, state_of
from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import Params, forward

POWER_ITERATIONS = 12


@dataclass(frozen=True)
class LayerShape:
    """A layer's local Lipschitz constants at a recording.

    forward, inverse: the constants of the two directions. Those of a 1x1 convolution are exact;
    those of the other layers come from power iteration, which gives lower bounds. condition: their
    product; for a convolution, the condition number of W.
    Only for a convolution: log_abs_det is ln|det W|, and inverse_residue is the largest entry of
    |W W^-1 - I| with W^-1 computed in float32. Only for a coupling: the range of log_s.
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
    """ln|det| in nats over `samples` samples, in float64: the flow's log_det, and autodiff's."""

    samples: int
    log_det: float
    autodiff: float


def lipschitz_constants(
    params: Params, config: Config, signal: Signal
) -> tuple[list[LayerShape], tuple[float, float]]:
    """Every layer's shape at the signal, and the whole flow's two Lipschitz constants.

    The computation runs in float32, which is precise enough for power iteration.
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
    # The state's other channels, the early outputs, pass unchanged.
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

    Power iteration on J^T J, by jvp and vjp, gives a value that never exceeds the true one.
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
    n = max(config.block, n - n % config.block)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), params)
    mel = jnp.asarray(signal.mel[:2], "float64")[None]

    def latent(audio: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, log_det = forward(params, config, audio[None], mel, dtype="float64")
        return z.ravel(), log_det[0]

    jacobian, log_det = jax.jit(jax.jacfwd(latent, has_aux=True))(
        jnp.asarray(signal.audio[:n], "float64")
    )
    return JacobianCheck(n, float(log_det), float(np.linalg.slogdet(np.asarray(jacobian))[1]))
