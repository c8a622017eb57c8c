"""demo: the bundled voice speaks two recordings that come with the package."""

import argparse
import shutil
from pathlib import Path

from waveglow_jax.cli.arguments import examples, given
from waveglow_jax.cli.synthesis import run_synthesize, synthesize_arguments
from waveglow_jax.files.atomic import replacing


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """The bundled voice speaks two recordings that come with the package: sound and pictures."""
    parser.add_argument(
        *("-o", "--output"),
        type=given,
        default="demo",
        metavar="DIR",
        help="gets the voice's .wav, the recording beside it, and a picture of both mels "
        "(default: demo)",
    )
    parser.add_argument(
        "--play", action="store_true", help="play each when it is done (by ffplay, aplay or afplay)"
    )
    examples(
        parser,
        "-o out --play",
    )


def run_demo(arguments: argparse.Namespace) -> int:
    from waveglow_jax.weights.release import BUNDLED_VOICE

    recordings = BUNDLED_VOICE / "recordings"
    parser = argparse.ArgumentParser()
    synthesize_arguments(parser)
    options = ["-o", arguments.output, "--plot", *(["--play"] if arguments.play else [])]
    code = run_synthesize(parser.parse_args([str(recordings), *options]))
    for recording in sorted(recordings.glob("*.wav")):
        target = Path(arguments.output) / f"{recording.stem}_recording.wav"
        with replacing(target) as temporary:
            shutil.copyfile(recording, temporary)
        print(f"{target}  the recording itself")
    return code
