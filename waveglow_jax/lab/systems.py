"""The systems of a report: what each is, and its audio made where it does not exist yet.

A system is a folder of recordings, as any vocoder leaves them, or weights. The audio that is made
here lies in a folder named after everything it depends on, so that a report begun again, or with
one more system, makes nothing twice and never mixes two recipes.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.audio.files import AUDIO_SUFFIXES, find_inputs, read_audio, write_wav
from waveglow_jax.config import DTYPES
from waveglow_jax.errors import UserError
from waveglow_jax.lab.likelihoods import noisy
from waveglow_jax.lab.metrics import MEL, MEL_HOP, log_mel

RECORDINGS = "Recordings"
GRIFFIN_LIM = "Griffin-Lim"
TIMED_FILES = 8
MADE = "made.jsonl"
_SPEC = "NAME=DIR, NAME=WEIGHTS or NAME=WEIGHTS:sigma=0.8,denoise=0.01,dtype=bfloat16,seed=1"


@dataclass(frozen=True)
class System:
    """One row. source: a folder of recordings, or weights; None the bundled voice.

    sigma None: the voice's own. denoise is handed to the voice only where it is not None.
    """

    name: str
    source: str | None
    sigma: float | None = None
    denoise: float | None = None
    dtype: str = "float32"
    seed: int = 0


def parse_system(text: str) -> System:
    """A System from `NAME=SOURCE` or `NAME=SOURCE:key=value,...` (without SOURCE: bundled voice).

    Raises UserError for anything else, naming what is wrong.
    """
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise UserError(f"--system {text!r}: write {_SPEC}")
    if name in (RECORDINGS, GRIFFIN_LIM):
        raise UserError(f"--system {text!r}: {name} is always a row; choose another name")
    source, options = rest, {}
    before, colon, after = rest.rpartition(":")
    if colon and (not after or re.match(r"[a-z]+=", after)):
        source = before
        options = dict(_option(text, each) for each in after.split(",") if each)
    return System(name, source or None, **options)


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
    for line in text.splitlines():
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


def make_griffin_lim(
    references: dict[str, Path],
    sampling_rate: int,
    iterations: int,
    output: Path,
    executor: Executor | None,
    progress: Callable[[int, int], None],
) -> Made:
    """Griffin-Lim from the recordings' own mels, one .wav each under output; see `griffin_lim`."""
    recipe = {"griffin_lim": iterations, "sampling_rate": sampling_rate}
    folder = output / f"Griffin-Lim-{_digest(recipe)}"
    done = _done(folder, references)
    todo = {name: path for name, path in references.items() if name not in done}
    jobs = [
        (path, folder / f"{name}.wav", sampling_rate, iterations) for name, path in todo.items()
    ]
    apply = map if executor is None else executor.map
    results = apply(_griffin_lim_file, jobs)
    for count, (name, seconds) in enumerate(zip(todo, results, strict=True), 1):
        done[name] = {"name": name, "of": fingerprint(todo[name]), "seconds": seconds}
        add_record(folder / MADE, done[name])
        progress(count, len(todo))
    return _made(folder, done, references)


def _griffin_lim_file(job: tuple[Path, Path, int, int]) -> float:
    path, target, rate, iterations = job
    audio = read_audio(path, rate)
    mel = log_mel(audio, rate)
    began = time.monotonic()
    samples = griffin_lim(mel, rate, iterations)
    seconds = time.monotonic() - began
    write_wav(target, np.clip(samples, -1, 1), rate)
    return seconds


def griffin_lim(mel: np.ndarray, sampling_rate: int, iterations: int) -> np.ndarray:
    """`[F, 80] -> [(F - 1) * 256]`: back from the log-mel by librosa's fast Griffin-Lim.

    The magnitudes behind the mel are those of non-negative least squares; phases start at random
    (seed 0). Perraudin et al. 2013, doi:10.1109/WASPAA.2013.6701851.
    """
    import librosa

    filters = librosa.filters.mel(sr=sampling_rate, **MEL)
    magnitudes = librosa.util.nnls(filters, np.exp(mel.T).astype(np.float32))
    return librosa.griffinlim(
        magnitudes, n_iter=iterations, hop_length=MEL_HOP, n_fft=MEL["n_fft"], random_state=0
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
    else of this program to do; they are taken of the first `TIMED_FILES`, without compiling."""
    config = voice.config
    sigma = config.synthesis.sigma if system.sigma is None else system.sigma
    weights = _weights_digest(voice)
    recipe = {"weights": weights, **asdict(system), "sigma": sigma, "source": None, "name": None}
    folder = output / f"{_file_name(system.name)}-{_digest(recipe)}"
    likelihoods = output / f"nats-{weights}.jsonl"
    done = _done(folder, references)
    nats = {each["name"]: each for each in read_records(likelihoods) if _same(each, references)}
    options = {"sigma": sigma, "seed": system.seed, "dtype": system.dtype}
    if system.denoise is not None:
        options["denoise"] = system.denoise
    synthesize = partial(voice.synthesize, **options)
    rate = config.data.sampling_rate
    for count, (name, path) in enumerate(references.items(), 1):
        if name not in done or name not in nats:
            audio = read_audio(path, rate)
            mel = voice.mel(audio)
        if name not in done:
            samples, seconds = synthesize(mel), None
            if count <= TIMED_FILES:
                # Again, now that everything that this length needs is compiled.
                began = time.monotonic()
                synthesize(mel)
                seconds = time.monotonic() - began
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
