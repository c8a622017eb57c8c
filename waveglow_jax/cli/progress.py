"""Progress displays: the current work and its time. Only terminals show them, no pipes or files."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

TICK_SECONDS = 0.5
_AUDIO = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} s [{elapsed}<{remaining}{postfix}]"
)
_COUNT = "{desc}: {n_fmt} of {total_fmt} {unit} done [{elapsed}]"


@contextmanager
def stages(first: str) -> Iterator[Callable[[str], None]]:
    """A line that shows the current stage; the yielded function sets the next stage's name."""
    with _bar(desc=first, bar_format="{desc} [{elapsed}]") as bar:
        yield bar.set_description_str


@contextmanager
def counted(total: int, unit: str) -> Iterator["tqdm[Any]"]:
    """A bar that counts finished units out of `total`; its description is the current one."""
    with _bar(total=total, unit=unit, bar_format=_COUNT) as bar:
        yield bar


@contextmanager
def files_by_stage() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that stays; the yielded function takes the stage, and its files done of how many.

    The next stage begins at 0 again.
    """
    from tqdm import tqdm

    form = "{desc}: {n_fmt} of {total_fmt} done [{elapsed}]"
    with tqdm(total=0, desc="reading", bar_format=form, disable=None) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        yield progress


@contextmanager
def audio_seconds(total: float) -> Iterator["tqdm[Any]"]:
    """A bar of the seconds of audio out of `total`; `tell_speed` advances it and adds the speed."""
    with _bar(total=total, desc="compiling", bar_format=_AUDIO) as bar:
        yield bar


def tell_speed(bar: "tqdm[Any]", seconds: float, computing: float) -> None:
    """Advances the bar and shows the speed.

    seconds: seconds of audio since the last call.
    computing: seconds of computing since the start.
    """
    bar.set_description_str("synthesising", refresh=False)
    factor = (bar.n + seconds) / max(computing, 1e-9)
    bar.set_postfix_str(f"{factor:.1f} x real time", refresh=False)
    assert bar.total is not None
    bar.update(min(seconds, bar.total - bar.n))  # rounding must not lead beyond the total


def print_line(line: str, file: TextIO) -> None:
    """Prints a line; a bar on the terminal moves below it."""
    if "tqdm" not in sys.modules:
        print(line, file=file)
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=file):
        print(line, file=file)


@contextmanager
def _bar(**settings: Any) -> Iterator["tqdm[Any]"]:
    """A bar whose clock runs by itself and which disappears at the end."""
    from tqdm import tqdm

    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK_SECONDS):
            bar.refresh()

    with tqdm(disable=None, leave=False, **settings) as bar:
        ticking = threading.Thread(target=tick, daemon=True)
        if not bar.disable:
            ticking.start()
        try:
            yield bar
        finally:
            over.set()
            if ticking.is_alive():
                ticking.join()
