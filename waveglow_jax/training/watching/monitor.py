"""Records a run in progress: metrics.jsonl, TensorBoard, and lines or a bar on the terminal."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from waveglow_jax.audio.picture import figure_pixels, mel_figure
from waveglow_jax.config import Config
from waveglow_jax.files.atomic import write_text
from waveglow_jax.text import finite_json
from waveglow_jax.training.watching.figures import peak_memory
from waveglow_jax.training.watching.weights_and_biases import WeightsAndBiases

TENSORBOARD_EVERY = 10
LINE_EVERY_SECONDS = 30.0
RATE_OVER_STEPS = 100

Figures = dict[str, Any]
"""Each value is a number, a list of numbers (per flow or output group), or a dictionary."""


class Monitor:
    """Writes the figures of a run from `first_step` on; deletes those of later steps first.

    A run killed after its last checkpoint has recorded steps that will now be repeated.
    """

    def __init__(self, run: Path, config: Config, first_step: int, total_steps: int):
        from tensorboardX import SummaryWriter

        self._config = config
        self._total = total_steps
        path = run / "metrics.jsonl"
        _forget_after(path, first_step)
        self._metrics = path.open("a", encoding="utf-8")
        self._boards: list[Any] = [
            SummaryWriter(
                str(run / "tensorboard"),
                purge_step=first_step + 1 if first_step else None,
                # Its thread ends when the disk is full; a full queue would then block forever.
                max_queue=2**20,
            )
        ]
        if config.train.wandb_project:
            self._boards.append(WeightsAndBiases(run, config))
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", desc="train")
        self._last_line = time.monotonic()
        self._paused = 0.0
        self._marks: deque[tuple[int, float]] = deque(maxlen=RATE_OVER_STEPS + 1)
        self._heard: set[str] = set()
        self._record(first_step, {"session": _session(total_steps)})

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._metrics, *self._boards):
            with suppress(OSError):  # a full disk was reported when it occurred
                each.close()
        if self._bar is not None:
            self._bar.close()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Records one training step; the first call of a session starts its clock."""
        self._marks.append((step, time.monotonic() - self._paused))
        (first, began), (_, now) = self._marks[0], self._marks[-1]
        rate = (step - first) / (now - began) if now > began else 0.0
        samples = rate * self._config.train.batch_size * self._config.clip_samples
        figures = dict(metrics)
        if rate:
            figures["samples_per_second"] = round(samples)
        if step % TENSORBOARD_EVERY == 0:
            figures["peak_memory"] = peak_memory()
            self._scalars("train", figures, step)
        self._record(step, figures)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {samples:,.0f} samples/s")
            self._bar.update(step - self._bar.n)
        elif step == self._total or time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            left = (self._total - step) / rate if rate else math.nan
            self.say(
                f"step {step}/{self._total}  loss {metrics['loss']:.4f}  {rate:.2f} steps/s  "
                f"{samples:,.0f} samples/s  {_clock(left)} left"
            )

    def pause(self, seconds: float) -> None:
        """Excludes time that was not training from the rates."""
        self._paused += seconds

    def validation(self, step: int, figures: Figures) -> None:
        """Records what `validation_figures` measured on the held-out clips."""
        self._record(step, figures)
        self._scalars("validation", figures, step)
        self.say(
            f"step {step}  validation loss {figures['validation_loss']:.4f}  "
            f"{figures['nats_per_sample']:.4f} nats per sample"
        )

    def clip(
        self,
        step: int,
        name: str,
        original: tuple[np.ndarray, np.ndarray],
        syntheses: Mapping[float, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Records a held-out clip.

        original: its audio `[T]` and the mel `[F, M]` to synthesise. syntheses: for each sigma, the
        audio synthesised from that mel, and its mel.
        """
        rate = self._config.data.sampling_rate
        clips = {f"sigma {sigma:g}": made for sigma, made in syntheses.items()}
        figure = mel_figure(
            [("given", original[1]), *((title, mel) for title, (_, mel) in clips.items())],
            self._config.data,
        )
        if name not in self._heard:
            self._heard.add(name)
            clips["original"] = original
        pixels = figure_pixels(figure)
        for board in self._boards:
            for title, (audio, _) in clips.items():
                board.add_audio(f"synthesis/{name}, {title}", audio.clip(-1, 1), step, rate)
            board.add_image(f"mel/{name}", pixels, step, dataformats="HWC")

    def say(self, line: str) -> None:
        say(line)

    def _scalars(self, group: str, figures: Figures, step: int) -> None:
        named: dict[str, Any] = {}
        for name, value in figures.items():
            if isinstance(value, list):  # one per flow or output: a separate group
                named |= {f"{name}/{i:02}": each for i, each in enumerate(value)}
            else:
                named[f"{group}/{name}"] = value
        for board in self._boards:
            for tag, value in named.items():
                board.add_scalar(tag, value, step)

    def _record(self, step: int, figures: Figures) -> None:
        self._metrics.write(json.dumps({"step": step, **finite_json(figures)}) + "\n")
        self._metrics.flush()

    def without_boards(self) -> None:
        """Stops writing to TensorBoard and Weights & Biases, after a failed write to disk."""
        self._boards = []


class Silence:
    """The monitor of a process that is not the first of its run: it records nothing."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_keywords: None


def say(line: str) -> None:
    """Prints a line to the terminal, above the bar if there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def _session(total_steps: int) -> dict[str, Any]:
    """The start time, last step and devices of this session, for later readers."""
    devices = jax.devices()
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "total_steps": total_steps,
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "processes": jax.process_count(),
    }


def _forget_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
