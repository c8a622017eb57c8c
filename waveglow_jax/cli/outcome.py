"""Reports the result per file: a line or JSON on stdout, errors on stderr, and exit codes."""

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
from waveglow_jax.files.inputs import Input, check_rival, find_inputs, find_unread, with_rivals
from waveglow_jax.text import number_of

INTERRUPTED = 130
# tqdm moves the cursor to the line of one of several bars by this sequence.
_OF_A_BAR = re.compile(r"(\x1b\[A)+")


class _Forgiving(io.TextIOWrapper):
    """A stderr that ignores write errors: a full disk or a closed pipe must not stop a command."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def ready_streams() -> None:
    """Prepares stdout, stderr and warnings for the output of commands.

    Any file name can be printed, and the terminal does not interpret control characters in it.
    Warnings about a file take one line. Streams that the parent process has closed are replaced by
    the null device: otherwise the next opened file would get a closed stream's number and receive
    the libraries' output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
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
                # The stream itself is patched, as argparse, tqdm and tracebacks print names too.
                setattr(stream, "write", partial(_write_escaped, stream.write))  # noqa: B010
    shown = warnings.showwarning
    if not (isinstance(shown, partial) and shown.func is _show):  # an earlier command set it
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
    """Within the block, a warning about a level is one line on stderr that names this file."""

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
    """The result of `find_inputs`, with rivals where there are outputs; reports unread sound files.

    Two files of one result fail later, in `target_of`, so that the others are still done. A line
    on stderr names each file in a folder that looks like sound but has an unsupported type.
    """
    for path, reason in find_unread(inputs):
        print(escaped(f"left out: {path}: {reason}"), file=sys.stderr)
    found = find_inputs(inputs, suffixes, with_outputs=False, output=output)
    return with_rivals(found) if with_outputs else found


def stdout_refusal() -> str | None:
    """The reason why stdout accepts no more output; None if it does accept it.

    If it does not, the pending output is dropped, so that the interpreter reports no error at its
    exit.
    """
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
    """Runs `work` on each file and its output; reports and skips files that fail.

    Returns the exit code.
    """
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
    """The path of a file's result: -f/--file, or its place below -o.

    Raises UserError if an input has that path, or if another input would have the same result.
    """
    check_rival(item)
    file = getattr(arguments, "file", None)  # some commands have only -o
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
    """Prints a file's result: JSON without `said`, or a line with the text of `said` if present."""
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
        return number_of(result["frames"], "frame")
    compiled, corrections = result["compile_seconds"], result["consistency"]
    corrected = "latent search" if corrections == LATENT else number_of(corrections, "correction")
    return (
        f"{result['seconds']:.2f} s of audio, "
        f"{result['times_real_time']:.1f} x real time, sigma {result['sigma']:g}, {corrected}"
        + (f" (after {compiled:.1f} s of compiling or loading)" if compiled else "")
    )
