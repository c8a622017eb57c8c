"""Ctrl-C and SIGTERM end a program within a second, with a one-line message, whatever it does.

The signal handlers raise an exception, so that unfinished files are removed while it propagates.
But such an exception can be lost, in a callback of the garbage collector or in a library that
catches everything, and it has to wait until compiled code returns. Therefore a thread, which
signals reach by a pipe, ends the process after PATIENCE by itself.

Processes that only import the package are not affected.
"""

import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 0.4  # seconds

unfinished: set[Path] = set()
"""Files and folders to remove if this module ends the process, where no `finally` block runs."""

obeyed = threading.Event()
"""Set by the code that has already reported the interruption to the user."""

_came: list[int] = []
_ending = threading.Lock()
_listening = threading.Event()


def program(run: Callable[[], int]) -> NoReturn:
    """Runs a command as this process's main program, and ends the process with its exit code."""
    listen()
    try:
        code: Any = run()
    except SystemExit as asked:
        code = asked.code
    except BaseException:
        # A signal may have come during an import, or a library may have converted its exception.
        if not _came:
            raise
    if _came:
        _end(_came[0])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # no work is left
    sys.exit(code)


def listen_if_program() -> None:
    """Calls `listen` already while the package is imported, if its own program imports it."""
    by_module = ("-m", "waveglow_jax") in itertools.pairwise(sys.orig_argv)
    if by_module or Path(sys.argv[0]).name == "waveglow-jax":
        listen()


def listen() -> None:
    """Makes the process end at Ctrl-C and SIGTERM from now on.

    A signal that the parent process has set to be ignored stays ignored.
    """
    if _listening.is_set() or threading.current_thread() is not threading.main_thread():
        return
    _listening.set()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise)
    # multiprocessing's resource tracker would warn about resources that a killed child leaves.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    otherwise = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if _is_ours(lost.exc_type) else otherwise(lost)
    os.register_at_fork(after_in_child=_leave_to_parent)
    threading.Thread(target=_watch, args=(reading,), daemon=True, name="interrupts").start()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Makes processes that start within the block ignore Ctrl-C.

    A terminal sends it to them too, but this process ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if _ending.locked():
        return
    if _imports(frame):
        _end(number)  # an exception can crash an extension module that is being initialised
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _is_ours(kind: type[BaseException]) -> bool:
    return bool(_came) and issubclass(kind, KeyboardInterrupt | SystemExit)


def _leave_to_parent() -> None:
    """Resets the signals in a forked child, which would otherwise wake its parent's thread."""
    signal.set_wakeup_fd(-1)
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == _raise:
            signal.signal(number, handler)


def _watch(reading: int) -> None:
    while (number := os.read(reading, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    time.sleep(PATIENCE)
    _end(number)


def _end(number: int) -> NoReturn:
    """Ends the process and its children at once, without waiting for threads."""
    while not _ending.acquire(blocking=False):
        time.sleep(1)  # the other thread is about to end the process
    try:
        _clean_up()
        if number == signal.SIGINT and not obeyed.is_set():
            # os.write avoids sys.stderr, whose lock may be held where the exception was lost.
            os.write(2, b"error: interrupted\n")
    finally:  # whatever fails, nobody else can end the process any more
        os._exit(128 + number)


def _clean_up() -> None:
    # The signal may have come while multiprocessing was being imported: then it has no children.
    multiprocessing: Any = sys.modules.get("multiprocessing")
    for child in getattr(multiprocessing, "active_children", list)():
        child.kill()
    for path in list(unfinished):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)
