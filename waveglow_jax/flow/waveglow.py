"""The WaveGlow model: parameters from a seed, forward to the latent, inverse to audio.

Arrays: audio `[B, T]`, T a multiple of the group G; mel `[B, F, M]`; z `[B, T / G, G]`, its
channels in the order in which they leave the flow; log_det `[B]`; mask `[B, T / G]`, 1 for a
signal's own steps and 0 for the padding after them.
`config` is static under jit.
Parameters: {"upsample": {kernel, bias}, "flows": [{"conv": W `[C, C]`, "wn": {layer: ...}}, ...]}.
"""

from itertools import groupby
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import Params, squeeze, total_log_det, unsqueeze
from waveglow_jax.flow.steps import (
    BIJECTIONS,
    COUPLING,
    WHITENING,
    Context,
    LogDet,
    Step,
    conditioner_of,
    flow_steps,
    whitening_given,
)
from waveglow_jax.flow.upsampler import (
    frames_seen,
    squeeze_conditioning,
    upsampler_network,
    with_frames_behind,
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

    Flows with the same number of channels have the same shapes, so each number is traced once.
    """
    glow = config.waveglow
    first = {glow.channels(k): k for k in reversed(range(glow.n_flows))}
    upsampler = upsampler_network(config, jnp.float32)

    def of_each_kind() -> tuple[Params, dict[int, Params]]:
        key, mel = jax.random.key(0), jnp.zeros((1, 1, glow.n_mel_channels))
        flows = {channels: _init_flow(key, config, k) for channels, k in first.items()}
        return upsampler.init(key, mel)["params"], flows

    upsample, flows = jax.eval_shape(of_each_kind)
    return {
        "upsample": upsample,
        "flows": [flows[glow.channels(k)] for k in range(glow.n_flows)],
    }


def _init_flow(key: jax.Array, config: Config, k: int) -> Params:
    channels = config.waveglow.channels(k)
    trained = [each for each in BIJECTIONS if each.name]
    keys = jax.random.split(key, len(trained))
    return {
        each.name: each.init(key, config, channels) for each, key in zip(trained, keys, strict=True)
    }


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
    """Maps audio to the latent: `(z, log_det)`, log_det `[B]` = ln|det dz/daudio| of each signal.

    mel has F frames whose groups cover T (`Config.steps_of`), or one more as `log_mel` gives. T
    must be a multiple of the group, and of the whitening's block where there is one. Where the
    group does not divide the hop, the last group may end after the last frame: the mel's last frame
    is then repeated. With a mask, z inside it and log_det are those of the unpadded signal, if the
    padding repeats its mel's last frame; z outside the mask is undefined. A whitening that predicts
    uses `past` `[B, order]`, the samples before the audio, which a training clip takes from its
    recording; without `past` it assumes silence, as `inverse` does. `dtype` is the compute dtype of
    the conditioners; the flow itself keeps the parameters' dtype. `checkpoint_flows` recomputes
    each flow in the backward pass, so that memory does not grow with depth. Raises ValueError for
    shapes that do not fit.
    """
    z, log_dets = encode(
        params,
        config,
        audio,
        mel,
        past=past,
        mask=mask,
        dtype=dtype,
        checkpoint_flows=checkpoint_flows,
    )
    return z, sum_over_steps(log_dets, z, mask)


def encode(
    params: Params,
    config: Config,
    audio: jax.Array,
    mel: jax.Array,
    *,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    checkpoint_flows: bool = False,
) -> tuple[jax.Array, list[LogDet]]:
    """As `forward`, but with the local log-determinant of every step instead of their sum."""
    check_shapes(config, audio.shape, mel.shape)
    x = squeeze(audio, config.waveglow.n_group)
    context = _context(params, config, mel, x.shape[1], mask, dtype)
    steps = flow_steps(params["flows"], context, whitening_given(mel, config, audio.shape[1], past))
    left: list[jax.Array] = []
    log_dets: list[LogDet] = []
    for flow, steps_of_flow in groupby(steps, key=lambda step: step.flow):
        of_flow = list(steps_of_flow)
        early = x.shape[-1] - of_flow[0].channels
        left, x = [*left, x[:, :, :early]], x[:, :, early:]
        run = jax.checkpoint(_run_forward) if checkpoint_flows and flow >= 0 else _run_forward
        x, found = run(of_flow, x)
        log_dets += [
            LogDet(step.bijection.kind, flow, log_det)
            for step, log_det in zip(of_flow, found, strict=True)
        ]
    return jnp.concatenate([*left, x], axis=-1), log_dets


def _run_forward(steps: list[Step], x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    log_dets = []
    for step in steps:
        x, log_det = step.forward(x)
        log_dets.append(log_det)
    return x, log_dets


def _run_inverse(steps: list[Step], z: jax.Array) -> tuple[jax.Array, list[LogDet]]:
    """Applies the inverse steps, last one first: z `[B, N, G]` -> `[B, N, channels]`."""
    at = z.shape[-1] - steps[-1].channels
    x, log_dets = z[:, :, at:], []
    for step in reversed(steps):
        if step.channels > x.shape[-1]:
            # The early outputs that left between this step and the later one come back.
            before, at = at, z.shape[-1] - step.channels
            x = jnp.concatenate([z[:, :, at:before], x], axis=-1)
        x, log_det = step.inverse(x)
        log_dets.append(LogDet(step.bijection.kind, step.flow, log_det))
    return x, log_dets


def sum_over_steps(log_dets: list[LogDet], x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The summed log-determinant `[B]` of these steps, for a state x `[B, N, C]`, in the mask."""
    total = jnp.zeros(x.shape[:1], x.dtype)
    for each in log_dets:
        total = total + total_log_det(each.local, (x.shape[0], x.shape[1]), mask)
    return total


def prepare_inverse(params: Params) -> Params:
    """Parameters for `inverse_prepared`: weight norm folded, every W inverted, in full precision.

    One result serves many calls, and may be cast afterwards.
    """
    flows = [
        {each.name: each.prepare(flow[each.name]) for each in BIJECTIONS if each.name}
        for flow in params["flows"]
    ]
    return {"upsample": params["upsample"], "flows": flows}


def fold_upsampler(prepared: Params, config: Config, dtype: Any) -> Params:
    """`prepare_inverse`'s parameters with the upsampler folded into every conditioner.

    This is for conditioning at the sample rate where the memory for the weights is available
    (`folded_size`): it saves a quarter of the reverse pass's FLOPs. The folded conditioning layers
    have the given dtype.
    """
    fold = conditioner_of(config).fold
    assert fold is not None, "folded_size is None"
    flows = [
        {**flow, COUPLING.name: fold(flow[COUPLING.name], prepared["upsample"], config, dtype)}
        for flow in prepared["flows"]
    ]
    return {"flows": flows}


def folded_size(config: Config, dtype: Any) -> int | None:
    """Bytes of `fold_upsampler`'s conditioning layers; None where folding saves no FLOPs."""
    return conditioner_of(config).folded_size(config, dtype)


def inverse(
    params: Params, config: Config, z: jax.Array, mel: jax.Array, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Maps the latent to audio: `(audio, log_det)`, log_det = ln|det daudio/dz| = -`forward`'s.

    z must already be scaled by the temperature sigma. Shapes and `dtype` are as in `forward`; the
    audio is that of whole groups, of which synthesis keeps the first F * hop samples.
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
    repeats the mel's last frame; samples outside the mask are undefined.
    """
    y, log_det = inverse_whitened(prepared, config, z, mel, mask=mask, dtype=dtype)
    audio, of_whitening = colour(y, mel, config, mask=mask)
    return audio, log_det + of_whitening


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

    Up to the whitened audio the inverse has a finite receptive field. The mask may place signals
    anywhere: signals with a gap between them that no convolution spans do not influence each other.
    """
    n_steps = z.shape[1]
    check_shapes(config, (z.shape[0], n_steps * config.waveglow.n_group), mel.shape)
    context = _context(prepared, config, mel, n_steps, mask, dtype)
    x, log_dets = _run_inverse(list(flow_steps(prepared["flows"], context)), z)
    return unsqueeze(x), sum_over_steps(log_dets, z, mask)


def colour(
    y: jax.Array,
    mel: jax.Array,
    config: Config,
    *,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
    first_frame: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Maps whitened audio `[B, T]` to `(audio, log_det [B])`; the identity without whitening.

    A signal may be coloured piece by piece, each with the mel frame that follows it, and the one
    before it where frames lie half a hop late: first_frame is then 1, the frame of the mel at the
    piece's first hop. A whitening that predicts needs the `order` samples of audio before the piece
    as `past` `[B, order]`.
    """
    given = whitening_given(mel, config, y.shape[1], past, first_frame)
    if given is None:
        return y, jnp.zeros(y.shape[:1], y.dtype)
    x = squeeze(y, config.waveglow.n_group)
    audio, log_det = WHITENING.inverse(given, x, Context(config))
    return unsqueeze(audio), total_log_det(log_det, (x.shape[0], x.shape[1]), mask)


def _context(
    params: Params, config: Config, mel: jax.Array, n_steps: int, mask: jax.Array | None, dtype: Any
) -> Context:
    conditioning = conditioning_of(params, config, mel, n_steps, dtype)
    return Context(config, conditioning, mask, dtype)


def latent_noise(seed: int, config: Config, n_frames: int) -> jax.Array:
    """Standard normal `[N, G]` for the N groups that cover n_frames (`Config.steps_of`).

    The rows of a period of frames depend only on the seed and the period's number.
    """
    whole = -(-n_frames // config.period) * config.period
    return noise_of_frames(seed, config, jnp.arange(whole))[: config.steps_of(n_frames)]


def noise_of_frames(seed: int | jax.Array, config: Config, frames: jax.Array) -> jax.Array:
    """The rows of `latent_noise` for any whole periods of frame numbers, `[F] -> [F * hop / G, G]`.

    It makes the samples independent of batch, padding, cuts and device. A period (`Config.period`)
    is a frame where the group divides the hop.
    """
    key, period = jax.random.key(seed), config.period
    shape = (config.steps_of(period), config.waveglow.n_group)

    def of_period(number: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape)

    return jax.vmap(of_period)(frames[::period] // period).reshape(-1, shape[1])


def own_steps(own_frames: jax.Array, config: Config) -> jax.Array:
    """Mask of frames `[B, F]`, whole periods -> that of steps `[B, F * hop / G]`.

    A step is a signal's own if the first sample of its block (`Config.block`) is: the last block
    may end after the last frame.
    """
    hop, group, block = config.data.hop_length, config.waveglow.n_group, config.block
    if config.period == 1:
        return jnp.repeat(own_frames, hop // group, axis=1)
    starts = np.arange(config.steps_of(own_frames.shape[1])) * group // block * block
    return own_frames[:, starts // hop]


def of_frames(audio: jax.Array, n_frames: Any, config: Config) -> jax.Array:
    """The samples of the frames `[B, F * hop]`, of audio of whole groups `[B, N * G]`."""
    return audio if config.period == 1 else audio[:, : n_frames * config.data.hop_length]


def conditioning_of(
    params: Params, config: Config, mel: jax.Array, n_steps: int, dtype: Any
) -> jax.Array:
    """mel `[B, F, M]` -> conditioning `[B, n_steps, D]` of every conditioner.

    With `fold_upsampler`'s parameters it is `[B, n_steps / phases, D]`: for each frame, the frames
    whose upsampling overlaps there.
    """
    if "upsample" not in params:
        hop, group = config.data.hop_length, config.waveglow.n_group
        seen = frames_seen(mel, -(-config.waveglow.upsample_kernel // hop))
        return seen[:, : n_steps * group // hop]
    mel = with_frames_behind(mel, config)
    upsampled = upsampler_network(config, dtype).apply({"params": params["upsample"]}, mel)
    return squeeze_conditioning(cast(jax.Array, upsampled), config, n_steps)


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
    # The last block may end after the last frame.
    if not n_samples - config.block < frames * hop < n_samples + 2 * hop:
        raise ValueError(
            f"{frames} mel frames do not fit {n_samples} samples: "
            f"{(n_samples - config.block) // hop + 1} are needed, or one more"
        )
