"""benchmark: measures how fast this machine runs a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from waveglow_jax.cli.arguments import (
    WEIGHTS,
    count,
    examples,
    given,
    seconds_up_to,
    weights_argument,
)
from waveglow_jax.cli.progress import stages
from waveglow_jax.config import DTYPES, Config, load_config

if TYPE_CHECKING:
    from waveglow_jax.synthesis.vocoder import Voice


def benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Measures how fast this machine runs a model: compile and run time, memory, precision."""
    parser.add_argument(
        "source", type=given, nargs="?", metavar="WEIGHTS", help=f"{WEIGHTS}, here or after -w"
    )
    weights_argument(parser)
    parser.add_argument(
        "--config",
        type=given,
        metavar="CONFIG",
        help="random weights of the shape of this config file or preset instead; "
        "--section.field VALUE sets any of its fields",
    )
    parser.add_argument(
        "--task",
        choices=("reverse", "train", "loader"),
        default="reverse",
        help="what is timed: synthesis, training steps, or reading clips (default: reverse)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds_up_to(3600),
        nargs="+",
        default=[5.0, 60.0],
        help="of audio (default: 5 60)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        nargs="+",
        help="inside WN, one or several (default: all; training has no float16)",
    )
    parser.add_argument(
        "--batch", type=count, default=2, help="clips of a training step (default: 2)"
    )
    parser.add_argument(
        "--data", type=given, metavar="DIR_OR_LIST", help="recordings, for --task loader"
    )
    parser.add_argument("--repeats", type=count, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument(
        "--against",
        choices=("torch",),
        help="beside a plain eager PyTorch model of the same weights (default: alone)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "",
        "--config nvidia256 --task train --batch 4",
        "universal --seconds 10 --dtype float32 --against torch",
    )


def run_benchmark(arguments: argparse.Namespace) -> int:
    if sum(map(bool, (arguments.source, arguments.weights, arguments.config))) > 1:
        arguments.refuse("give WEIGHTS once, by itself or by -w, or else --config")
    if arguments.task == "loader" and not arguments.data:
        arguments.refuse("--task loader reads recordings: give --data DIR_OR_LIST")
    if arguments.task == "train" and "float16" in (arguments.dtype or ()):
        arguments.refuse("--dtype float16: training is in float32 or bfloat16")
    if arguments.overrides and not arguments.config:
        arguments.refuse(f"--{min(arguments.overrides)} sets a field of a config: give --config")
    from waveglow_jax.performance import benchmark, timing

    torch = arguments.against == "torch"
    with stages("measuring this machine's products") as progress:
        if arguments.task == "reverse":
            found = benchmark.benchmark_reverse(
                _voice(arguments),
                arguments.seconds,
                arguments.dtype or DTYPES,
                arguments.repeats,
                torch,
                progress,
            )
        elif arguments.task == "train":
            dtypes = arguments.dtype or ("float32", "bfloat16")
            found = benchmark.benchmark_training(
                _config(arguments), arguments.batch, dtypes, arguments.repeats, torch, progress
            )
        else:
            found = benchmark.benchmark_loader(
                _config(arguments), arguments.data, arguments.repeats, progress
            )
    print(json.dumps(timing.as_json(found)) if arguments.json else timing.as_text(found))
    return 0


def _voice(arguments: argparse.Namespace) -> Voice:
    if arguments.config:
        from waveglow_jax.performance.benchmark import random_voice

        return random_voice(_config(arguments))
    from waveglow_jax.synthesis.vocoder import load

    source = arguments.source or arguments.weights
    return load(source, keep_programs=False)  # the compile time is measured too


def _config(arguments: argparse.Namespace) -> Config:
    if arguments.config:
        return load_config(Path(arguments.config), arguments.overrides)
    from waveglow_jax.weights.release import read_weights

    return read_weights(arguments.source or arguments.weights).config
