"""How a command tells what became of each file: a line or JSON, errors on stderr, exit codes."""

import argparse
import io
import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from waveglow_jax.audio.inputs import Input, find_inputs, find_unread
from waveglow_jax.cli.progress import counted, print_line
from waveglow_jax.config import LATENT
from waveglow_jax.errors import FileWarning, LevelWarning, UserError, why

INTERRUPTED, TERMINATED = 130, 143


def ready_streams() -> None:
    """Lets any name of a file be printed, and what is odd about a file be said in one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = partial(_show, warnings.showwarning)


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
    inputs: Sequence[str | Path], suffixes: Sequence[str], with_outputs: bool = True
) -> list[Input]:
    """As `find_inputs`; a line on stderr names each file in a folder that looks like sound and is
    of a type that is not read."""
    for path, reason in find_unread(inputs):
        print(f"left out: {path}: {reason}", file=sys.stderr)
    return find_inputs(inputs, suffixes, with_outputs)


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
    inputs = {item.path.resolve() for item in items}
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
    item: Input, arguments: argparse.Namespace, suffix: str, inputs: Collection[Path]
) -> Path:
    """Where a file's result goes. Raises UserError if an input is there."""
    target = Path(arguments.output) / item.relative.with_suffix(suffix)
    if target.resolve() in inputs:
        raise UserError(
            f"{item.path}: its output {target} would overwrite an input; choose another -o"
        )
    return target


def tell(item: Input, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """A line, of the result's own words `said` if it has some; or JSON, without them."""
    said = result.pop("said", None)
    line = f"{result['output']}  {said}" if said else ""
    if arguments.json:
        line = json.dumps({"input": str(item.path), **result})
    print_line(line or _line(result), sys.stdout)
    sys.stdout.flush()


def exit_code(failed: int, items: Sequence[Input]) -> int:
    if failed and len(items) > 1:
        print_line(f"{failed} of {len(items)} files could not be done", sys.stderr)
    return 1 if failed else 0


def _line(result: dict[str, Any]) -> str:
    if "frames" in result:
        return f"{result['output']}  {result['frames']} frames"
    compiled, corrections = result["compile_seconds"], result["consistency"]
    corrected = "latent search" if corrections == LATENT else f"{corrections} corrections"
    return (
        f"{result['output']}  {result['seconds']:.2f} s of audio, "
        f"{result['times_real_time']:.1f} x real time, sigma {result['sigma']:g}, {corrected}"
        + (f" (after {compiled:.1f} s of compiling)" if compiled else "")
    )
