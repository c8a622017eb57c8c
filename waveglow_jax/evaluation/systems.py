"""The systems of a report: what each is, and its audio made where it does not exist yet.

A system is a folder of recordings, as any vocoder leaves them, or weights. The audio that is made
here lies in a folder named after everything it depends on, so that a report begun again, or with
one more system, makes nothing twice and never mixes two recipes.

A baseline needs no weights: an algorithm goes back from the recordings' own mels.
"""

import hashlib
import inspect
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.analysis.likelihoods import noisy
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import (
    DTYPES,
    LATENT,
    MAX_CONSISTENCY,
    Config,
    DataConfig,
    SynthesisConfig,
    WaveGlowConfig,
)
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.metrics import MEL, MEL_HOP, log_mel
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio
from waveglow_jax.files.wav import write_wav
from waveglow_jax.interrupts import deaf_children
from waveglow_jax.paths import local_path
from waveglow_jax.synthesis.plan import size_at_least

RECORDINGS = "Recordings"
GRIFFIN_LIM = "Griffin-Lim"
NOISE = "Noise + {} corrections"
NOISE_NAME = re.compile(r"Noise \+ [0-9]+ corrections")
BASELINES = ("griffin-lim", "noise")
NOISE_LEVEL = 0.01
"""Standard deviation of the noise before its corrections, which set the level themselves."""
TIMED_FILES = 8
MADE = "made.jsonl"
_SPEC = (
    "NAME=DIR, NAME=WEIGHTS or "
    "NAME=WEIGHTS:sigma=0.8,denoise=0.01,consistency=32,dtype=bfloat16,seed=1"
)


@dataclass(frozen=True)
class System:
    """One row. source: a folder of recordings, or weights; None the bundled voice.

    sigma and consistency None: the voice's own. consistency is a number of corrections or
    "latent", as `Voice.synthesize` has it. The voice gets denoise only where it is not None.
    """

    name: str
    source: str | None
    sigma: float | None = None
    denoise: float | None = None
    dtype: str = "float32"
    seed: int = 0
    consistency: int | str | None = None


def parse_system(text: str) -> System:
    """A System from `NAME=SOURCE` or `NAME=SOURCE:key=value,...` (without SOURCE: bundled voice).

    Raises UserError for anything else, naming what is wrong.
    """
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise UserError(f"--system {text!r}: write {_SPEC}")
    if name in (RECORDINGS, GRIFFIN_LIM) or NOISE_NAME.fullmatch(name):
        raise UserError(
            f"--system {text!r}: a report keeps the name {name} for a row of its own; choose "
            "another name"
        )
    source, options = rest, {}
    before, colon, after = rest.rpartition(":")
    if colon and (not after or re.match(r"[a-z]+=", after)):
        source = before
        options = dict(_option(text, each) for each in after.split(",") if each)
    return System(name, local_path(source) if source else None, **options)


def _option(text: str, written: str) -> tuple[str, Any]:
    key, _, value = written.partition("=")
    try:
        if key in ("sigma", "denoise"):
            number = float(value)
            if not 0 <= number < 100:
                raise ValueError
            return key, number
        if key == "seed" and 0 <= int(value) < 2**32:
            return key, int(value)
        if key == "consistency" and value == LATENT:
            return key, value
        if key == "consistency" and 0 <= int(value) <= MAX_CONSISTENCY:
            return key, int(value)
        if key == "dtype" and value in DTYPES:
            return key, value
    except ValueError:
        pass
    raise UserError(f"--system {text!r}: {written!r} is no setting with a fit value; write {_SPEC}")


def is_audio_folder(source: str | None) -> bool:
    """Whether it is a folder with recordings, and not one of weights (config.json)."""
    path = Path(source) if source else None
    if path is None or not path.is_dir() or (path / "config.json").exists():
        return False
    return any(each.suffix.lower() in AUDIO_SUFFIXES for each in path.rglob("*"))


def files_by_name(folder: str | Path) -> dict[str, Path]:
    """Recordings below a folder by their place in it, without the suffix: `sub/a` -> path.

    Raises UserError if there are none.
    """
    items = find_inputs([folder], AUDIO_SUFFIXES)
    return {item.relative.with_suffix("").as_posix(): item.path for item in items}


