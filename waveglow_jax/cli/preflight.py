"""preflight: estimates what a program needs on accelerators that are not there."""

import argparse
import dataclasses
import json

from waveglow_jax.cli.arguments import count, examples, given, seconds_up_to
from waveglow_jax.cli.progress import stages
from waveglow_jax.config import DTYPES, load_config
from waveglow_jax.errors import UserError


def preflight_arguments(parser: argparse.ArgumentParser) -> None:
    """Estimates what training or synthesis takes on accelerators that are not there."""
    parser.add_argument(
        "--topology",
        type=topology,
        default="v5e:2x4",
        help="TPUs as v5e:2x4 or v5p:2x2x1; GPUs as h100:8, whose compiler estimates no time "
        "(default: v5e:2x4)",
    )
    parser.add_argument(
        "--config",
        type=given,
        default="nvidia256",
        metavar="CONFIG",
        help="a config file, or a preset by its name (default: nvidia256); "
        "--section.field VALUE sets any of its fields",
    )
    parser.add_argument(
        "--task",
        choices=("train", "synthesize"),
        default="train",
        help="a training step, or an utterance's synthesis (default: train)",
    )
    parser.add_argument(
        "--batch",
        type=count,
        help="clips over all chips (default: the config's), or utterances (1)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds_up_to(3600),
        default=10.0,
        help="of an utterance (default: 10)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="inside WN (default: bfloat16)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    examples(
        parser,
        "--config nvidia256 --topology v5e:2x4",
        "--config paper --topology h100:8 --task synthesize --seconds 30",
    )


def topology(text: str) -> str:
    from waveglow_jax.performance.chips import check_topology

    try:
        check_topology(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run_preflight(arguments: argparse.Namespace) -> int:
    from waveglow_jax.performance import preflight

    preflight.prepare_environment()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.task == "train":
        train = dataclasses.replace(
            config.train,
            batch_size=arguments.batch or config.train.batch_size,
            wn_dtype=arguments.dtype,
        )
        config = dataclasses.replace(config, train=train)
        with stages("compiling"):
            result = preflight.preflight_training(config, arguments.topology)
    else:
        with stages("compiling"):
            result = preflight.preflight_synthesis(
                config, arguments.topology, arguments.batch or 1, arguments.seconds, arguments.dtype
            )
    print(json.dumps(preflight.as_json(result)) if arguments.json else preflight.as_text(result))
    return 0
