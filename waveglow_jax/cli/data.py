"""prepare and mel: convert recordings for training, and compute their log-mels."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from waveglow_jax.cli.arguments import (
    FILES,
    check_file,
    count,
    examples,
    given,
    output_arguments,
    weights_argument,
    workers_argument,
)
from waveglow_jax.cli.outcome import each, fail, inputs_of
from waveglow_jax.config import Config
from waveglow_jax.errors import UserError, escaped
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, Input
from waveglow_jax.files.mels import write_mel
from waveglow_jax.files.sound import read_audio


def prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Converts any folder of audio to mono recordings of one rate, to train on."""
    parser.add_argument("inputs", type=given, nargs="+", metavar="IN", help=f"recordings: {FILES}")
    parser.add_argument(
        *("-o", "--output"),
        type=given,
        required=True,
        metavar="OUT",
        help="one .wav each into this folder, sub-folders kept; what is there already is kept",
    )
    parser.add_argument(
        "--rate", type=count, default=22050, metavar="HZ", help="sampling rate (default: 22050)"
    )
    parser.add_argument(
        "--level",
        type=float,
        metavar="DBFS",
        help="bring speech to this RMS level, such as -22 (default: levels are kept)",
    )
    workers_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    examples(
        parser,
        "recordings -o prepared --level -22",
    )


def run_prepare(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from waveglow_jax.audio.prepare import prepare

    with tqdm(unit="file", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = prepare(
            arguments.inputs,
            arguments.output,
            sampling_rate=arguments.rate,
            level_dbfs=arguments.level,
            workers=arguments.workers,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps({"output": arguments.output, **dataclasses.asdict(report)}))
    else:
        for path, reason in report.left_out:
            print(escaped(f"left out: {path}: {reason}"))
        where = escaped(arguments.output)
        print(
            f"{report.written} written, {report.kept} kept, {len(report.left_out)} left out; "
            f"{report.seconds / 3600:.2f} h in {where}"
        )
    if not report.written + report.kept:
        return fail(
            f"{arguments.output}: none of the recordings could be used, for the reasons above"
        )
    if report.rivals:
        return fail(
            f"{arguments.output}: {report.rivals} of the recordings have the output of another; "
            "rename them, or give the folder above both so that their folders are kept"
        )
    return 0


def mel_arguments(parser: argparse.ArgumentParser) -> None:
    """Writes the log-mel of each recording as the voice takes it, [80, frames] .npy."""
    parser.add_argument(
        "inputs", type=given, nargs="+", metavar="RECORDING", help=f"recordings: {FILES}"
    )
    output_arguments(parser, ".npy")
    weights_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "recordings -o mels",
        "recording.wav -f mel.npy",
    )


def run_mel(arguments: argparse.Namespace) -> int:
    if not (arguments.output or arguments.file):
        arguments.refuse("give -o/--output DIR or -f/--file OUT.npy")
    items = inputs_of(arguments.inputs, AUDIO_SUFFIXES)
    check_file(arguments, items, ".npy")
    from waveglow_jax.synthesis.vocoder import load

    config = load(arguments.weights).config

    def convert(item: Input, target: Path) -> dict[str, Any]:
        mel = mel_of_recording(item.path, config)
        write_mel(target, mel)
        return {"output": str(target), "frames": len(mel)}

    return each(items, arguments, ".npy", convert)


def mel_of_recording(path: Path, config: Config, convert: bool = False) -> Any:
    """Returns the config's mel of a recording, `[F, M]`.

    convert: also accept another rate and several channels. Raises UserError if it is too short.
    """
    from waveglow_jax.synthesis.mels import mel_of_samples

    audio = read_audio(path, config.data.sampling_rate, convert=convert)
    needed = config.data.shortest + 1
    if len(audio) < needed:
        raise UserError(
            f"{path}: {len(audio)} samples are too short for a mel; {needed} are needed"
        )
    return mel_of_samples(audio, config)
