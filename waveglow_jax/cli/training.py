"""train: a run from a config and recordings."""

import argparse
import sys
from pathlib import Path
from typing import Any

from waveglow_jax.config import load_config
from waveglow_jax.errors import UserError


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Trains on recordings; any field of the config can be set by --section.field VALUE."""
    parser.add_argument("config", metavar="CONFIG.json", help="such as configs/voice.json")
    parser.add_argument(
        "--data", metavar="DIR_OR_LIST", help="recordings (default: data_config.training_files)"
    )
    parser.add_argument("--output", required=True, metavar="RUN", help="resumed if it is there")
    parser.add_argument(
        "--mels", metavar="DIR", help="train on these, one a recording, instead of its own mel"
    )
    parser.add_argument(
        "--init-from",
        metavar="WEIGHTS",
        help="start from these weights, and the optimizer's state where there is one beside them",
    )
    parser.add_argument(
        "--fresh-optimizer", action="store_true", help="with --init-from: the weights alone"
    )


def run_train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    data = arguments.data or config.data.training_files
    if not data:
        raise UserError(f"{arguments.config}: names no training_files; give --data DIR_OR_LIST")
    params = moments = None
    if arguments.init_from:
        params, moments = _start_from(arguments)
    from waveglow_jax.training.loop import train

    run = Path(arguments.output)
    return train(config, data, run, params, moments=moments, mels=arguments.mels)


def _start_from(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Weights and Adam's moments, None where there are none; tells which."""
    from waveglow_jax.weights.release import read_weights

    found = read_weights(arguments.init_from, with_moments=not arguments.fresh_optimizer)
    lines = [f"starts from {arguments.init_from}: {found.kind}", *found.notes]
    if found.moments is not None:
        lines.append(f"Adam goes on after its {found.moments.count:,} steps there")
    print("\n".join(lines), file=sys.stderr)
    return found.params, found.moments
