"""What a run tells while it goes: metrics.jsonl, TensorBoard, and a line or bar on the terminal."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from waveglow_jax.audio.files import write_text
from waveglow_jax.audio.picture import figure_pixels, mel_figure
from waveglow_jax.config import Config

TENSORBOARD_EVERY = 10
LINE_EVERY_SECONDS = 30.0


class Monitor:
    """Writes the figures of a run from `first_step` on; what was written beyond it goes.

    A run killed after its last checkpoint has told of steps that are about to be done again.
    """

    def __init__(self, run: Path, config: Config, first_step: int, total_steps: int):
        from tensorboardX import SummaryWriter

        self._config = config
        self._total = total_steps
        self._first_step = first_step
        path = run / "metrics.jsonl"
        _forget_after(path, first_step)
        self._metrics = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", desc="train")
        self._start = self._last_line = time.monotonic()
        self._paused = 0.0

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """One training step's figures; the first call of a session starts its clock."""
        if step == self._first_step + 1:
            self._start, self._paused = time.monotonic(), 0.0
        self._record(step, metrics)
        if step % TENSORBOARD_EVERY == 0:
            for name, value in metrics.items():
                self._board.add_scalar(f"train/{name}", value, step)
        elapsed = time.monotonic() - self._start - self._paused
        rate = (step - self._first_step - 1) / elapsed if elapsed > 0 else 0.0
        data, train = self._config.data, self._config.train
        samples = rate * train.batch_size * data.segment_length
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
        """Time that was not training, left out of the rates."""
        self._paused += seconds

    def validation(self, step: int, loss: float, nats_per_sample: float) -> None:
        """The loss on held-out clips, and their log-likelihood with all constants."""
        figures = {"validation_loss": loss, "nats_per_sample": nats_per_sample}
        self._record(step, figures)
        for name, value in figures.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        self.say(f"step {step}  validation loss {loss:.4f}  {nats_per_sample:.4f} nats per sample")

    def clip(
        self, step: int, name: str, audio: np.ndarray, mel: np.ndarray, mel_of_original: np.ndarray
    ) -> None:
        """A synthesised held-out clip and both mels `[F, M]`."""
        rate = self._config.data.sampling_rate
        self._board.add_audio(f"synthesis/{name}", audio.clip(-1, 1), step, sample_rate=rate)
        figure = mel_figure([("original", mel_of_original), ("synthesis", mel)], self._config.data)
        self._board.add_image(f"mel/{name}", figure_pixels(figure), step, dataformats="HWC")

    def say(self, line: str) -> None:
        """A line for the person watching, above the bar if there is one."""
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()

    def _record(self, step: int, figures: dict[str, float]) -> None:
        # JSON knows no NaN: null tells that a value was not finite.
        finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        self._metrics.flush()


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
