"""Runs training in a folder: starts or resumes, steps, validates, saves, stops cleanly."""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import jax
import numpy as np

from waveglow_jax.config import Config, config_to_json
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import Params
from waveglow_jax.text import number_of
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.checkpoints import Checkpoints, NotSavedError, Plateau, Progress
from waveglow_jax.training.dataset import (
    Corpus,
    clips_per_epoch,
    scan_corpus,
    training_batches,
    validation_batches,
    why_unreadable,
)
from waveglow_jax.training.feed import Feed, Unreadable
from waveglow_jax.training.fingerprint import check_unchanged, fingerprint
from waveglow_jax.training.folder import claim_folder, no_trace_of_a_failure
from waveglow_jax.training.lock import locked
from waveglow_jax.training.mels import compiled_log_mel
from waveglow_jax.training.parallel import (
    Layout,
    check_batch,
    parallel_train_step,
    parallel_validation_step,
    replicate,
    split,
)
from waveglow_jax.training.processes import (
    check_agreed,
    from_first,
    is_first,
    text_from_first,
    wait_for_all,
)
from waveglow_jax.training.programs import programs_kept
from waveglow_jax.training.samples import (
    recordings_to_synthesise,
    sigmas_to_hear,
    synthesis_program,
)
from waveglow_jax.training.step import TrainState, init_state
from waveglow_jax.training.stopping import Stop, Stopped, signals
from waveglow_jax.training.watching.figures import validation_figures
from waveglow_jax.training.watching.monitor import Monitor, Silence, say
from waveglow_jax.weights.moments import Moments

MAX_BAD_IN_A_ROW = 10
Clip = tuple[str, tuple[np.ndarray, np.ndarray], dict[float, tuple[np.ndarray, np.ndarray]]]
"""Arguments of `Monitor.clip`: name, (audio, mel), and the (audio, mel) of each sigma."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the number of steps done, and the signal that stopped it, if any."""

    step: int
    stopped_by: Signals | None = None


def train(
    config: Config,
    data: str,
    run: Path,
    params: Params | None = None,
    moments: Moments | None = None,
    mels: str | None = None,
    allow_changed_data: bool = False,
) -> Outcome:
    """Trains to the config's end or until a signal; resumes a run that the folder holds.

    `params` are the initial weights, if not random ones, and `moments` Adam's; a resumed run
    keeps its own. `mels` is a folder of mels to train on instead of the recordings' own. Every
    process of a run calls this with the same arguments; only the first reads and writes the folder.
    When Ctrl-C or SIGTERM stops the run, everything is saved, but a thread may still be working
    (`stopping.still_working`). Raises UserError for unusable or changed data, a folder with the run
    of another config, a folder that another process trains into, a full disk
    (`train_config.on_save_failure`), or ten non-finite losses in a row.
    """
    layout = Layout.of_all_processes()
    check_batch(config, len(layout.devices))
    with (
        signals() as stop,
        locked(run) if is_first() else nullcontext(),
        no_trace_of_a_failure(run) if is_first() else nullcontext(),
    ):
        if is_first():
            claim_folder(run, config)
        try:
            scan = partial(scan_corpus, data, config, mels)
            corpus = stop.during("the look for recordings", scan)
            first_state = partial(init_state, config, params, moments)
            with programs_kept(run):
                return _run(config, run, corpus, first_state, allow_changed_data, layout, stop)
        except Stopped:
            assert stop.by is not None
            say(f"stopped by {stop.by.name} before a first step; the same command starts it again")
            return Outcome(0, stop.signal)


