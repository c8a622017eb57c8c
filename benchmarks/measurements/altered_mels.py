"""Measures what training on altered mels does to a voice (docs/measurements/altered-mels.md).

    python benchmarks/measurements/altered_mels.py CORPUS -o WORK [--steps N] [--docs DIR]

CORPUS is the output of build_corpus.py, with `train` and `heldout`. The program trains the bundled
voice further, twice: on the clips' own mels, and with `train_config.altered_mels` at its defaults.
Everything else is equal: the initial weights, the clips, their noise, the steps. Then it measures
both voices, and the bundled one, on held-out recordings: the likelihoods under true, smoothed and
jittered mels, and metrics of the flow's samples from true and smoothed mels, without corrections
and with the voice's own number of them. It writes the page's tables. It stores finished work under
WORK and does not repeat it, so the command may be stopped at any time. It needs
`pip install -e '.[eval]'`.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from consistency import altered

import waveglow_jax as wg
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import Config
from waveglow_jax.config_train import AlteredMels
from waveglow_jax.evaluation.metrics import METRICS, Metric, measure
from waveglow_jax.evaluation.report import verdict
from waveglow_jax.evaluation.statistics import bootstrap_mean
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.sound import read_audio
from waveglow_jax.flow.likelihood import log_likelihood
from waveglow_jax.flow.waveglow import Params, forward, inverse, latent_noise
from waveglow_jax.training.loop import train
from waveglow_jax.weights.release import read_weights

PLAIN, ALTERED, BUNDLED = "own mels", "altered mels", "the bundled voice"
RECORDINGS, SECONDS = 8, 3
AT_ONCE = 8
METRIC_KEYS = ("pesq_wb", "stoi", "dnsmos_ovrl")
KINDS = ("true", "smoothed", "jittered")
SYNTHESISED = ("true", "smoothed")
BEGIN, END = "<!-- tables: {} -->", "<!-- end: {} -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    docs = Path(__file__).resolve().parents[2] / "docs" / "measurements"
    parser.add_argument("--docs", type=Path, default=docs)
    arguments = parser.parse_args()
    corpus, work = arguments.corpus, arguments.work
    params = {BUNDLED: wg.load().params}
    for name, how in ((PLAIN, None), (ALTERED, AlteredMels())):
        run = work / slug(name)
        config = config_of(arguments.steps, how)
        train(config, str(corpus / "train"), run, params=params[BUNDLED])
        params[name] = read_weights(run).params
    clips = clips_of(corpus / "heldout")
    for part, measure_part, table in (
        ("nats", nats_by_kind, nats_table),
        ("signals", signals_by_kind, signals_table),
    ):
        found = {
            name: kept(work / f"{slug(name)}_{part}.json", partial(measure_part, of_name, clips))
            for name, of_name in params.items()
        }
        write_table(arguments.docs / "altered-mels.md", part, table(found))


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
        batch_size=2,
        learning_rate=4e-4,
        warmup_steps=20,
        decay_start=0.5,
        final_learning_rate=2e-5,
        ema_decay=0.95,
        altered_mels=how,
        iters_per_checkpoint=50,
        keep_checkpoints=1,
        synthesis_clips=0,
    )
    return dataclasses.replace(config, train=settings)


# ------------------------------------------------------------------------------ measuring


@partial(jax.jit, static_argnums=1)
def nats_of(params: Params, config: Config, audio: jax.Array, mel: jax.Array) -> jax.Array:
    """`[B, T]`, `[B, F, M]` -> nats per sample `[B]`."""
    return log_likelihood(*forward(params, config, audio, mel))


@partial(jax.jit, static_argnums=1)
def sample_of(params: Params, config: Config, mel: jax.Array) -> jax.Array:
    """`[B, F, M] -> [B, T]`: the flow's sample from each mel, from the same noise."""
    noise = config.synthesis.sigma * latent_noise(0, config, mel.shape[1])
    z = jnp.broadcast_to(noise, (mel.shape[0], *noise.shape))
    return inverse(params, config, z, mel)[0]


