"""Builds a listening test that follows the protocol of the paper (arXiv 1811.00002).

Raters first have to pass a hearing check. Each then rates utterances once, on a five-point scale.
The utterances are disjoint from training, normalised in volume, and drawn at random per rater.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.systems import files_by_name
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, check_outside, find_inputs
from waveglow_jax.files.sound import read_audio, read_samples
from waveglow_jax.files.wav import write_wav
from waveglow_jax.text import number_of

KEY = "key.json"
PAGE = "page"
LEVEL_DBFS = -26.0
_PEAK = 0.95
_TEMPLATE = Path(__file__).with_name("page.html")

# In the hearing check, raters count pips of these pitches, whose level is far below that of the
# speech. A rater who guesses among 2 to 6 gets at least three of four right in 3 of 100 cases.
_PIPS_HZ = (500, 1000, 2000, 4000)
_PIPS_DBFS = -50.0
_PIP_COUNTS = (2, 3, 4, 5, 6)
CHECK_NEEDED = 3


@dataclass(frozen=True)
class Test:
    """The listening test that `make` wrote.

    page: the folder to serve. key: the file to keep private. notes: what the user should know.
    """

    page: Path
    key: Path
    systems: tuple[str, ...]
    utterances: tuple[str, ...]
    notes: tuple[str, ...]


def make(
    systems: Sequence[tuple[str, str | Path]],
    output: str | Path,
    *,
    utterances: int = 40,
    training: str | Path | None = None,
    post_url: str = "",
    title: str = "Listening test",
    seed: int = 0,
) -> Test:
    """Writes output/page (index.html and audio/) and output/key.json.

    systems: (name, folder of mono recordings); files of one name are one utterance.
    utterances: how many are drawn (by seed) from those that every system has; all if there are
        fewer.
    training: a folder or list of the recordings that the systems were trained on; utterances that
        occur among them, by name or by content, are not used.
    post_url: where the page sends each result by POST; without it, raters send a file back.

    Every clip is brought to -26 dBFS RMS. If a peak would exceed 0.95, the utterance is attenuated
    equally for all systems. Clips have meaningless names; only the key says which clip belongs to
    which system, and it must not be served.
    Raises UserError for fewer than two systems, two systems of one name, an output that already
    holds a test or lies in a system's folder, a file that cannot be read, files of several rates, a
    post_url that is no http(s) URL, or if no utterance is left.
    """
    output = Path(output)
    _check_arguments(systems, output, post_url)
    found = {name: files_by_name(folder) for name, folder in systems}
    rng = np.random.default_rng(seed)
    chosen, notes = _chosen(found, training, utterances, rng)
    rate = _common_rate(files[utterance] for files in found.values() for utterance in chosen)
    page = output / PAGE
    clips, key = _write_clips(found, chosen, rate, page / "audio")
    checks, volume = _write_check(rate, rng, page / "audio")
    test = {
        "id": secrets.token_hex(8),
        "title": title,
        "post": post_url,
        "volume": volume,
        "check": checks,
        "check_needed": CHECK_NEEDED,
        "counts": list(_PIP_COUNTS),
        "clips": clips,
    }
    content = {
        "test": test["id"],
        "systems": list(found),
        "check": {check["file"]: check["answer"] for check in checks},
        "check_needed": CHECK_NEEDED,
        "ratings_each": len(chosen),
        "clips": key,
    }
    write_text(output / KEY, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    # The page is written last, so that it is complete if it exists.
    write_text(page / "index.html", _page(test))
    return Test(page, output / KEY, tuple(found), tuple(chosen), tuple(notes))


def _chosen(
    found: dict[str, dict[str, Path]],
    training: str | Path | None,
    utterances: int,
    rng: np.random.Generator,
) -> tuple[list[str], list[str]]:
    """The utterances that are drawn from those of all systems, and notes for the user."""
    shared = [name for name in next(iter(found.values())) if all(name in f for f in found.values())]
    if not shared:
        raise UserError("the systems have no file of one name in common; rename them")
    used, notes = _not_in_training(shared, found, training)
    if not used:
        raise UserError(f"--training {training}: every utterance is among them; take others")
    chosen = [used[place] for place in sorted(rng.permutation(len(used))[:utterances])]
    if len(chosen) < utterances:
        notes.append(f"{number_of(len(chosen), 'utterance')}, {utterances} were asked for")
    return chosen, notes


def _common_rate(paths: Iterable[Path]) -> int:
    rates = {read_samples(path)[1] for path in paths}
    if len(rates) > 1:
        raise UserError(
            f"the files are of different rates, {sorted(rates)} Hz; bring them to one with: "
            "python -m waveglow_jax prepare IN -o OUT"
        )
    return rates.pop()


def _write_clips(
    found: dict[str, dict[str, Path]], chosen: Sequence[str], rate: int, folder: Path
) -> tuple[list[dict[str, list[str]]], dict[str, dict[str, str]]]:
    """Writes every system's clip of every utterance: the page's clips, and the key to them."""
    clips: list[dict[str, list[str]]] = []
    key: dict[str, dict[str, str]] = {}
    for utterance in chosen:
        versions = []
        samples = [read_audio(files[utterance], rate) for files in found.values()]
        for name, levelled in zip(found, _one_level(samples), strict=True):
            file = _write_unnamed(folder, levelled, rate)
            versions.append(file)
            key[file] = {"system": name, "utterance": utterance}
        clips.append({"versions": versions})
    return clips, key


def _write_check(
    rate: int, rng: np.random.Generator, folder: Path
) -> tuple[list[dict[str, Any]], str]:
    """Writes the sounds of the hearing check and the sound to set the volume by, and names them."""
    checks = []
    for hertz in _PIPS_HZ:
        count = int(rng.choice(_PIP_COUNTS))
        file = _write_unnamed(folder, pips(hertz, count, rate, rng), rate)
        checks.append({"file": file, "answer": count})
    return checks, _write_unnamed(folder, volume_sound(rate, rng), rate)


def _write_unnamed(folder: Path, samples: np.ndarray, rate: int) -> str:
    """Writes the samples to a file whose name tells nothing, and returns the name."""
    file = f"{secrets.token_hex(8)}.wav"
    write_wav(folder / file, samples, rate)
    return file


def pips(hertz: float, count: int, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """`[T]` float32: `count` soft pips of 150 ms, separated by pauses of random length."""
    time = np.arange(int(0.15 * sampling_rate)) / sampling_rate
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    pip = 10 ** (_PIPS_DBFS / 20) * np.sqrt(2) * np.sin(2 * np.pi * hertz * time) * fade
    parts = [np.zeros(sampling_rate // 2)]
    for _ in range(count):
        parts += [pip, np.zeros(int(rng.uniform(0.25, 0.6) * sampling_rate))]
    return np.concatenate(parts).astype(np.float32)


def volume_sound(sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """`[T]` float32: 3 s of noise with a spectral tilt like that of speech, at the clips' level."""
    import scipy.signal

    noise = scipy.signal.lfilter([1.0], [1.0, -0.95], rng.normal(size=3 * sampling_rate))
    fade = np.minimum(1, np.minimum(np.arange(len(noise)), np.arange(len(noise))[::-1]) / 4000)
    return _one_level([noise * fade])[0].astype(np.float32)