def _run(
    config: Config,
    run: Path,
    corpus: Corpus,
    first_state: Callable[[], TrainState],
    allow_changed_data: bool,
    layout: Layout,
    stop: Stop,
) -> Outcome:
    check_agreed("the config", config_to_json(config))
    found = fingerprint(corpus, config)
    check_agreed("the list of recordings", json.dumps(found))
    total_steps = _total_steps(config, corpus)
    with Checkpoints(run, config) if is_first() else nullcontext() as checkpoints:
        state, progress, told = stop.during(
            "the restoring", partial(_start, first_state, checkpoints, found, allow_changed_data)
        )
        with _monitor(run, config, int(state.step), total_steps) as monitor:
            for line in told:
                monitor.say(line)
            _introduce(monitor, corpus, config, layout, state, total_steps)
            step = int(state.step)
            if not _is_complete(step, total_steps, progress.plateau, corpus, config):
                state = replicate(state, layout.local)
                session = _Session(
                    config, corpus, checkpoints, monitor, state, progress, layout, stop
                )
                session.go(total_steps)
                step = session.step
            if step < total_steps or stop:
                by = stop.by.name if stop.by else "a signal to another process"
                saved = ", saved" if step else ", before the first was done"
                monitor.say(
                    f"stopped by {by} at step {step}{saved}; the same command goes on from here"
                )
                outcome = Outcome(step, stop.signal)
            else:
                monitor.say(f"done: {number_of(total_steps, 'step')}, in {run}")
                outcome = Outcome(step)
        wait_for_all("end of the run")  # none shuts down while another still saves
    return outcome


def _is_complete(
    step: int, total_steps: int, plateau: Plateau, corpus: Corpus, config: Config
) -> bool:
    """Whether nothing is left to do: a run stopped in its last validation must repeat that."""
    validated = (
        not corpus.validation
        or plateau.validated_at == step
        or step % config.train.iters_per_validation
    )
    return step >= total_steps and bool(validated)


def _start(
    first_state: Callable[[], TrainState],
    checkpoints: Checkpoints | None,
    found: dict[str, Any],
    allow_changed_data: bool,
) -> tuple[TrainState, Progress, list[str]]:
    """The first process's initial state (NumPy) and progress, and lines to report about them."""
    progress, told = Progress(Plateau(), 0, found), []
    if checkpoints is None:  # the first process sends the values
        shapes = jax.eval_shape(first_state)
        state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    else:
        told = list(checkpoints.told)
        if (latest := checkpoints.latest_step) is None:
            state = jax.tree.map(np.asarray, first_state())
        else:
            state, progress = checkpoints.restore(latest)
            if progress.data is None:
                told.append(
                    f"step {latest}: holds no names of recordings; those here are not checked"
                )
            elif not allow_changed_data:
                check_unchanged(progress.data, found)
    shared = {**progress.to_json(), "data": None}
    shared = json.loads(text_from_first(json.dumps(shared)))
    progress = Progress.from_json({**shared, "data": found}, shared["position"])
    return from_first(state), progress, told