@dataclass(frozen=True, eq=False)
class Clips:
    """The beginnings of held-out recordings `[B, T]`, and their mels `[B, F, M]` by kind."""

    audio: np.ndarray
    mels: dict[str, np.ndarray]


def clips_of(heldout: Path) -> Clips:
    voice = wg.load()
    audio = first_seconds(heldout, voice.sampling_rate)
    own = np.asarray(voice.mel(audio))[:, :-1]
    mels = {kind: np.stack([altered(m, kind, i) for i, m in enumerate(own)]) for kind in KINDS}
    return Clips(audio, mels)


def nats_by_kind(params: Params, clips: Clips) -> dict[str, list[float]]:
    """{kind: nats per sample of each recording, with the training's noise}."""
    config = wg.load().config
    noise = np.random.default_rng(0).normal(size=clips.audio.shape)
    audio = (clips.audio + config.train.noise_std * noise).astype(np.float32)
    return {
        kind: in_parts(partial(nats_of, params, config), audio, mel).tolist()
        for kind, mel in clips.mels.items()
    }


def signals_by_kind(params: Params, clips: Clips) -> dict[str, Any]:
    """{kind: {corrections: {metric: [recordings]}}}."""
    voice = wg.load()
    return {k: metrics_of(params, voice, clips.audio, clips.mels[k]) for k in SYNTHESISED}


def first_seconds(heldout: Path, rate: int) -> np.ndarray:
    """`[B, T]`: the beginnings of recordings that are long enough, in whole frames."""
    samples = SECONDS * rate // 256 * 256
    audio = [read_audio(path, rate) for path in sorted(heldout.rglob("*.wav"))]
    found = [each[:samples] for each in audio if len(each) >= samples]
    return np.stack(found[:: max(1, len(found) // RECORDINGS)][:RECORDINGS])


def in_parts(function: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
    """The function of arrays `[B, ...]`, `AT_ONCE` rows at a time."""
    starts = range(0, len(arrays[0]), AT_ONCE)
    return np.concatenate([function(*(a[i : i + AT_ONCE] for a in arrays)) for i in starts])


def metrics_of(
    params: Params, voice: wg.Voice, audio: np.ndarray, mel: np.ndarray
) -> dict[str, dict[str, list[float]]]:
    """{corrections: {metric: [recordings]}} of the samples from the mels, and of the same samples
    after the voice's own number of corrections."""
    config = voice.config
    bare = in_parts(partial(sample_of, params, config), mel)
    found = {}
    for corrections in (0, config.synthesis.consistency):
        correct = partial(consistent, config=config, iterations=corrections)
        rows = []
        for reference, output in zip(audio, in_parts(correct, bare, mel), strict=True):
            output = np.clip(output, -1, 1)
            values, reasons = measure(reference, output, voice.sampling_rate, METRIC_KEYS)
            if reasons:
                raise SystemExit(f"a metric is missing: {reasons}")
            rows.append(values)
        found[str(corrections)] = {key: [row[key] for row in rows] for key in METRIC_KEYS}
    return found


# ------------------------------------------------------------------------------ the page


def write_table(page: Path, name: str, lines: Iterable[str]) -> None:
    """Writes a table between its marks on the page."""
    text = page.read_text(encoding="utf-8")
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = text.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{page} has no place for {name}")
    write_text(page, "\n".join([before + begin, "", *lines, "", end]) + after)


def nats_table(found: dict[str, Any]) -> Iterator[str]:
    metric = next(each for each in METRICS if each.key == "nats")
    yield f"| mels | {BUNDLED} | {PLAIN} | {ALTERED} | {ALTERED} minus {PLAIN} |"
    yield "| --- | --- | --- | --- | --- |"
    for kind in KINDS:
        yield f"| {kind} | {cells(metric, {n: of[kind] for n, of in found.items()})} |"


def signals_table(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"| metric | mels | corrections | {BUNDLED} | {PLAIN} | {ALTERED} | "
        f"{ALTERED} minus {PLAIN} |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for metric in METRICS:
        if metric.key not in METRIC_KEYS:
            continue
        for corrections in found[BUNDLED]["true"]:
            for kind in SYNTHESISED:
                values = {n: of[kind][corrections] for n, of in found.items()}
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
