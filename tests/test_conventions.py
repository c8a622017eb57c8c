"""The mel of every convention: against librosa, and against the software's own definitions."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
import soxr
from test_doctor import AUDIO as SPEECH

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.audio.mel import bands_of, log_mel, mel_filters, written
from waveglow_jax.config import Config, WaveGlowConfig, config_from_dict, config_to_dict
from waveglow_jax.config_data import DataConfig, MelConfig
from waveglow_jax.conventions import CONVENTIONS, HALF_HOP, Convention, Spectrum
from waveglow_jax.doctor import recipe
from waveglow_jax.errors import UserError
from waveglow_jax.flow.whitening import power_of_mel

KEYS = [row.key for row in CONVENTIONS]
FLOAT32 = 1e-6
"""Error of a float32 FFT, relative to the loudest band of its frame."""
ROWS = {row.key: row for row in CONVENTIONS}


def config_of(key: str) -> Config:
    glow = {"upsample_kernel": 2048, "n_flows": 1}
    return config_from_dict({"data_config": {"mel": key}, "waveglow_config": glow})


def assert_close(ours, theirs, config: Config, rounding: float = FLOAT32) -> None:
    """Asserts equality within 1e-5 of the values' range plus the FFT's rounding in soft bands."""
    atol = np.full_like(theirs, 1e-5 * np.ptp(theirs))
    form = config.data.mel
    if form.log != "none":
        bands = np.exp((theirs - form.offset) / form.slope) ** (1 / form.power)
        loudest = bands.max(axis=1, keepdims=True)
        atol += form.slope * form.power * rounding * loudest / bands
    off = np.abs(ours - theirs)
    assert np.all(off <= atol), (off / atol).max()


def speech_at(rate: int) -> np.ndarray:
    return np.asarray(soxr.resample(SPEECH[: 2 * 22050], 22050, rate), np.float64)


def filters_of(s: Spectrum) -> np.ndarray:
    return librosa.filters.mel(
        sr=s.rate,
        n_fft=s.n_fft,
        n_mels=s.n_mels,
        fmin=s.fmin,
        fmax=s.fmax,
        htk=s.scale == "htk",
        norm=None if s.norm == "none" else "slaney",
    )


def by_librosa(audio: np.ndarray, row: Convention) -> np.ndarray:
    """`[F, M]` float64: the signal is reflected, then emphasised; filters are float32."""
    s, v = row.spectrum, row.values
    pad = (s.n_fft - s.hop) // 2 if s.frames == HALF_HOP else s.n_fft // 2
    audio = np.pad(audio, pad, mode="reflect")
    audio = scipy.signal.lfilter([1, -s.emphasis], [1], audio) if s.emphasis else audio
    spectra = librosa.stft(audio, n_fft=s.n_fft, hop_length=s.hop, win_length=s.win, center=False)
    filters = filters_of(s)
    bands = filters @ np.sqrt(np.abs(spectra) ** 2 + row.epsilon) ** s.power
    if v.slope == 0:
        return bands.T
    floor = v.floor if v.floor else 1e-10
    bands = np.clip(bands, floor, row.ceiling or np.inf)
    return (v.slope * np.log(bands) + v.offset).T


@pytest.mark.filterwarnings("ignore:Empty filters:UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key", KEYS)
def test_every_row_is_librosas(key, dtype):
    row, config = ROWS[key], config_of(key)
    audio = speech_at(row.spectrum.rate)
    with jax.enable_x64(dtype == "float64"):
        ours = np.asarray(log_mel(jnp.asarray(audio, dtype), config))
    theirs = by_librosa(audio, row)
    assert ours.dtype == dtype and ours.shape == theirs.shape
    assert len(ours) == config.data.frames_of(len(audio))
    assert_close(ours, theirs, config, 0.0 if dtype == "float64" else FLOAT32)


@pytest.mark.parametrize("key", KEYS)
def test_a_config_keeps_its_row(key):
    config = config_of(key)
    assert config.convention == ROWS[key] or config.convention.key == key
    saved = config_to_dict(config)
    assert config_from_dict(saved) == config
    assert ("mel" in saved["data_config"]) == (key != "tacotron2")


@pytest.mark.parametrize("key", KEYS)
def test_what_is_written_can_be_read(key):
    data = config_of(key).data
    bands = jnp.asarray(np.geomspace(data.mel.floor or 1e-6, data.mel.ceiling or 100.0, 50))
    np.testing.assert_allclose(bands_of(written(bands, data), data), bands, rtol=3e-5)
    assert float(written(jnp.zeros(1), data)[0]) == pytest.approx(data.mel.lowest, abs=1e-4)


@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: row.key)
def test_the_doctor_and_jax_write_the_tables_values(row):
    m = np.r_[0, np.geomspace(1e-12, 1e3, 60)]
    clipped = np.clip(m, row.floor, row.ceiling or np.inf)
    slope, offset = row.values.slope, row.values.offset
    expected = slope * np.log(clipped) + offset if slope else clipped
    with np.errstate(divide="ignore"):
        ours = recipe.written(np.log(m), row)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)
    in_jax = written(jnp.asarray(m, jnp.float32), config_of(row.key).data)
    assert in_jax.dtype == jnp.float32
    np.testing.assert_allclose(in_jax, expected, rtol=1e-5, atol=2e-6 * max(1, slope))


# ------------------------------------------------------------ the software's own definitions


def test_hifigans_definition():
    """jik876/hifi-gan: reflected by (n_fft - hop) / 2, sqrt(re^2 + im^2 + 1e-9), ln(clamp 1e-5)."""
    audio = speech_at(22050)
    padded = np.pad(audio, 384, mode="reflect")
    hann = scipy.signal.get_window("hann", 1024)
    frames = np.stack([padded[i : i + 1024] for i in range(0, len(padded) - 1023, 256)])
    spectra = np.fft.rfft(frames * hann)
    magnitudes = np.sqrt(spectra.real**2 + spectra.imag**2 + 1e-9)
    basis = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    theirs = np.log(np.maximum(magnitudes @ basis.T, 1e-5))
    config = config_of("hifigan")
    ours = log_mel(jnp.asarray(audio, jnp.float32), config)
    assert len(theirs) == len(audio) // 256
    assert_close(ours, theirs, config)


def decibels(m: np.ndarray) -> np.ndarray:
    return 20 * np.log10(np.maximum(m, 1e-5))


# What the software's sources do to bands of magnitudes, silent ones and overloud ones included.
WRITTEN = {
    "tacotron2": lambda m: np.log(np.maximum(m, 1e-5)),
    "hifigan": lambda m: np.log(np.maximum(m, 1e-5)),
    "bigvgan-24khz": lambda m: np.log(np.maximum(m, 1e-5)),
    "bigvgan-44khz": lambda m: np.log(np.maximum(m, 1e-5)),
    "vocos-24khz": lambda m: np.log(np.maximum(m, 1e-7)),
    "espnet": lambda m: np.log10(np.maximum(m, 1e-10)),
    "espnet-24khz": lambda m: np.log10(np.maximum(m, 1e-10)),
    "wavernn": lambda m: np.clip((decibels(m) + 100) / 100, 0, 1),
    "rayhane": lambda m: np.clip(2 * 4 * (decibels(m) - 20 + 100) / 100 - 4, -4, 4),
    "diffwave": lambda m: np.clip((decibels(m / np.sqrt(384)) - 20 + 100) / 100, 0, 1),
}


@pytest.mark.parametrize("key", WRITTEN)
def test_all_levels_are_written_as_the_software_does(key):
    bands = np.geomspace(1e-12, 1e4, 200)
    ours = written(jnp.asarray(bands, jnp.float32), config_of(key).data)
    np.testing.assert_allclose(ours, WRITTEN[key](bands), atol=2e-5)


def triangles(rate: int, n_fft: int, bands: int, fmax: float) -> np.ndarray:
    """torchaudio's melscale_fbanks with the HTK scale and no norm: slopes between band centres."""
    hertz = np.linspace(0, rate // 2, n_fft // 2 + 1)
    top = 2595 * np.log10(1 + fmax / 700)
    points = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    slopes = points[None, :] - hertz[:, None]
    widths = np.diff(points)
    return np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))


