"""resynthesize, interpolate, sweep: make the contents of a recording's latent audible."""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from waveglow_jax.cli.arguments import (
    FILES,
    check_file,
    corrections,
    count,
    examples,
    given,
    number,
    output_arguments,
    seed,
    sigma,
    weights_argument,
)
from waveglow_jax.cli.data import mel_of_recording
from waveglow_jax.cli.foreign import Reader
from waveglow_jax.cli.outcome import each, inputs_of, tell
from waveglow_jax.cli.progress import counted
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, MEL_SUFFIXES, Input, find_inputs
from waveglow_jax.files.sound import read_audio
from waveglow_jax.files.wav import write_wav


def resynthesize_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes a recording to its latent and back: exactly, or with a part of the latent changed."""
    parser.add_argument(
        "inputs", type=given, nargs="+", metavar="RECORDING", help=f"recordings: {FILES}"
    )
    output_arguments(parser, ".wav")
    _shared(parser)
    parser.add_argument(
        "--replace",
        type=sigma,
        metavar="SIGMA",
        help="replace the chosen part of z by noise of this temperature",
    )
    parser.add_argument(
        "--scale",
        type=number,
        metavar="FACTOR",
        help="multiply the chosen part of z by this",
    )
    parser.add_argument(
        "--groups",
        type=_numbers(int),
        metavar="0,1,...",
        help="choose the channels that leave together, first to leave 0 (default: all)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=number,
        default=0.0,
        metavar="SECONDS",
        help="choose from here on (default: from the start)",
    )
    parser.add_argument(
        "--to",
        dest="stop",
        type=number,
        default=math.inf,
        metavar="SECONDS",
        help="choose up to here (default: to the end)",
    )
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "recording.wav -f again.wav",
        "recordings -o out --replace 1 --from 2 --to 3",
    )


def interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """Goes from one recording to another: their latents under A's mel, or their mels with A's
    latent."""
    parser.add_argument("first", type=given, metavar="A", help="recording")
    parser.add_argument("second", type=given, metavar="B", help="recording")
    _output(parser)
    _shared(parser)
    parser.add_argument(
        "--path",
        choices=("z", "mel"),
        default="z",
        help="what goes from A to B; the other stays A's (default: z)",
    )
    parser.add_argument(
        "--steps", type=count, default=5, help="points on the way, both ends included (default: 5)"
    )
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "a.wav b.wav -o out --path mel --steps 7",
    )


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Makes sound from one mel and one noise at several temperatures (sigmas)."""
    parser.add_argument(
        "inputs",
        type=given,
        nargs="+",
        metavar="INPUT",
        help=f"recordings or mels (.npy, .npz, .pt, .safetensors): {FILES}",
    )
    _output(parser)
    _shared(parser, "the voice's own")
    parser.add_argument(
        "-s",
        "--sigma",
        type=_numbers(sigma),
        default=(0.0, 0.3, 0.6, 1.0),
        metavar="0,0.3,...",
        help="temperatures (default: 0,0.3,0.6,1)",
    )
    examples(
        parser,
        "recording.wav -o out -s 0,0.4,0.8",
    )


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=given, required=True, metavar="DIR", help=".wav and .png"
    )


def _shared(
    parser: argparse.ArgumentParser, corrected: str = "0, what the flow itself says"
) -> None:
    """Adds the options of all three. corrected: the corrections that are made by default."""
    weights_argument(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--consistency",
        type=corrections,
        metavar="N",
        help=f"corrections that bring what comes out to its mel (default: {corrected})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")


def _numbers(of_type: Any) -> Any:
    def numbers(text: str) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(of_type(part) for part in text.split(",")))
        except ValueError:
            why = f"{text} must be numbers with commas between"
            raise argparse.ArgumentTypeError(why) from None

    return numbers


def run_resynthesize(arguments: argparse.Namespace) -> int:
    if arguments.replace is not None and arguments.scale is not None:
        arguments.refuse("--replace and --scale exclude each other")
    chosen = arguments.groups is not None or arguments.start > 0 or arguments.stop < math.inf
    if chosen and arguments.replace is None and arguments.scale is None:
        arguments.refuse("--groups, --from and --to choose a part: for --replace or --scale")
    if not (arguments.output or arguments.file):
        arguments.refuse("give -o/--output DIR or -f/--file OUT.wav")
    items = inputs_of(arguments.inputs, AUDIO_SUFFIXES, output=arguments.output)
    check_file(arguments, items, ".wav")
    from waveglow_jax.analysis import latent
    from waveglow_jax.synthesis.vocoder import load

    voice = load(arguments.weights)

    def work(item: Input, target: Path) -> dict[str, Any]:
        audio, found = _encoded(item.path, voice)
        z = found.z
        try:
            part = latent.chosen_part(
                voice.config, len(z), arguments.groups, (arguments.start, arguments.stop)
            )
        except ValueError as error:
            raise UserError(f"{item.path}: {error}; choose another part") from None
        title = "resynthesised"
        if arguments.replace is not None:
            z = latent.with_noise(z, part, voice.config, arguments.replace, arguments.seed)
            title = f"{part.mean():.0%} of z replaced by noise of sigma {arguments.replace:g}"
        if arguments.scale is not None:
            z = latent.scaled(z, part, arguments.scale)
            title = f"{part.mean():.0%} of z times {arguments.scale:g}"
        corrected = arguments.consistency or 0
        again = voice.decode(z, found.mel, corrected)[: found.n_samples]
        _write(target, again, found.mel, voice, ("recording", title))
        exact = latent.round_trip(audio, again)
        kept = "z kept" if z is found.z else title
        return {
            **_told(target, voice, again),
            "nats": found.nats,
            "changed": 0.0 if z is found.z else float(part.mean()),
            **asdict(exact),
            "said": f"{kept}: largest difference to the recording {exact.max_error:.2g}, SNR "
            f"{exact.snr_db:.1f} dB ({found.nats:.3f} nats per sample)",
        }

    return each(items, arguments, ".wav", work)


