"""WaveGlow itself: parameters from a seed, forward to the latent, inverse to audio.

Arrays: audio `[B, T]`; mel `[B, F, M]`; z `[B, T / G, G]`, its channels in the order in which they
leave; log_det `[B]`; mask `[B, T / G]`, 1 for a signal's own steps and 0 for padding behind them.
`config` is static under jit.
Parameters: {"upsample": {kernel, bias}, "flows": [{"conv": W `[C, C]`, "wn": {layer: ...}}, ...]}.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import (
    Conditioner,
    coupling_forward,
    coupling_inverse,
    invertible_conv_forward,
    invertible_conv_inverse,
    squeeze,
    unsqueeze,
    whitening_factors,
    whitening_forward,
    whitening_inverse,
)
from waveglow_jax.flow.prediction import (
    prediction_forward,
    prediction_inverse,
    predictor_of_mel,
)
from waveglow_jax.flow.wavenet import (
    Params,
    conditioning_channels,
    frames_seen,
    split_weight_norm,
    squeeze_conditioning,
    upsampler_network,
    weight_norm,
    with_upsampler,
    wn_network,
)


def init(key: jax.Array, config: Config) -> Params:
    """Parameters in float32: every W a random rotation (det +1), every coupling the identity."""
    up_key, *flow_keys = jax.random.split(key, config.waveglow.n_flows + 1)
    mel = jnp.zeros((1, 1, config.waveglow.n_mel_channels))
    upsample = upsampler_network(config, jnp.float32).init(up_key, mel)["params"]
    flows = [_init_flow(key, config, k) for k, key in enumerate(flow_keys)]
    return {"upsample": upsample, "flows": flows}


def parameter_shapes(config: Config) -> Params:
    """`init`'s tree of shapes and dtypes (`jax.ShapeDtypeStruct`), without computing anything.

    Flows of as many channels have the same, and are traced once.
    """
    key, glow = jax.random.key(0), config.waveglow
    first = {glow.channels(k): k for k in reversed(range(glow.n_flows))}
    of_channels = {
        channels: jax.eval_shape(lambda k=k: _init_flow(key, config, k))
        for channels, k in first.items()
    }
    mel = jnp.zeros((1, 1, glow.n_mel_channels))
    upsampler = upsampler_network(config, jnp.float32)
    return {
        "upsample": jax.eval_shape(lambda: upsampler.init(key, mel)["params"]),
        "flows": [of_channels[glow.channels(k)] for k in range(glow.n_flows)],
    }


def _init_flow(key: jax.Array, config: Config, k: int) -> Params:
    rotation_key, wn_key = jax.random.split(key)
    channels = config.waveglow.channels(k)
    rotation = jnp.linalg.qr(jax.random.normal(rotation_key, (channels, channels)))[0]
    rotation = rotation.at[:, 0].multiply(jnp.sign(jnp.linalg.det(rotation)))
    network = wn_network(config, channels // 2, jnp.float32)
    sizes = channels // 2, conditioning_channels(config)
    wn = dict(network.init(wn_key, *sizes, method="layers")["params"])
    # The last layer starts at zero, which a norm cannot: it alone has plain weights.
    end = wn.pop("end")
    return {"conv": rotation, "wn": {**split_weight_norm(wn), "end": end}}


def forward(
    params: Params,
    config: Config,
    audio: jax.Array,
    mel: jax.Array,
    *,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    checkpoint_flows: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Audio to latent: `(z, log_det)`, log_det = ln|det dz/daudio| for each of the batch.

    mel has F frames with F * hop >= T (T / hop of them, or one more as `log_mel` gives). T must be
    a multiple of the group, and of the whitening's block where there is one. With a mask, z inside
    it and log_det are those of the unpadded signal, if the padding repeats its mel's last frame;
    z outside means nothing. A whitening that predicts sees the samples `past` `[B, order]` before
    the audio: a training clip's own; without them, silence, as `inverse` has it. `dtype` is that of
    the products inside WN; the flow itself keeps the parameters' dtype. `checkpoint_flows` computes
    each WN anew in the backward pass, so that memory does not grow with depth.
    Raises ValueError for shapes that do not fit.
    """
    y, whitening_log_det = whiten(audio, mel, config, past=past, mask=mask)
    z, log_det, _ = forward_whitened(
        params, config, y, mel, mask=mask, dtype=dtype, checkpoint_flows=checkpoint_flows
    )
    return z, whitening_log_det + log_det


