"""convert, inspect, export: convert weights of any kind to another form, or report on them."""

import argparse
import json
from pathlib import Path
from typing import Any

from waveglow_jax.cli.arguments import corrections, examples, given, source_arguments, weights_of
from waveglow_jax.cli.data import mel_of_recording
from waveglow_jax.cli.outcome import check_other_file
from waveglow_jax.cli.progress import stages
from waveglow_jax.config import DTYPES
from waveglow_jax.errors import UserError, escaped
from waveglow_jax.files.atomic import replacing
from waveglow_jax.files.sound import read_audio
from waveglow_jax.text import number_of

PICTURES = (".png", ".pdf", ".svg")


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Converts any weights to a release folder, or to a state dict for the original's model."""
    source_arguments(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=given,
        required=True,
        metavar="OUT",
        help="folder, or with --to torch a .pt file",
    )
    parser.add_argument(
        "--to",
        choices=("release", "torch"),
        default="release",
        help="a release folder, or a state dict for the original's model (default: release)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights in the file (default: float32)",
    )
    parser.add_argument(
        "--check",
        type=given,
        metavar="RECORDING",
        help="also tell this recording's log-likelihood",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    examples(
        parser,
        "waveglow_256channels_universal_v5.pt -o universal --check recording.wav",
        "runs/lj -o lj.pt --to torch",
    )


def run_convert(arguments: argparse.Namespace) -> int:
    arguments.source = weights_of(arguments)
    from waveglow_jax.weights.release import WEIGHTS, read_weights, save

    source = Path(arguments.source)
    beside = [source.parent] if source.name == WEIGHTS else []
    check_other_file(arguments.output, source, *beside)
    weights = read_weights(arguments.source, alternating_halves=arguments.alternating_halves)
    if arguments.to == "torch":
        from waveglow_jax.weights.nvidia import write_original

        with replacing(arguments.output) as temporary:
            write_original(temporary, weights.config, weights.params, arguments.dtype)
    else:
        save(arguments.output, weights.config, weights.params, arguments.dtype)
    nats = _likelihood(Path(arguments.check), weights) if arguments.check else None
    if arguments.json:
        told = {"output": arguments.output, "kind": weights.kind, "notes": weights.notes}
        print(json.dumps({**told, "check": arguments.check, "nats": nats}))
        return 0
    print(f"{arguments.output}: from {weights.kind}")
    for note in weights.notes:
        print(note)
    if nats is not None:
        print(f"{arguments.check}: {nats:.4f} nats per sample")
    return 0


def _likelihood(recording: Path, weights: Any) -> float:
    """Log-likelihood of a recording in nats per sample.

    Trained weights give speech a far higher likelihood than random ones do.
    """
    from waveglow_jax.synthesis.vocoder import Voice

    voice = Voice(weights.config, weights.params)
    mel = mel_of_recording(recording, voice.config)
    audio = read_audio(recording, voice.config.data.sampling_rate)
    frames = voice.config.whole_frames(len(audio))
    samples = frames * voice.config.data.hop_length
    _, nats = voice.encode(audio[None, :samples], mel[None, : frames + 1])
    return float(nats[0])


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Reports what a file of weights holds, or how a training run goes (by -w: what its best
    checkpoint holds), and anything suspicious."""
    source_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--plot",
        type=given,
        metavar="FILE.png",
        help="of a training run: its curves as a picture",
    )
    examples(
        parser,
        "runs/lj --plot curves.png",
        "-w runs/lj",
    )


def run_inspect(arguments: argparse.Namespace) -> int:
    from waveglow_jax.training.watching.inspection import is_run_folder

    source = weights_of(arguments)
    run = Path(source)
    if is_run_folder(run) and arguments.weights is None:
        return _inspect_run(run, arguments)
    if arguments.plot:
        raise UserError(f"{run}: --plot shows a training run's curves, and this is none")
    from waveglow_jax.weights.facts import as_text, report
    from waveglow_jax.weights.release import read_weights

    found = report(read_weights(source, alternating_halves=arguments.alternating_halves))
    print(json.dumps(found) if arguments.json else as_text(found))
    return 0


def _inspect_run(run: Path, arguments: argparse.Namespace) -> int:
    from waveglow_jax.training.watching.curves import run_figure
    from waveglow_jax.training.watching.history import read_history
    from waveglow_jax.training.watching.inspection import report_run, run_as_text

    if arguments.plot and Path(arguments.plot).suffix.lower() not in PICTURES:
        raise UserError(
            f"{arguments.plot}: no picture's name; it must end in {', '.join(PICTURES)}"
        )
    found = report_run(run)
    if arguments.plot:
        figure = run_figure(read_history(run / "metrics.jsonl"), str(run))
        with replacing(arguments.plot) as temporary:
            figure.savefig(temporary, dpi=110)
    if arguments.json:
        print(json.dumps({**found, "plot": arguments.plot} if arguments.plot else found))
        return 0
    print(run_as_text(found))
    if arguments.plot:
        print(escaped(f"written: {arguments.plot}"))
    return 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Writes the reverse pass as one file that needs nothing of this package: for jax.export, or
    ONNX."""
    source_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=given,
        required=True,
        metavar="FILE",
        help="ends in .onnx for ONNX, which takes minutes to convert",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="inside WN (default: float32)"
    )
    parser.add_argument(
        "--consistency",
        type=corrections,
        metavar="N",
        help="corrections towards the mel that follow the reverse pass (default: the voice's own; "
        "for ONNX none)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    examples(
        parser,
        "universal -o universal.jaxexport --dtype bfloat16",
        "universal -o universal.onnx",
    )


def run_export(arguments: argparse.Namespace) -> int:
    arguments.source = weights_of(arguments)
    to_onnx = Path(arguments.output).suffix.lower() == ".onnx"
    if to_onnx and arguments.dtype != "float32":
        arguments.refuse("ONNX files are written in float32")
    if to_onnx and arguments.consistency:
        arguments.refuse(
            "ONNX files hold the bare reverse pass, for ONNX has no complex numbers to correct "
            "spectra with; leave --consistency out, or write a jax.export file"
        )
    from waveglow_jax.synthesis.export import promise, write_export
    from waveglow_jax.synthesis.onnx_export import write_onnx
    from waveglow_jax.weights.release import read_weights

    check_other_file(arguments.output, arguments.source)
    weights = read_weights(arguments.source, alternating_halves=arguments.alternating_halves)
    consistency = arguments.consistency
    if consistency is None:
        consistency = weights.config.synthesis.consistency
    notes = []
    if to_onnx:
        with stages("converting to ONNX"):
            write_onnx(Path(arguments.output), weights.config, weights.params)
        if consistency:
            notes.append(
                f"without the voice's {number_of(consistency, 'correction')}, which ONNX "
                "cannot hold"
            )
    else:
        with stages("exporting"):
            write_export(
                Path(arguments.output), weights.config, weights.params, arguments.dtype, consistency
            )
        notes.append(promise())
    if arguments.json:
        print(json.dumps({"output": arguments.output, "kind": weights.kind, "notes": notes}))
    else:
        print("; ".join([f"{arguments.output}: from {weights.kind}", *notes]))
    return 0
