"""doctor: finds the fault of a mel that sounds wrong."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from waveglow_jax.cli.arguments import examples, given, weights_argument
from waveglow_jax.cli.outcome import check_other_file
from waveglow_jax.cli.progress import stages
from waveglow_jax.config import Config, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import AUDIO_SUFFIXES
from waveglow_jax.files.mels import read_any_mel, write_mel
from waveglow_jax.files.sound import prepare_command, read_samples


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Finds what is wrong with a mel: its convention, and how to convert it."""
    parser.add_argument(
        "recording",
        type=given,
        nargs="?",
        metavar="RECORDING",
        help="what the mel was made from, of any rate; without it only values and axes can be told",
    )
    parser.add_argument("mel", type=given, metavar="MEL", help="a mel file of any convention")
    weights_argument(parser)
    parser.add_argument(
        "--fix",
        type=given,
        metavar="OUT.npy",
        help="write the mel as the voice takes it, where that is exact",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "recording.wav mel.npy",
        "recording.wav mel.npy --fix mended.npy",
    )


def run_doctor(arguments: argparse.Namespace) -> int:
    if arguments.fix and arguments.recording is None:
        arguments.refuse("--fix needs the recording: give RECORDING MEL")
    if arguments.fix and Path(arguments.fix).suffix.lower() != ".npy":
        arguments.refuse(f"--fix {arguments.fix}: the name must end in .npy")
    if arguments.fix:
        check_other_file(arguments.fix, arguments.mel)
    mel = Path(arguments.mel)
    from waveglow_jax.doctor.advice import next_step
    from waveglow_jax.doctor.alone import diagnose_alone
    from waveglow_jax.doctor.diagnose import diagnose
    from waveglow_jax.doctor.recipe import mended

    config = config_of_weights(arguments.weights)
    own = config.convention
    form = config.data.mel
    if form.log == "none" and (form.gain, form.offset) != (1, 0):
        raise UserError(
            "the voice's mel is neither m itself nor a logarithm of it (data_config.mel.gain and "
            "offset without log), and only those can be compared"
        )
    array = read_any_mel(mel)
    heard = _samples(Path(arguments.recording)) if arguments.recording is not None else None
    try:
        if heard:
            with stages("trying conventions"):
                found = diagnose(array, *heard, own)
        elif own != config_of_weights(None).convention:
            raise UserError(
                "the statistics are those of the bundled voice's mels, which this voice does not "
                "take; give the recording too"
            )
        else:
            found = diagnose_alone(array, own)
    except UserError as error:
        raise UserError(f"{mel}: {error}") from None
    if arguments.fix:
        if found.recipe is None:
            raise UserError(f"{mel}: not converted: {'; '.join(found.refused)}")
        write_mel(arguments.fix, mended(array, found.recipe, own))
    after = next_step(
        *(found, own, str(mel), arguments.recording, arguments.fix),
        weights=arguments.weights,
        rate=heard[1] if heard else 0,
    )
    told = {"mel": str(mel), **asdict(found), "next": after}
    del told["recipe"]
    print(json.dumps(told) if arguments.json else _text(mel, told, arguments.fix))
    return 0


def config_of_weights(weights: str | None) -> Config:
    """Returns the config of the weights, without building a voice; None: the bundled voice's."""
    from waveglow_jax.weights.release import BUNDLED_VOICE, read_weights

    if weights is None:
        return load_config(BUNDLED_VOICE / "config.json")
    return read_weights(weights).config


def _samples(path: Path) -> tuple[Any, int]:
    """A recording's samples `[T]` and their rate, which may be any: the mel may have that rate."""
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        raise UserError(f"{path}: no recording; give RECORDING MEL in this order, or MEL alone")
    samples, rate = read_samples(path)
    if samples.shape[1] != 1:
        raise UserError(
            f"{path}: {samples.shape[1]} channels, one expected; mix down with: "
            f"{prepare_command(rate)}"
        )
    return samples[:, 0], rate


def _text(mel: Path, told: dict[str, Any], fixed: str | None) -> str:
    lines = [f"{mel}: {told['verdict']}", f"convention: {told['convention']}"]
    for title, key in (
        ("unlike what the voice takes", "findings"),
        ("to convert it exactly, in this order", "steps"),
        ("not to be converted", "refused"),
    ):
        if told[key]:
            lines += [f"{title}:", *(f"  - {line}" for line in told[key])]
    figures = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in told["evidence"].items()}
    lines.append("evidence: " + ", ".join(f"{k} {v}" for k, v in figures.items() if v is not None))
    lines += [f"written: {fixed}"] if fixed else []
    return "\n".join([*lines, f"next: {told['next']}"])