def forward_whitened(
    params: Params,
    config: Config,
    y: jax.Array,
    mel: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    checkpoint_flows: bool = False,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """`forward` from `whiten`'s audio on: `(z, log_det, log_s of each flow [B, N, C / 2])`."""
    check_shapes(config, y.shape, mel.shape)
    x = squeeze(y, config.waveglow.n_group)
    conditioning = conditioning_of(params, config, mel, x.shape[1], dtype)
    step = flow_forward
    if checkpoint_flows:
        step = jax.checkpoint(flow_forward, static_argnums=(1, 4, 6))
    log_det = jnp.zeros(y.shape[:1], y.dtype)
    left, scales = [], []
    for k, flow_params in enumerate(params["flows"]):
        if config.waveglow.leaves_before(k):
            early = config.waveglow.n_early_size
            left.append(x[:, :, :early])
            x = x[:, :, early:]
        x, conv_log_det, coupling_log_det, log_s = step(
            flow_params, config, x, conditioning, dtype, mask, config.waveglow.halves_swapped(k)
        )
        log_det = log_det + conv_log_det + coupling_log_det
        scales.append(log_s)
    return jnp.concatenate([*left, x], axis=-1), log_det, tuple(scales)


def flow_forward(
    flow_params: Params,
    config: Config,
    x: jax.Array,
    conditioning: jax.Array,
    dtype: Any,
    mask: jax.Array | None = None,
    swapped: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One flow, `[B, N, C]` to the same: `(y, log_det of the 1x1 convolution, of the coupling, the
    coupling's log_s [B, N, C / 2])`."""
    x, conv_log_det = invertible_conv_forward(flow_params["conv"], x, mask)
    wn_params = weight_norm(flow_params["wn"])
    conditioner = conditioner_of(wn_params, config, conditioning, mask, dtype)
    told = []

    def telling(half: jax.Array) -> tuple[jax.Array, jax.Array]:
        told.append(conditioner(half))
        return told[0]

    x, coupling_log_det = coupling_forward(telling, x, mask, swapped)
    return x, conv_log_det, coupling_log_det, told[0][1]


def prepare_inverse(params: Params) -> Params:
    """Parameters for `inverse_prepared`: weight norm folded, every W inverted, in full precision.

    Done once for many calls; the result may be cast afterwards.
    """
    flows = [
        {"conv_inverse": jnp.linalg.inv(flow["conv"]), "wn": weight_norm(flow["wn"])}
        for flow in params["flows"]
    ]
    return {"upsample": params["upsample"], "flows": flows}


def fold_upsampler(prepared: Params, config: Config, dtype: Any) -> Params:
    """`prepare_inverse`'s parameters with the upsampler inside every conditioning layer.

    For conditioning at the sample rate where weights may take memory (`folded_size`): a quarter of
    the reverse pass's products less. The conditioning layers are then of that dtype for good.
    """
    fold = jax.jit(with_upsampler, static_argnums=(2, 3))

    def folded(name: str, layer: Params) -> Params:
        is_cond = name.startswith("cond_layer")
        return fold(prepared["upsample"], layer, config, dtype) if is_cond else layer

    flows = [
        {**flow, "wn": {name: folded(name, layer) for name, layer in flow["wn"].items()}}
        for flow in prepared["flows"]
    ]
    return {"flows": flows}


def folded_size(config: Config, dtype: Any) -> int | None:
    """Bytes of `fold_upsampler`'s conditioning layers; None where folding spares no products."""
    glow = config.waveglow
    seen = -(-glow.upsample_kernel // config.data.hop_length) * glow.n_mel_channels
    if glow.conditioning != "sample" or seen >= conditioning_channels(config):
        return None
    phases = config.data.hop_length // glow.n_group
    a_layer = seen * phases * 2 * glow.WN.n_channels * jnp.dtype(dtype).itemsize
    return glow.n_flows * glow.WN.n_layers * a_layer


def inverse(
    params: Params, config: Config, z: jax.Array, mel: jax.Array, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Latent to audio: `(audio, log_det)`, log_det = ln|det daudio/dz|, minus `forward`'s.

    z already carries the temperature sigma. Shapes and `dtype` as in `forward`.
    """
    return inverse_prepared(prepare_inverse(params), config, z, mel, dtype=dtype)


def inverse_prepared(
    prepared: Params,
    config: Config,
    z: jax.Array,
    mel: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """`inverse` from `prepare_inverse`'s parameters.

    With a mask, the samples inside it and log_det are those of the unpadded run, if the padding
    repeats the mel's last frame; samples outside mean nothing.
    """
    y, log_det = inverse_whitened(prepared, config, z, mel, mask=mask, dtype=dtype)
    audio, whitening_log_det = colour(y, mel, config, mask=mask)
    return audio, log_det + whitening_log_det


def inverse_whitened(
    prepared: Params,
    config: Config,
    z: jax.Array,
    mel: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """`inverse_prepared` up to the whitened audio, which `colour` turns into audio.

    Up to here the flow has a finite reach. The mask may have signals anywhere: those with a gap
    between them that no convolution spans do not hear each other.
    """
    glow = config.waveglow
    n_steps, n_samples = z.shape[1], z.shape[1] * glow.n_group
    check_shapes(config, (z.shape[0], n_samples), mel.shape)
    conditioning = conditioning_of(prepared, config, mel, n_steps, dtype)
    log_det = jnp.zeros(z.shape[:1], z.dtype)
    early = glow.n_early_size
    entered = glow.n_group - glow.channels(glow.n_flows - 1)
    x = z[:, :, entered:]
    for k, flow in reversed(list(enumerate(prepared["flows"]))):
        conditioner = conditioner_of(flow["wn"], config, conditioning, mask, dtype)
        x, coupling_log_det = coupling_inverse(conditioner, x, mask, glow.halves_swapped(k))
        x, conv_log_det = invertible_conv_inverse(flow["conv_inverse"], x, mask)
        log_det = log_det + coupling_log_det + conv_log_det
        if glow.leaves_before(k):
            entered -= early
            x = jnp.concatenate([z[:, :, entered : entered + early], x], axis=-1)
    return unsqueeze(x), log_det


def whiten(
    audio: jax.Array,
    mel: jax.Array,
    config: Config,
    *,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Audio `[B, T]` to whitened audio, and log_det; a config without whitening leaves it as it is.

    past and mask as for `forward`. Raises ValueError for shapes that do not fit.
    """
    check_shapes(config, audio.shape, mel.shape)
    if not config.waveglow.mel_whitening:
        return audio, jnp.zeros(audio.shape[:1], audio.dtype)
    blocks = _block_mask(mask, config)
    if config.waveglow.mel_whitening.order:
        predictor = predictor_of_mel(mel, config, audio.shape[1])
        return prediction_forward(predictor, audio, past, blocks)
    return whitening_forward(whitening_factors(mel, config, audio.shape[1]), audio, blocks)


def colour(
    y: jax.Array,
    mel: jax.Array,
    config: Config,
    *,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`whiten`'s inverse, `[B, T]` to the same, and its log_det.

    A signal may be coloured piece after piece, each with the mel frame that follows it: a whitening
    that predicts then wants the `order` samples of audio before the piece as `past` `[B, order]`.
    """
    if not config.waveglow.mel_whitening:
        return y, jnp.zeros(y.shape[:1], y.dtype)
    blocks = _block_mask(mask, config)
    if config.waveglow.mel_whitening.order:
        return prediction_inverse(predictor_of_mel(mel, config, y.shape[1]), y, past, blocks)
    return whitening_inverse(whitening_factors(mel, config, y.shape[1]), y, blocks)


def _block_mask(mask: jax.Array | None, config: Config) -> jax.Array | None:
    """`[B, T / G] -> [B, T / block]`, for the whitening."""
    if mask is None:
        return None
    samples = jnp.repeat(mask, config.waveglow.n_group, axis=1)
    return samples[:, :: config.waveglow.whitening.block]


def latent_noise(seed: int, config: Config, n_frames: int) -> jax.Array:
    """`[n_frames * hop / G, G]` standard normal, each frame's share a function of (seed, frame)."""
    return noise_of_frames(seed, config, jnp.arange(n_frames))


def noise_of_frames(seed: int | jax.Array, config: Config, frames: jax.Array) -> jax.Array:
    """The rows of `latent_noise` of any frames, `[F]` -> `[F * hop / G, G]`.

    So the samples do not depend on batch, padding, cut or device.
    """
    key = jax.random.key(seed)
    shape = (config.data.hop_length // config.waveglow.n_group, config.waveglow.n_group)

    def of_frame(frame: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, frame), shape)

    return jax.vmap(of_frame)(frames).reshape(-1, shape[1])


def conditioning_of(
    params: Params, config: Config, mel: jax.Array, n_steps: int, dtype: Any
) -> jax.Array:
    """mel `[B, F, M]` -> conditioning `[B, n_steps, D]` of every WN.

    With `fold_upsampler`'s parameters `[B, n_steps / phases, D]`, the frames that each sees.
    """
    if "upsample" not in params:
        hop, group = config.data.hop_length, config.waveglow.n_group
        seen = frames_seen(mel, -(-config.waveglow.upsample_kernel // hop))
        return seen[:, : n_steps * group // hop]
    upsampled = upsampler_network(config, dtype).apply({"params": params["upsample"]}, mel)
    return squeeze_conditioning(cast(jax.Array, upsampled), config, n_steps)


def conditioner_of(
    wn_params: Params, config: Config, conditioning: jax.Array, mask: jax.Array | None, dtype: Any
) -> Conditioner:
    """A flow's WN, its weight norm folded, as the function that a coupling asks for."""
    features = wn_params["cond_layer_0"]["kernel"].shape[-1]
    phases = features // (2 * config.waveglow.WN.n_channels)

    def conditioner(half: jax.Array) -> tuple[jax.Array, jax.Array]:
        network = wn_network(config, half.shape[-1], dtype, phases)
        out = network.apply({"params": wn_params}, half, conditioning, mask)
        shift, log_s = jnp.split(cast(jax.Array, out), 2, axis=-1)
        return shift, log_s

    return conditioner


def check_shapes(config: Config, audio_shape: tuple[int, ...], mel_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless audio `[B, T]` and mel `[B, F, M]` fit each other and the config."""
    glow, hop = config.waveglow, config.data.hop_length
    if len(audio_shape) != 2 or len(mel_shape) != 3:
        raise ValueError(
            f"audio must be [B, T] and mel [B, F, M], not of shapes {audio_shape} and {mel_shape}"
        )
    n_samples, frames = audio_shape[1], mel_shape[1]
    if mel_shape[-1] != glow.n_mel_channels:
        raise ValueError(f"mel has {mel_shape[-1]} bins, the model {glow.n_mel_channels}")
    if mel_shape[0] != audio_shape[0]:
        raise ValueError(f"{audio_shape[0]} signals but {mel_shape[0]} mels in the batch")
    if n_samples % glow.n_group:
        raise ValueError(f"{n_samples} samples are no multiple of the group of {glow.n_group}")
    if glow.mel_whitening and n_samples % glow.mel_whitening.block:
        raise ValueError(
            f"{n_samples} samples are no multiple of the whitening's {glow.mel_whitening.block}"
        )
    if not n_samples <= frames * hop < n_samples + 2 * hop:
        raise ValueError(
            f"{frames} mel frames do not fit {n_samples} samples: "
            f"{-(-n_samples // hop)} are needed, or one more"
        )