class _Session:
    """One process's part of a run: its state, and the work on it between steps."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        checkpoints: Checkpoints | None,
        monitor: Monitor | Silence,
        state: TrainState,
        progress: Progress,
        layout: Layout,
        stop: Stop,
    ):
        self.config, self.corpus, self.layout, self.stop = config, corpus, layout, stop
        self.checkpoints, self.monitor = checkpoints, monitor
        self.state, self.plateau = state, progress.plateau
        self.position, self.data = progress.position, progress.data
        self.step = self.saved_step = int(state.step)
        self.rows = layout.rows(config.train.batch_size)
        self.validate_step = parallel_validation_step(config, layout.devices)
        self.validation: list[Batch] = []
        self.figures_lost = False
        self.listened: list[tuple[str, np.ndarray, np.ndarray]] = []
        if corpus.validation:
            batch = config.train.batch_size
            self.validation = validation_batches(corpus.validation, config, batch, self.rows)
            self.listened = recordings_to_synthesise(corpus, config) if is_first() else []
        self.unreadable = Unreadable(lambda n: why_unreadable(corpus.training[n], config), say)

    def go(self, total_steps: int) -> None:
        """Trains, and saves the state when the run ends or is stopped."""
        pending: list[Any] = []
        batches = training_batches(self.corpus.training, self.config, self.position, self.rows)
        with Feed(batches) as feed, suppress(Stopped):
            self._train(total_steps, feed, pending)
        self._report(pending)
        if self.step < total_steps or self.stop:
            self._save(None, must=True)

    def _train(self, total_steps: int, feed: Feed, pending: list[Any]) -> None:
        train = self.config.train
        train_step = parallel_train_step(self.config, total_steps, self.layout.devices)
        compiled = False
        if self.step and self._due(train.iters_per_validation):
            self._validate()
        while self.step < total_steps and not self._stopping():
            waiting = time.monotonic()
            batch = self._share(feed.next(self.stop, self._patience()))
            data_wait = time.monotonic() - waiting
            if compiled:
                self.state, metrics = train_step(self.state, batch)
            else:
                self.state, metrics = self.stop.during(
                    "the first step", partial(train_step, self.state, batch)
                )
                compiled = True
            self.step += 1
            self.position += train.batch_size
            # The metrics of a step are read while the next one runs, so that no device waits.
            self._report(pending)
            pending[:] = [self.step, metrics, data_wait]
            last = self.step == total_steps
            validate = last or self._due(train.iters_per_validation)
            save = last or self._due(train.iters_per_checkpoint)
            if validate or save:
                self._report(pending)
                began = time.monotonic()
                validation_loss = self._validate()
                if save:
                    self._save(validation_loss, must=last)
                self.monitor.pause(time.monotonic() - began)

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _stopping(self) -> bool:
        return self.stop.agreed if self.layout.n_processes > 1 else bool(self.stop)

    def _patience(self) -> float:
        """Seconds to wait for a batch after a signal: none for a single process; several
        processes wait, so that all of them end after the same step."""
        return 10.0 if self.layout.n_processes > 1 else 0.0

    def _share(self, batch: Batch) -> Batch:
        """This process's rows split over its devices, with its notes to the other processes."""
        n = len(self.layout.local)
        mine = np.arange(n) == 0
        notes = {
            "stop": mine * np.float32(bool(self.stop)),
            "unreadable": mine * np.float32(self.unreadable.look(batch.unreadable)),
        }
        return split(batch._replace(unreadable=None), n)._replace(notes=notes)

    def _report(self, pending: list[Any]) -> None:
        if not pending:
            return
        step, metrics, data_wait = pending
        pending.clear()
        figures = {name: float(value) for name, value in metrics.items()}
        self.stop.agreed |= figures.pop("stop") > 0
        bad_in_a_row = figures.pop("bad_in_a_row")
        self._tell(self.monitor.step, step, {**figures, "data_wait": round(data_wait, 6)})
        if bad_in_a_row >= MAX_BAD_IN_A_ROW:
            raise UserError(
                f"step {step}: {MAX_BAD_IN_A_ROW} losses or gradients in a row were not finite; "
                "stopped, the last checkpoint is intact: lower train.learning_rate or set "
                "train.gradient_clip and run again"
            )

    def _save(self, validation_loss: float | None, must: bool) -> None:
        if self.checkpoints is None or self.saved_step == self.step:
            return
        progress = Progress(self.plateau, self.position, self.data)
        try:
            self.checkpoints.save(self.state, progress, validation_loss)
            self.saved_step = self.step
        except NotSavedError as error:
            if must or self.config.train.on_save_failure == "stop":
                raise NotSavedError(
                    f"{error} and run the same command again, it goes on from the last checkpoint"
                ) from error
            self.monitor.say(f"{error}; training goes on, as train.on_save_failure says")

    def _tell(self, tell: Callable[..., None], *figures: Any) -> None:
        try:
            tell(*figures)
        except OSError as error:
            why = f"step {self.step}: its figures cannot be written ({error.strerror})"
            if self.config.train.on_save_failure == "stop":
                raise NotSavedError(
                    f"{why}; free some space and run the same command again, it goes on from the "
                    "last checkpoint"
                ) from error
            if not self.figures_lost:
                self.figures_lost = True
                self.monitor.say(f"{why}; training goes on, as train.on_save_failure says")
                self.monitor.without_boards()

    def _validate(self) -> float | None:
        """The validation loss, reported once per step; lowers the learning rate on a plateau."""
        if not self.validation or self.plateau.validated_at == self.step:
            return self.plateau.best if self.plateau.since_best == 0 else None
        figures, clips = self.stop.during(f"validation at step {self.step}", self._hold_out)
        loss = figures["validation_loss"]
        self._tell(self.monitor.validation, self.step, figures)
        for clip in clips:
            self._tell(self.monitor.clip, self.step, *clip)
        self._update_plateau(loss)
        return loss

    def _hold_out(self) -> tuple[dict[str, Any], list[Clip]]:
        """The figures of the held-out clips, and a synthesis of some of them."""
        params = self.state.voice
        n = len(self.layout.local)
        sums = [self.validate_step(params, split(batch, n)) for batch in self.validation]
        return validation_figures(sums, params, self.config), self._synthesise(params)

    def _update_plateau(self, loss: float) -> None:
        train, plateau = self.config.train, self.plateau
        better = plateau.best is None or loss < plateau.best
        since_best = 0 if better else plateau.since_best + 1
        self.plateau = Plateau(loss if better else plateau.best, since_best, self.step)
        dropped = float(self.state.learning_rate_scale) < 1
        if train.plateau_patience and since_best >= train.plateau_patience and not dropped:
            scale = train.plateau_learning_rate / train.learning_rate
            scale_of_devices = replicate(np.float32(scale), self.layout.local)
            self.state = replace(self.state, learning_rate_scale=scale_of_devices)
            self.monitor.say(
                f"step {self.step}  no better validation loss for {since_best} times: "
                f"learning rate from {train.learning_rate:g} to {train.plateau_learning_rate:g}"
            )

    def _synthesise(self, params: Params) -> list[Clip]:
        """Syntheses of held-out clips, on one device; equal lengths make it compile only once."""
        sigmas = sigmas_to_hear(self.config)
        params = jax.device_put(params, self.layout.local[0])
        clips = []
        for name, audio, mel in self.listened:
            made = np.asarray(
                synthesis_program(params, mel, np.asarray(sigmas, np.float32), self.config)
            )
            mels = np.asarray(compiled_log_mel(made, self.config))
            syntheses = dict(zip(sigmas, zip(made, mels, strict=True), strict=True))
            clips.append((name, (audio, mel), syntheses))
        return clips


