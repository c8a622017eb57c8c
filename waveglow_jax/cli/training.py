"""train: runs a training from a config and recordings."""

import argparse
import multiprocessing
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from waveglow_jax.cli.arguments import examples, given
from waveglow_jax.cli.outcome import fail
from waveglow_jax.config import Config, field_facts, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.paths import local_path
from waveglow_jax.presets import presets


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Trains on recordings; --section.field VALUE sets any of the config's fields."""
    parser.add_argument(
        "config",
        type=given,
        metavar="CONFIG",
        help="a config file, or a preset by its name (below)",
    )
    parser.add_argument(
        "--data",
        type=given,
        metavar="DIR_OR_LIST",
        help="recordings (default: data_config.training_files)",
    )
    parser.add_argument(
        *("-o", "--output"),
        type=given,
        required=True,
        metavar="RUN",
        help="the run's folder, resumed if it is there",
    )
    parser.add_argument(
        "--mels",
        type=given,
        metavar="DIR",
        help="train on these, one a recording, instead of its own mel",
    )
    parser.add_argument(
        "--init-from",
        type=given,
        metavar="WEIGHTS",
        help="start from these weights, and the optimizer's state where there is one beside them",
    )
    parser.add_argument(
        "--fresh-optimizer", action="store_true", help="with --init-from: the weights alone"
    )
    parser.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="resume though the recordings are not those of the checkpoint",
    )
    processes = parser.add_argument_group(
        "many processes", "found by themselves on TPU slices, Slurm, Open MPI and Kubernetes"
    )
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="process 0's, same for all")
    processes.add_argument("--processes", type=int, metavar="N", help="how many there are")
    processes.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    examples(
        parser,
        "nvidia256 --data LJSpeech-1.1/wavs -o runs/lj",
        "tiny --data recordings -o runs/tiny --train.steps 50 --train.batch_size 8",
        before=_fields_help(),
    )


def _fields_help() -> str:
    presets_there = ", ".join(presets())
    lines = [
        f"presets: {presets_there}",
        "",
        "fields of the config, with what they are where neither CONFIG nor the command line says:",
    ]
    for field in field_facts():
        values = f" ({field.values})" if field.values else ""
        lines.append(f"  --{field.name} {field.kind.upper()}  {field.default}{values}")
    lines += ["", "docs/how-to/training.md and the manual's page Config fields explain them."]
    return "\n".join([*lines, "", ""])


def run_train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    data = arguments.data or config.data.training_files
    if not data:
        raise UserError(f"{arguments.config}: names no training_files; give --data DIR_OR_LIST")
    for named in (data, config.train.validation_files):
        local_path(named)  # refuses addresses before anything is written
    import jax

    from waveglow_jax.training.processes import aborts_explained, join

    join(arguments.coordinator, arguments.processes, arguments.process)
    with aborts_explained() if jax.process_count() > 1 else nullcontext():
        code, at_once = _train(config, data, arguments)
    return _end(code, at_once)


def _train(config: Config, data: str, arguments: argparse.Namespace) -> tuple[int, bool]:
    """Exit code, and whether the process must end without waiting for anything."""
    import jax

    from waveglow_jax.training.checkpoints import NotSavedError
    from waveglow_jax.training.loop import train
    from waveglow_jax.training.stopping import still_working

    many = jax.process_count() > 1
    try:
        params, moments = _start_from(arguments) if arguments.init_from else (None, None)
        outcome = train(
            *(config, data, Path(arguments.output), params),
            moments=moments,
            mels=arguments.mels,
            allow_changed_data=arguments.allow_changed_data,
        )
        # The exit code that a shell gives for a program that a signal ended.
        code = 128 + outcome.stopped_by if outcome.stopped_by else 0
        return code, still_working()
    except UserError as error:
        # On a full disk, TensorBoard's writer would retry, and wait, at the interpreter's exit.
        return fail(str(error)), many or still_working() or isinstance(error, NotSavedError)
    except jax.errors.JaxRuntimeError as error:
        if not many:
            raise
        lost = str(error).splitlines()[0][:200]
        fail(
            f"process {jax.process_index()}: another process of the run was lost ({lost}); start "
            "all of them again, the run goes on from its last checkpoint"
        )
        return os.EX_TEMPFAIL, True  # 75, by which a supervisor tells it from an error of the run
    except Exception:
        if not many:
            raise
        traceback.print_exc()  # a bug here: the other processes must not wait for this one
        return 1, True


def _end(code: int, at_once: bool) -> int:
    if at_once:
        # Threads may be compiling and other processes may wait for this one in a step, so that
        # joining any of them could take long.
        for worker in multiprocessing.active_children():
            worker.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _start_from(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The weights and Adam's moments (None if there are none); reports on stderr which they are."""
    from waveglow_jax.weights.release import read_weights

    found = read_weights(arguments.init_from, with_moments=not arguments.fresh_optimizer)
    lines = [
        f"starts from {arguments.init_from}: {found.kind} (not where OUTPUT already holds steps)",
        *found.notes,
    ]
    if found.moments is not None:
        lines.append(f"Adam goes on after its {found.moments.count:,} steps there")
    print("\n".join(lines), file=sys.stderr)
    return found.params, found.moments