@pytest.mark.parametrize("key", ["vocos-24khz", "torchaudio", "torchaudio-16khz"])
def test_torchaudios_definition(key):
    """torchaudio's MelSpectrogram, centred and reflected; Vocos: power 1, ln(clip(1e-7))."""
    s = ROWS[key].spectrum
    audio = speech_at(s.rate)
    padded = np.pad(audio, s.n_fft // 2, mode="reflect")
    starts = range(0, len(padded) - s.n_fft + 1, s.hop)
    frames = np.stack([padded[i : i + s.n_fft] for i in starts])
    spectra = np.abs(np.fft.rfft(frames * scipy.signal.get_window("hann", s.win))) ** s.power
    theirs = spectra @ triangles(s.rate, s.n_fft, s.n_mels, s.fmax)
    theirs = np.log(np.maximum(theirs, 1e-7)) if key == "vocos-24khz" else theirs
    config = config_of(key)
    ours = log_mel(jnp.asarray(audio, jnp.float32), config)
    assert_close(ours, theirs, config)


def test_espnets_definition():
    """ESPnet's logmelspectrogram: |librosa.stft|, a window shorter than the FFT, log10, 1e-10."""
    audio = speech_at(24000)
    spectra = np.abs(
        librosa.stft(audio, n_fft=2048, hop_length=300, win_length=1200, pad_mode="reflect")
    )
    basis = librosa.filters.mel(sr=24000, n_fft=2048, n_mels=80, fmin=80, fmax=7600)
    theirs = np.log10(np.maximum(1e-10, basis @ spectra)).T
    config = config_of("espnet-24khz")
    ours = log_mel(jnp.asarray(audio, jnp.float32), config)
    assert_close(ours, theirs, config)


@pytest.mark.filterwarnings("ignore:Empty filters:UserWarning")
@pytest.mark.parametrize("key", KEYS)
def test_filters_are_librosas_to_the_bit(key):
    s, config = ROWS[key].spectrum, config_of(key)
    theirs = filters_of(s)
    np.testing.assert_array_equal(mel_filters(config.data, s.n_mels), theirs)


# ------------------------------------------------------------------------------ configs


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"data_config.mel: vocos is no known .* vocos-24khz"):
        config_from_dict({"data_config": {"mel": "vocos"}})
    for name, message in (("HiFiGAN", "HiFiGAN is .* hifigan"), ("", "mel: an empty name is no ")):
        with pytest.raises(UserError, match=message):
            config_from_dict({"data_config": {"mel": name}})


