"""Corrections towards the mel: against a plain loop, and the same however the signal arrives."""

import dataclasses

import jax
import numpy as np
import pytest
from test_vocoder import HOP, close, lively_params, some_audio, some_mel, tiny_config, voice_of

from waveglow_jax.audio.consistency import consistent, reach
from waveglow_jax.audio.mel import log_mel, mel_filters, mirrored, stft_window
from waveglow_jax.config import Config, SynthesisConfig, config_from_dict
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.synthesis.consistency import consistent_blocks, delay
from waveglow_jax.synthesis.denoiser import denoise
from waveglow_jax.synthesis.reverse_pass import Piece
from waveglow_jax.synthesis.vocoder import Voice

pytestmark = pytest.mark.usefixtures("no_full_scale")

TACOTRON = Config()
# The hop divides neither FFT nor window, and the filter bank leaves the lowest bins uncovered.
OTHER = config_from_dict(
    {
        "waveglow_config": {"n_mel_channels": 40, "n_group": 8},
        "data_config": {
            "sampling_rate": 16000,
            "filter_length": 800,
            "hop_length": 200,
            "win_length": 640,
            "segment_length": 1600,
            "mel_fmin": 90.0,
            "mel_fmax": 7000.0,
        },
    }
)

LATE = config_from_dict(
    {
        "waveglow_config": {"n_mel_channels": 40, "n_group": 8},
        "data_config": {
            "filter_length": 800,
            "hop_length": 200,
            "win_length": 640,
            "segment_length": 1600,
            "mel": {"frames": HALF_HOP},
        },
    }
)


def by_hand(audio, mel, config, iterations, momentum):
    """The formula in float64, one frame and one band after another."""
    fft, hop = config.data.filter_length, config.data.hop_length
    lead = (fft - hop) // 2 if config is LATE else fft // 2
    window, frames = stft_window(config.data), len(audio) // hop
    filters = mel_filters(config.data, config.waveglow.n_mel_channels).astype(np.float64)

    def analysed(signal):
        return [np.fft.rfft(window * signal[f * hop : f * hop + fft]) for f in range(frames)]

    def scaled(spectrum, wanted):
        total, covered = np.zeros(len(spectrum)), np.zeros(len(spectrum))
        for weights, level in zip(filters, wanted, strict=True):
            ratio = np.exp(level) / max(weights @ np.abs(spectrum), 1e-5)
            total += weights * min(max(ratio, 0.01), 100)
            covered += weights
        return spectrum * np.where(covered > 0, total / np.where(covered > 0, covered, 1), 1)

    def synthesised(spectra):
        signal, weight = np.zeros((2, frames * hop + fft))
        for f, spectrum in enumerate(spectra):
            signal[f * hop : f * hop + fft] += window * np.fft.irfft(spectrum, fft)
            weight[f * hop : f * hop + fft] += window**2
        return signal / np.maximum(weight, 1e-6)

    spectra = before = analysed(np.pad(audio.astype(np.float64), lead, mode="reflect"))
    for _ in range(iterations - 1):
        signal = synthesised([scaled(x, m) for x, m in zip(spectra, mel, strict=True)])
        after = analysed(signal)
        spectra = [a + momentum * (a - b) for a, b in zip(after, before, strict=True)]
        before = after
    signal = synthesised([scaled(x, m) for x, m in zip(spectra, mel, strict=True)])
    return signal[lead:][: len(audio)]


