"""Measures what mel whitening gains, and its cost in digits (docs/measurements/whitening.md).

python benchmarks/measurements/whitening.py CORPUS [--work out/whitening] [--steps N] [--docs DIR]

CORPUS is the output of build_corpus.py, with `train` and `heldout`. The program trains the same
small flow with each whitening and without one, from the same seed on the same clips. It stores
finished work under --work and does not repeat it, so the command may be stopped at any time. Then
it tests the covariances that real mels give, in float32 against float64. It writes whitening.png,
whitening_conditioning.png and whitening.json to --docs, and prints the page's tables.
It needs `pip install -e '.[eval]'`, for STOI.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.mel import log_mel
from waveglow_jax.config import Config, config_from_dict
from waveglow_jax.evaluation.metrics import stoi
from waveglow_jax.files.atomic import replacing, write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio
from waveglow_jax.flow.waveglow import Params, inverse, latent_noise
from waveglow_jax.flow.whitening import power_at_blocks, whitening_of
from waveglow_jax.training.checkpoints import Checkpoints, Plateau
from waveglow_jax.training.dataset import scan_corpus, training_batches, validation_batches
from waveglow_jax.training.parallel import (
    parallel_train_step,
    parallel_validation_step,
    replicate,
    split,
)
from waveglow_jax.training.step import init_state

NOISE = 0.001
"""Standard deviation of the noise in the training clips, and the whitening's floor.

Both are those of the bundled voice."""
SYNTHESISED = 6
SECONDS = 4
CONDITIONED = 4
WHITENINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "block 16": {"block": 16, "floor": NOISE},
    "block 64": {"block": 64, "floor": NOISE},
    "block 256": {"block": 256, "floor": NOISE},
    "order 128": {"block": 64, "floor": NOISE, "order": 128},
}
AT_MOST = {"block 256": 100}
"""Limits of the number of steps.

Factorising the covariances of blocks of 256 takes far longer than the rest of a step."""
FLOORS = (1e-5, 1e-4, 1e-3, 2e-3, 1e-2)
FLOORS_OF = {"block 256": (1e-5, 1e-3)}
FORMS = {
    "block 16": (16, 0),
    "block 64": (64, 0),
    "order 64": (64, 64),
    "order 128": (64, 128),
    "order 256": (64, 256),
    "block 256": (256, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, default=Path("out/whitening"))
    docs = Path(__file__).resolve().parents[2] / "docs" / "measurements"
    parser.add_argument("--docs", type=Path, default=docs)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    curves = {
        name: train_and_measure(name, arguments.corpus, arguments.work, arguments.steps)
        for name in WHITENINGS
    }
    conditioning = condition_all(arguments.corpus / "heldout", arguments.work)
    found = {"curves": curves, "conditioning": conditioning}
    write_text(arguments.docs / "whitening.json", json.dumps(found, indent=1) + "\n")
    draw(arguments.docs / "whitening.png", curve_figure(curves))
    draw(arguments.docs / "whitening_conditioning.png", conditioning_figure(conditioning))
    print("\n".join([*curve_table(curves), "", *conditioning_table(conditioning)]))


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """The content of the JSON file, which is made and written first if it does not exist."""
    if not path.exists():
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------ training


def config_of(whitening: dict[str, Any] | None, corpus: Path) -> Config:
    """A config with a sixth of the bundled voice's parameters and otherwise its recipe."""
    return config_from_dict(
        {
            "waveglow_config": {
                "n_flows": 4,
                "n_group": 16,
                "n_early_every": 2,
                "n_early_size": 4,
                "conditioning": "group",
                "mel_whitening": whitening,
                "WN_config": {"n_layers": 4, "n_channels": 48},
            },
            "data_config": {"segment_length": 8192},
            "train_config": {
                "batch_size": 4,
                "learning_rate": 2e-3,
                "warmup_steps": 50,
                "gradient_clip": 1.0,
                "ema_decay": 0.99,
                "wn_dtype": "bfloat16",
                "noise_std": NOISE,
                "validation_clips": 48,
                "validation_files": str(corpus / "heldout"),
                "keep_checkpoints": 1,
            },
        }
    )


