"""WN, the original's conditioner of a coupling: dilated, gated convolutions.

Arrays: x `[B, N, C]`, conditioning `[B, N, D]`, mask `[B, N]`. Parameters keep their dtype; `dtype`
is the compute dtype of the matmuls, which accumulate in x's dtype. `wn_kernels` computes WN.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import Params
from waveglow_jax.flow.conditioner import Conditioner, ReceptiveField
from waveglow_jax.flow.upsampler import conditioning_channels, torch_like_init, with_upsampler
from waveglow_jax.flow.weight_norm import split_weight_norm
from waveglow_jax.flow.wn_kernels import wn_on


class WN(nn.Module):
    """Dilated, gated convolutions as in WaveNet (arXiv 1609.03499), without causality.

    Layer i has dilation 2^i; the conditioning is added before the gate tanh * sigmoid. Every layer
    adds to the skip sum, and every layer but the last to the residual stream. The last 1x1 layer
    starts at zero, so that a new flow is the identity.

    Consecutive linear layers are computed as one, which changes nothing but rounding: only the
    last layer sees the skip sum, so each layer adds directly to the few outputs (`skip @ end`); the
    first dilated layer sees only the first 1x1 layer, so it takes that layer's few inputs. This
    saves a seventh of the FLOPs.
    """

    n_out: int
    n_layers: int
    n_channels: int
    n_skip_channels: int
    kernel_size: int
    dtype: Any = jnp.float32

    def __call__(
        self, x: jax.Array, conditioning: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """x `[B, N, C]`, conditioning `[B, N / phases, D]` -> `[B, N, n_out]`.

        Several steps, the `phases` of a frame, share a row of the conditioning where its layers
        include the upsampler (`with_upsampler`); otherwise each has its own.

        With a mask, steps outside are zero wherever a convolution sees them, just as it sees zeros
        beyond the ends of an unpadded signal. Backends differ only in rounding.
        """
        # A tensor of symbolic length has phases only where the conditioning is one row per step.
        same = x.shape[1] == conditioning.shape[1]
        phases = 1 if same else x.shape[1] // conditioning.shape[1]
        params = self.layers(x.shape[-1], conditioning.shape[-1], phases)
        on = partial(wn_on, dtype=self.dtype)
        return jax.lax.platform_dependent(
            params,
            x,
            conditioning,
            mask,
            cpu=partial(on, backend="cpu"),
            tpu=partial(on, backend="tpu"),
            default=partial(on, backend="gpu"),
        )

    @nn.compact
    def layers(self, n_in: int, n_conditioning: int, phases: int = 1) -> Params:
        """Every layer's `{kernel, bias}` by its name. `init` needs this method alone."""
        channels, skips = self.n_channels, self.n_skip_channels
        layers = {}

        def add(name: str, seen: int, features: int, **rest: Any) -> None:
            layers[name] = Layer(features, name=name, **rest)(seen)

        add("start", n_in, channels)
        for i in range(self.n_layers):
            add(f"in_layer_{i}", channels, 2 * channels, taps=self.kernel_size)
            add(f"cond_layer_{i}", n_conditioning, 2 * channels, phases=phases)
            last = i == self.n_layers - 1
            add(f"res_skip_layer_{i}", channels, skips if last else channels + skips)
        add("end", skips, self.n_out, kernel_init=nn.initializers.zeros_init())
        return layers


class Layer(nn.Module):
    """Kernel `[taps, C_in, C_out]` and bias `[C_out]` of a layer that sees C_in channels.

    With phases, its kernel gives that many successive steps, `[taps, C_in, phases * C_out]`.
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


# ------------------------------------------------------------------------------ as a conditioner


def wn_network(config: Config, half: int, dtype: Any) -> WN:
    """The config's WN of a coupling whose halves have `half` channels."""
    wn = config.waveglow.WN
    sizes = wn.n_layers, wn.n_channels, wn.skip_channels, wn.kernel_size
    return WN(2 * half, *sizes, dtype)


def _init(key: jax.Array, config: Config, half: int) -> Params:
    network = wn_network(config, half, jnp.float32)
    layers = network.init(key, half, conditioning_channels(config), method="layers")["params"]
    # The last layer starts at zero, which a norm cannot represent: it alone has plain weights.
    others = {name: layer for name, layer in layers.items() if name != "end"}
    return {**split_weight_norm(others), "end": layers["end"]}


def _apply(
    params: Params,
    half: jax.Array,
    conditioning: jax.Array,
    mask: jax.Array | None,
    config: Config,
    dtype: Any,
) -> tuple[jax.Array, jax.Array]:
    network = wn_network(config, half.shape[-1], dtype)
    out = network.apply({"params": params}, half, conditioning, mask)
    shift, log_s = jnp.split(cast(jax.Array, out), 2, axis=-1)
    return shift, log_s


def _receptive_field(config: Config) -> ReceptiveField:
    wn = config.waveglow.WN
    return ReceptiveField(wn.receptive_field, 2 ** (wn.n_layers - 1) * (wn.kernel_size // 2))


def _flops(config: Config, half: int) -> float:
    wn = config.waveglow.WN
    channels, skips = wn.n_channels, wn.skip_channels
    layer = 2 * channels * (wn.kernel_size * channels + conditioning_channels(config))
    layer += channels * (channels + skips)
    # The last layer has no residual.
    layers = wn.n_layers * layer - channels * channels
    return 2 * (half * channels + layers + skips * 2 * half)


def _lively(params: Params, rng: np.random.Generator, std: float) -> Params:
    kernel = params["end"]["kernel"]
    kernel = jnp.asarray(std * rng.normal(size=kernel.shape), kernel.dtype)
    return {**params, "end": {**params["end"], "kernel": kernel}}


def _faults(params: Params) -> list[str]:
    found = []
    if not np.any(np.asarray(params["end"]["kernel"])):
        found.append("WN's last layer is all zeros: the coupling is untrained")
    for name, layer in params.items():
        if "v" in layer and not np.all(np.any(np.asarray(layer["v"]), axis=(0, 1))):
            found.append(f"{name} has a channel whose weight_v is all zeros")
    return found


_folded = jax.jit(with_upsampler, static_argnums=(2, 3))


def _fold(params: Params, upsample: Params, config: Config, dtype: Any) -> Params:
    return {
        name: _folded(upsample, layer, config, dtype) if name.startswith("cond_layer") else layer
        for name, layer in params.items()
    }


def _folded_size(config: Config, dtype: Any) -> int | None:
    glow = config.waveglow
    seen = -(-glow.upsample_kernel // config.data.hop_length) * glow.n_mel_channels
    if glow.conditioning != "sample" or seen >= conditioning_channels(config) or config.period > 1:
        return None
    phases = config.data.hop_length // glow.n_group
    layer = seen * phases * 2 * glow.WN.n_channels * jnp.dtype(dtype).itemsize
    return glow.n_flows * glow.WN.n_layers * layer


WN_CONDITIONER = Conditioner(
    init=_init,
    apply=_apply,
    receptive_field=_receptive_field,
    flops=_flops,
    lively=_lively,
    faults=_faults,
    fold=_fold,
    folded_size=_folded_size,
)
