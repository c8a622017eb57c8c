"""Types and groups of arguments that several commands share."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

from waveglow_jax.cli.outcome import fail
from waveglow_jax.config import LATENT, MAX_CONSISTENCY
from waveglow_jax.conventions import CONVENTIONS, Convention, convention_named
from waveglow_jax.errors import UserError
from waveglow_jax.paths import local_path

_MOST_WORKERS = 256


def given(text: str) -> str:
    """A path (as `local_path` interprets it) or a name; refuses an empty one.

    An unset shell variable gives an empty path, which would mean the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    try:
        return local_path(text)
    except UserError as error:
        # One line with the remedy suffices; argparse would add the usage of the whole command.
        sys.exit(fail(str(error)))


def convention(text: str) -> Convention:
    """The mel convention of this name; refuses an unknown one, with the nearest."""
    try:
        return convention_named(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def sigma(text: str) -> float:
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0; 0.6 to 1 is usual")
    return value


def strength(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0; 0.01 to 0.1 is usual")
    return value


def corrections(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_CONSISTENCY:
        raise argparse.ArgumentTypeError(
            f"{text} must be a whole number from 0 to {MAX_CONSISTENCY}; 32 is usual"
        )
    return int(text)


def consistency(text: str) -> int | str:
    return text if text == LATENT else corrections(text)


def noise(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value


def seconds_up_to(most: float) -> Callable[[str], float]:
    """The type of an option that takes seconds above 0 and at most `most`."""

    def seconds(text: str) -> float:
        value = float(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text} must be above 0, at most {most:g}")
        return value

    return seconds


def workers(text: str) -> int:
    value = int(text)
    if not 1 <= value <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text} must be from 1 to {_MOST_WORKERS}")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {2**32 - 1}")
    return value


WEIGHTS = (
    "release folder, training run, published checkpoint (.pt, .nemo, .safetensors ...), or "
    "OWNER/NAME on the Hugging Face hub"
)
FILES = "files, folders, globs, a list file (.txt), or - for a list on stdin"
CONVENTION_NAMES = ", ".join(row.key for row in CONVENTIONS)


def examples(parser: argparse.ArgumentParser, *lines: str, before: str = "") -> None:
    """Adds these command lines, each without the program's name, to the end of the help text."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shown = "\n".join(f"  {parser.prog} {line}".rstrip() for line in lines)
    parser.epilog = f"{before}example{'s' if len(lines) > 1 else ''}:\n{shown}"


def weights_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("-w", "--weights"),
        type=given,
        metavar="WEIGHTS",
        help=f"{WEIGHTS} (default: the bundled voice)",
    )


def workers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=workers,
        default=os.cpu_count() or 1,
        metavar="N",
        help="files at a time (default: as many as there are cores, %(default)s)",
    )


def output_arguments(parser: argparse.ArgumentParser, suffix: str) -> Any:
    """`-o` for many results and `-f` for one; returns their group, of which one may be given."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        *("-o", "--output"),
        type=given,
        metavar="DIR",
        help=f"one {suffix} each into this folder, sub-folders kept",
    )
    where.add_argument(
        *("-f", "--file"),
        type=given,
        metavar=f"OUT{suffix}",
        help=f"of one input: this {suffix} file",
    )
    return where


def check_file(arguments: argparse.Namespace, items: Sized, suffix: str) -> None:
    """Refuses `-f` for several inputs or with a wrong suffix, and a file as `-o`."""
    if arguments.output and os.path.isfile(arguments.output):
        raise UserError(f"{arguments.output}: is a file; -o names a folder (-f names a file)")
    if arguments.file is None:
        return
    if Path(arguments.file).suffix.lower() != suffix:
        arguments.refuse(f"-f/--file {arguments.file}: the name must end in {suffix}")
    if len(items) != 1:
        arguments.refuse(
            f"-f/--file {arguments.file}: there are {len(items)} inputs; give a folder, -o DIR"
        )


def source_arguments(parser: argparse.ArgumentParser) -> None:
    """WEIGHTS by itself or after -w, as `weights_of` reads it."""
    parser.add_argument(
        "source", type=given, nargs="?", metavar="WEIGHTS", help=f"{WEIGHTS}, here or after -w"
    )
    parser.add_argument(
        "-w", "--weights", type=given, metavar="WEIGHTS", help="the same WEIGHTS, as an option"
    )
    parser.set_defaults(refuse=parser.error)
    parser.add_argument(
        "--alternating-halves",
        action="store_true",
        help="the oldest published class, when the file does not say so itself",
    )


def weights_of(arguments: argparse.Namespace) -> str:
    """The WEIGHTS that `source_arguments` parsed; refuses none, and two values."""
    if (arguments.source is None) == (arguments.weights is None):
        arguments.refuse("give WEIGHTS once, by itself or by -w/--weights")
    return arguments.source if arguments.weights is None else arguments.weights
