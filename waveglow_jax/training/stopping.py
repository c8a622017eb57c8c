"""Ctrl-C and SIGTERM: noticed at once, obeyed where nothing is lost."""

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
    """The signal came while something was waited for that can be left undone."""


class Stop:
    """Whether a signal has come; a second one kills.

    In a run of many processes one that has got it says so in its next step, and all stop after
    that step (`agreed`). Work that takes long is left at once if all of them have got it.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.agreed: bool = False

    def __bool__(self) -> bool:
        return self.by is not None

    @property
    def signal(self) -> signal.Signals:
        """The signal that came; SIGTERM where only another process knows which it was."""
        return self.by or signal.SIGTERM

    def during(self, what: str, work: Callable[[], T]) -> T:
        """The work's result, its errors too. Raises Stopped if the signal comes first: the work,
        which must change nothing by itself, is then left to end with the process."""
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome[:] = [work(), None]
            except BaseException as error:  # told by the thread that waits
                outcome[:] = [None, error]

        # Not in this thread: Python sees a signal only when compiled code has returned.
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
    """Whether work was left undone in a thread: then the process must end without waiting for it
    (`os._exit`), for a compilation cannot be told to stop."""
    return any(thread.name.startswith(_WORKING) for thread in threading.enumerate())


@contextmanager
def signals() -> Iterator[Stop]:
    """Collects Ctrl-C and SIGTERM for as long as the block runs."""
    stop = Stop()

    def receive(number: int, _frame: Any) -> None:
        stop.by = signal.Signals(number)
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(wakes)

    # Whoever else is woken by signals (`interrupts`) would not wait for the end of a step.
    wakes = signal.set_wakeup_fd(-1)
    before: dict[int, Callable[..., Any] | int | None] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, receive)
        yield stop
    finally:
        restore()
