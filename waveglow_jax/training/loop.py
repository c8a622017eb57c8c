"""A training run from its folder: start or resume, step, validate, save, stop cleanly."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.files import read_audio, write_text
from waveglow_jax.audio.mel import log_mel
from waveglow_jax.config import Config, config_to_dict, config_to_json, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import Params, inverse, latent_noise
from waveglow_jax.training.checkpoints import Checkpoints, Plateau
from waveglow_jax.training.dataset import (
    Corpus,
    clips_per_epoch,
    scan_corpus,
    training_batches,
    validation_batches,
)
from waveglow_jax.training.figures import validation_figures
from waveglow_jax.training.mels import mel_frames
from waveglow_jax.training.monitor import Monitor
from waveglow_jax.training.parallel import (
    check_batch,
    parallel_train_step,
    parallel_validation_step,
    replicate,
    split,
)
from waveglow_jax.training.step import TrainState, init_state
from waveglow_jax.weights.nvidia import Moments

MAX_BAD_IN_A_ROW = 10
SYNTHESIS_SECONDS = 5.0


def train(
    config: Config,
    data: str,
    run: Path,
    params: Params | None = None,
    moments: Moments | None = None,
    mels: str | None = None,
) -> int:
    """Trains until the config's end or a signal, resuming what the folder holds.

    `params` are the weights to start from, if not random ones, and `moments` Adam's; a run that is
    already under way keeps its own. `mels` is a folder of mels to train on instead of the
    recordings' own. Returns 0 when the run is complete, 128 + the signal's number when Ctrl-C or
    SIGTERM stopped it, everything saved. Raises UserError for unusable data, another config's run,
    a full disk, or ten non-finite losses in a row.
    """
    devices = jax.devices()
    check_batch(config, len(devices))
    _claim_folder(run, config)
    corpus = scan_corpus(data, config, mels)
    total_steps = _total_steps(config, corpus)
    with Checkpoints(run, config) as checkpoints, _signals() as stopped_by:
        state, plateau = init_state(config, params, moments), Plateau()
        if (latest := checkpoints.latest_step) is not None:
            state, plateau = checkpoints.restore(latest)
        with Monitor(run, config, int(state.step), total_steps) as monitor:
            _introduce(monitor, corpus, config, len(devices), state, total_steps)
            session = _Session(
                config, corpus, checkpoints, monitor, replicate(state, devices), plateau, devices
            )
            session.go(total_steps, stopped_by)
            if stopped_by:
                monitor.say(
                    f"stopped by {stopped_by[0].name} at step {session.step}, saved; "
                    "the same command goes on from here"
                )
                return 128 + stopped_by[0].value
            monitor.say(f"done: {total_steps} steps, in {run}")
    return 0


class _Session:
    """One process's part of a run: the state and what is done to it between steps."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        checkpoints: Checkpoints,
        monitor: Monitor,
        state: TrainState,
        plateau: Plateau,
        devices: list[jax.Device],
    ):
        self.config, self.corpus, self.devices = config, corpus, devices
        self.checkpoints, self.monitor = checkpoints, monitor
        self.state, self.plateau = state, plateau
        self.step = int(state.step)
        self.validate_step = parallel_validation_step(config, devices)
        self.validation: list[dict[str, np.ndarray]] = []
        if corpus.validation:
            batch = config.train.batch_size
            self.validation = validation_batches(corpus.validation, config, batch)

    def go(self, total_steps: int, stopped_by: list[signal.Signals]) -> None:
        train = self.config.train
        train_step = parallel_train_step(self.config, total_steps, self.devices)
        batches = training_batches(self.corpus.training, self.config, first_step=self.step)
        pending = None
        if self.step and self._due(train.iters_per_validation) and not stopped_by:
            self._validate()
        while self.step < total_steps and not stopped_by:
            waiting = time.monotonic()
            batch = split(next(batches), len(self.devices))
            data_wait = time.monotonic() - waiting
            self.state, metrics = train_step(self.state, batch)
            self.step += 1
            # The figures of a step are read when the next one is under way: no device waits.
            self._report(pending)
            pending = (self.step, metrics, data_wait)
            last = self.step == total_steps
            validate = last or self._due(train.iters_per_validation)
            save = last or self._due(train.iters_per_checkpoint)
            if validate or save:
                self._report(pending)
                pending = None
                began = time.monotonic()
                validation_loss = self._validate()
                if save:
                    self.checkpoints.save(self.state, self.plateau, validation_loss)
                self.monitor.pause(time.monotonic() - began)
        self._report(pending)
        if stopped_by:
            self.checkpoints.save(self.state, self.plateau, None)

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _report(self, pending: tuple[int, dict[str, jax.Array], float] | None) -> None:
        if pending is None:
            return
        step, metrics, data_wait = pending
        figures = {name: float(value) for name, value in metrics.items()}
        bad_in_a_row = figures.pop("bad_in_a_row")
        self.monitor.step(step, {**figures, "data_wait": round(data_wait, 6)})
        if bad_in_a_row >= MAX_BAD_IN_A_ROW:
            raise UserError(
                f"step {step}: {MAX_BAD_IN_A_ROW} losses or gradients in a row were not finite; "
                "stopped, the last checkpoint is intact: lower train.learning_rate or set "
                "train.gradient_clip and run again"
            )

    def _validate(self) -> float | None:
        """The held-out loss, told once a step; drops the learning rate on a plateau."""
        if not self.validation or self.plateau.validated_at == self.step:
            return self.plateau.best if self.plateau.since_best == 0 else None
        params = self.state.voice
        sums = [
            self.validate_step(params, split(batch, len(self.devices))) for batch in self.validation
        ]
        figures = validation_figures(sums, params, self.config)
        loss = figures["validation_loss"]
        self.monitor.validation(self.step, figures)
        self._synthesise(params)
        self._update_plateau(loss)
        return loss

    def _update_plateau(self, loss: float) -> None:
        train, plateau = self.config.train, self.plateau
        better = plateau.best is None or loss < plateau.best
        since_best = 0 if better else plateau.since_best + 1
        self.plateau = Plateau(loss if better else plateau.best, since_best, self.step)
        dropped = float(self.state.learning_rate_scale) < 1
        if train.plateau_patience and since_best >= train.plateau_patience and not dropped:
            scale = train.plateau_learning_rate / train.learning_rate
            self.state = self.state.replace(
                learning_rate_scale=replicate(jnp.asarray(scale, jnp.float32), self.devices)
            )
            self.monitor.say(
                f"step {self.step}  no better validation loss for {since_best} times: "
                f"learning rate from {train.learning_rate:g} to {train.plateau_learning_rate:g}"
            )

    def _synthesise(self, params: Params) -> None:
        """Held-out clips to TensorBoard, on one device, all of the same length: compiled once."""
        data, sigmas = self.config.data, self.config.train.synthesis_sigmas
        if not sigmas:
            return
        params = jax.device_put(params, self.devices[0])
        longest = int(SYNTHESIS_SECONDS * data.sampling_rate)
        for recording in self.corpus.validation[: self.config.train.synthesis_clips]:
            audio = read_audio(recording.path, data.sampling_rate)[:longest]
            audio = np.pad(audio, (0, longest - len(audio)))
            mel = _mel(audio, self.config)
            if recording.mel:
                n = recording.n_samples
                mel = mel_frames(recording.mel, n, 0, len(mel), self.config)
            made = np.asarray(_synthesis(params, mel, np.asarray(sigmas, np.float32), self.config))
            mels = np.asarray(_mel(made, self.config))
            syntheses = dict(zip(sigmas, zip(made, mels, strict=True), strict=True))
            original = (audio, np.asarray(mel))
            self.monitor.clip(self.step, recording.path.stem, original, syntheses)


