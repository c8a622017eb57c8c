"""Measures what corrections do to the bundled voice (docs/measurements/consistency.md).

    python benchmarks/measurements/consistency.py CORPUS/heldout -o WORK

It cuts the first seconds of each held-out recording, computes their mels, also altered in four
ways, and synthesises these by each of `ways()`. Then it measures all outputs against the recordings
with `evaluate` and writes the tables and pictures of that page. A repeated run resumes where the
last one stopped. It takes about an hour on two cores.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import waveglow_jax as wg  # noqa: E402
from waveglow_jax.audio.consistency import consistent  # noqa: E402
from waveglow_jax.evaluation.baselines import griffin_lim, noise_corrected  # noqa: E402
from waveglow_jax.evaluation.evaluate import evaluate  # noqa: E402
from waveglow_jax.evaluation.metrics import METRICS  # noqa: E402
from waveglow_jax.evaluation.report import markdown_table, verdict  # noqa: E402
from waveglow_jax.evaluation.results import Evaluation, summary_dict  # noqa: E402
from waveglow_jax.evaluation.statistics import bootstrap_mean  # noqa: E402
from waveglow_jax.evaluation.systems import System  # noqa: E402
from waveglow_jax.files.atomic import write_text  # noqa: E402
from waveglow_jax.files.sound import read_audio  # noqa: E402
from waveglow_jax.files.wav import write_wav  # noqa: E402
from waveglow_jax.flow.likelihood import log_likelihood  # noqa: E402
from waveglow_jax.flow.waveglow import (  # noqa: E402
    forward,
    inverse_prepared,
    latent_noise,
    prepare_inverse,
)
from waveglow_jax.synthesis.typical import typical, with_full_band  # noqa: E402

SECONDS = 3
RATE, HOP = 22050, 256


# ------------------------------------------------------------------------------ the mels


def altered(mel: np.ndarray, how: str, seed: int) -> np.ndarray:
    """A log-mel `[F, M]` altered to resemble those that other models write.

    smoothed: over time by a Gaussian of one frame, as the means of an acoustic model are. jittered:
    with Gaussian noise of standard deviation 0.2. louder: by 12 dB, like another speaker's level.
    half: rounded to float16.
    """
    from scipy.ndimage import gaussian_filter1d

    if how == "smoothed":
        return gaussian_filter1d(mel, 1.0, axis=0).astype(np.float32)
    if how == "jittered":
        noise = np.random.default_rng(seed).standard_normal(mel.shape)
        return (mel + 0.2 * noise).astype(np.float32)
    if how == "louder":
        return (mel + 12 / 20 * np.log(10)).astype(np.float32)
    if how == "half":
        return mel.astype(np.float16).astype(np.float32)
    return mel


# ------------------------------------------------------------------------------ the systems


@dataclass(frozen=True)
class Way:
    """How a signal is made: from a start, by corrections or by rounds of the latent search."""

    name: str
    start: str = "voice"
    corrections: int = 0
    sigma: float = 1.0
    momentum: float = 0.9
    rounds: int = 0
    bound: float = 2.5
    scale: bool = True
    finish: int = 0
    mel: str = "true"


def ways() -> list[Way]:
    found = [Way(f"voice + {n}", corrections=n) for n in (0, 8, 32, 96)]
    found += [
        Way("noise + 96", "noise", 96),
        Way("voice, sigma 0.6, + 32", corrections=32, sigma=0.6),
        Way("Griffin-Lim + 32", "griffin-lim", 32),
        Way("random phases + 32", "random phases", 32),
        Way("voice + 32, momentum 0.99", corrections=32, momentum=0.99),
        Way("latent, 1 x 24", corrections=24, rounds=1),
        Way("latent, 4 x 24", corrections=24, rounds=4),
        Way("latent, 4 x 24, from z = 0", "zero", 24, rounds=4),
        Way("latent, 4 x 24, then 24", corrections=24, rounds=4, finish=24),
    ]
    smoothed = [
        Way("voice + 0"),
        Way("voice + 32", corrections=32),
        Way("noise + 32", "noise", 32),
        Way("voice + 96", corrections=96),
        Way("latent, 4 x 24", corrections=24, rounds=4),
    ]
    altered_mels = {"smoothed": smoothed, "jittered": smoothed[1:3]}
    altered_mels |= dict.fromkeys(("louder", "half"), smoothed[1:2])
    for mel, of_mel in altered_mels.items():
        found += [dataclasses.replace(w, name=f"{mel}: {w.name}", mel=mel) for w in of_mel]
    return [*found, Way("published shape, random weights, + 32", "published shape", 32)]


@dataclass(frozen=True, eq=False)
class Clips:
    """The recordings' names, and their mels `[B, F, M]` by kind of alteration."""

    names: tuple[str, ...]
    mels: dict[str, np.ndarray]
    work: Path
    voice: wg.Voice

    def start(self, way: Way) -> np.ndarray:
        """The signals `[B, F * hop]` that a way starts from; they are made once and stored."""
        path = self.work / "starts" / f"{way.start} {way.sigma:g} {way.mel}.npy".replace(" ", "_")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self._start(way))
        return np.load(path)

    @cached_property
    def passes(self) -> tuple[Callable, Callable]:
        """Two functions: z, mel -> audio, log_det; and audio, mel -> z."""
        voice = self.voice
        prepared = jax.jit(prepare_inverse)(voice.params)
        decode = jax.jit(lambda z, mel: inverse_prepared(prepared, voice.config, z, mel))
        encode = jax.jit(lambda audio, mel: forward(voice.params, voice.config, audio, mel)[0])
        return decode, encode

    def _start(self, way: Way) -> np.ndarray:
        mels = self.mels[way.mel]
        if way.start == "noise":
            return np.stack([noise_corrected(mel, RATE, 0) for mel in mels])
        if way.start == "griffin-lim":
            made = [griffin_lim(mel, RATE, 32) for mel in mels]
            return np.stack([np.pad(each, (0, HOP)) for each in made]).astype(np.float32)
        if way.start == "published shape":
            config = wg.load_config(ROOT / "configs/nvidia256.json")
            untrained = wg.Voice(config, _lively(wg.init(jax.random.key(0), config)))
            return untrained.synthesize(mels, 0.6, consistency=0, dtype="bfloat16")
        said = self.voice.synthesize(mels, way.sigma, consistency=0)
        return _with_random_phases(said) if way.start == "random phases" else said


