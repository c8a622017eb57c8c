"""Baselines that need no network: Griffin-Lim, and noise corrected towards the mel."""

import inspect
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.config import Config, DataConfig, WaveGlowConfig
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.made import (
    MADE,
    TIMED_FILES,
    Made,
    add_record,
    already_made,
    digest_of,
    file_name_of,
    file_state,
    made_from,
    with_seconds,
)
from waveglow_jax.evaluation.metrics import MEL, MEL_HOP, log_mel_by_librosa
from waveglow_jax.files.sound import read_audio
from waveglow_jax.files.wav import write_wav
from waveglow_jax.interrupts import deaf_children
from waveglow_jax.synthesis.foreign import sound_of
from waveglow_jax.synthesis.mels import mel_of_samples

GRIFFIN_LIM = "Griffin-Lim"
NOISE = "Noise + {} corrections"
NOISE_NAME = re.compile(r"Noise \+ [0-9]+ corrections")
BASELINES = ("griffin-lim", "noise")


@dataclass(frozen=True)
class Baseline:
    """A row of the report that needs no weights.

    name: name of the row. about: its description in the report. synthesize: mel `[F, M]`, sampling
    rate and iterations -> samples `[T]`. in_workers: whether several processes make it faster,
    which is not so if it uses all cores by itself. config: the mel's convention; None means that of
    the metrics.
    """

    name: str
    about: str
    recipe: str
    iterations: int
    synthesize: Callable[[np.ndarray, int, int], np.ndarray]
    in_workers: bool
    config: Config | None = None


def check_baselines(names: Sequence[str]) -> tuple[str, ...]:
    """The names without duplicates.

    Raises UserError if there is no name, or one that is not in BASELINES.
    """
    for name in names or [""]:
        if name not in BASELINES:
            raise UserError(
                f"--baselines {name!r}: write one or more of {', '.join(BASELINES)}, separated by "
                "commas"
            )
    return tuple(dict.fromkeys(names))


def baselines_of(
    names: Sequence[str],
    griffin_lim_iterations: int,
    noise_corrections: int,
    config: Config | None = None,
) -> list[Baseline]:
    """The baselines with these names. Raises UserError as `check_baselines` does.

    config: the convention of the mel that noise is corrected towards; None means that of the
    metrics.
    """
    if config is not None and config.convention == mel_config(config.data.sampling_rate).convention:
        config = None
    highest = MEL["fmax"] if config is None else config.data.mel_fmax
    of = "" if config is None else f" of {config.convention.name}"
    there = {
        "griffin-lim": Baseline(
            GRIFFIN_LIM,
            f"{griffin_lim_iterations} iterations",
            "griffin_lim",
            griffin_lim_iterations,
            griffin_lim,
            in_workers=True,
        ),
        "noise": Baseline(
            NOISE.format(noise_corrections),
            f"white noise up to {highest:g} Hz, corrected towards the mel{of}",
            "noise_corrections_in_band",
            noise_corrections,
            partial(noise_corrected, config=config) if config else noise_corrected,
            in_workers=False,
            config=config,
        ),
    }
    return [there[name] for name in check_baselines(names)]


def make_baseline(
    baseline: Baseline,
    references: dict[str, Path],
    sampling_rate: int,
    output: Path,
    executor: Executor | None,
    progress: Callable[[int, int], None],
) -> Made:
    """Makes the baseline from the recordings' own mels, one .wav file per recording under output.

    The computing time is measured for the first `TIMED_FILES` recordings.
    """
    recipe: dict[str, Any] = {baseline.recipe: baseline.iterations, "sampling_rate": sampling_rate}
    if baseline.config is not None:
        recipe["mel"] = asdict(replace(baseline.config.data, training_files="", segment_length=1))
        recipe["bands"] = baseline.config.waveglow.n_mel_channels
    folder = output / f"{file_name_of(baseline.name)}-{digest_of(recipe)}"
    done = already_made(folder, references)
    timed = list(references)[:TIMED_FILES]
    todo = {name: path for name, path in references.items() if name not in done}
    jobs = [
        (baseline, path, folder / f"{name}.wav", sampling_rate, name in timed)
        for name, path in todo.items()
    ]
    apply = executor.map if executor is not None and baseline.in_workers else map
    with deaf_children():
        results = apply(_baseline_file, jobs)
    for count, (name, seconds) in enumerate(zip(todo, results, strict=True), 1):
        done[name] = {"name": name, "of": file_state(todo[name]), "seconds": seconds}
        add_record(folder / MADE, done[name])
        progress(count, len(todo))
    return made_from(folder, done, references)


def _baseline_file(job: tuple[Baseline, Path, Path, int, bool]) -> float | None:
    baseline, path, target, rate, timed = job
    audio = read_audio(path, rate)
    own = baseline.config
    mel = log_mel_by_librosa(audio, rate) if own is None else mel_of_samples(audio, own)
    samples, seconds = with_seconds(
        lambda: baseline.synthesize(mel, rate, baseline.iterations), again=timed
    )
    write_wav(target, np.clip(samples, -1, 1), rate)
    return seconds


def griffin_lim(mel: np.ndarray, sampling_rate: int, iterations: int) -> np.ndarray:
    """`[F, 80] -> [(F - 1) * 256]`: audio from a log-mel by librosa's fast Griffin-Lim.

    Non-negative least squares gives the magnitudes from the mel, and the initial phases are random
    (seed 0). Perraudin et al. 2013, doi:10.1109/WASPAA.2013.6701851.
    """
    import librosa

    filters = librosa.filters.mel(sr=sampling_rate, **MEL)
    magnitudes = librosa.util.nnls(filters, np.exp(mel.T).astype(np.float32))
    # librosa 1.0 renamed the argument, and there a number would seed another generator.
    arguments = inspect.signature(librosa.griffinlim).parameters
    name = "rng" if "rng" in arguments else "random_state"
    seed: dict[str, Any] = {name: np.random.RandomState(0)}
    return librosa.griffinlim(
        magnitudes, n_iter=iterations, hop_length=MEL_HOP, n_fft=MEL["n_fft"], **seed
    )


def noise_corrected(
    mel: np.ndarray,
    sampling_rate: int,
    iterations: int,
    seed: int = 0,
    config: Config | None = None,
) -> np.ndarray:
    """`[F, M] -> [F * hop]`: Gaussian noise, corrected towards the given mel.

    config: the mel's convention; None means that of the metrics, `[F, 80] -> [F * 256]`. The
    corrections are those of `synthesis/foreign.py`, and they silence everything above the mel's
    bands (8,000 Hz). The row shows what the corrections achieve without a voice.
    """
    return sound_of(mel, config or mel_config(sampling_rate), iterations, seed)


def mel_config(sampling_rate: int) -> Config:
    """Returns a config whose mel is that of the metrics."""
    data = DataConfig(
        sampling_rate=sampling_rate,
        filter_length=MEL["n_fft"],
        win_length=MEL["n_fft"],
        hop_length=MEL_HOP,
        mel_fmin=MEL["fmin"],
        mel_fmax=MEL["fmax"],
    )
    glow = WaveGlowConfig(n_mel_channels=MEL["n_mels"])
    return Config(glow, data)