def fingerprint(path: Path) -> list[int]:
    """Size and time of a file: another file, another fingerprint. Raises UserError."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return [found.st_size, found.st_mtime_ns]


# ------------------------------------------------------------------------------ records


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one a line; none if there is no file.

    A line that a crash cut off is passed over. Raises UserError if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete it") from None
    records = []
    for line in text.split("\n"):  # a name may hold U+2028, which splitlines takes for an end
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Appends a line to such a file. Raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            # The newline first: what a crash cut off must not swallow this line too.
            file.write("\n" + json.dumps(record, ensure_ascii=False))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


# ------------------------------------------------------------------------------ making audio


@dataclass(frozen=True)
class Made:
    """Audio of a system. seconds: computing, by name, of those that were timed; nats:
    log-likelihoods, by name."""

    files: dict[str, Path]
    seconds: dict[str, float]
    nats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """A row that needs no weights. name: the row's; about: what it is, for the report.

    synthesize: log-mel `[F, 80]`, sampling rate and iterations -> samples `[T]`. in_workers:
    whether it is faster in several processes; what uses all cores by itself is not.
    least_rate: the lowest sampling rate, in Hz, that it can be made at.
    """

    name: str
    about: str
    recipe: str
    iterations: int
    synthesize: Callable[[np.ndarray, int, int], np.ndarray]
    in_workers: bool
    least_rate: int = 0


def check_baselines(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises UserError if there is none, or one that is not in BASELINES."""
    for name in names or [""]:
        if name not in BASELINES:
            raise UserError(
                f"--baselines {name!r}: write one or more of {', '.join(BASELINES)}, separated by "
                "commas"
            )
    return tuple(dict.fromkeys(names))


def baselines_of(
    names: Sequence[str], griffin_lim_iterations: int, noise_corrections: int
) -> list[Baseline]:
    """The baselines of these names. Raises UserError as `check_baselines` does."""
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
            f"white noise up to {MEL['fmax']:g} Hz, corrected towards the mel",
            "noise_corrections_in_band",
            noise_corrections,
            noise_corrected,
            in_workers=False,
            least_rate=int(2 * MEL["fmax"]),
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
    """The baseline from the recordings' own mels, one .wav each under output.

    The seconds are those of the first `TIMED_FILES`.
    """
    recipe = {baseline.recipe: baseline.iterations, "sampling_rate": sampling_rate}
    folder = output / f"{_file_name(baseline.name)}-{_digest(recipe)}"
    done = _done(folder, references)
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
        done[name] = {"name": name, "of": fingerprint(todo[name]), "seconds": seconds}
        add_record(folder / MADE, done[name])
        progress(count, len(todo))
    return _made(folder, done, references)


def _baseline_file(job: tuple[Baseline, Path, Path, int, bool]) -> float | None:
    baseline, path, target, rate, timed = job
    mel = log_mel(read_audio(path, rate), rate)
    samples, seconds = _timed(
        lambda: baseline.synthesize(mel, rate, baseline.iterations), again=timed
    )
    write_wav(target, np.clip(samples, -1, 1), rate)
    return seconds


def _timed(synthesize: Callable[[], np.ndarray], again: bool) -> tuple[np.ndarray, float | None]:
    """The samples, and if `again` the seconds of a second run.

    The first run imports and compiles everything that this length needs.
    """
    samples = synthesize()
    if not again:
        return samples, None
    began = time.monotonic()
    synthesize()
    return samples, time.monotonic() - began


def griffin_lim(mel: np.ndarray, sampling_rate: int, iterations: int) -> np.ndarray:
    """`[F, 80] -> [(F - 1) * 256]`: back from the log-mel by librosa's fast Griffin-Lim.

    The magnitudes behind the mel are those of non-negative least squares; phases start at random
    (seed 0). Perraudin et al. 2013, doi:10.1109/WASPAA.2013.6701851.
    """
    import librosa

    filters = librosa.filters.mel(sr=sampling_rate, **MEL)
    magnitudes = librosa.util.nnls(filters, np.exp(mel.T).astype(np.float32))
    # librosa 1.0 renamed the argument. A number would seed another generator there.
    arguments = inspect.signature(librosa.griffinlim).parameters
    name = "rng" if "rng" in arguments else "random_state"
    seed: dict[str, Any] = {name: np.random.RandomState(0)}
    return librosa.griffinlim(
        magnitudes, n_iter=iterations, hop_length=MEL_HOP, n_fft=MEL["n_fft"], **seed
    )


def noise_corrected(
    mel: np.ndarray, sampling_rate: int, iterations: int, seed: int = 0
) -> np.ndarray:
    """`[F, 80] -> [F * 256]`: Gaussian noise, corrected until its log-mel is the one asked for.

    The corrections are those of `synthesis/consistency.py`, and silence what is above the mel's
    8,000 Hz: the row shows what they do without a voice.
    """
    frames, samples = len(mel), len(mel) * MEL_HOP
    noise = NOISE_LEVEL * np.random.default_rng(seed).standard_normal(samples)
    # JAX compiles a program for each length, so that the lengths are rounded up to a few.
    size = size_at_least(frames)
    padded = consistent(
        np.pad(noise, (0, size * MEL_HOP - samples)).astype(np.float32),
        np.pad(mel, ((0, size - frames), (0, 0)), mode="edge").astype(np.float32),
        _mel_config(sampling_rate),
        iterations,
        n_frames=np.int32(frames),
    )
    return np.asarray(padded)[:samples]