def _total_steps(config: Config, corpus: Corpus) -> int:
    train = config.train
    if not train.epochs:
        return train.steps
    a_epoch = -(-clips_per_epoch(corpus.training, config) // train.batch_size)
    return min(train.steps, train.epochs * a_epoch)


def _monitor(run: Path, config: Config, step: int, total_steps: int) -> Monitor | Silence:
    if not is_first():
        return Silence()
    try:
        return Monitor(run, config, step, total_steps)
    except OSError as error:
        raise UserError(f"{run}: cannot be written ({error.strerror}); choose another") from error


def _introduce(
    monitor: Monitor | Silence,
    corpus: Corpus,
    config: Config,
    layout: Layout,
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
        f"{number_of(len(corpus.training), 'recording')} ({hours:.2f} h) to train on, "
        f"{len(corpus.validation)} ({held_out:.2f} h) held out, {len(corpus.left_out)} left out"
    )
    for line in corpus.left_out:
        monitor.say(f"left out: {line}")
    for line in corpus.doubts:
        monitor.say(f"warning: {line}")
    devices = len(layout.devices)
    hosts = f" in {layout.n_processes} processes" if layout.n_processes > 1 else ""
    monitor.say(
        f"{millions:.2f} million parameters, {devices} {jax.devices()[0].platform} device"
        f"{'s' * (devices > 1)}{hosts}, batch {config.train.batch_size} x "
        f"{config.data.segment_length} samples, steps {int(state.step)} to {total_steps}"
        f"{'; compiling' * (int(state.step) < total_steps)}"
    )