def marks(steps: int) -> list[int]:
    """The steps at which the model is measured: 0, and steps that double up to the last one."""
    found = [steps]
    while found[0] > 25:
        found.insert(0, found[0] // 2)
    return [0, *found]


def train_and_measure(name: str, corpus: Path, work: Path, steps: int) -> list[dict[str, float]]:
    """Trains a model and returns a row {step, nats, stoi} per mark; resumes after the last row."""
    config, steps = config_of(WHITENINGS[name], corpus), min(steps, AT_MOST.get(name, steps))
    rows_path = work / f"{name}.jsonl".replace(" ", "_")
    run = work / name.replace(" ", "_")
    rows = []
    if rows_path.exists():
        rows = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
    if rows and rows[-1]["step"] >= steps:
        return rows
    devices = jax.devices()[:1]
    found = scan_corpus(str(corpus / "train"), config)
    measure = measurer(config, found.validation)
    run.mkdir(parents=True, exist_ok=True)
    with Checkpoints(run, config) as checkpoints:
        state = init_state(config)
        if checkpoints.latest_step is not None:
            state, _ = checkpoints.restore(checkpoints.latest_step)
        rows = [row for row in rows if row["step"] <= int(state.step)]
        state = replicate(state, devices)
        # The schedule is constant after the warm-up, so the total number of steps does not matter.
        train_step = parallel_train_step(config, 1, devices)
        batches = training_batches(
            found.training, config, int(state.step) * config.train.batch_size
        )
        for mark in marks(steps):
            if any(row["step"] == mark for row in rows):
                continue
            for _ in range(mark - int(state.step)):
                state, _ = train_step(state, split(next(batches), 1))
            rows.append({"step": mark, **measure(state.voice)})
            print(name, rows[-1], flush=True)
            checkpoints.save(state, Plateau(), None)
            write_text(rows_path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def measurer(config: Config, recordings: Any) -> Callable[[Params], dict[str, float]]:
    """A function: parameters -> nats per sample of held-out clips, mean STOI of utterances."""
    data = config.data
    validate = parallel_validation_step(config, jax.devices()[:1])
    batches = validation_batches(recordings, config, config.train.batch_size)
    length = SECONDS * data.sampling_rate // 256 * 256
    audio = [read_audio(each.path, data.sampling_rate) for each in recordings]
    audio = np.stack([each[:length] for each in audio if len(each) >= length][:SYNTHESISED])
    mel = jax.jit(log_mel, static_argnums=1)(audio, config)[:, :-1]
    noise = latent_noise(0, config, mel.shape[1])
    z = jnp.broadcast_to(noise, (len(audio), *noise.shape))
    synthesise = jax.jit(lambda params, z: inverse(params, config, z, mel)[0])

    def measure(params: Params) -> dict[str, float]:
        sums = [validate(params, split(batch, 1)) for batch in batches]
        row = {"nats": sum(float(s["nats"]) for s in sums) / sum(float(s["weight"]) for s in sums)}
        made = np.asarray(synthesise(params, z))
        each = [stoi(a, b, data.sampling_rate) for a, b in zip(audio, made, strict=True)]
        return {**row, "stoi": float(np.mean(each))}

    return measure


# ------------------------------------------------------------------------------ conditioning


def condition_all(heldout: Path, work: Path) -> list[dict[str, Any]]:
    """Rows per form, floor and kind of mel: condition numbers, and the errors of float32."""

    def rows(form: str, floor: float) -> list[dict[str, Any]]:
        found = condition(audio, mels, form, floor)
        return [{"form": form, "floor": floor, "mel": kind, **row} for kind, row in found.items()]

    audio, mels = speech_and_mels(heldout)
    return [
        row
        for form in FORMS
        for floor in FLOORS_OF.get(form, FLOORS)
        for row in kept(
            work / "conditioning" / f"{form}_{floor:g}.json".replace(" ", "_"),
            lambda form=form, floor=floor: rows(form, floor),
        )
    ]


def speech_and_mels(heldout: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Half a second of several recordings, with noise, `[B, T]`; their mels by kind `[B, F, M]`."""
    paths = [each.path for each in find_inputs([heldout], AUDIO_SUFFIXES)][:CONDITIONED]
    base = config_of(None, heldout.parent)
    start, length = base.data.sampling_rate, 11008
    clips = [read_audio(path, base.data.sampling_rate)[start : start + length] for path in paths]
    audio = np.stack([clip for clip in clips if len(clip) == length]).astype(np.float64)
    audio += NOISE * np.random.default_rng(0).normal(size=audio.shape)
    with jax.enable_x64(True):
        mel = np.asarray(log_mel(jnp.asarray(audio), base))[:, :-1]
    # Speech cut off above about 1 kHz, and speech 20 dB louder than full scale allows.
    narrow = np.where(np.arange(mel.shape[-1]) < 30, mel, np.log(1e-5))
    return audio, {"speech": mel, "narrow": narrow, "loud": mel + np.log(10)}


def condition(
    audio: np.ndarray, mels: dict[str, np.ndarray], form: str, floor: float
) -> dict[str, dict[str, Any]]:
    """Figures of audio `[B, T]` whitened by each kind of mel `[B, F, M]` in float64 and float32."""
    block, order = FORMS[form]
    config = config_of({"block": block, "floor": floor, "order": order}, Path())
    signals, mel = np.tile(audio, (len(mels), 1)), np.concatenate(list(mels.values()))
    with jax.enable_x64(True):
        powers = np.asarray(power_at_blocks(jnp.asarray(mel), config, signals.shape[1]))
        exact, log_det, _ = whitened(signals, mel, config)
    single = signals.astype(np.float32)
    rounded, log_det32, back = whitened(single, mel.astype(np.float32), config)
    found = {}
    for i, kind in enumerate(mels):
        part = slice(i * len(audio), (i + 1) * len(audio))
        finite = np.isfinite(rounded[part]).reshape(-1, block).all(axis=1)
        plain, emphasised = condition_numbers(powers[part] + floor**2 + 1e-9, order or block)
        off = np.abs(log_det32[part] - log_det[part]) / audio.shape[1]
        found[kind] = {
            "condition_plain": [float(np.median(plain)), float(plain.max())],
            "condition": [float(np.median(emphasised)), float(emphasised.max())],
            "blocks": len(finite),
            "blocks_lost": int(np.sum(~finite)),
            "z_error": relative(rounded[part], exact[part]),
            "round_trip_error": relative(back[part], single[part]),
            "log_det_error": float(off.max()) if np.isfinite(off).all() else None,
        }
    return found


def whitened(
    audio: np.ndarray, mel: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y `[B, T]`, log_det `[B]`, and the reconstructed audio `[B, T]`, in the inputs' dtype."""

    @jax.jit
    def there_and_back(audio: jax.Array, mel: jax.Array) -> tuple[jax.Array, ...]:
        form = whitening_of(config)
        spectrum = form.of_mel(mel, config, audio.shape[1])
        y, log_det = form.forward(spectrum, audio, None)
        return y, log_det.sum(axis=1), form.inverse(spectrum, y, None)[0]

    y, log_det, back = there_and_back(audio, mel)
    return np.asarray(y), np.asarray(log_det), np.asarray(back)


def condition_numbers(power: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Condition numbers of R and of D R D^T for 40 to 80 of the power spectra `[B, blocks, bins]`.

    R is a block's covariance, and D is the matrix of a pre-emphasis with coefficient 0.95.
    """
    spectra = power.reshape(-1, power.shape[-1])
    spectra = spectra[:: max(1, len(spectra) // 40)]
    lag = np.abs(np.arange(size)[:, None] - np.arange(size))
    covariance = np.fft.irfft(spectra)[:, lag]
    emphasis = np.eye(size) - 0.95 * np.eye(size, k=-1)
    both = covariance, emphasis @ covariance @ emphasis.T
    values = [np.linalg.eigvalsh(each) for each in both]
    plain, emphasised = (each[:, -1] / np.maximum(each[:, 0], 1e-300) for each in values)
    return plain, emphasised


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """RMS of the difference over RMS of the exact values, where both are finite."""
    both = np.isfinite(found) & np.isfinite(exact)
    difference = found[both].astype(np.float64) - exact[both]
    return float(np.sqrt(np.mean(difference**2) / np.mean(exact[both].astype(np.float64) ** 2)))


# ------------------------------------------------------------------------------ figures and tables


def draw(path: Path, figure: Any) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def curve_figure(curves: dict[str, list[dict[str, float]]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    likelihood, intelligibility = figure.subplots(1, 2)
    for name, rows in curves.items():
        steps = [row["step"] for row in rows]
        style = {"marker": "o", "markersize": 3, "label": name}
        style |= {"color": "0.5", "linestyle": "--"} if name == "none" else {}
        likelihood.plot(steps, [row["nats"] for row in rows], **style)
        intelligibility.plot(steps, [row["stoi"] for row in rows], **style)
    for axis, title in (
        (likelihood, "Held-out log-likelihood, nats per sample"),
        (intelligibility, "Held-out STOI"),
    ):
        axis.set(title=title, xlabel="training steps")
        axis.set_xscale("symlog", linthresh=25)
        ticks = [row["step"] for row in next(iter(curves.values()))]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    likelihood.legend(title="whitening", fontsize=8)
    return figure


def conditioning_figure(rows: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    number, loss = figure.subplots(1, 2)
    for i, form in enumerate(FORMS):
        of_form = [row for row in rows if row["form"] == form and row["mel"] == "speech"]
        floors = [row["floor"] for row in of_form]
        number.plot(
            floors, [row["condition"][0] for row in of_form], f"C{i}o-", markersize=3, label=form
        )
        number.plot(floors, [row["condition_plain"][0] for row in of_form], f"C{i}:")
        loss.plot(floors, [row["z_error"] for row in of_form], f"C{i}o-", markersize=3)
        lost = [row for row in of_form if row["blocks_lost"]]
        loss.plot([r["floor"] for r in lost], [r["z_error"] for r in lost], f"C{i}x", markersize=10)
    number.plot([], [], "k:", label="without pre-emphasis")
    number.set(title="Median condition number of R, speech", xlabel="floor")
    loss.set(title="float32 against float64: relative error of y", xlabel="floor")
    for axis in (number, loss):
        axis.set(xscale="log", yscale="log")
        axis.axvline(NOISE, color="0.8", zorder=0)
        axis.grid(alpha=0.3)
    number.legend(fontsize=8)
    return figure


def curve_table(curves: dict[str, list[dict[str, float]]]) -> list[str]:
    steps = sorted({row["step"] for rows in curves.values() for row in rows})
    shown = [0, *(step for step in steps if step >= 100)]
    heads = [f"{what}, step {step}" for what in ("nats", "STOI") for step in shown]
    lines = [f"| whitening | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for name, rows in curves.items():
        of_step = {row["step"]: row for row in rows}
        figures = [
            f"{of_step[step][key]:.3f}" if step in of_step else ""
            for key in ("nats", "stoi")
            for step in shown
        ]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def conditioning_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| form | floor | condition number, median / largest | without pre-emphasis | y, float32 | "
        "round trip | log_det, nats per sample | blocks lost: speech, narrow, loud |"
    )
    yield "| --- |" + " --- |" * 7
    for row in rows:
        if row["mel"] != "speech":
            continue
        same = [r for r in rows if (r["form"], r["floor"]) == (row["form"], row["floor"])]
        lost = ", ".join(str(r["blocks_lost"]) for r in same)
        numbers = ["{:.0e} / {:.0e}".format(*row[k]) for k in ("condition", "condition_plain")]
        keys = ("z_error", "round_trip_error", "log_det_error")
        errors = ["-" if row[k] is None else f"{row[k]:.0e}" for k in keys]
        yield f"| {row['form']} | {row['floor']:g} | {' | '.join([*numbers, *errors])} | {lost} |"


if __name__ == "__main__":
    main()
