"""How a command tells what became of each file: a line or JSON, errors on stderr, exit codes."""

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from waveglow_jax.cli.progress import counted, print_line
from waveglow_jax.config import LATENT
from waveglow_jax.errors import FileWarning, LevelWarning, UserError, escaped, why
from waveglow_jax.files.inputs import Input, find_inputs, find_unread

INTERRUPTED = 130
# How tqdm goes to the line of one of several bars.
_OF_A_BAR = re.compile(r"(\x1b\[A)+")


class _Forgiving(io.TextIOWrapper):
    """A stderr that can be full or closed at its other end, which is no reason to stop."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def ready_streams() -> None:
    """Lets any name of a file be printed, without the terminal obeying what is in it, and what is
    odd about a file be said in one line.

    Streams that whoever started the command has closed lead nowhere: the next file that is opened
    would take a closed one's number, and get what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    elif type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = _Forgiving(
            sys.stderr.buffer, encoding=sys.stderr.encoding, line_buffering=True
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if "write" not in vars(stream):
                # Of the stream itself: argparse, tqdm and tracebacks print names, too.
                setattr(stream, "write", partial(_write_escaped, stream.write))  # noqa: B010
    shown = warnings.showwarning
    if not (isinstance(shown, partial) and shown.func is _show):  # of an earlier command
        warnings.showwarning = partial(_show, shown)


def _write_escaped(write: Callable[[str], int], text: str) -> int:
    if not _OF_A_BAR.fullmatch(text):
        bar = "\r" if text.startswith("\r") else ""
        text = bar + escaped(text.removeprefix(bar), keep="\n\t")
    return write(text)


def _show(otherwise: Callable[..., None], message: Any, category: type, *rest: Any) -> None:
    if issubclass(category, FileWarning):
        print_line(f"note: {message}", sys.stderr)
    elif issubclass(category, LevelWarning):
        print_line(f"warning: {message}", sys.stderr)
    else:
        otherwise(message, category, *rest)


@contextmanager
def levels_of(path: Path) -> Iterator[None]:
    """While it lasts, a warning about a level is of this file: one line on stderr that names it."""

    def show(otherwise: Callable[..., None], message: Any, category: type, *rest: Any) -> None:
        if issubclass(category, LevelWarning):
            print_line(f"warning: {UserError(f'{path}: {message}')}", sys.stderr)
        else:
            otherwise(message, category, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LevelWarning)
        warnings.showwarning = partial(show, warnings.showwarning)
        yield


def inputs_of(
    inputs: Sequence[str | Path],
    suffixes: Sequence[str],
    with_outputs: bool = True,
    output: str | None = None,
) -> list[Input]:
    """As `find_inputs`; a line on stderr names each file in a folder that looks like sound and is
    of a type that is not read."""
    for path, reason in find_unread(inputs):
        print(escaped(f"left out: {path}: {reason}"), file=sys.stderr)
    return find_inputs(inputs, suffixes, with_outputs, output)


def stdout_refusal() -> str | None:
    """Why stdout takes nothing more, None if it does. What it has not taken is dropped then, so
    that the interpreter does not complain at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return why(error)
    return None


def fail(line: str) -> int:
    print_line(f"error: {' '.join(line.split())}", sys.stderr)
    return 1


def each(
    items: Sequence[Input],
    arguments: argparse.Namespace,
    suffix: str,
    work: Callable[[Input, Path], dict[str, Any]],
) -> int:
    """Does the work from each file to its output; one that fails is told of and left out."""
    failed = 0
    inputs = {os.path.realpath(item.path) for item in items}
    with counted(len(items), "files") as bar:
        for item in items:
            bar.set_description_str(str(item.relative))
            try:
                with levels_of(item.path):
                    result = work(item, target_of(item, arguments, suffix, inputs))
            except UserError as error:
                failed += fail(str(error))
            except (OSError, MemoryError) as error:
                failed += fail(str(UserError(f"{item.path}: cannot be done: {why(error)}")))
            else:
                tell(item, result, arguments)
            bar.update()
    return exit_code(failed, items)


def target_of(
    item: Input, arguments: argparse.Namespace, suffix: str, inputs: Collection[str]
) -> Path:
    """Where a file's result goes: -f/--file, or its place below -o. Raises UserError if an input
    is there."""
    file = getattr(arguments, "file", None)  # some commands have -o alone
    target = Path(file or Path(arguments.output) / item.relative.with_suffix(suffix))
    if os.path.realpath(target) in inputs:
        raise UserError(
            f"{item.path}: its output {target} would overwrite an input; choose another output"
        )
    return target


def check_other_file(output: str | Path, *read: str | Path) -> None:
    """Raises UserError if the output is one of the files or folders that were read."""
    if any(os.path.realpath(output) == os.path.realpath(each) for each in read):
        raise UserError(f"{output}: this output would overwrite an input; choose another name")


def tell(item: Input, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """A line, of the result's own words `said` if it has some; or JSON, without them."""
    said = result.pop("said", None)
    if arguments.json:
        line = json.dumps({"input": str(item.path), **result})
    else:
        line = escaped(f"{result['output'] or item.path}  {said or _figures(result)}")
    print_line(line, sys.stdout)
    sys.stdout.flush()


def exit_code(failed: int, items: Sequence[Input]) -> int:
    if failed and len(items) > 1:
        print_line(f"{failed} of {len(items)} files could not be done", sys.stderr)
    return 1 if failed else 0


def _figures(result: dict[str, Any]) -> str:
    if "frames" in result:
        return f"{result['frames']} frames"
    compiled, corrections = result["compile_seconds"], result["consistency"]
    corrected = "latent search" if corrections == LATENT else f"{corrections} corrections"
    return (
        f"{result['seconds']:.2f} s of audio, "
        f"{result['times_real_time']:.1f} x real time, sigma {result['sigma']:g}, {corrected}"
        + (f" (after {compiled:.1f} s of compiling)" if compiled else "")
    )
