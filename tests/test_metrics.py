"""Every metric on planted cases: equal files, known noise, known pitch, known filters, silence."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.signal

from waveglow_jax.evaluation import metrics
from waveglow_jax.evaluation.alignment import align, find_offset
from waveglow_jax.evaluation.metrics import METRICS, OF_SIGNALS, Pitch, compare_pitch, measure
from waveglow_jax.evaluation.statistics import bootstrap_mean, crossed_mean

RATE = 22050
NEEDS = {
    "pesq_wb": ("pesq",),
    "stoi": ("pystoi",),
    "visqol": ("visqol", "ai_edge_litert"),
    "dnsmos_ovrl": ("speechmos", "onnxruntime"),
    "dnsmos_bak": ("speechmos", "onnxruntime"),
}


def speech(seconds: float = 3.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A signal like speech: a gliding buzz through three formants, in syllables with pauses."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    hertz = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = np.cumsum(hertz) / rate
    buzz = np.diff(np.floor(phase), prepend=0) + 0.002 * rng.normal(size=len(time))
    for formant, width in ((600, 80), (1400, 120), (2600, 160)):
        radius = np.exp(-np.pi * width / rate)
        angle = 2 * np.pi * formant / rate
        a = [1, -2 * radius * np.cos(angle), radius**2]
        buzz = scipy.signal.lfilter([sum(a)], a, buzz)
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time) + 0.4, 0, 1) * (time % 1.5 < 1.2)
    audio = buzz * syllables
    return 0.3 * audio / np.abs(audio).max()


def with_noise(audio: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(7).normal(size=len(audio))
    return audio + noise * np.sqrt(np.mean(audio**2) / np.mean(noise**2) / 10 ** (snr_db / 10))


def value(key: str, reference: np.ndarray, output: np.ndarray) -> float:
    for package in NEEDS.get(key, ()):
        pytest.importorskip(package, reason=f"{package} is not installed (extra eval)")
    values, reasons = measure(reference, output, RATE, [key])
    assert reasons == {}
    return values[key]


# Of equal files. PESQ-wb: P.862.2 maps a raw score of 4.5 to 0.999 + 4 / (1 + e^(-1.3669 * 4.5 +
# 3.8224)) = 4.6439. ViSQOL's lattice model does not reach 5 for equal files.
PERFECT = {
    "pesq_wb": (0.999 + 4 / (1 + np.exp(-1.3669 * 4.5 + 3.8224)), 1e-4),
    "stoi": (1.0, 1e-6),
    "mcd": (0.0, 1e-12),
    "mcd_dtw": (0.0, 1e-12),
    "log_mel_l1": (0.0, 1e-12),
    "mr_stft": (0.0, 1e-12),
    "f0_rmse": (0.0, 1e-12),
    "vuv_f1": (1.0, 1e-12),
    "periodicity_rmse": (0.0, 1e-12),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", PERFECT)
def test_equal_files(key):
    expected, tolerance = PERFECT[key]
    assert value(key, speech(), speech()) == pytest.approx(expected, abs=tolerance)


def test_visqol_of_equal_files_is_near_the_top():
    assert 4.0 < value("visqol", speech(), speech()) <= 5.0


@pytest.mark.slow
@pytest.mark.parametrize("key", [*PERFECT, "visqol", "dnsmos_bak"])
def test_more_noise_is_worse(key):
    """From an SNR of 40 dB down to 0 dB, every metric moves in the direction that it calls
    worse."""
    audio = speech()
    higher = next(metric.higher_is_better for metric in METRICS if metric.key == key)
    a_little, much = (value(key, audio, with_noise(audio, snr)) for snr in (40, 0))
    assert a_little > much if higher else a_little < much


def test_stoi_of_noise_alone_is_low():
    """Unrelated envelopes correlate little; equal ones have correlation 1."""
    noise = 0.1 * np.random.default_rng(1).normal(size=len(speech()))
    assert abs(value("stoi", speech(), noise)) < 0.4


def test_pesq_of_noise_alone_is_at_the_bottom():
    noise = 0.1 * np.random.default_rng(1).normal(size=len(speech()))
    assert 0.999 < value("pesq_wb", speech(), noise) < 1.3


def test_a_gain_moves_every_log_mel_by_its_logarithm():
    audio = 0.1 * np.random.default_rng(0).normal(size=2 * RATE)
    values, _ = measure(audio, 0.5 * audio, RATE, ["log_mel_l1", "mcd", "mr_stft"])
    assert values["log_mel_l1"] == pytest.approx(np.log(2), abs=1e-6)
    # c_0 carries the level and is no part of the distortion.
    assert values["mcd"] == pytest.approx(0, abs=1e-6)
    # |S - S/2| / |S| + |ln 2|, at every size.
    assert values["mr_stft"] == pytest.approx(0.5 + np.log(2), abs=1e-3)


@pytest.mark.parametrize("order", [1, 5, 13])
def test_mcd_of_one_cosine_in_the_mel(order):
    """ln magnitudes that differ by a cos(pi n (k + 1/2) / M) differ by 10 / ln 10 sqrt(2) a dB:
    the RMS over the bands of 20 log10 of their ratio."""
    bands = np.arange(80)
    ripple = 0.3 * np.cos(np.pi * order * (bands + 0.5) / 80)
    mel = np.random.default_rng(0).normal(size=(5, 80))
    first, second = metrics.mel_cepstra(mel), metrics.mel_cepstra(mel + ripple)
    distances = metrics.cepstral_distance(first, second)
    np.testing.assert_allclose(distances, 10 / np.log(10) * np.sqrt(2) * 0.3, rtol=1e-12)
    decibels = 20 / np.log(10) * ripple
    np.testing.assert_allclose(distances, np.sqrt(np.mean(decibels**2)), rtol=1e-12)


def test_mcd_leaves_out_what_is_finer_than_13_cepstra():
    ripple = np.cos(np.pi * 14 * (np.arange(80) + 0.5) / 80)
    zero = metrics.mel_cepstra(np.zeros((1, 80)))
    assert metrics.cepstral_distance(metrics.mel_cepstra(ripple[None]), zero)[0] < 1e-12


def test_log_mel_is_the_vocoders():
    import waveglow_jax as wg

    audio = speech(1.0).astype(np.float32)
    np.testing.assert_allclose(
        metrics.log_mel_by_librosa(audio, RATE), wg.log_mel(audio, wg.Config()), atol=1e-3
    )


def test_dtw_forgives_timing_and_mcd_does_not():
    audio = speech()
    late = np.concatenate([audio[: RATE // 2], audio[RATE // 2 - 2560 :]])  # 10 frames twice
    values, _ = measure(audio, late[: len(audio)], RATE, ["mcd", "mcd_dtw"])
    assert values["mcd_dtw"] < 0.3 * values["mcd"]


def test_mcd_dtw_by_hand():
    """Frames 0 1 2 and 0 0 1 2 2 have a path without cost, though their lengths differ."""
    first = np.zeros((3, 13))
    first[:, 0] = [0, 1, 2]
    second = first[[0, 0, 1, 2, 2]]
    assert metrics.mcd_dtw(first, second) == 0
    second = second + np.eye(13)[1]  # 1 apart in another direction, all along the path
    assert metrics.mcd_dtw(first, second) == pytest.approx(10 / np.log(10) * np.sqrt(2))


def buzz(hertz: float, seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return 0.1 * sum(np.sin(2 * np.pi * n * hertz * time) / n for n in range(1, 8))


@pytest.mark.parametrize("cents", [50, -100])
def test_a_pitch_off_by_known_cents(cents):
    first, second = buzz(150, 1.5), buzz(150 * 2 ** (cents / 1200), 1.5)
    assert value("f0_rmse", first, second) == pytest.approx(abs(cents), abs=6)
    assert value("vuv_f1", first, second) > 0.97


def test_half_of_the_voice_gone():
    """All voiced against voiced only in the first half: precision 1, recall 1/2, F1 2/3."""
    first = buzz(150, 2.0)
    noise = 0.02 * np.random.default_rng(0).normal(size=len(first))
    second = np.where(np.arange(len(first)) < RATE, first, noise)
    assert value("vuv_f1", first, second) == pytest.approx(2 / 3, abs=0.03)
    assert value("periodicity_rmse", first, second) > 0.4


def test_pitch_figures_by_hand():
    nan = np.nan
    truth = Pitch(
        np.array([100, 100, nan, 200]),
        np.array([True, True, False, True]),
        np.array([1, 1, 0, 1.0]),
    )
    found = Pitch(
        np.array([200, nan, 300, 200]),
        np.array([True, False, True, True]),
        np.array([1, 0, 0, 0.0]),
    )
    values = compare_pitch(truth, found)
    assert values["f0_rmse"] == pytest.approx(1200 / np.sqrt(2))  # an octave, and nothing
    assert values["vuv_f1"] == pytest.approx(2 / 3)  # 2 of 3 found, 2 of 3 true
    assert values["periodicity_rmse"] == pytest.approx(np.sqrt(2 / 4))


def test_nothing_voiced_has_no_pitch_error():
    voiced = Pitch(np.array([100.0, 110.0]), np.array([True, True]), np.array([1.0, 0.9]))
    unvoiced = Pitch(np.full(2, np.nan), np.array([False, False]), np.zeros(2))
    found = compare_pitch(voiced, unvoiced)
    assert np.isnan(found["f0_rmse"]) and found["vuv_f1"] == 0
    assert np.isnan(compare_pitch(unvoiced, unvoiced)["vuv_f1"])


def test_what_cannot_be_told_has_a_reason_instead_of_a_figure():
    pytest.importorskip("pystoi", reason="pystoi is not installed (extra eval)")
    silence, short = np.zeros(RATE), speech(0.2)
    values, reasons = measure(silence, silence, RATE, ["f0_rmse", "log_mel_l1"])
    assert set(values) == {"log_mel_l1"} and set(reasons) == {"f0_rmse"}
    values, reasons = measure(short, short, RATE, ["stoi"])
    assert values == {} and "frames" in reasons["stoi"]


def test_missing_packages_leave_their_columns_out(monkeypatch):
    import sys

    metrics._import_fails.cache_clear()
    monkeypatch.setitem(sys.modules, "pesq", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    missing = metrics.missing_packages()
    metrics._import_fails.cache_clear()
    assert "pesq" in missing["pesq_wb"] and "mcd" not in missing
    # Without the runtime of its model ViSQOL is refused, not replaced by the polynomial.
    assert "ai_edge_litert" in missing["visqol"] or "visqol" in missing["visqol"]


def test_measure_refuses_what_is_not_a_pair():
    with pytest.raises(ValueError, match="one \\[T\\]"):
        measure(np.zeros(5), np.zeros(6), RATE, ["mcd"])
    with pytest.raises(ValueError, match="nats"):
        measure(np.zeros(5), np.zeros(5), RATE, ["nats"])


def test_every_metric_says_where_it_is_from():
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys) and set(OF_SIGNALS) == set(keys) - {"nats", "rtf"}
    assert all(metric.citation and metric.about for metric in METRICS)


# ------------------------------------------------------------------------------ alignment


@pytest.mark.parametrize("shift", [0, 1, 333, -1000])
def test_a_shift_is_found_to_the_sample(shift):
    audio = speech(2.0)
    padding = np.zeros(abs(shift))
    late = np.concatenate([padding, audio]) if shift > 0 else audio[-shift:]
    aligned = align(audio, with_noise(0.25 * late, 20), RATE)
    assert aligned.offset == shift
    assert aligned.length_difference == shift
    assert aligned.gain_db == pytest.approx(12.04, abs=0.2)
    assert len(aligned.reference) == len(aligned.output) == len(audio) - max(0, -shift)
    assert np.corrcoef(aligned.reference, aligned.output)[0, 1] > 0.99


def test_a_turned_waveform_is_no_shift():
    audio = speech(2.0)
    assert find_offset(audio, -audio, RATE) == 0


def random_phases(audio: np.ndarray) -> np.ndarray:
    """Audio with the same magnitudes and random phases, which a vocoder is free to choose."""
    _, _, spectrum = scipy.signal.stft(audio, RATE, nperseg=1024)
    turns = np.exp(2j * np.pi * np.random.default_rng(0).random(spectrum.shape))
    return scipy.signal.istft(spectrum * turns, RATE, nperseg=1024)[1][: len(audio)]


def test_without_a_common_phase_the_envelope_tells_the_shift():
    audio = speech(2.0)
    other = random_phases(audio)
    assert find_offset(audio, other, RATE) == 0
    late = np.concatenate([np.zeros(2000), other])
    assert find_offset(audio, late, RATE) == pytest.approx(2000, abs=0.005 * RATE)


def test_noise_has_no_shift():
    rng = np.random.default_rng(0)
    assert find_offset(speech(2.0), 0.1 * rng.normal(size=2 * RATE), RATE) == 0


def test_silence_cannot_be_levelled():
    with pytest.raises(ValueError, match="silent"):
        align(speech(1.0), np.zeros(RATE), RATE)


# ------------------------------------------------------------------------------ intervals


def test_bootstrap_interval_covers_the_true_mean():
    """Over 300 samples of 40 skewed values, it does so in 90 to 98 of 100, as usual for
    percentiles."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = bootstrap_mean(rng.gamma(4.0, 0.5, 40))
        hits += found.low <= 2.0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_bootstrap_of_few():
    assert bootstrap_mean(np.array([3.0])).low is None
    same = bootstrap_mean(np.array([3.0, 3.0, 3.0]))
    assert (same.mean, same.low, same.high, same.n) == (3, 3, 3, 3)
    with pytest.raises(ValueError):
        bootstrap_mean(np.array([]))
    with pytest.raises(ValueError):
        bootstrap_mean(np.array([1, np.nan]))


def test_crossed_mean_by_hand():
    """Two raters, two utterances, scores 1 2 / 3 4: residuals -1.5 -0.5 / 0.5 1.5, whose sums are
    -2, 2 over raters and -1, 1 over utterances: variance (8 + 2) * 2 / 16, t of 1 degree."""
    found = crossed_mean(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert found.mean == 2.5
    half = 12.706204736 * np.sqrt(10 * 2 / 16)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))


@pytest.mark.slow
def test_processes_that_compile_at_once_leave_a_whole_cache(tmp_path):
    """Without the lock, about one try in three crashes, and then every later use of this folder."""
    track = """
import numpy as np
from waveglow_jax.evaluation.metrics import pitch
print(len(pitch(np.sin(np.arange(8000) / 10), 16000).hertz))
"""
    surroundings = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run(count: int) -> list[tuple[int, str]]:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", track], stdout=subprocess.PIPE, text=True, env=surroundings
            )
            for _ in range(count)
        ]
        return [(each.wait(), each.communicate()[0]) for each in started]

    assert run(4) == [(0, "51\n")] * 4
    assert run(1) == [(0, "51\n")]
