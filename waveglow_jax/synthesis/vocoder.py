"""The main class for users: a voice that turns mels into samples, and recordings into mels and z.

Methods return NumPy arrays: audio `[T]` or `[B, T]`, mel `[F, M]` or `[B, F, M]`. They also accept
arrays of JAX or PyTorch, and mels as `[M, F]` or `[B, M, F]` (`synthesis/arrays.py`).
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import overload

import jax
import numpy as np

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import LATENT, Config
from waveglow_jax.flow.likelihood import log_likelihood
from waveglow_jax.flow.waveglow import (
    Params,
    check_shapes,
    forward,
    inverse_prepared,
    prepare_inverse,
)
from waveglow_jax.synthesis.arrays import (
    SupportsArray,
    check_finite,
    check_mel,
    frames_first,
    on_host,
)
from waveglow_jax.synthesis.consistency import consistent_blocks, delay, piece_frames, piece_program
from waveglow_jax.synthesis.denoiser import DELAY, bias_spectrum_of, denoised_blocks
from waveglow_jax.synthesis.levels import finite, limited, limited_each, samples_of
from waveglow_jax.synthesis.mels import mel_of_samples
from waveglow_jax.synthesis.plan import MOST_FRAMES, Plan, size_at_least
from waveglow_jax.synthesis.program_cache import keep_programs_if_possible
from waveglow_jax.synthesis.reverse_pass import ReversePass
from waveglow_jax.synthesis.settings import (
    Consistency,
    Settings,
    check_dtype,
    checked_consistency,
    settings_of,
    streamable,
)
from waveglow_jax.synthesis.typical import (
    TypicalSample,
    corrected_within,
    search_program,
    typical_sample,
)
from waveglow_jax.weights.release import read_weights

BIAS_FRAMES = 88
"""Length of the all-zero mel that the denoiser measures the bias on (the original's value)."""


@dataclass(frozen=True, eq=False, repr=False)
class Voice:
    """A config and its parameters, with the methods for synthesis and encoding.

    A voice equals only itself and hashes by identity. Copies and unpickled voices have the same
    config and parameters, and compile their programs anew; a voice with devices of its own can be
    neither copied nor pickled.
    """

    config: Config
    params: Params
    devices: tuple[jax.Device, ...] | None = None
    """The devices that synthesis runs on; None: all devices of this process."""

    def __repr__(self) -> str:
        glow, wn = self.config.waveglow, self.config.waveglow.WN
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Voice({glow.n_flows} flows, WN {wn.n_layers} x {wn.n_channels}, {size:,} parameters, "
            f"{self.sampling_rate} Hz, {glow.n_mel_channels} mel bins)"
        )

    def __reduce__(self) -> tuple[type["Voice"], tuple[Config, Params]]:
        if self.devices is not None:
            raise TypeError(
                "a voice with devices of its own belongs to this process; copy or pickle "
                "dataclasses.replace(voice, devices=None)"
            )
        return Voice, (self.config, self.params)

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of the voice's output and of the recordings that it takes, in Hz."""
        return self.config.data.sampling_rate

    def mel(self, audio: np.ndarray | SupportsArray) -> np.ndarray:
        """Samples in [-1, 1] `[T]` or `[B, T]` -> log-mel `[F, M]` or `[B, F, M]`.

        F = 1 + T // hop frames, or T // hop where the convention's frames lie half a hop late.
        int16 is divided by 32768, as soundfile does.

        Raises ValueError if T is too short to be reflected at the ends, for other integers, and
        for samples that are not finite. Warns (LevelWarning) if samples are far beyond full scale.
        """
        return mel_of_samples(samples_of(on_host(audio)), self.config)

    @overload
    def synthesize(
        self,
        mel: np.ndarray | SupportsArray,
        sigma: float | None = ...,
        seed: int = ...,
        denoise: float = ...,
        dtype: str = ...,
        consistency: Consistency = ...,
        *,
        window: int | None = ...,
        batch: int | None = ...,
    ) -> np.ndarray: ...

    @overload
    def synthesize(
        self,
        mel: Sequence[np.ndarray | SupportsArray],
        sigma: float | None = ...,
        seed: int = ...,
        denoise: float = ...,
        dtype: str = ...,
        consistency: Consistency = ...,
        *,
        window: int | None = ...,
        batch: int | None = ...,
    ) -> list[np.ndarray]: ...

    def synthesize(
        self,
        mel: np.ndarray | SupportsArray | Sequence[np.ndarray | SupportsArray],
        sigma: float | None = None,
        seed: int = 0,
        denoise: float = 0.0,
        dtype: str = "float32",
        consistency: Consistency = None,
        *,
        window: int | None = None,
        batch: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Synthesises the samples of a log-mel, exactly F * hop of them.

        `[F, M] -> [F * hop]`; `[B, F, M] -> [B, F * hop]`; a list of mels of any lengths -> a list.
        `[M, F]` and `[B, M, F]`, as mel files and other vocoders have them, are recognised unless
        F equals M.
        sigma is the temperature. consistency is the number of corrections towards the mel
        (`synthesis/consistency.py`), or "latent" for a typical z whose signal follows the mel
        (`synthesis/typical.py`). None for either means the voice's own value in
        `config.synthesis`. denoise is the strength of the denoiser, which comes last (0: none);
        dtype is the compute dtype of the matmuls inside WN. The noise is a function of seed and
        frame, and the windows in which the mels are computed overlap by the whole context of a
        sample, so neither batch, padding nor window changes a sample. By default `window` (in
        frames) and `batch` are chosen from the lengths, see `plan`. Samples beyond full scale are
        clipped, but without corrections (consistency 0) they are exactly the flow's, bit for bit; a
        warning (LevelWarning) reports them if they are over 0.5% of a mel's samples.
        Raises ValueError for a mel that has the wrong shape, is not finite, or gives samples that
        are not finite; for an unknown dtype, a negative or infinite sigma or denoise, an invalid
        consistency, a seed that does not fit 32 bits, a window that is too small for its context,
        or a mel too long for "latent".
        """
        bins = self.config.waveglow.n_mel_channels
        if isinstance(mel, SupportsArray | str | PathLike):
            mel = frames_first(mel, bins)
            alone = mel.ndim < 3
            each = self.synthesize(
                [mel] if alone else list(mel),
                *(sigma, seed, denoise, dtype, consistency),
                window=window,
                batch=batch,
            )
            return each[0] if alone else np.stack(each)
        mels = [self._checked(frames_first(each, bins)) for each in mel]
        plan = self.plan([len(each) for each in mels], dtype, window=window, batch=batch)
        blocks = self.blocks(mels, plan, sigma, seed, denoise, dtype, consistency)
        return [
            finite(np.concatenate([block for _, block in of_one]))
            for _, of_one in groupby(blocks, itemgetter(0))
        ]

    def resynthesize(
        self,
        audio: np.ndarray | SupportsArray,
        sigma: float | None = None,
        seed: int = 0,
        denoise: float = 0.0,
        dtype: str = "float32",
        consistency: Consistency = None,
    ) -> np.ndarray:
        """Copy-synthesis: a recording `[T]` or `[B, T]` -> audio of that shape, made from its mel.

        The settings are those of `synthesize`. This method uses only the mel of the recording; the
        command of the same name uses its z, too. Raises ValueError as `mel` and `synthesize` do.
        """
        n_samples = on_host(audio).shape[-1]
        mel = self.mel(with_whole_frames(samples_of(on_host(audio)), self.config))
        again = self.synthesize(mel, sigma, seed, denoise, dtype, consistency)
        return again[..., :n_samples]

    def blocks(
        self,
        mels: Iterable[np.ndarray],
        plan: Plan,
        sigma: float | None = None,
        seed: int = 0,
        denoise: float = 0.0,
        dtype: str = "float32",
        consistency: Consistency = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (index of the mel, next block `[n]` of its samples), one mel after another.

        Mels are taken only as they are needed, and memory does not grow with their number or
        length (but with the length of each for "latent", which does not use the plan). The
        concatenated blocks of a mel are what `synthesize` returns. Where `synthesize` raises
        because samples are not finite, the blocks hold NaN, so that the other mels are still
        synthesised. Otherwise raises ValueError and warns as `synthesize` does, for a mel when its
        turn comes.
        """
        settings = settings_of(self.config.synthesis, sigma, seed, denoise, dtype, consistency)
        blocks = self._unlimited(mels, plan, settings)
        return limited_each(blocks, hold=settings.consistency != 0)

    def _unlimited(
        self, mels: Iterable[np.ndarray], plan: Plan, settings: Settings
    ) -> Iterator[tuple[int, np.ndarray]]:
        """`blocks` without clipping or level warnings."""
        sigma, seed, dtype = settings.sigma, settings.seed, settings.dtype
        mels = map(self._checked, mels)
        blocks: Iterator[tuple[int, np.ndarray]]
        if settings.consistency == LATENT:
            blocks = (
                (utterance, self.typical_sample(mel, sigma, seed, dtype).audio)
                for utterance, mel in enumerate(mels)
            )
        else:
            corrections = settings.consistency
            self.compile(plan, dtype, corrections)
            pieces = self._reverse.blocks(mels, plan, sigma, seed, dtype)
            blocks = consistent_blocks(pieces, self.config, corrections, device=self._device)
        if not settings.denoise:
            return blocks
        bias_spectrum = self.bias_spectrum
        return (
            (utterance, block)
            for utterance, of_one in groupby(blocks, itemgetter(0))
            for block in denoised_blocks(
                (block for _, block in of_one), bias_spectrum, settings.denoise
            )
        )

    def typical_sample(
        self, mel: np.ndarray, sigma: float | None = None, seed: int = 0, dtype: str = "float32"
    ) -> TypicalSample:
        """The result of consistency "latent" for a mel `[F, M]`, with z and log-likelihood.

        The samples are exactly those decoded from z: not clipped, and not finite where the model
        overflows. Otherwise raises ValueError as `synthesize` does.
        """
        chosen = settings_of(self.config.synthesis, sigma, seed, dtype=dtype, consistency=LATENT)
        mel = self._checked(mel)
        return typical_sample(
            self.params, self.config, mel, chosen.sigma, seed, dtype, self._device
        )

    def compile_typical(self, frames: int, dtype: str = "float32") -> float:
        """As `compile`, for `typical_sample` of a mel of so many frames. Raises ValueError if there
        are too many."""
        began = time.monotonic()
        search_program(self.config, frames, dtype, self._device)
        return time.monotonic() - began

    def stream(
        self,
        mel: np.ndarray | SupportsArray | Iterable[np.ndarray],
        chunk_frames: int | None = None,
        sigma: float | None = None,
        seed: int = 0,
        denoise: float = 0.0,
        dtype: str = "float32",
        consistency: Consistency = None,
    ) -> Iterator[np.ndarray]:
        """Yields `synthesize`'s samples in blocks `[chunk_frames * hop]`, the last one shorter.

        mel: `[F, M]` (or `[M, F]`), or blocks `[f, M]` of its frames that arrive over time. A block
        is computed as soon as the frames that it depends on have arrived, `latency_frames` from its
        first on; memory does not grow with the length. chunk_frames: fewer frames give the samples
        sooner, more frames cost less; the default is about the context. Where the group does not
        divide the hop, chunk_frames is rounded up to whole periods (`Config.period`). With denoise
        or consistency the first block is shorter by their delay. The program is compiled before
        this method returns. Raises ValueError as `synthesize` does, and for consistency "latent",
        which needs the whole mel; errors in a block of frames or samples are raised when its turn
        comes.
        """
        settings = settings_of(self.config.synthesis, sigma, seed, denoise, dtype, consistency)
        chunk = self.chunk_frames(chunk_frames)
        if isinstance(mel, SupportsArray):
            mel = [self._checked(frames_first(mel, self.config.waveglow.n_mel_channels))]
        corrections = streamable(settings.consistency)
        self.compile_stream(chunk, dtype, corrections)
        checked = (self._checked(block, at_least=0) for block in mel)
        pieces = self._reverse.stream(checked, chunk, settings.sigma, seed, dtype)
        corrected = consistent_blocks(pieces, self.config, corrections, chunk, self._device)
        blocks: Iterator[np.ndarray] = (block for _, block in corrected)
        if denoise:
            blocks = denoised_blocks(blocks, self.bias_spectrum, denoise)
        return map(finite, limited(blocks, hold=corrections != 0))

    def chunk_frames(self, chosen: int | None = None) -> int:
        """The number of frames per block of a stream, in whole periods (`Config.period`).

        Raises ValueError for an invalid choice.
        """
        context = self._reverse.context
        if chosen is None:
            return context.whole(max(32, context.left + context.right))
        if not 1 <= chosen <= MOST_FRAMES:
            raise ValueError(f"chunk_frames {chosen} must be from 1 to {MOST_FRAMES}")
        return context.whole(chosen)

    def latency_frames(
        self,
        chunk_frames: int | None = None,
        denoise: float = 0.0,
        consistency: Consistency = None,
    ) -> int:
        """The frames of mel, from a block's first on, that a stream needs before it yields it.

        This is an upper bound: the chunk, the right context, and the delays of the corrections and
        of the denoiser. Raises ValueError for consistency "latent".
        """
        consistency = checked_consistency(self.config.synthesis, consistency)
        frames = self.chunk_frames(chunk_frames) + self._reverse.context.right
        frames += delay(self.config, streamable(consistency))
        return frames + (-(-DELAY // self.config.data.hop_length) if denoise else 0)

    def plan(
        self,
        lengths: Sequence[int],
        dtype: str = "float32",
        *,
        window: int | None = None,
        batch: int | None = None,
    ) -> Plan:
        """The windows in which mels of these lengths (in frames) are computed: see `plan.choose`.

        Raises ValueError for an unknown dtype, or an invalid window or batch.
        """
        check_dtype(dtype)
        return self._reverse.plan(lengths, dtype, window, batch)

    def compile(self, plan: Plan, dtype: str = "float32", consistency: Consistency = None) -> float:
        """Compiles what the plan needs; returns the seconds it took, 0 if all was compiled.

        For consistency "latent" it compiles nothing, as those programs depend on each mel's length.
        """
        consistency = checked_consistency(self.config.synthesis, consistency)
        if consistency == LATENT:
            return 0.0
        return self._compile(plan, dtype, consistency, piece_frames(self._device))

    def compile_stream(
        self,
        chunk_frames: int | None = None,
        dtype: str = "float32",
        consistency: Consistency = None,
    ) -> float:
        """As `compile`, for a stream. Raises ValueError for consistency "latent"."""
        consistency = checked_consistency(self.config.synthesis, consistency)
        chunk = self.chunk_frames(chunk_frames)
        return self._compile(self.stream_plan(chunk), dtype, streamable(consistency), chunk)

    def _compile(self, plan: Plan, dtype: str, consistency: int, frames: int) -> float:
        began = time.monotonic()
        if consistency:
            piece_program(self.config, consistency, frames, self._device)
        correcting = time.monotonic() - began
        return correcting + self._reverse.compile(plan.window, plan.batch, dtype)

    def memory_bytes(self, plan: Plan, dtype: str = "float32") -> int:
        """Memory of the compiled reverse pass while it runs: weights, activations and results."""
        self.compile(plan, dtype, consistency=0)
        return self._reverse.memory_bytes(plan.window, plan.batch, dtype)

    def stream_plan(self, chunk_frames: int | None = None) -> Plan:
        """The plan of a stream's windows."""
        return self._reverse.stream_plan(self.chunk_frames(chunk_frames))

    @cached_property
    def bias_spectrum(self) -> np.ndarray:
        """The voice's bias for the denoiser: magnitudes `[513]`.

        They are those of the first frame of its output for an all-zero mel at sigma 0, as in the
        original.
        """
        mel = np.zeros((BIAS_FRAMES, self.config.waveglow.n_mel_channels), np.float32)
        # This runs only once, so it uses any program that exists rather than compile one.
        window, batch = self._reverse.ready_for(BIAS_FRAMES)
        plan = self.plan([BIAS_FRAMES], window=window, batch=batch)
        blocks = self._unlimited([mel], plan, Settings(sigma=0.0, consistency=0))
        return bias_spectrum_of(np.concatenate([block for _, block in blocks]))

    def encode(
        self, audio: np.ndarray | SupportsArray, mel: np.ndarray | SupportsArray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Audio `[B, T]` and its mel `[B, F, M]` -> z `[B, T / G, G]`, log-likelihood `[B]`.

        One recording `[T]` with `[F, M]` gives z `[T / G, G]` and a log-likelihood `[]`. Without a
        mel the recording's own is used. The log-likelihood is in nats per sample, all constants
        included, for z ~ N(0, 1). Where T is no multiple of the flow's block, zeros are added at
        the end, which z and the log-likelihood cover too; a warning reports how many. Where frames
        lie half a hop late, the last T % hop samples have no frame and are left out, with a
        warning.
        Raises ValueError for shapes that do not fit (see `waveglow_jax.forward`), for audio as
        `mel` does, and for a mel that is not finite.
        """
        audio = samples_of(on_host(audio))
        mel = self.mel(audio) if mel is None else on_host(mel)
        mel = np.asarray(frames_first(mel, self.config.waveglow.n_mel_channels), np.float32)
        audio = self._in_whole_blocks(self._under(mel, audio))
        if audio.ndim == 1 and mel.ndim == 2:
            z, nats = self.encode(audio[None], mel[None])
            return z[0], nats[0]
        check_shapes(self.config, audio.shape, mel.shape)
        check_finite(mel)
        steps = audio.shape[1] // self.config.waveglow.n_group
        audio, mel, mask = self._padded(audio, mel, 1)
        z, log_det = _encode(self.params, self.config, audio, mel, mask)
        z = z[:, :steps]
        return np.asarray(z), np.asarray(log_likelihood(z, log_det))

    def decode(
        self,
        z: np.ndarray | SupportsArray,
        mel: np.ndarray | SupportsArray,
        consistency: int = 0,
    ) -> np.ndarray:
        """z `[B, N, G]` and its mel `[B, F, M]` -> audio `[B, N * G]`: the inverse of `encode`.

        For one recording, `[N, G]` with `[F, M]` -> `[N * G]`. N is `Config.steps_of(F)`, or
        that of one frame less. consistency is the number of corrections of the decoded signal
        towards the mel; with none the samples are exactly those that z decodes to, even beyond full
        scale.
        Raises ValueError for shapes that do not fit, and for a mel that is not finite.
        """
        z = np.asarray(on_host(z), np.float32)
        mel = np.asarray(frames_first(mel, self.config.waveglow.n_mel_channels), np.float32)
        if z.ndim == 2 and mel.ndim == 2:
            return self.decode(z[None], mel[None], consistency)[0]
        group = self.config.waveglow.n_group
        if z.ndim != 3 or z.shape[2] != group:
            raise ValueError(f"z of shape {z.shape} is not [N, {group}] or [B, N, {group}]")
        samples = z.shape[1] * group
        check_shapes(self.config, (len(z), samples), mel.shape)
        check_finite(mel)
        frames = min(samples // self.config.data.hop_length, mel.shape[1])
        z, mel, mask = self._padded(z, mel, group)
        audio = _decode(self.params, self.config, z, mel, mask)
        own = np.full(len(z), frames)
        corrected = consistent(audio, mel, self.config, consistency, n_frames=own)
        return np.asarray(corrected_within(corrected, audio, frames, self.config))[:, :samples]

    def _padded(
        self, signal: np.ndarray, mel: np.ndarray, samples_each: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pads signal `[B, n, ...]` and mel `[B, F, M]` to few sizes, so that few programs are
        compiled, and returns them with a mask `[B, N]`.

        The signal, whose entries are of `samples_each` samples, is padded with zeros, the mel with
        its last frame; the mask is 1 for the signal's own steps. All padding is at the end: a mel
        with one frame more than the signal keeps that frame.
        """
        frames, own = mel.shape[1], signal.shape[1]
        size = self._reverse.context.whole(size_at_least(frames))
        missing = size * self.config.data.hop_length // samples_each - own
        signal = np.pad(signal, [(0, 0), (0, missing)] + [(0, 0)] * (signal.ndim - 2))
        mel = np.pad(mel, ((0, 0), (0, size - frames), (0, 0)), mode="edge")
        own_steps = own * samples_each // self.config.waveglow.n_group
        mask = np.arange(self.config.steps_of(size)) < own_steps
        return signal, mel, np.tile(mask.astype(np.float32), (len(signal), 1))

    def _under(self, mel: np.ndarray, audio: np.ndarray) -> np.ndarray:
        """Audio `[..., T]` without the samples, less than a hop, that have no frame in its mel
        `[..., F, M]`: with centred frames every sample has one. Warns if there are any."""
        if not self.config.data.mel.late or not audio.ndim or mel.ndim < 2:
            return audio
        n_samples, covered = audio.shape[-1], mel.shape[-2] * self.config.data.hop_length
        if not 0 < n_samples - covered < self.config.data.hop_length:
            return audio
        warnings.warn(
            f"the last {n_samples - covered} of {n_samples} samples were left out, for the mel of "
            "this voice has no frame for them",
            stacklevel=3,
        )
        return audio[..., :covered]

    def _in_whole_blocks(self, audio: np.ndarray) -> np.ndarray:
        """Appends the zeros that the flow needs to audio `[..., T]`, and warns if there are any."""
        block = self.config.block
        missing = -audio.shape[-1] % block if audio.ndim else 0
        if not missing:
            return audio
        warnings.warn(
            f"{missing} zeros were added after the {audio.shape[-1]} samples, for this voice "
            f"encodes whole blocks of {block}",
            stacklevel=3,
        )
        return np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, missing)])

    @property
    def _device(self) -> jax.Device:
        """The device for everything that processes the samples in order."""
        return (self.devices or jax.local_devices())[0]

    @cached_property
    def _reverse(self) -> ReversePass:
        devices = self.devices or tuple(jax.local_devices())
        return ReversePass(self.config, self.params, devices)

    def _checked(self, mel: np.ndarray, at_least: int = 1) -> np.ndarray:
        mel = np.asarray(mel, np.float32)
        check_mel(mel, self.config.waveglow.n_mel_channels, at_least)
        return mel


def with_whole_frames(audio: np.ndarray, config: Config) -> np.ndarray:
    """Audio `[..., T]` whose mel has a frame for every sample: where frames lie half a hop late,
    zeros fill the last hop; centred frames reach beyond the end already."""
    if not config.data.mel.late or not audio.ndim:
        return audio
    missing = -audio.shape[-1] % config.data.hop_length
    return np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, missing)])


def load(source: str | Path | None = None, *, keep_programs: bool = True) -> Voice:
    """Loads the voice in a release folder, a training run, a published checkpoint or on the Hugging
    Face hub, which the content distinguishes; without a source, the bundled voice.

    keep_programs: JAX stores what it compiles, this voice's programs and others, in the user's
    cache folder for later processes; if JAX has a cache folder already, it stays. Warns if the
    user's cache folder cannot be used. Raises UserError if there is no voice, or if it is damaged.
    """
    if keep_programs:
        keep_programs_if_possible()
    weights = read_weights(source)
    return Voice(weights.config, jax.device_put(weights.params))


@jax.jit(static_argnums=1)
def _encode(
    params: Params, config: Config, audio: jax.Array, mel: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return forward(params, config, audio, mel, mask=mask)


@jax.jit(static_argnums=1)
def _decode(
    params: Params, config: Config, z: jax.Array, mel: jax.Array, mask: jax.Array
) -> jax.Array:
    return inverse_prepared(prepare_inverse(params), config, z, mel, mask=mask)[0]
