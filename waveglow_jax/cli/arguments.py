"""Types and groups of arguments that several commands share."""

import argparse
import sys

from waveglow_jax.cli.outcome import fail
from waveglow_jax.config import LATENT, MAX_CONSISTENCY
from waveglow_jax.errors import UserError
from waveglow_jax.paths import local_path

_MOST_WORKERS = 256


def given(text: str) -> str:
    """A path (as `local_path` reads it) or a name. An empty one comes of a variable that is not
    set, and would be a folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    try:
        return local_path(text)
    except UserError as error:
        # One line that names the remedy, where argparse would add the usage of the whole command.
        sys.exit(fail(str(error)))


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


def source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=given,
        metavar="WEIGHTS",
        help="published checkpoint (.pt, .nemo, .safetensors ...), release folder, training run, "
        "or OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "--alternating-halves",
        action="store_true",
        help="the oldest published class, when the file does not say so itself",
    )
