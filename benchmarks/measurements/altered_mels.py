"""What training on altered mels does to a voice (docs/measurements/altered-mels.md).

    python benchmarks/measurements/altered_mels.py CORPUS -o WORK [--steps N] [--docs DIR]

CORPUS is the output of build_corpus.py, with `train` and `heldout`. The program trains the bundled
voice further, twice: on the clips' own mels, and with `train_config.altered_mels` at its defaults.
Everything else is equal: the initial weights, the clips, their noise, the steps. Then it measures
both voices, and the bundled one, on held-out recordings: likelihoods of clips, and metrics of
signals that are synthesised from true, smoothed and jittered mels, without corrections and with the
voice's own. It writes the page's tables. It stores finished work under WORK and does not repeat it,
so the command may be stopped at any time. It needs `pip install -e '.[eval]'`.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from consistency import altered

import waveglow_jax as wg
from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.config import Config
from waveglow_jax.config_train import AlteredMels
from waveglow_jax.evaluation.metrics import METRICS, Metric, measure
from waveglow_jax.evaluation.report import verdict
from waveglow_jax.evaluation.statistics import bootstrap_mean
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.sound import read_audio
from waveglow_jax.training.dataset import scan_corpus, validation_batches
from waveglow_jax.training.loop import train
from waveglow_jax.training.parallel import parallel_validation_step, split

PLAIN, ALTERED, BUNDLED = "own mels", "altered mels", "the bundled voice"
SECONDS = 3
AT_ONCE = 8
METRIC_KEYS = ("pesq_wb", "stoi", "dnsmos_ovrl")
KINDS = ("true", "smoothed", "jittered")
BEGIN, END = "<!-- tables: {} -->", "<!-- end: {} -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    docs = Path(__file__).resolve().parents[2] / "docs" / "measurements"
    parser.add_argument("--docs", type=Path, default=docs)
    arguments = parser.parse_args()
    corpus, work = arguments.corpus, arguments.work
    for name, how in ((PLAIN, None), (ALTERED, AlteredMels())):
        config = config_of(arguments.steps, how)
        train(config, str(corpus / "train"), work / slug(name), params=wg.load().params)
    voices = {BUNDLED: wg.load(), **{n: wg.load(work / slug(n)) for n in (PLAIN, ALTERED)}}
    found = {
        name: kept(work / f"{slug(name)}.json", partial(measured, voice, corpus))
        for name, voice in voices.items()
    }
    write_page(arguments.docs / "altered-mels.md", found)


def slug(name: str) -> str:
    return name.replace(" ", "_")


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """The content of the JSON file, which is made and written first if it does not exist."""
    if not path.exists():
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


def config_of(steps: int, how: AlteredMels | None) -> Config:
    """The bundled voice's config, for a run of `steps` from its weights."""
    config = wg.load().config
    settings = dataclasses.replace(
        config.train,
        steps=steps,
        learning_rate=4e-4,
        warmup_steps=30,
        decay_start=0.4,
        final_learning_rate=2e-5,
        ema_decay=0.98,
        altered_mels=how,
        iters_per_checkpoint=100,
        keep_checkpoints=1,
        synthesis_clips=0,
    )
    return dataclasses.replace(config, train=settings)


# ------------------------------------------------------------------------------ measuring


def measured(voice: wg.Voice, corpus: Path) -> dict[str, Any]:
    """{nats: {kind: [clips]}, signals: {kind: {corrections: {metric: [recordings]}}}}."""
    audio = first_seconds(corpus / "heldout", voice.sampling_rate)
    own = voice.mel(audio)[:, :-1]
    mels = {kind: mels_of(own, kind) for kind in KINDS}
    return {
        "nats": {kind: nats(voice, corpus, kind) for kind in KINDS},
        "signals": {
            kind: {
                str(corrections): metrics(voice, audio, mel, corrections)
                for corrections in (0, voice.config.synthesis.consistency)
            }
            for kind, mel in mels.items()
        },
    }


