"""How close an output is to its recording: each metric, with its direction and its source.

Arrays: reference, output `[T]` floating point in [-1, 1], aligned and at one level
(`evaluation/alignment.py`), sampling_rate in Hz. Every metric is a float. Where a metric is
undefined for a pair (no voiced frame in common, no speech found), the mean leaves out that pair and
the reason is recorded.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.paths import cache_base

# PESQ-wb, STOI, ViSQOL's speech mode and DNSMOS are defined at this rate; it suffices for pitch.
SPEECH_RATE = 16000
# The mel that conditions the vocoder.
MEL: dict[str, Any] = {"n_fft": 1024, "n_mels": 80, "fmin": 0.0, "fmax": 8000.0}
MEL_HOP = 256
LOG_FLOOR = 1e-5
CEPSTRA = 13
PITCH_HZ = (60.0, 500.0)
# Parallel WaveGAN's resolutions: (FFT, hop, window), in samples.
STFT_RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))


@dataclass(frozen=True)
class Metric:
    """A column of the report. packages: what it needs beyond this package's own requirements."""

    key: str
    title: str
    unit: str
    higher_is_better: bool
    decimals: int
    about: str
    citation: str
    packages: tuple[str, ...] = ()


METRICS = (
    Metric(
        *("pesq_wb", "PESQ-wb", "MOS-LQO", True, 3),
        "Perceived quality against the recording, about 1 to 4.64, at 16 kHz.",
        "ITU-T P.862.2 (2007); Rix et al. 2001, doi:10.1109/ICASSP.2001.941023",
        ("pesq",),
    ),
    Metric(
        *("stoi", "STOI", "", True, 3),
        "Short-time objective intelligibility, at most 1.",
        "Taal et al. 2011, doi:10.1109/TASL.2011.2114881",
        ("pystoi",),
    ),
    Metric(
        *("visqol", "ViSQOL", "MOS-LQO", True, 3),
        "Similarity of gammatone spectrograms, speech mode with the lattice model, 1 to 5.",
        "Chinen et al. 2020, arXiv 2004.09584",
        ("visqol", "ai_edge_litert"),
    ),
    Metric(
        *("mcd", "MCD", "dB", False, 2),
        "Mel-cepstral distortion frame by frame: cepstra 1 to 13 of the 80-band log-mel. Figures "
        "from cepstra of another kind (WORLD, SPTK) are not comparable.",
        "Kubichek 1993, doi:10.1109/PACRIM.1993.407206",
    ),
    Metric(
        *("mcd_dtw", "MCD-DTW", "dB", False, 2),
        "The same along the best warping of time, which forgives timing.",
        "Kubichek 1993; Battenberg et al. 2020, arXiv 1910.10288",
    ),
    Metric(
        *("log_mel_l1", "log-mel", "nats", False, 3),
        "Mean absolute difference of the 80-band log-mels.",
        "Kong et al. 2020 (HiFi-GAN), arXiv 2010.05646",
    ),
    Metric(
        *("mr_stft", "MR-STFT", "", False, 3),
        "Spectral convergence plus log-magnitude difference, mean over three STFT sizes.",
        "Yamamoto et al. 2020 (Parallel WaveGAN), arXiv 1910.11480",
    ),
    Metric(
        *("f0_rmse", "F0 RMSE", "cents", False, 1),
        "Pitch error where both are voiced; pitch by pYIN, 60 to 500 Hz.",
        "Morrison et al. 2022 (CARGAN), arXiv 2110.10139; Mauch & Dixon 2014, "
        "doi:10.1109/ICASSP.2014.6853678",
    ),
    Metric(
        *("vuv_f1", "V/UV F1", "", True, 3),
        "F1 of the frames that are voiced in the output, the recording's (pYIN) being the truth.",
        "Morrison et al. 2022 (CARGAN), arXiv 2110.10139",
    ),
    Metric(
        *("periodicity_rmse", "periodicity", "", False, 3),
        "RMSE of the probability that a frame is voiced (pYIN's; published figures use CREPE's).",
        "Morrison et al. 2022 (CARGAN), arXiv 2110.10139",
    ),
    Metric(
        *("dnsmos_ovrl", "DNSMOS overall", "MOS", True, 2),
        "Secondary: a network's guess at P.835 overall quality, without the recording; trained on "
        "noise suppression, not on vocoders.",
        "Reddy et al. 2022, arXiv 2110.01763",
        ("speechmos.dnsmos", "onnxruntime"),
    ),
    Metric(
        *("dnsmos_sig", "DNSMOS speech", "MOS", True, 2),
        "Secondary: the same for the speech alone.",
        "Reddy et al. 2022, arXiv 2110.01763",
        ("speechmos.dnsmos", "onnxruntime"),
    ),
    Metric(
        *("dnsmos_bak", "DNSMOS background", "MOS", True, 2),
        "Secondary: the same for the background.",
        "Reddy et al. 2022, arXiv 2110.01763",
        ("speechmos.dnsmos", "onnxruntime"),
    ),
    Metric(
        *("nats", "log-likelihood", "nats/sample", True, 4),
        "Of the recording under the flow, exact, all constants included; with the Gaussian noise "
        "of the voice's training added. Flows only; comparable for equal noise.",
        "Prenger et al. 2018 (WaveGlow), arXiv 1811.00002, eq. 1 to 3",
    ),
    Metric(
        *("rtf", "real-time factor", "", False, 4),
        "Seconds of computing a second of audio, on the machine of the report, without compiling; "
        "of weights, over the first 8 recordings.",
        "measured",
    ),
)
# The metrics that `measure` computes from a pair of signals; the others come from making the audio.
OF_SIGNALS = tuple(metric.key for metric in METRICS if metric.key not in ("nats", "rtf"))