def _with_random_phases(audio: np.ndarray) -> np.ndarray:
    """Audio with each frame's magnitudes and random phases."""
    import librosa

    spectra = librosa.stft(audio, n_fft=1024, hop_length=HOP)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, spectra.shape)
    again = np.abs(spectra) * np.exp(1j * phases)
    return librosa.istft(again, hop_length=HOP, length=audio.shape[-1]).astype(np.float32)


def _lively(params: dict) -> dict:
    """Random weights with nonzero last layers of WN, so that no coupling is the identity."""
    keys = iter(jax.random.split(jax.random.key(1), len(params["flows"])))
    for flow in params["flows"]:
        kernel = flow["wn"]["end"]["kernel"]
        flow["wn"]["end"]["kernel"] = 0.01 * jax.random.normal(next(keys), kernel.shape)
    return params


def make(way: Way, clips: Clips) -> Path:
    """Makes a way's signals and returns their folder, with one .wav file per signal."""
    folder = clips.work / "systems" / _slug(way.name)
    if (folder / "done").exists():
        return folder
    mels = clips.mels[way.mel]
    if way.rounds:
        signals = [_searched(way, mel, clips) for mel in mels]
    else:
        config, momentum = clips.voice.config, way.momentum
        signals = np.asarray(consistent(clips.start(way), mels, config, way.corrections, momentum))
    for name, signal in zip(clips.names, signals, strict=True):
        write_wav(folder / f"{name}.wav", np.clip(signal, -1, 1), RATE)
    write_text(folder / "done", "")
    return folder


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _searched(way: Way, mel: np.ndarray, clips: Clips) -> np.ndarray:
    """The result of the last round of the latent search, `[T]`."""
    for _, audio in rounds_of(way, mel, clips):
        last = audio
    if way.finish:
        last = consistent(last, mel[None], clips.voice.config, way.finish)
    return np.asarray(last[0])


def rounds_of(
    way: Way, mel: np.ndarray, clips: Clips
) -> Iterator[tuple[tuple[float, float, float], jax.Array]]:
    """Yields figures and the audio `[1, T]` after each round, from round 0 on.

    The figures are the nats per sample, and z's standard deviation and largest absolute value
    before z is made typical.
    """
    config = with_full_band(clips.voice.config)
    decode, encode = clips.passes
    z = latent_noise(0, config, len(mel))[None] * (0.0 if way.start == "zero" else way.sigma)
    raw = z
    for left in reversed(range(way.rounds + 1)):
        audio, log_det = decode(z, mel[None])
        nats = float(log_likelihood(z, -log_det)[0])
        yield (nats, float(jnp.std(raw)), float(jnp.abs(raw).max())), audio
        if left:
            audio = consistent(audio, mel[None], config, way.corrections, way.momentum)
            raw = encode(audio, mel[None])
            z = typical(raw, way.sigma, raw.size, way.bound)
            if not way.scale:
                z = jnp.clip(raw, -way.bound, way.bound)