@jax.jit(static_argnums=1)
def _mel(audio: jax.Array, config: Config) -> jax.Array:
    return log_mel(audio, config)


@jax.jit(static_argnums=3)
def _synthesis(params: Params, mel: jax.Array, sigmas: jax.Array, config: Config) -> jax.Array:
    """The same noise at every sigma: `[F, M]`, `[S]` -> `[S, F * hop]`."""
    z = sigmas[:, None, None] * latent_noise(0, config, mel.shape[0])[None]
    return inverse(params, config, z, jnp.broadcast_to(mel, (len(sigmas), *mel.shape)))[0]


def _claim_folder(run: Path, config: Config) -> None:
    """Makes the run's folder, or checks that it holds a run of this config."""
    path = run / "config.json"
    if path.exists():
        before = config_to_dict(load_config(path))
        now = config_to_dict(config)
        for section in ("waveglow_config", "data_config"):
            for field, value in now[section].items():
                if before[section][field] != value:
                    raise UserError(
                        f"{run}: holds a run with {section}.{field} {before[section][field]}, "
                        f"not {value}; choose another --output or the same config"
                    )
    write_text(path, config_to_json(config))


def _total_steps(config: Config, corpus: Corpus) -> int:
    train = config.train
    if not train.epochs:
        return train.steps
    a_epoch = -(-clips_per_epoch(corpus.training, config) // train.batch_size)
    return min(train.steps, train.epochs * a_epoch)


def _introduce(
    monitor: Monitor,
    corpus: Corpus,
    config: Config,
    n_devices: int,
    state: TrainState,
    total_steps: int,
) -> None:
    rate = config.data.sampling_rate
    hours, held_out = (
        sum(r.n_samples for r in recordings) / rate / 3600
        for recordings in (corpus.training, corpus.validation)
    )
    millions = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
    monitor.say(
        f"{len(corpus.training)} recordings ({hours:.2f} h) to train on, "
        f"{len(corpus.validation)} ({held_out:.2f} h) held out, {len(corpus.left_out)} left out"
    )
    for line in corpus.left_out:
        monitor.say(f"left out: {line}")
    for line in corpus.doubts:
        monitor.say(f"warning: {line}")
    monitor.say(
        f"{millions:.2f} million parameters, {n_devices} {jax.devices()[0].platform} device"
        f"{'s' * (n_devices > 1)}, batch {config.train.batch_size} x {config.data.segment_length} "
        f"samples, steps {int(state.step)} to {total_steps}; compiling"
    )


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects Ctrl-C and SIGTERM, so that a step is finished and saved; a second one kills."""
    received: list[signal.Signals] = []

    def receive(number: int, _frame: Any) -> None:
        received.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler)

    before: dict[int, Callable[..., Any] | int | None] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
