"""Ctrl-C and SIGTERM: noticed at once, acted on where no work is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from waveglow_jax.training.processes import all_stopped

T = TypeVar("T")
LOOK_SECONDS = 0.05
_WORKING = "working: "


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal came during work that can be abandoned."""


class Stop:
    """Whether a signal has come; a second one kills the process.

    In a run of many processes, one that gets the signal reports it in its next step, and all stop
    after that step (`agreed`). Long work is abandoned at once if all of them got the signal.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.agreed: bool = False

    def __bool__(self) -> bool:
        return self.by is not None

    @property
    def signal(self) -> signal.Signals:
        """The signal that came; SIGTERM if only another process received one."""
        return self.by or signal.SIGTERM

    def during(self, what: str, work: Callable[[], T]) -> T:
        """Runs the work in a thread; returns its result or raises its error.

        Raises Stopped if the signal comes first. The work, which must have no side effects, then
        continues in its thread until the process ends.
        """
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome[:] = [work(), None]
            except BaseException as error:  # raised by the thread that waits
                outcome[:] = [None, error]

        # Not in this thread: Python handles a signal only after compiled code has returned.
        thread = threading.Thread(target=run, name=_WORKING + what, daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if self and thread.is_alive() and not asked:
                asked = True
                if all_stopped(what):
                    raise Stopped
        result, error = outcome
        if error is not None:
            raise error
        return result


def still_working() -> bool:
    """Whether a thread still runs abandoned work. The process must then end without waiting for
    it (`os._exit`), because a compilation cannot be interrupted."""
    return any(thread.name.startswith(_WORKING) for thread in threading.enumerate())


@contextmanager
def signals() -> Iterator[Stop]:
    """Catches Ctrl-C and SIGTERM while the block runs."""
    stop = Stop()

    def receive(number: int, _frame: Any) -> None:
        stop.by = signal.Signals(number)
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(wakes)

    # Other code that a signal wakes up (`interrupts`) would not wait for the end of a step.
    wakes = signal.set_wakeup_fd(-1)
    before: dict[int, Callable[..., Any] | int | None] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, receive)
        yield stop
    finally:
        restore()
