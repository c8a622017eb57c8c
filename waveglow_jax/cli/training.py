"""train: a run from a config and recordings."""

import argparse
from pathlib import Path

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
    parser.add_argument("--init-from", metavar="WEIGHTS", help="start from these weights")


def run_train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    data = arguments.data or config.data.training_files
    if not data:
        raise UserError(f"{arguments.config}: names no training_files; give --data DIR_OR_LIST")
    params = None
    if arguments.init_from:
        from waveglow_jax.weights.release import read_weights

        params = read_weights(arguments.init_from).params
    from waveglow_jax.training.loop import train

    return train(config, data, Path(arguments.output), params, arguments.mels)