def target_of(config: Config, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Audio of `frames` frames, and the log-mel of other audio."""
    samples = frames * config.data.hop_length
    other = some_audio(max(samples, 1024), seed + 1)
    return some_audio(samples, seed), np.asarray(log_mel(other, config))[:frames]


@pytest.mark.slow
@pytest.mark.parametrize("config", [TACOTRON, OTHER, LATE], ids=["tacotron", "other", "late"])
@pytest.mark.parametrize(("frames", "iterations"), [(9, 1), (9, 4), (2, 2), (1, 2)])
def test_is_the_formula(config, frames, iterations):
    audio, mel = target_of(config, frames, 0)
    ours = consistent(audio, mel, config, iterations, 0.9)
    close(ours, by_hand(audio, mel, config, iterations, 0.9), 3e-5)


def test_no_corrections_change_nothing():
    audio, mel = target_of(TACOTRON, 5, 0)
    np.testing.assert_array_equal(consistent(audio, mel, TACOTRON, 0), audio)


@pytest.mark.slow
def test_a_consistent_signal_is_a_fixed_point():
    audio = some_audio(40 * HOP)
    mel = np.asarray(log_mel(audio, TACOTRON))  # one frame more, which is left out
    close(consistent(audio, mel, TACOTRON, 1), audio, 1e-6)
    close(consistent(audio, mel, TACOTRON, 4), audio, 1e-5)


@pytest.mark.slow
def test_the_mel_comes_nearer_with_every_correction():
    """This holds without momentum; with it, the mel is nearer at the end, but not after each
    one."""
    audio, mel = target_of(TACOTRON, 40, 3)

    def error(iterations: int, momentum: float) -> float:
        made = consistent(audio, mel, TACOTRON, iterations, momentum)
        # The mel mirrors the signal at its ends, which a correction does not take into account.
        return np.abs(np.asarray(log_mel(made, TACOTRON))[2:38] - mel[2:38]).mean()

    plain = [error(n, 0.0) for n in (0, 1, 2, 3, 4, 8, 16, 32)]
    assert plain == sorted(plain, reverse=True) and plain[-1] < 0.25 * plain[0]
    assert error(32, 0.9) < 0.8 * plain[-1]


@pytest.mark.parametrize(
    "levels",
    [np.log(1e-5), -100.0, 12.0, 88.0],
    ids=["the floor", "below the floor", "far beyond full scale", "the end of float32"],
)
def test_extreme_mels(levels):
    mel = np.full((6, 80), levels, np.float32)
    for start in (some_audio(6 * HOP), np.zeros(6 * HOP, np.float32)):
        made = np.asarray(consistent(start, mel, TACOTRON, 32))
        assert np.isfinite(made).all()
        if levels < 0 and start.any():
            covered = slice(len(made) * 200 // 22050, len(made) * 7900 // 22050)
            left, there = (np.abs(np.fft.rfft(each))[covered] for each in (made, start))
            assert left.max() < 0.01 * there.max()


@pytest.mark.slow
def test_padding_means_nothing():
    audio, mel = target_of(TACOTRON, 7, 1)
    padded = np.concatenate([audio, some_audio(5 * HOP, 9)])
    padded_mel = np.concatenate([mel, some_mel(5)])
    both = consistent(
        np.stack([padded, padded]),
        np.stack([padded_mel, padded_mel]),
        TACOTRON,
        3,
        n_frames=np.array([7, 12]),
    )
    close(both[0, : 7 * HOP], consistent(audio, mel, TACOTRON, 3), 1e-6)
    close(both[1], consistent(padded, padded_mel, TACOTRON, 3), 1e-6)


@pytest.mark.slow
def test_nothing_is_left_beyond_the_bandwidth():
    """Corrections silence the hiss above 8,000 Hz of a voice whose recordings end there."""
    synthesis = SynthesisConfig(bandwidth=8000.0)
    config = dataclasses.replace(TACOTRON, synthesis=synthesis)
    audio, mel = target_of(TACOTRON, 40, 0)

    def above(made) -> float:
        inner = np.asarray(made)[4 * HOP : -4 * HOP] * np.hanning(32 * HOP)
        return np.abs(np.fft.rfft(inner))[8200 * len(inner) // 22050 :].max()

    kept, silenced = (above(consistent(audio, mel, c, 4)) for c in (TACOTRON, config))
    assert silenced < 1e-3 * kept


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        consistent(some_audio(3 * HOP), some_mel(5), TACOTRON, 1)
    with pytest.raises(ValueError, match="do not fit"):
        consistent(some_audio(3 * HOP - 1), some_mel(3), TACOTRON, 1)


def test_mirrored_is_numpys_reflect():
    signal = np.arange(5)
    place = np.arange(-13, 18)
    np.testing.assert_array_equal(
        signal[mirrored(place, 5)], np.pad(signal, (13, 13), mode="reflect")
    )
    np.testing.assert_array_equal(mirrored(place, 1), 0 * place)


# ------------------------------------------------------------------------------ in pieces


def in_pieces(signals, sizes):
    """Yields signals `(audio, mel)` in pieces whose sizes alternate."""
    sizes = iter(sizes)
    for utterance, (audio, mel) in enumerate(signals):
        done = 0
        while done < len(mel):
            size = next(sizes)
            part = slice(done, done + size)
            yield Piece(utterance, audio.reshape(len(mel), -1)[part].reshape(-1).copy(), mel[part])
            done += size


@pytest.mark.slow
@pytest.mark.parametrize("config", [TACOTRON, OTHER, LATE], ids=["tacotron", "other", "late"])
@pytest.mark.parametrize(("iterations", "frames"), [(1, 5), (3, 1), (3, 16)])
def test_pieces_are_the_whole(config, iterations, frames):
    signals = [target_of(config, n, n) for n in (1, 40, 2, 3, 17, 1)]
    sizes = np.random.default_rng(0).integers(1, 12, 100)
    made: dict[int, list[np.ndarray]] = {}
    for utterance, block in consistent_blocks(
        in_pieces(signals, sizes), config, iterations, frames
    ):
        made.setdefault(utterance, []).append(block)
    assert list(made) == list(range(len(signals)))
    for utterance, (audio, mel) in enumerate(signals):
        whole = consistent(audio, mel, config, iterations)
        close(np.concatenate(made[utterance]), whole, 3e-6)


def test_nothing_gives_nothing():
    assert list(consistent_blocks([], TACOTRON, 2, 4)) == []
    empty = Piece(0, np.zeros(0, np.float32), np.zeros((0, 80), np.float32))
    assert list(consistent_blocks([empty], TACOTRON, 2, 4)) == []


@pytest.mark.slow
def test_an_utterance_that_is_not_finite_spoils_no_other():
    good = target_of(TACOTRON, 9, 0)
    bad = np.full_like(good[0], np.nan), good[1]
    made: dict[int, list[np.ndarray]] = {}
    for utterance, block in consistent_blocks(
        in_pieces([good, bad, good], [4] * 9), TACOTRON, 3, 5
    ):
        made.setdefault(utterance, []).append(block)
    whole = consistent(*good, TACOTRON, 3)
    for utterance in (0, 2):
        close(np.concatenate(made[utterance]), whole, 3e-6)
    assert np.isnan(np.concatenate(made[1])).any()


@pytest.mark.slow
def test_samples_come_out_after_their_delay():
    audio, mel = target_of(TACOTRON, 60, 0)
    given = 0

    def arriving():
        nonlocal given
        for piece in in_pieces([(audio, mel)], [1] * 60):
            given += 1
            yield piece

    first = next(consistent_blocks(arriving(), TACOTRON, 4, 1))
    # The first frame's sample waits for `delay` frames; pieces are of one frame.
    assert given <= 1 + delay(TACOTRON, 4) and given >= 1 + 4 * reach(TACOTRON)
    assert len(first[1]) == HOP
    assert delay(TACOTRON, 0) == 0


# ------------------------------------------------------------------------------ of a voice


@pytest.fixture(scope="module")
def correcting() -> Voice:
    """A voice whose own setting is three corrections."""
    raw = dataclasses.replace(tiny_config("sample"))
    synthesis = dataclasses.replace(raw.synthesis, sigma=0.8, consistency=3)
    config = dataclasses.replace(raw, synthesis=synthesis)
    return Voice(config, lively_params(config), tuple(jax.devices()[:1]))


@pytest.mark.slow
def test_a_voices_own_setting(correcting):
    mel = some_mel(20)
    own = correcting.synthesize(mel)
    np.testing.assert_array_equal(own, correcting.synthesize(mel, 0.8, consistency=3))
    bare = correcting.synthesize(mel, consistency=0)
    close(own, consistent(bare, mel, correcting.config, 3), 1e-5)
    assert np.abs(own - bare).max() > 0.01 * np.abs(bare).max()


@pytest.mark.devices(8)
@pytest.mark.slow
def test_one_shot_streamed_batched_and_on_several_devices(correcting):
    mel = some_mel(150)
    whole = correcting.synthesize(mel)
    close(correcting.synthesize(mel, window=33, batch=2), whole, 1e-5)
    close(correcting.synthesize([some_mel(3), mel, some_mel(9)])[1], whole, 1e-5)
    close(np.concatenate(list(correcting.stream(mel, 16))), whole, 1e-5)
    many = Voice(correcting.config, correcting.params, tuple(jax.devices()))
    close(many.synthesize(mel, window=33, batch=8), whole, 1e-5)


@pytest.mark.slow
def test_the_stream_keeps_its_latency(correcting):
    chunk, given = 8, 0
    mel = some_mel(90)

    def arriving():
        nonlocal given
        for frame in mel:
            given += 1
            yield frame[None]

    blocks = correcting.stream(arriving(), chunk)
    done = 0
    for block in blocks:
        # A block starts at frame `done`; it may wait for `latency_frames` frames from there on.
        assert given <= min(len(mel), done + correcting.latency_frames(chunk))
        done += len(block) // HOP
    assert done == len(mel)
    context = correcting.latency_frames(chunk, consistency=0)
    assert correcting.latency_frames(chunk) == context + delay(correcting.config, 3)


@pytest.mark.slow
def test_the_denoiser_comes_last(correcting):
    mel = some_mel(30)
    corrected = correcting.synthesize(mel)
    wanted = denoise(corrected, correcting.bias_spectrum, 0.1)
    close(correcting.synthesize(mel, denoise=0.1), wanted, 1e-5)
    close(np.concatenate(list(correcting.stream(mel, 16, denoise=0.1))), wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_and_sigma_0(correcting, dtype):
    for sigma in (0.0, 0.8):
        made = correcting.synthesize(some_mel(9), sigma, dtype=dtype)
        assert made.dtype == np.float32 and np.isfinite(made).all()


def test_any_kind_of_integer(correcting):
    assert correcting.latency_frames(4, consistency=np.int8(50)) == correcting.latency_frames(
        4, consistency=50
    )


@pytest.mark.devices(4)
@pytest.mark.slow
def test_runs_on_the_voices_own_device(correcting):
    """This holds wherever its parameters are, and whatever the default device is."""
    there = jax.devices()[3]
    voice = Voice(correcting.config, jax.device_put(correcting.params, there), (there,))
    mel = some_mel(20)
    close(voice.synthesize(mel), correcting.synthesize(mel), 1e-5)
    own, other = (each.typical_sample(mel) for each in (voice, correcting))
    close(own.audio, other.audio, 1e-4)


@pytest.mark.parametrize("value", [-1, 10_001, 1.5, 3.0, True, "much"])
def test_what_cannot_be_is_refused(value):
    for work in (voice_of("group").synthesize, voice_of("group").stream):
        with pytest.raises(ValueError, match="consistency"):
            work(some_mel(3), consistency=value)