def _one_level(samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each signal `[T]` at -26 dBFS RMS; all are attenuated alike if one would peak above 0.95."""
    wanted = 10 ** (LEVEL_DBFS / 20)
    levelled = [
        each * (wanted / np.sqrt(np.mean(np.square(each, dtype=np.float64)))) for each in samples
    ]
    peak = max(float(np.abs(each).max()) for each in levelled)
    return [each * min(1.0, _PEAK / peak) for each in levelled]


def _check_arguments(
    systems: Sequence[tuple[str, str | Path]], output: Path, post_url: str
) -> None:
    names = [name for name, _ in systems]
    if len(names) < 2:
        raise UserError("--system: name at least two, such as the recordings and one vocoder")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--system {name}: two systems of that name; rename one")
    for path in (output / KEY, output / PAGE):
        if path.exists():
            raise UserError(f"{path}: there is a test already; choose another -o")
    for _, folder in systems:
        check_outside(output / PAGE, folder)
    if post_url:
        parts = urlsplit(post_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"--post {post_url}: is no http or https address")


def _not_in_training(
    names: Sequence[str], found: dict[str, dict[str, Path]], training: str | Path | None
) -> tuple[list[str], list[str]]:
    """The utterances that are not among the training recordings, and notes for the user."""
    if training is None:
        return list(names), ["not checked against the training recordings; --training does that"]
    items = find_inputs([training], AUDIO_SUFFIXES, with_outputs=False)
    stems = {item.path.stem for item in items}
    contents = {_digest(item.path) for item in items}
    used = [
        name
        for name in names
        if Path(name).stem not in stems
        and not any(_digest(files[name]) in contents for files in found.values())
    ]
    left = len(names) - len(used)
    return used, [
        f"{number_of(left, 'utterance')} left out, which are among {training}"
    ] if left else []


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _page(test: dict[str, Any]) -> str:
    # A browser does not unescape the text of a script element, and only "<" could end it.
    data = json.dumps(test).replace("<", "\\u003c")
    before, after = _TEMPLATE.read_text(encoding="utf-8").split("<!--@TEST-->")
    return before.replace("<!--@TITLE-->", escape(test["title"])) + data + after
