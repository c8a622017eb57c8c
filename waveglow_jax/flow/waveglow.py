"""WaveGlow itself: parameters from a seed, forward to the latent, inverse to audio.

Arrays: audio `[B, T]`; mel `[B, F, M]`; z `[B, T / G, G]`, its channels in the order in which they
leave; log_det `[B]`; frame_mask `[B, F]`. `config` is static under jit.
Parameters: {"upsample": {kernel, bias}, "flows": [{"conv": W `[C, C]`, "wn": {layer: ...}}, ...]}.
"""

from typing import Any

import jax
import jax.numpy as jnp

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import (
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
from waveglow_jax.flow.wavenet import (
    Params,
    conditioning_channels,
    split_weight_norm,
    squeeze_conditioning,
    upsampler_network,
    weight_norm,
    wn_network,
)


def init(key: jax.Array, config: Config) -> Params:
    """Parameters in float32: every W a random rotation (det +1), every coupling the identity."""
    up_key, *flow_keys = jax.random.split(key, config.waveglow.n_flows + 1)
    mel = jnp.zeros((1, 1, config.waveglow.n_mel_channels))
    upsample = upsampler_network(config, jnp.float32).init(up_key, mel)["params"]
    flows = [_init_flow(key, config, k) for k, key in enumerate(flow_keys)]
    return {"upsample": upsample, "flows": flows}


def _init_flow(key: jax.Array, config: Config, k: int) -> Params:
    rotation_key, wn_key = jax.random.split(key)
    channels = config.waveglow.channels(k)
    rotation = jnp.linalg.qr(jax.random.normal(rotation_key, (channels, channels)))[0]
    rotation = rotation.at[:, 0].multiply(jnp.sign(jnp.linalg.det(rotation)))
    network = wn_network(config, channels // 2, jnp.float32)
    conditioning = jnp.zeros((1, 1, conditioning_channels(config)))
    wn = dict(network.init(wn_key, jnp.zeros((1, 1, channels // 2)), conditioning)["params"])
    # The last layer starts at zero, which a norm cannot: it alone has plain weights.
    end = wn.pop("end")
    return {"conv": rotation, "wn": {**split_weight_norm(wn), "end": end}}


def forward(
    params: Params,
    config: Config,
    audio: jax.Array,
    mel: jax.Array,
    *,
    dtype: Any = jnp.float32,
    checkpoint_flows: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Audio to latent: `(z, log_det)`, log_det = ln|det dz/daudio| for each of the batch.

    mel has F frames with F * hop >= T (T / hop of them, or one more as `log_mel` gives). T must be
    a multiple of the group, and of the whitening's block where there is one. `dtype` is that of
    the products inside WN; the flow itself keeps the parameters' dtype. `checkpoint_flows` computes
    each WN anew in the backward pass, so that memory does not grow with depth.
    Raises ValueError for shapes that do not fit.
    """
    _check_shapes(config, audio.shape, mel)
    log_det = jnp.zeros(audio.shape[:1], audio.dtype)
    if config.waveglow.mel_whitening:
        factors = whitening_factors(mel, config, audio.shape[1])
        audio, log_det = whitening_forward(factors, audio)
    x = squeeze(audio, config.waveglow.n_group)
    conditioning = conditioning_of(params, config, mel, x.shape[1], dtype)
    step = jax.checkpoint(flow_forward, static_argnums=(1, 4)) if checkpoint_flows else flow_forward
    left = []
    for k, flow_params in enumerate(params["flows"]):
        if config.waveglow.leaves_before(k):
            early = config.waveglow.n_early_size
            left.append(x[:, :, :early])
            x = x[:, :, early:]
        x, conv_log_det, coupling_log_det = step(flow_params, config, x, conditioning, dtype)
        log_det = log_det + conv_log_det + coupling_log_det
    return jnp.concatenate([*left, x], axis=-1), log_det


def flow_forward(
    flow_params: Params, config: Config, x: jax.Array, conditioning: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One flow, `[B, N, C]` to the same: `(y, log_det of the 1x1 convolution, of the coupling)`."""
    x, conv_log_det = invertible_conv_forward(flow_params["conv"], x)
    wn_params = weight_norm(flow_params["wn"])
    x, coupling_log_det = coupling_forward(
        _conditioner(wn_params, config, conditioning, None, dtype), x
    )
    return x, conv_log_det, coupling_log_det


def prepare_inverse(params: Params) -> Params:
    """Parameters for `inverse_prepared`: weight norm folded, every W inverted, in full precision.

    Done once for many calls; the result may be cast afterwards.
    """
    flows = [
        {"conv_inverse": jnp.linalg.inv(flow["conv"]), "wn": weight_norm(flow["wn"])}
        for flow in params["flows"]
    ]
    return {"upsample": params["upsample"], "flows": flows}


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
    frame_mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """`inverse` from `prepare_inverse`'s parameters.

    frame_mask is 1 for an utterance's own frames and 0 for padding behind them; the samples of its
    own frames are then those of the unpadded run, if the padding repeats its last mel frame.
    """
    glow, hop = config.waveglow, config.data.hop_length
    n_steps, n_samples = z.shape[1], z.shape[1] * glow.n_group
    _check_shapes(config, (z.shape[0], n_samples), mel)
    mask = block_mask = None
    if frame_mask is not None:
        mask = jnp.repeat(frame_mask, hop // glow.n_group, axis=1)[:, :n_steps]
    conditioning = conditioning_of(prepared, config, mel, n_steps, dtype)
    log_det = jnp.zeros(z.shape[:1], z.dtype)
    early = glow.n_early_size
    entered = glow.n_group - glow.channels(glow.n_flows - 1)
    x = z[:, :, entered:]
    for k, flow in reversed(list(enumerate(prepared["flows"]))):
        conditioner = _conditioner(flow["wn"], config, conditioning, mask, dtype)
        x, coupling_log_det = coupling_inverse(conditioner, x, mask)
        x, conv_log_det = invertible_conv_inverse(flow["conv_inverse"], x)
        if mask is not None:
            conv_log_det = conv_log_det * mask.mean(axis=1)
        log_det = log_det + coupling_log_det + conv_log_det
        if glow.leaves_before(k):
            entered -= early
            x = jnp.concatenate([z[:, :, entered : entered + early], x], axis=-1)
    audio = unsqueeze(x)
    if glow.mel_whitening:
        factors = whitening_factors(mel, config, n_samples)
        if frame_mask is not None:
            block_mask = jnp.repeat(frame_mask, hop // glow.mel_whitening.block, axis=1)
            block_mask = block_mask[:, : factors.shape[1]]
        audio, whitening_log_det = whitening_inverse(factors, audio, block_mask)
        log_det = log_det + whitening_log_det
    return audio, log_det


def latent_noise(seed: int, config: Config, n_frames: int) -> jax.Array:
    """`[n_frames * hop / G, G]` standard normal, each frame's share a function of (seed, frame).

    So the samples do not depend on batch, padding, cut or device.
    """
    key = jax.random.key(seed)
    shape = (config.data.hop_length // config.waveglow.n_group, config.waveglow.n_group)

    def of_frame(frame: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, frame), shape)

    return jax.vmap(of_frame)(jnp.arange(n_frames)).reshape(-1, shape[1])


def conditioning_of(
    params: Params, config: Config, mel: jax.Array, n_steps: int, dtype: Any
) -> jax.Array:
    """mel `[B, F, M]` -> conditioning `[B, n_steps, D]` of every WN."""
    upsampled = upsampler_network(config, dtype).apply({"params": params["upsample"]}, mel)
    return squeeze_conditioning(upsampled, config, n_steps)


def _conditioner(
    wn_params: Params, config: Config, conditioning: jax.Array, mask: jax.Array | None, dtype: Any
):
    def conditioner(half: jax.Array) -> tuple[jax.Array, jax.Array]:
        network = wn_network(config, half.shape[-1], dtype)
        out = network.apply({"params": wn_params}, half, conditioning, mask)
        shift, log_s = jnp.split(out, 2, axis=-1)
        return shift, log_s

    return conditioner


def _check_shapes(config: Config, audio_shape: tuple[int, ...], mel: jax.Array) -> None:
    glow, hop = config.waveglow, config.data.hop_length
    if len(audio_shape) != 2 or mel.ndim != 3:
        raise ValueError(
            f"audio must be [B, T] and mel [B, F, M], not of shapes {audio_shape} and {mel.shape}"
        )
    n_samples = audio_shape[1]
    if mel.shape[-1] != glow.n_mel_channels:
        raise ValueError(f"mel has {mel.shape[-1]} bins, the model {glow.n_mel_channels}")
    if mel.shape[0] != audio_shape[0]:
        raise ValueError(f"{audio_shape[0]} signals but {mel.shape[0]} mels in the batch")
    if n_samples % glow.n_group:
        raise ValueError(f"{n_samples} samples are no multiple of the group of {glow.n_group}")
    if glow.mel_whitening and n_samples % glow.mel_whitening.block:
        raise ValueError(
            f"{n_samples} samples are no multiple of the whitening's {glow.mel_whitening.block}"
        )
    if not n_samples <= mel.shape[1] * hop < n_samples + 2 * hop:
        raise ValueError(
            f"{mel.shape[1]} mel frames do not fit {n_samples} samples: "
            f"{-(-n_samples // hop)} are needed, or one more"
        )
