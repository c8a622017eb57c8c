"""The systems of a report: what each one is, and how its audio is made if it does not exist yet.

A system is a folder of recordings, as any vocoder writes them, or weights. The audio that is made
here is stored in a folder named after everything that it depends on. A report that is restarted or
gets one more system therefore makes nothing twice and never mixes two recipes.

A baseline needs no weights: an algorithm turns the recordings' own mels into audio.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.analysis.likelihoods import noisy
from waveglow_jax.config import DTYPES, LATENT, MAX_CONSISTENCY, Config
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.baselines import GRIFFIN_LIM, NOISE_NAME
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
    read_records,
    same_file,
    with_seconds,
)
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio
from waveglow_jax.files.wav import write_wav
from waveglow_jax.paths import local_path

RECORDINGS = "Recordings"
_SPEC = (
    "NAME=DIR, NAME=WEIGHTS or "
    "NAME=WEIGHTS:sigma=0.8,denoise=0.01,consistency=32,dtype=bfloat16,seed=1"
)


@dataclass(frozen=True)
class System:
    """One row of the report.

    source: a folder of recordings, or weights; None means the bundled voice. sigma, consistency:
    None means the voice's own; consistency is a number of corrections or "latent", as in
    `Voice.synthesize`. denoise: passed to the voice only if it is not None.
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

    Raises UserError for any other text, with the fault in the message.
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
    """Whether the source is a folder with recordings and not one of weights (config.json)."""
    path = Path(source) if source else None
    if path is None or not path.is_dir() or (path / "config.json").exists():
        return False
    return any(each.suffix.lower() in AUDIO_SUFFIXES for each in path.rglob("*"))


def files_by_name(folder: str | Path) -> dict[str, Path]:
    """The recordings below a folder by their relative path without the suffix: `sub/a` -> path.

    Raises UserError if there are none.
    """
    items = find_inputs([folder], AUDIO_SUFFIXES)
    return {item.relative.with_suffix("").as_posix(): item.path for item in items}


def with_own_settings(system: System, config: Config) -> System:
    """The system with the voice's own sigma and consistency for those that it leaves at None."""
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
    """Copy-synthesises each recording with a voice and computes its log-likelihood.

    Writes one .wav file per recording under output. The recordings are processed one after another,
    so that nothing else in this program affects the timing. The first `TIMED_FILES` are timed,
    without compilation. Raises UserError for a recording that the system cannot process, such as
    one that is too long for "latent".
    """
    config = voice.config
    system = with_own_settings(system, config)
    weights = _weights_digest(voice)
    recipe = {"weights": weights, **asdict(system), "source": None, "name": None}
    folder = output / f"{file_name_of(system.name)}-{digest_of(recipe)}"
    likelihoods = output / f"nats-{weights}.jsonl"
    done = already_made(folder, references)
    nats = {each["name"]: each for each in read_records(likelihoods) if same_file(each, references)}
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
                samples, seconds = with_seconds(synthesize, again=count <= TIMED_FILES)
            except ValueError as error:
                raise UserError(f"--system {system.name}: {path}: {error}") from None
            write_wav(folder / f"{name}.wav", np.clip(samples, -1, 1), rate)
            done[name] = {"name": name, "of": file_state(path), "seconds": seconds}
            add_record(folder / MADE, done[name])
        if name not in nats:
            nats[name] = {
                "name": name,
                "of": file_state(path),
                "nats": nats_per_sample(voice, audio, mel),
            }
            add_record(likelihoods, nats[name])
        progress(count, len(references))
    return made_from(folder, done, references, {name: nats[name]["nats"] for name in references})


def nats_per_sample(voice: Any, audio: np.ndarray, mel: np.ndarray) -> float:
    """Log-likelihood per sample of a recording `[T]` given its mel, over its whole periods.

    The Gaussian noise of the voice's training is added first (seed 0). Without it, an empty band
    above a recording's true bandwidth would make the value arbitrary.
    """
    hop = voice.config.data.hop_length
    frames = voice.config.whole_frames(len(audio))
    heard = noisy(audio, voice.config.train.noise_std, hop)[: frames * hop]
    _, nats = voice.encode(heard[None], mel[None, : frames + 1])
    return float(nats[0])


def _weights_digest(voice: Any) -> str:
    import jax

    from waveglow_jax.config import config_to_json

    digest = hashlib.sha256(config_to_json(voice.config).encode())
    for path, leaf in jax.tree.leaves_with_path(voice.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:12]
