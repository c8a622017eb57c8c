"""The command line. Exit codes: 0: done; 1: something could not be done; 2: wrong arguments.

Errors are one line on stderr. Only the commands that need JAX import it.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from waveglow_jax import __version__
from waveglow_jax.cli.benchmark import benchmark_arguments, run_benchmark
from waveglow_jax.cli.data import mel_arguments, prepare_arguments, run_mel, run_prepare
from waveglow_jax.cli.demo import demo_arguments, run_demo
from waveglow_jax.cli.doctor import doctor_arguments, run_doctor
from waveglow_jax.cli.evaluation import (
    evaluate_arguments,
    listening_test_arguments,
    run_evaluate,
    run_listening_test,
)
from waveglow_jax.cli.foreign import convert_mel_arguments, run_convert_mel
from waveglow_jax.cli.laboratory import (
    invertibility_arguments,
    likelihood_arguments,
    run_invertibility,
    run_likelihood,
)
from waveglow_jax.cli.latent import (
    interpolate_arguments,
    resynthesize_arguments,
    run_interpolate,
    run_resynthesize,
    run_sweep,
    sweep_arguments,
)
from waveglow_jax.cli.outcome import INTERRUPTED, fail, ready_streams, stdout_refusal
from waveglow_jax.cli.preflight import preflight_arguments, run_preflight
from waveglow_jax.cli.synthesis import run_synthesize, synthesize_arguments
from waveglow_jax.cli.training import run_train, train_arguments
from waveglow_jax.cli.weights import (
    convert_arguments,
    export_arguments,
    inspect_arguments,
    run_convert,
    run_export,
    run_inspect,
)
from waveglow_jax.config import field_facts
from waveglow_jax.errors import UserError, why
from waveglow_jax.interrupts import obeyed

COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]] = {
    "demo": (demo_arguments, run_demo),
    "synthesize": (synthesize_arguments, run_synthesize),
    "train": (train_arguments, run_train),
    "prepare": (prepare_arguments, run_prepare),
    "mel": (mel_arguments, run_mel),
    "convert-mel": (convert_mel_arguments, run_convert_mel),
    "convert": (convert_arguments, run_convert),
    "inspect": (inspect_arguments, run_inspect),
    "export": (export_arguments, run_export),
    "benchmark": (benchmark_arguments, run_benchmark),
    "preflight": (preflight_arguments, run_preflight),
    "invertibility": (invertibility_arguments, run_invertibility),
    "likelihood": (likelihood_arguments, run_likelihood),
    "evaluate": (evaluate_arguments, run_evaluate),
    "resynthesize": (resynthesize_arguments, run_resynthesize),
    "interpolate": (interpolate_arguments, run_interpolate),
    "sweep": (sweep_arguments, run_sweep),
    "doctor": (doctor_arguments, run_doctor),
    "listening-test": (listening_test_arguments, run_listening_test),
}
"""Per command name: the function that adds its arguments (its docstring is the help text), and the
function that runs it."""
WITH_FIELDS = ("train", "preflight", "benchmark")
"""The commands that take fields of the config as options, such as `--train.batch_size`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    ready_streams()
    parser = argparse.ArgumentParser(
        prog="waveglow-jax",
        description="WaveGlow in JAX. `waveglow-jax demo` makes the first sound.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, _) in COMMANDS.items():
        doc = add_arguments.__doc__
        add_arguments(commands.add_parser(name, help=doc, description=doc))
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        parser.error(f"there is no command {argv[0]!r}; {_nearest(argv[0])}")
    return run_command(parser, argv)


def _nearest(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"did you mean {near[0]}?" if near else "waveglow-jax -h lists the commands"


def run_single(command: str, argv: Sequence[str] | None = None) -> int:
    """Runs one command as a program of its own, for train.py and synthesize.py."""
    add_arguments, _ = COMMANDS[command]
    parser = argparse.ArgumentParser(description=add_arguments.__doc__)
    parser.set_defaults(command=command)
    ready_streams()
    add_arguments(parser)
    return run_command(parser, argv)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs the command that the arguments name; returns its exit code."""
    try:
        try:
            return _run(parser, argv)
        finally:
            sys.stdout.flush()  # a failure at the interpreter's exit could not be reported
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        obeyed.set()
        fail("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed the pipe
        stdout_refusal()
        return 1
    except OSError as error:
        if refusal := stdout_refusal():
            return fail(f"stdout: cannot be written: {refusal}; choose another place for it")
        # An error without a file name is stdout's: all files are written through `replacing`.
        return fail(f"{error.filename or 'stdout'}: cannot be used: {why(error)}; choose another")
    except MemoryError:
        return fail("the memory is not enough for so much at once; give less")


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    own = _own_parser(parser, words)
    plain, overrides = _split_overrides(words, own)
    takes_fields = (parser.get_default("command") or words[0]) in WITH_FIELDS
    _check_names(own, plain, takes_fields)
    if not takes_fields:
        _check_names(own, [f"--{name}" for name in overrides], takes_fields)
    arguments, unknown = parser.parse_known_args(plain)
    if unknown:
        own.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.overrides = overrides
    _, run = COMMANDS[arguments.command]
    return run(arguments)


def _own_parser(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command, or of its part, that these words begin with."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            return _own_parser(action.choices[words[0]], words[1:])
    return parser


def _check_names(parser: argparse.ArgumentParser, words: Sequence[str], takes_fields: bool) -> None:
    """Ends with exit code 2 at an option that the command lacks; suggests the nearest one.

    This precedes argparse, which would complain first that the option that was meant is missing.
    """
    known = parser._option_string_actions
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        # argparse accepts the beginning of a name, and takes a word with a space for a value.
        if not name.startswith("--") or " " in word or any(k.startswith(name) for k in known):
            continue
        end = f".{name.removeprefix('--')}"
        fields = [facts.name for facts in field_facts()] if takes_fields else []
        near = [f"--{field}" for field in fields if field.endswith(end)]
        near = near or difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"{parser.prog} -h lists the options"
        parser.error(f"unrecognized arguments: {word}; {meant}")


def _split_overrides(
    argv: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], dict[str, Any]]:
    """Separates options such as `--train.batch_size 8` and `--data.segment_length=8192`.

    Returns the other arguments, and the overrides by their names. An option with a dot in its name
    sets a field of the config; its value is parsed as JSON, or else taken as a string.
    """
    plain: list[str] = []
    overrides: dict[str, Any] = {}
    rest = iter(argv)
    for argument in rest:
        if argument == "--":  # names of files follow
            return [*plain, argument, *rest], overrides
        name, has_value, value = argument.partition("=")
        if not name.startswith("--") or "." not in name:
            plain.append(argument)
            continue
        if not has_value:
            following = next(rest, None)
            if following is None:
                parser.error(f"{name} has no value; a field is set by {name} VALUE")
            value = following
        try:
            overrides[name[2:]] = json.loads(value)
        except (ValueError, RecursionError):
            overrides[name[2:]] = value
    return plain, overrides