def missing_packages() -> dict[str, str]:
    """Keys of the metrics that cannot be measured on this machine -> the reason."""
    missing = {}
    for metric in METRICS:
        for package in metric.packages:
            why = _import_fails(package)
            if why:
                missing[metric.key] = why
                break
    return missing


@cache
def _import_fails(package: str) -> str:
    try:
        import_module(package)
    except Exception as error:  # no failing import may end a report
        return f"{package} cannot be imported ({type(error).__name__}: {error})"
    return ""


def measure(
    reference: np.ndarray, output: np.ndarray, sampling_rate: int, keys: Collection[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics with these keys (of `OF_SIGNALS`), and the reasons for those that are undefined.

    reference, output: `[T]`, aligned and at one level.
    Raises ValueError for unequal shapes or an unknown key.
    """
    if reference.shape != output.shape or reference.ndim != 1:
        raise ValueError(f"shapes {reference.shape} and {output.shape} are not one [T]")
    unknown = set(keys) - set(OF_SIGNALS)
    if unknown:
        raise ValueError(f"unknown metric {min(unknown)!r}")
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for function, its_keys in _GROUPS:
        wanted = [key for key in its_keys if key in keys]
        if not wanted:
            continue
        try:
            found = function(reference, output, sampling_rate)
        except Exception as error:  # packages raise their own types; one pair must not end a report
            reasons |= {key: f"{type(error).__name__}: {error}" for key in wanted}
            continue
        found = found if isinstance(found, dict) else {its_keys[0]: found}
        for key in wanted:
            if np.isfinite(found[key]):
                values[key] = float(found[key])
            else:
                reasons[key] = "not a finite number"
    return values, reasons


# ------------------------------------------------------------------------------ perceptual models


def pesq_wb(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> float:
    """PESQ wide band, higher is better. Raises the exception of `pesq` if it finds no speech."""
    from pesq import pesq

    return pesq(SPEECH_RATE, *_at_speech_rate(reference, output, sampling_rate), "wb")


def stoi(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> float:
    """STOI (not extended), higher is better.

    Raises ValueError where less than 30 frames (0.38 s) are speech, for which pystoi returns 1e-5.
    """
    import warnings

    from pystoi import stoi as of_pystoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return of_pystoi(*_at_speech_rate(reference, output, sampling_rate), SPEECH_RATE)
        except RuntimeWarning as warning:
            raise ValueError(str(warning).split(".")[0]) from None


def visqol(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> float:
    """ViSQOL v3 in speech mode with its lattice model, higher is better.

    The polynomial mapping of older versions gives scores that are 1 to 2 points higher, so it is
    not used.
    """
    pair = _at_speech_rate(reference, output, sampling_rate)
    return _visqol_model().measure_from_arrays(*pair, SPEECH_RATE).moslqo


@cache
def _visqol_model() -> Any:
    from visqol import VisqolApi

    model = VisqolApi()
    with _quiet():
        model.create(mode="speech", use_lattice_model=True)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the lines that the model's runtime writes directly to stderr, bypassing Python."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def dnsmos(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> dict[str, float]:
    """DNSMOS P.835 of the output alone, higher is better: overall, speech, background."""
    from speechmos import dnsmos as model

    _, degraded = _at_speech_rate(reference, output, sampling_rate)
    found = model.run(np.clip(degraded, -1, 1), SPEECH_RATE)
    return {f"dnsmos_{part}": found[f"{part}_mos"] for part in ("ovrl", "sig", "bak")}


def _at_speech_rate(
    reference: np.ndarray, output: np.ndarray, sampling_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    if sampling_rate == SPEECH_RATE:
        return reference, output
    import soxr

    first, second = (
        soxr.resample(np.asarray(each, np.float64), sampling_rate, SPEECH_RATE)
        for each in (reference, output)
    )
    return first, second


# ------------------------------------------------------------------------------ spectrum


def log_mel_by_librosa(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """`[T] -> [F, 80]`: the vocoder's mel (FFT 1024, hop 256, 0-8000 Hz, ln magnitude).

    It uses librosa so that the measuring processes need no JAX.
    """
    import librosa

    audio = np.asarray(audio, np.float64)
    mel = librosa.feature.melspectrogram(
        y=audio, sr=sampling_rate, hop_length=MEL_HOP, power=1.0, pad_mode="reflect", **MEL
    )
    return np.log(np.maximum(mel, LOG_FLOOR)).T


def mel_cepstra(mel: np.ndarray) -> np.ndarray:
    """`[F, M] -> [F, 13]`: c_n = 2 / M sum_k mel_k cos(pi n (k + 1/2) / M), n from 1.

    The inverse is mel_k = c_0 / 2 + sum_n c_n cos(...). As in SPTK, the cepstra are one-sided and
    those of the ln magnitude.
    """
    import scipy.fft

    return scipy.fft.dct(mel, type=2, axis=-1)[:, 1 : CEPSTRA + 1] / mel.shape[-1]


def cepstral_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two arrays `[..., 13]` -> `[...]` dB: 10 / ln 10 sqrt(2 sum (c - c')^2)."""
    return 10 / np.log(10) * np.sqrt(2 * np.sum((first - second) ** 2, axis=-1))


def mel_distances(
    reference: np.ndarray, output: np.ndarray, sampling_rate: int
) -> dict[str, float]:
    """log_mel_l1 (nats), mcd and mcd_dtw (dB): lower is better, 0 for equal signals."""
    mels = [log_mel_by_librosa(each, sampling_rate) for each in (reference, output)]
    first, second = map(mel_cepstra, mels)
    return {
        "log_mel_l1": float(np.abs(mels[0] - mels[1]).mean()),
        "mcd": float(cepstral_distance(first, second).mean()),
        "mcd_dtw": mcd_dtw(first, second),
    }


def mcd_dtw(first: np.ndarray, second: np.ndarray) -> float:
    """`[F, 13]`, `[G, 13]` -> dB: the mean distance along the path of least total distance."""
    import librosa

    costs = cepstral_distance(first[:, None], second[None])
    _, path = librosa.sequence.dtw(C=costs)
    return float(costs[path[:, 0], path[:, 1]].mean())


def mr_stft(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> float:
    """Mean over `STFT_RESOLUTIONS` of |S - S'|_F / |S|_F + mean |ln S - ln S'|; lower is better.

    S, S': magnitudes of reference and output, floored at 1e-5 inside the logarithm.
    """
    import librosa

    total = 0.0
    for n_fft, hop, window in STFT_RESOLUTIONS:
        first, second = (
            np.abs(librosa.stft(each, n_fft=n_fft, hop_length=hop, win_length=window))
            for each in (reference, output)
        )
        convergence = float(np.linalg.norm(first - second) / np.linalg.norm(first))
        logs = [np.log(np.maximum(each, LOG_FLOOR)) for each in (first, second)]
        total += convergence + float(np.abs(logs[0] - logs[1]).mean())
    return total / len(STFT_RESOLUTIONS)


# ------------------------------------------------------------------------------ pitch


@dataclass(frozen=True)
class Pitch:
    """A pitch track `[F]`: hertz (NaN where unvoiced), voiced (bool), probability of voicing."""

    hertz: np.ndarray
    voiced: np.ndarray
    probability: np.ndarray


def pitch(audio: np.ndarray, sampling_rate: int) -> Pitch:
    """`[T]` -> the pitch track of pYIN: one frame per 10 ms at 16 kHz, in steps of 10 cents."""
    _compile_pyin(np.asarray(audio).dtype)
    return Pitch(*_pyin(audio, sampling_rate))


@cache
def _compile_pyin(dtype: np.dtype) -> None:
    """Compiles pYIN for a dtype, or loads it from numba's cache, in one process at a time.

    When two processes write that cache at once, it can keep the parts of two compilations that do
    not belong together, and then every process that loads them crashes (numba 0.68,
    `guvectorize`). The lock is in the folder where numba keeps librosa's functions.
    """
    import librosa
    from filelock import FileLock

    beside = Path(librosa.__file__).parent / "__pycache__"
    folders = [os.environ.get("NUMBA_CACHE_DIR"), beside, cache_base()]
    folder = next((each for each in folders if each and os.access(each, os.W_OK)), None)
    lock = nullcontext() if folder is None else FileLock(Path(folder) / "waveglow_jax.lock")
    with lock:
        _pyin(np.sin(np.arange(SPEECH_RATE // 4) / 16).astype(dtype), SPEECH_RATE)


def _pyin(audio: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import librosa

    low, high = PITCH_HZ
    return librosa.pyin(
        audio, fmin=low, fmax=high, sr=sampling_rate, frame_length=1024, hop_length=160
    )


def pitch_errors(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> dict[str, float]:
    """f0_rmse (cents, lower is better), vuv_f1 (higher), periodicity_rmse (lower)."""
    pair = _at_speech_rate(reference, output, sampling_rate)
    return compare_pitch(*(pitch(each, SPEECH_RATE) for each in pair))


def compare_pitch(truth: Pitch, found: Pitch) -> dict[str, float]:
    """The errors of `pitch_errors` between two tracks.

    f0_rmse is NaN if no frame is voiced in both tracks, and vuv_f1 if none is voiced in either.
    """
    both = truth.voiced & found.voiced
    cents = 1200 * np.log2(found.hertz[both] / truth.hertz[both])
    either = truth.voiced.sum() + found.voiced.sum()
    return {
        "f0_rmse": float(np.sqrt(np.mean(cents**2))) if both.any() else float("nan"),
        "vuv_f1": float(2 * both.sum() / either) if either else float("nan"),
        "periodicity_rmse": float(np.sqrt(np.mean((found.probability - truth.probability) ** 2))),
    }


_GROUPS: tuple[tuple[Callable[..., float | dict[str, float]], tuple[str, ...]], ...] = (
    (pesq_wb, ("pesq_wb",)),
    (stoi, ("stoi",)),
    (visqol, ("visqol",)),
    (mel_distances, ("mcd", "mcd_dtw", "log_mel_l1")),
    (mr_stft, ("mr_stft",)),
    (pitch_errors, ("f0_rmse", "vuv_f1", "periodicity_rmse")),
    (dnsmos, ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak")),
)