def run_interpolate(arguments: argparse.Namespace) -> int:
    if arguments.steps < 2:
        arguments.refuse("--steps must be at least 2: both ends")
    first, second = (
        find_inputs([path], AUDIO_SUFFIXES) for path in (arguments.first, arguments.second)
    )
    if len(first) != 1 or len(second) != 1:
        raise UserError(f"{arguments.first}, {arguments.second}: one recording each is needed")
    from waveglow_jax.analysis import latent
    from waveglow_jax.synthesis.vocoder import load

    voice = load(arguments.weights)
    with counted(arguments.steps, "steps") as bar:
        bar.set_description_str("encoding")
        a, b = (_encoded(found[0].path, voice)[1] for found in (first, second))
        made = []
        for step in range(arguments.steps):
            share = step / (arguments.steps - 1)
            z, mel = latent.between(a, b, share, arguments.path)
            audio = voice.decode(z, mel, arguments.consistency or 0)
            target = _not_an_input(
                Path(arguments.output) / f"{arguments.path}_{share:.2f}.wav", [*first, *second]
            )
            title = f"{share:.0%} of the way to B's {arguments.path}"
            _write(target, audio, mel, voice, ("mel", title))
            told = {**_told(target, voice, audio), "share": share, "said": title}
            tell(first[0], told, arguments)
            made.append((title, voice.mel(audio)))
            bar.set_description_str("decoding", refresh=False)
            bar.update()
        _picture(Path(arguments.output) / f"{arguments.path}.png", made, voice)
    return 0


def run_sweep(arguments: argparse.Namespace) -> int:
    items = inputs_of(arguments.inputs, AUDIO_SUFFIXES + MEL_SUFFIXES, output=arguments.output)
    from waveglow_jax.synthesis.vocoder import load

    voice = load(arguments.weights)

    def work(item: Input, target: Path) -> dict[str, Any]:
        beside = os.path.realpath(item.path.parent) == os.path.realpath(target.parent)
        if beside and item.path.suffix.lower() == ".wav":
            raise UserError(
                f"{item.path}: the next run would take what is written beside it for recordings; "
                "choose another -o"
            )
        mel = Reader(voice.config).mel(item.path)
        made = [("input", mel)]
        for value in arguments.sigma:
            wav = target.with_name(f"{target.stem}_sigma{value:g}.wav")
            audio = _synthesized(item, mel, value, arguments, voice)
            write_wav(_not_an_input(wav, items), audio, voice.config.data.sampling_rate)
            made.append((f"sigma {value:g}", voice.mel(audio)))
        _picture(target, made, voice)
        said = f"and a .wav each of sigma {', '.join(f'{s:g}' for s in arguments.sigma)}"
        return {**_told(target, voice, audio), "sigma": list(arguments.sigma), "said": said}

    return each(items, arguments, ".png", work)


def _synthesized(
    item: Input, mel: Any, sigma: float, arguments: argparse.Namespace, voice: Any
) -> Any:
    try:
        return voice.synthesize(mel, sigma, arguments.seed, consistency=arguments.consistency)
    except ValueError as error:
        raise UserError(f"{item.path}: {error}") from None


def _encoded(path: Path, voice: Any) -> tuple[Any, Any]:
    from waveglow_jax.analysis import latent

    mel_of_recording(path, voice.config)  # refuses recordings too short for a mel
    audio = read_audio(path, voice.config.data.sampling_rate)
    return audio, latent.encode(voice, audio)


def _not_an_input(target: Path, items: Sequence[Input]) -> Path:
    if os.path.realpath(target) in {os.path.realpath(item.path) for item in items}:
        raise UserError(f"{target}: this output would overwrite an input; choose another -o")
    return target


def _told(target: Path, voice: Any, audio: Any) -> dict[str, Any]:
    seconds = len(audio) / voice.config.data.sampling_rate
    return {"output": str(target), "seconds": round(seconds, 3)}


def _write(target: Path, audio: Any, mel: Any, voice: Any, titles: Sequence[str]) -> None:
    """Writes the audio, and beside it a picture of the given mel above the output's mel."""
    write_wav(target, audio, voice.config.data.sampling_rate)
    _picture(
        target.with_suffix(".png"),
        list(zip(titles, (mel, voice.mel(audio)), strict=True)),
        voice,
    )


def _picture(path: Path, mels: Sequence[tuple[str, Any]], voice: Any) -> None:
    from waveglow_jax.audio.picture import mel_figure

    figure = mel_figure(mels, voice.config.data)
    with replacing(path) as temporary:
        figure.savefig(temporary)