def mels_of(own: np.ndarray, kind: str) -> np.ndarray:
    """The mels `[B, F, M]` altered as in docs/measurements/consistency.md."""
    return np.stack([altered(mel, kind, i) for i, mel in enumerate(np.asarray(own))])


def first_seconds(heldout: Path, rate: int) -> np.ndarray:
    """`[B, T]`: the beginnings of the recordings that are long enough, in whole frames."""
    samples = SECONDS * rate // 256 * 256
    audio = [read_audio(path, rate) for path in sorted(heldout.rglob("*.wav"))]
    return np.stack([each[:samples] for each in audio if len(each) >= samples])


def nats(voice: wg.Voice, corpus: Path, kind: str) -> list[float]:
    """Nats per sample of each held-out clip, with the noise of the training, given its mel."""
    config = config_of(corpus, 1, None)
    held_out = scan_corpus(str(corpus / "train"), config).validation
    step = parallel_validation_step(config, jax.devices()[:1])
    of_clips = jax.jit(partial(log_mel_of_padded, config=config))
    found = []
    for batch in validation_batches(held_out, config, 1):
        mel = mels_of(of_clips(batch.clips), kind)
        found.append(float(step(voice.params, split(batch._replace(mel=mel), 1))["nats"]))
    return found


def metrics(
    voice: wg.Voice, audio: np.ndarray, mel: np.ndarray, corrections: int
) -> dict[str, list[float]]:
    """The metrics of the signals from the mels, recording by recording."""
    rows = []
    for start in range(0, len(audio), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        made = voice.synthesize(mel[part], consistency=corrections)
        for reference, output in zip(audio[part], made, strict=True):
            values, reasons = measure(reference, output, voice.sampling_rate, METRIC_KEYS)
            if reasons:
                raise SystemExit(f"a metric is missing: {reasons}")
            rows.append(values)
    return {key: [row[key] for row in rows] for key in METRIC_KEYS}


# ------------------------------------------------------------------------------ the page


def write_page(page: Path, found: dict[str, Any]) -> None:
    """Writes the tables between their marks on the page."""
    text = page.read_text(encoding="utf-8")
    for name, lines in (("nats", nats_table(found)), ("signals", signals_table(found))):
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            raise SystemExit(f"{page} has no place for {name}")
        text = "\n".join([before + begin, "", *lines, "", end]) + after
    write_text(page, text)


def nats_table(found: dict[str, Any]) -> Iterator[str]:
    metric = next(each for each in METRICS if each.key == "nats")
    yield f"| mels | {BUNDLED} | {PLAIN} | {ALTERED} | {ALTERED} minus {PLAIN} |"
    yield "| --- | --- | --- | --- | --- |"
    for kind in KINDS:
        yield f"| {kind} | {cells(metric, {n: of['nats'][kind] for n, of in found.items()})} |"


def signals_table(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"| metric | mels | corrections | {BUNDLED} | {PLAIN} | {ALTERED} | "
        f"{ALTERED} minus {PLAIN} |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for metric in METRICS:
        if metric.key not in METRIC_KEYS:
            continue
        for corrections in found[BUNDLED]["signals"]["true"]:
            for kind in KINDS:
                values = {n: of["signals"][kind][corrections] for n, of in found.items()}
                row = cells(metric, {n: of[metric.key] for n, of in values.items()})
                yield f"| {metric.title} | {kind} | {corrections} | {row} |"


def cells(metric: Metric, values: dict[str, list[float]]) -> str:
    """The means, and the paired difference with its 95% interval and verdict."""
    d = metric.decimals
    means = [f"{np.mean(values[name]):.{d}f}" for name in (BUNDLED, PLAIN, ALTERED)]
    apart = bootstrap_mean(np.subtract(values[ALTERED], values[PLAIN]))
    word = verdict(apart, metric)
    told = f"{apart.mean:+.{d}f} [{apart.low:+.{d}f}, {apart.high:+.{d}f}]"
    return " | ".join([*means, told + (f" **{word}**" if word else "")])


if __name__ == "__main__":
    main()