def test_a_name_in_place_of_the_fields_is_answered_with_where_they_are():
    with pytest.raises(UserError, match=r"mel 'vocos-24khz' is no MelConfig; .*config_of"):
        Config(WaveGlowConfig(), DataConfig(mel="vocos-24khz"))


def test_fields_that_contradict_the_name():
    with pytest.raises(UserError, match=r"means data_config\.hop_length 256, but that is 300"):
        config_from_dict({"data_config": {"mel": "vocos-24khz", "hop_length": 300}})
    with pytest.raises(UserError, match="n_mel_channels 100, but that is 80"):
        config_from_dict(
            {"data_config": {"mel": "vocos-24khz"}, "waveglow_config": {"n_mel_channels": 80}}
        )


def test_a_name_on_the_command_line_replaces_the_files_fields():
    config = config_from_dict(config_to_dict(Config()), {"data.mel": "vocos-24khz"})
    assert config.convention.key == "vocos-24khz" and config.data.sampling_rate == 24000
    config = config_from_dict({"data_config": {"mel": "hifigan"}}, {"data.mel.floor": 1e-6})
    assert config.data.mel.late and config.data.mel.floor == 1e-6


def test_other_fields_on_the_command_line_change_the_names_row_in_any_order():
    changes = {"data.hop_length": 512, "data.mel.floor": 1e-3, "data.mel": "vocos-24khz"}
    for order in (changes, dict(reversed(changes.items()))):
        data = config_from_dict({}, order).data
        assert (data.hop_length, data.mel.floor, data.sampling_rate) == (512, 1e-3, 24000)


@pytest.mark.parametrize(
    "mel, match",
    [
        ({"floor": 0}, "floor 0 has no logarithm"),
        ({"floor": 1e-40}, "floor 1e-40 is 0 in float32"),
        ({"ceiling": 1e-6}, "must be above its floor"),
        ({"scale": "mels"}, "'slaney' or 'htk'"),
        ({"scal": "htk"}, "did you mean data_config.mel.scale"),
        (3, "must be a JSON object"),
    ],
)
def test_what_no_mel_has(mel, match):
    with pytest.raises(UserError, match=match):
        config_from_dict({"data_config": {"mel": mel}})


def test_late_frames_need_an_even_hop():
    with pytest.raises(UserError, match="hop_length 275 must be even"):
        DataConfig(hop_length=275, mel=MelConfig(frames=HALF_HOP)).check()


# ------------------------------------------------------------------------------ corrections


@pytest.mark.parametrize("key", KEYS)
def test_noise_is_corrected_towards_any_mel(key):
    """32 corrections bring noise near the mel: its values then differ little from the true ones."""
    config = config_of(key)
    hop = config.data.hop_length
    audio = speech_at(config.data.sampling_rate)
    audio = jnp.asarray(audio[: len(audio) // hop * hop], jnp.float32)
    mel = log_mel(audio, config)
    noise = 0.05 * jax.random.normal(jax.random.key(0), audio.shape)
    made = consistent(noise, mel, config, 32)
    form = config.data.mel
    said, true = (np.asarray(bands_of(log_mel(x, config), config.data)) for x in (made, audio))
    loud = true > 1e-3 * true.max()
    off = np.abs(np.log(said[loud] / true[loud])) / form.power
    assert np.mean(off) < 0.1


# ------------------------------------------------------------------------------ whitening


@pytest.mark.parametrize("key", KEYS)
def test_the_whitenings_spectrum_is_that_of_the_signal(key):
    """The mean mel of noise gives back its spectrum, 1 / |1 - 0.9 z^-1|^2, within 1.1 dB."""
    config = config_of(key)
    data, deviation = config.data, 0.01
    noise = deviation * np.random.default_rng(0).normal(size=8 * data.sampling_rate)
    audio = scipy.signal.lfilter([1], [1, -0.9], noise)
    bands = np.asarray(bands_of(log_mel(jnp.asarray(audio, jnp.float32), config), data))
    found = power_of_mel(written(jnp.asarray(bands.mean(axis=0)), data), config)
    turn = np.exp(-2j * np.pi * np.arange(len(found)) / data.filter_length)
    true = deviation**2 / np.abs(1 - 0.9 * turn) ** 2
    covered = mel_filters(data, config.waveglow.n_mel_channels).sum(axis=0) > 0
    # The whitening takes the spectrum as flat within a band; the true one is tilted there.
    off = 10 * np.log10(np.asarray(found)[covered] / true[covered])
    assert abs(np.median(off)) < 0.1 and np.abs(off).max() < 1.1