def _mel_config(sampling_rate: int) -> Config:
    """A config whose mel is the one that the metrics and baselines use, with silence above it."""
    data = DataConfig(
        sampling_rate=sampling_rate,
        filter_length=MEL["n_fft"],
        win_length=MEL["n_fft"],
        hop_length=MEL_HOP,
        mel_fmin=MEL["fmin"],
        mel_fmax=MEL["fmax"],
    )
    glow = WaveGlowConfig(n_mel_channels=MEL["n_mels"])
    return Config(glow, data, synthesis=SynthesisConfig(bandwidth=MEL["fmax"]))


def with_own_settings(system: System, config: Config) -> System:
    """The system with the voice's own sigma and consistency where it does not set them."""
    own = config.synthesis
    return replace(
        system,
        sigma=own.sigma if system.sigma is None else system.sigma,
        consistency=own.consistency if system.consistency is None else system.consistency,
    )


def make_with_weights(
    system: System,
    voice: Any,
    references: dict[str, Path],
    output: Path,
    progress: Callable[[int, int], None],
) -> Made:
    """Copy-synthesis of each recording by a voice, one .wav each under output, and the recordings'
    log-likelihoods. One after the other, so that the seconds are those of a machine with nothing
    else of this program to do; they are taken of the first `TIMED_FILES`, without compiling.

    Raises UserError for a recording that the system cannot take, as one too long for "latent".
    """
    config = voice.config
    system = with_own_settings(system, config)
    weights = _weights_digest(voice)
    recipe = {"weights": weights, **asdict(system), "source": None, "name": None}
    folder = output / f"{_file_name(system.name)}-{_digest(recipe)}"
    likelihoods = output / f"nats-{weights}.jsonl"
    done = _done(folder, references)
    nats = {each["name"]: each for each in read_records(likelihoods) if _same(each, references)}
    options = {key: getattr(system, key) for key in ("sigma", "consistency", "seed", "dtype")}
    if system.denoise is not None:
        options["denoise"] = system.denoise
    rate = config.data.sampling_rate
    for count, (name, path) in enumerate(references.items(), 1):
        if name not in done or name not in nats:
            audio = read_audio(path, rate)
            mel = voice.mel(audio)
        if name not in done:
            synthesize = partial(voice.synthesize, mel, **options)
            try:
                samples, seconds = _timed(synthesize, again=count <= TIMED_FILES)
            except ValueError as error:
                raise UserError(f"--system {system.name}: {path}: {error}") from None
            write_wav(folder / f"{name}.wav", np.clip(samples, -1, 1), rate)
            done[name] = {"name": name, "of": fingerprint(path), "seconds": seconds}
            add_record(folder / MADE, done[name])
        if name not in nats:
            nats[name] = {
                "name": name,
                "of": fingerprint(path),
                "nats": nats_per_sample(voice, audio, mel),
            }
            add_record(likelihoods, nats[name])
        progress(count, len(references))
    return _made(folder, done, references, {name: nats[name]["nats"] for name in references})


def nats_per_sample(voice: Any, audio: np.ndarray, mel: np.ndarray) -> float:
    """Log-likelihood of a recording `[T]` given its mel, over its whole frames.

    With the Gaussian noise of the voice's training added (seed 0): without it, an empty band above
    a recording's true bandwidth would make the figure arbitrary.
    """
    hop = voice.config.data.hop_length
    heard = noisy(audio, voice.config.train.noise_std, hop)
    _, nats = voice.encode(heard[None], mel[None, : len(heard) // hop + 1])
    return float(nats[0])


def _made(
    folder: Path,
    done: dict[str, dict[str, Any]],
    references: dict[str, Path],
    nats: dict[str, float] | None = None,
) -> Made:
    return Made(
        files={name: folder / f"{name}.wav" for name in references},
        seconds={n: done[n]["seconds"] for n in references if done[n]["seconds"] is not None},
        nats=nats or {},
    )


def _done(folder: Path, references: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What was made from these very recordings and is still there, by name."""
    return {
        each["name"]: each
        for each in read_records(folder / MADE)
        if _same(each, references) and (folder / f"{each['name']}.wav").is_file()
    }


def _same(record: dict[str, Any], references: dict[str, Path]) -> bool:
    path = references.get(str(record.get("name")))
    return path is not None and record.get("of") == fingerprint(path)


def _weights_digest(voice: Any) -> str:
    import jax

    from waveglow_jax.config import config_to_json

    digest = hashlib.sha256(config_to_json(voice.config).encode())
    for path, leaf in jax.tree.leaves_with_path(voice.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def _digest(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "system"
