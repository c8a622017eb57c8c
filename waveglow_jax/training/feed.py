"""Prepares batches while the previous step runs, and reports what goes wrong with them."""

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from waveglow_jax.errors import UserError
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.stopping import LOOK_SECONDS, Stop, Stopped

DEPTH = 2


class Feed:
    """Takes batches from an iterator in a separate thread; use it as a context manager.

    `next` raises the errors of the iterator, and an error if one of its reader processes died.
    """

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches
        self._ready: queue.Queue[tuple[Any, Exception | None]]
        self._ready = queue.Queue(DEPTH)
        self._closed = threading.Event()
        self._others = set(multiprocessing.active_children())
        self._workers: set[Any] = set()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for worker in self._look_for_workers():
            worker.kill()

    def next(self, stop: Stop, patience: float) -> Batch:
        """The next batch. Raises Stopped if there is none `patience` seconds after a signal, and
        UserError if there will be none."""
        deadline = None
        while True:
            try:
                batch, error = self._ready.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._check_workers()
                if stop:
                    deadline = deadline or time.monotonic() + patience
                    if time.monotonic() >= deadline:
                        raise Stopped from None
                continue
            if isinstance(error, UserError):
                raise error
            if error is not None:
                raise UserError(_AFTER_LOSS.format(why=error)) from error
            return batch

    def _fill(self) -> None:
        while not self._closed.is_set():
            ready: tuple[Any, Exception | None]
            try:
                ready = next(self._batches), None
            except Exception as error:  # raised by the thread that waits for batches
                ready = None, error
            self._put(ready)

    def _put(self, ready: tuple[Any, Exception | None]) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(ready, timeout=LOOK_SECONDS)
            except queue.Full:
                pass

    def _look_for_workers(self) -> set[Any]:
        self._workers |= set(multiprocessing.active_children()) - self._others
        return self._workers

    def _check_workers(self) -> None:
        dead = [w for w in self._look_for_workers() if w.exitcode not in (None, 0)]
        if dead:
            raise UserError(_AFTER_LOSS.format(why=f"exit code {dead[0].exitcode}"))


_AFTER_LOSS = (
    "a process that reads recordings was lost ({why}); the last checkpoint is intact: run the same "
    "command again, with a lower train.num_workers if memory was short"
)


class Unreadable:
    """Reports each recording that could not be read, once."""

    def __init__(self, name: Callable[[int], str], say: Callable[[str], None]):
        self._name, self._say = name, say
        self._told: set[int] = set()

    def look(self, recordings: np.ndarray) -> int:
        """The number of replaced clips in a batch, from the batch's `unreadable` array `[R]`."""
        found = recordings[recordings >= 0]
        for number in sorted(set(found.tolist()) - self._told):
            self._told.add(number)
            self._say(f"skipped: {self._name(number)}")
        return len(found)