# ------------------------------------------------------------------------------ the whole study


def clips_of(heldout: Path, work: Path) -> Clips:
    """The first `SECONDS` of each recording, written to WORK/recordings, in whole frames."""
    voice, samples = wg.load(), SECONDS * RATE // HOP * HOP
    names, cut = [], []
    for path in sorted(heldout.rglob("*.wav")):
        audio = read_audio(path, RATE)
        if len(audio) >= samples:
            names.append(path.stem)
            cut.append(audio[:samples])
            target = work / "recordings" / f"{path.stem}.wav"
            if not target.exists():  # a rewritten file would be measured again
                write_wav(target, cut[-1], RATE)
    mels = voice.mel(np.stack(cut))[:, :-1]
    kinds = {way.mel for way in ways()}
    return Clips(
        tuple(names),
        {how: np.stack([altered(mel, how, i) for i, mel in enumerate(mels)]) for how in kinds},
        work,
        voice,
    )


# ------------------------------------------------------------------------------ tables and figures

BEGIN, END = "<!-- tables: {} -->", "<!-- end: {} -->"
COLUMNS = ("pesq_wb", "stoi", "visqol", "mcd", "log_mel_l1", "mr_stft")
MORE_COLUMNS = ("f0_rmse", "vuv_f1", "periodicity_rmse", "dnsmos_ovrl")
BASELINES = ("Griffin-Lim", "Noise + 32 corrections")


def tables(found: Evaluation) -> dict[str, list[str]]:
    """The tables of docs/measurements/consistency.md as Markdown, by name."""
    of_recordings = [way.name for way in ways() if way.mel == "true"]
    latent = [name for name in of_recordings if name.startswith("latent")]
    plain = [name for name in of_recordings if name not in latent]
    of_smoothed = [way.name for way in ways() if way.mel == "smoothed"]
    others = [way.name for way in ways() if way.mel not in ("true", "smoothed")]
    parts = {
        "corrections": ["Recordings", *BASELINES, *plain],
        "latent": [*latent, "voice + 96"],
        "smoothed": of_smoothed,
        "others": others,
    }
    return {
        part: [line for keys in (COLUMNS, MORE_COLUMNS) for line in [*table(found, rows, keys), ""]]
        for part, rows in parts.items()
    }


def table(found: Evaluation, rows: list[str], keys: tuple[str, ...]) -> list[str]:
    by_name = {summary.system: summary for summary in found.summaries}
    chosen = dataclasses.replace(found, summaries=tuple(by_name[row] for row in rows))
    return markdown_table(chosen, [metric for metric in METRICS if metric.key in keys])


def differences(found: Evaluation) -> list[str]:
    """A table that compares the latent search with as many corrections without it, by recording."""
    pairs = [("latent, 4 x 24", "voice + 96"), ("smoothed: latent, 4 x 24", "smoothed: voice + 96")]
    lines = ["| metric | recordings' mels | smoothed mels |", "| --- | --- | --- |"]
    for metric in METRICS:
        cells = []
        for ours, theirs in pairs:
            of = {name: _values(found, name, metric.key) for name in (ours, theirs)}
            both = sorted(set(of[ours]) & set(of[theirs]))
            if not both:
                continue
            apart = bootstrap_mean([of[ours][name] - of[theirs][name] for name in both])
            word, d = verdict(apart, metric), metric.decimals
            word = f" **{word}**" if word else ""
            cells.append(f"{apart.mean:+.{d}f} [{apart.low:+.{d}f}, {apart.high:+.{d}f}]{word}")
        if cells:
            lines.append(f"| {metric.title} | " + " | ".join(cells) + " |")
    return lines


def _values(found: Evaluation, system: str, key: str) -> dict[str, float]:
    rows = [row for row in found.rows if row.system == system and key in row.values]
    return {row.name: row.values[key] for row in rows}


def draw_corrections(found: Evaluation, path: Path) -> None:
    """Draws each metric against the number of corrections, from the voice and from noise."""
    from matplotlib.figure import Figure

    means = {summary.system: summary.means for summary in found.summaries}
    figure = Figure(figsize=(12, 6), layout="constrained")
    counts = {
        "voice": {n: f"voice + {n}" for n in (0, 8, 32, 96)},
        "noise, no network": {32: "Noise + 32 corrections", 96: "noise + 96"},
    }
    keys = ("pesq_wb", "stoi", "log_mel_l1", "mr_stft", "dnsmos_ovrl", "periodicity_rmse")
    metrics = {metric.key: metric for metric in METRICS}
    for axis, key in zip(figure.subplots(2, 3).flat, keys, strict=True):
        for label, rows in counts.items():
            numbers = sorted(rows)
            values = [means[rows[n]][key].mean for n in numbers]
            axis.plot([max(n, 4) for n in numbers], values, "o-", label=label)
        axis.axhline(means["Griffin-Lim"][key].mean, color="0.6", ls="--", label="Griffin-Lim")
        axis.set(xscale="log", xlabel="corrections (4: none)", title=metrics[key].title)
    figure.axes[0].legend()
    figure.savefig(path, dpi=80)


def draw_rounds(clips: Clips, path: Path) -> None:
    """Draws likelihood and z over the rounds of the latent search, as means over eight recordings.

    "z, as found" means z before it is made typical.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    titles = (
        "log-likelihood, nats per sample",
        "standard deviation of z, as found",
        "largest |z|, as found",
    )
    axes = figure.subplots(1, 3)
    for mel in ("true", "smoothed"):
        way = Way("rounds", corrections=24, rounds=8)
        told = [
            [figures for figures, _ in rounds_of(way, each, clips)] for each in clips.mels[mel][:8]
        ]
        for axis, values in zip(axes, np.mean(told, axis=0).T, strict=True):
            axis.plot(values, "o-", label=f"{mel} mels")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="round", title=title)
    axes[0].legend()
    figure.savefig(path, dpi=80)


def draw_spectrograms(clips: Clips, path: Path) -> None:
    """Draws four recordings beside the signals from their mels, up to half the sampling rate."""
    from matplotlib.figure import Figure

    folders = {
        "recording": clips.work / "recordings",
        "voice, bare": clips.work / "systems" / _slug("voice + 0"),
        "voice + 32": clips.work / "systems" / _slug("voice + 32"),
        "latent, 4 x 24": clips.work / "systems" / _slug("latent, 4 x 24"),
        "noise + 32, no network": None,
    }
    figure = Figure(figsize=(18, 11), layout="constrained")
    axes = figure.subplots(4, len(folders), sharex=True, sharey=True)
    for row, index in zip(axes, (3, 19, 35, 51), strict=True):
        for axis, (title, folder) in zip(row, folders.items(), strict=True):
            name, mel = clips.names[index], clips.mels["true"][index]
            audio = (
                read_audio(folder / f"{name}.wav", RATE)
                if folder
                else noise_corrected(mel, RATE, 32)
            )
            axis.specgram(audio + 1e-7, NFFT=512, noverlap=384, Fs=RATE, vmin=-140, vmax=-40)
            axis.set_title(f"{name}, {title}" if axis is row[0] else title, fontsize=9)
    figure.supxlabel("seconds")
    figure.supylabel("Hz")
    figure.savefig(path, dpi=50)


def write_docs(found: Evaluation, clips: Clips, docs: Path) -> None:
    """Writes the tables (between their marks) and pictures of docs/measurements/consistency.md."""
    page = (docs / "consistency.md").read_text(encoding="utf-8")
    for part, lines in {**tables(found), "differences": differences(found)}.items():
        begin, end = BEGIN.format(part), END.format(part)
        before, _, rest = page.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            raise SystemExit(f"docs/measurements/consistency.md has no place for {part}")
        page = "\n".join([before + begin, "", *lines, "", end]).replace("\n\n\n", "\n\n") + after
    write_text(docs / "consistency.md", page)
    draw_corrections(found, docs / "consistency.png")
    draw_rounds(clips, docs / "consistency_rounds.png")
    draw_spectrograms(clips, docs / "consistency_spectrograms.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heldout", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "measurements")
    arguments = parser.parse_args()
    clips = clips_of(arguments.heldout, arguments.work)
    print(len(clips.names), "recordings", flush=True)
    systems = []
    for way in ways():
        systems.append(System(way.name, str(make(way, clips))))
        print(way.name, flush=True)
    found = evaluate(arguments.work / "recordings", systems, arguments.work / "report", workers=2)
    write_text(arguments.work / "summary.json", json.dumps(summary_dict(found)))
    write_docs(found, clips, arguments.docs)


if __name__ == "__main__":
    main()
