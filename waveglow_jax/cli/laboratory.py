"""invertibility and likelihood: measure properties that only a flow has."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.cli.arguments import (
    FILES,
    WEIGHTS,
    count,
    examples,
    given,
    noise,
    seconds_up_to,
    seed,
    weights_argument,
)
from waveglow_jax.cli.data import mel_of_recording
from waveglow_jax.cli.outcome import exit_code, fail, inputs_of, target_of
from waveglow_jax.cli.progress import counted, print_line, stages
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, Input, find_inputs
from waveglow_jax.files.mels import read_mel
from waveglow_jax.files.sound import read_audio
from waveglow_jax.text import finite_json

PRECISIONS = (
    *("float64", "float32", "bfloat16_3x products", "TF32 products", "bfloat16 products"),
    *("float16 in WN", "bfloat16 in WN", "float16", "bfloat16"),
)
"""The names of `analysis.precisions`, whose import takes as long as JAX's."""
_NOISE = 0.1
# An uncentred mel has this many frames fewer than a centred one.
_EDGE_FRAMES = 4


def invertibility_arguments(parser: argparse.ArgumentParser) -> None:
    """Measures how invertible a flow is in every precision, and the error of each layer."""
    parser.add_argument(
        "source",
        type=given,
        nargs="?",
        metavar="WEIGHTS",
        help=f"{WEIGHTS}, here or after -w; with -w or --random a first recording",
    )
    weights_argument(parser)
    parser.add_argument(
        "recordings",
        type=given,
        nargs="*",
        metavar="RECORDING",
        help=f"recordings: {FILES} (default: the bundled ones)",
    )
    parser.add_argument(
        "--random",
        type=given,
        metavar="CONFIG",
        help="random weights of the shape of this config file or preset in place of WEIGHTS, every "
        "layer alive",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the random weights (default: 0)")
    parser.add_argument(
        "--seconds",
        type=seconds_up_to(60),
        default=1.0,
        help="of each recording, at its loudest (default: 1)",
    )
    parser.add_argument(
        "--close-samples",
        type=count,
        default=4096,
        metavar="N",
        help="of the first, in which each layer is looked at (default: 4096)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        metavar="NAME",
        help=f"only this one: {', '.join(PRECISIONS)}; may be given again (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "-o", "--output", type=given, metavar="DIR", help="report.md, report.json, depth.png"
    )
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "-w universal recording.wav -o report",
        "--random nvidia256",
    )


def run_invertibility(arguments: argparse.Namespace) -> int:
    if arguments.weights is not None and arguments.random is not None:
        arguments.refuse("-w/--weights and --random exclude each other")
    import jax

    # float64 must stay float64. The setting affects only this process and precedes all computation.
    jax.config.update("jax_enable_x64", True)
    from waveglow_jax.analysis.invertibility import analyse
    from waveglow_jax.analysis.invertibility_report import as_json, markdown, write_reports
    from waveglow_jax.analysis.precisions import BY_NAME

    voice, model, recordings = _subject(arguments)
    signals = _signals(arguments, voice, recordings)
    with stages("round trips") as progress:
        report = analyse(
            voice.params,
            voice.config,
            signals,
            model,
            close_samples=arguments.close_samples,
            precisions=[BY_NAME[name] for name in arguments.precision or PRECISIONS],
            progress=progress,
        )
    print(json.dumps(as_json(report)) if arguments.json else markdown(report))
    if arguments.output:
        write_reports(report, arguments.output)
    return 0


def _subject(arguments: argparse.Namespace) -> tuple[Any, str, list[str]]:
    """The voice, its name, and the recordings.

    With -w or --random, the first positional argument is a recording and not WEIGHTS.
    """
    from waveglow_jax.synthesis.vocoder import Voice, load

    first = [arguments.source] if arguments.source else []
    if arguments.weights is not None:
        name = Path(arguments.weights).name
        return load(arguments.weights), name, [*first, *arguments.recordings]
    if arguments.random is None:
        name = arguments.source or "the bundled voice"
        return load(arguments.source), Path(name).name, arguments.recordings
    from waveglow_jax.analysis.signals import random_params
    from waveglow_jax.config import load_config

    config = load_config(arguments.random)
    name = f"{Path(arguments.random).stem}, random weights (seed {arguments.seed})"
    params = random_params(config, arguments.seed)
    return Voice(config, params), name, [*first, *arguments.recordings]


def _signals(arguments: argparse.Namespace, voice: Any, recordings: list[str]) -> list[Any]:
    """Pieces of equal length: one per recording, and one of white noise under its own mel."""
    from waveglow_jax.analysis.signals import signal_of
    from waveglow_jax.weights.release import BUNDLED_VOICE

    config = voice.config
    rate, hop = config.data.sampling_rate, config.data.hop_length
    least = config.period * hop
    if arguments.close_samples < least:
        what = "a frame" if config.period == 1 else f"{config.period} frames (whole groups)"
        raise UserError(
            f"--close-samples {arguments.close_samples} is below {what}, {least} samples"
        )
    frames = max(config.period, config.whole_frames(int(arguments.seconds * rate)))
    items = find_inputs(recordings or [BUNDLED_VOICE / "recordings"], AUDIO_SUFFIXES)
    audios = {
        item.relative.with_suffix("").as_posix(): read_audio(item.path, rate) for item in items
    }
    noise = np.random.default_rng(0).normal(0, _NOISE, (frames + 8) * hop)
    audios["white noise"] = noise.astype(np.float32)
    shortest = frames * hop + config.data.filter_length
    for name, audio in audios.items():
        if len(audio) < shortest:
            raise UserError(
                f"{name}: {len(audio)} samples are too short for {arguments.seconds:g} s of it "
                f"({shortest} with context); lower --seconds"
            )
    return [
        signal_of(name, audio, voice.mel(audio), config, frames * hop)
        for name, audio in audios.items()
    ]


def likelihood_arguments(parser: argparse.ArgumentParser) -> None:
    """Computes exact log-likelihoods of recordings under their mels, or of one under any mel."""
    parser.add_argument(
        "inputs", type=given, nargs="+", metavar="RECORDING", help=f"recordings: {FILES}"
    )
    weights_argument(parser)
    parser.add_argument(
        "--mel",
        type=given,
        metavar="FILE",
        help="the mel of the one recording, in place of its own: a wrong convention shows",
    )
    parser.add_argument(
        "--noise",
        type=noise,
        metavar="STD",
        help="Gaussian noise added first; without any, the figure of a recording with an empty "
        "band is arbitrary (default: that of the voice's training)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")
    parser.add_argument(
        "-o", "--output", type=given, metavar="DIR", help="with --plot: one .png each"
    )
    parser.add_argument("--plot", action="store_true", help="a picture each: the curve over time")
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "recordings -w universal",
        "recording.wav --plot -o out",
    )


def run_likelihood(arguments: argparse.Namespace) -> int:
    if arguments.plot != (arguments.output is not None):
        arguments.refuse("--plot and -o DIR belong together")
    items = inputs_of(arguments.inputs, AUDIO_SUFFIXES, with_outputs=arguments.plot)
    if arguments.mel and len(items) > 1:
        arguments.refuse(f"--mel belongs to one recording, and there are {len(items)}")
    from waveglow_jax.synthesis.vocoder import load

    voice = load(arguments.weights)
    failed = 0
    with counted(len(items), "files") as bar:
        for item in items:
            bar.set_description_str(str(item.relative))
            try:
                found = _likelihood(item, voice, arguments)
            except UserError as error:
                failed += fail(str(error))
            else:
                line = json.dumps(found) if arguments.json else _likelihood_line(item.path, found)
                print_line(line, sys.stdout)
            bar.update()
    return exit_code(failed, items)


def _likelihood(item: Input, voice: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The reported values of a recording; also draws its picture with --plot."""
    import dataclasses

    from waveglow_jax.analysis.likelihoods import likelihood_figure, likelihood_of, noisy

    data = voice.config.data
    audio = read_audio(item.path, data.sampling_rate)
    own = mel_of_recording(item.path, voice.config)
    mel = own if arguments.mel is None else _mel_for(arguments.mel, own, voice)
    std = voice.config.train.noise_std if arguments.noise is None else arguments.noise
    audio = noisy(audio[: len(own) * data.hop_length], std, data.hop_length)
    audio = audio[: len(mel) * data.hop_length]
    found = likelihood_of(voice.params, voice.config, audio, mel)
    if arguments.plot:
        target = target_of(item, arguments, ".png", {os.path.realpath(item.path)})
        figure = likelihood_figure(found, mel, data, item.path.name)
        with replacing(target) as temporary:
            figure.savefig(temporary, dpi=100)
    told = {
        "input": str(item.path),
        "mel": arguments.mel,
        "noise": std,
        **dataclasses.asdict(found),
    }
    return finite_json(told)


def _mel_for(path: str, own: np.ndarray, voice: Any) -> np.ndarray:
    """The mel of a file, at most as long as the recording's own mel.

    A longer mel loses its last frames here; for a shorter one the caller cuts the samples. Raises
    UserError if the lengths differ by more than _EDGE_FRAMES.
    """
    mel = read_mel(path, voice.config.waveglow.n_mel_channels)
    if abs(len(mel) - len(own)) > _EDGE_FRAMES:
        raise UserError(
            f"{path}: has {len(mel)} frames, the recording's own mel {len(own)}: it is of another "
            "hop, rate or recording"
        )
    return mel[: len(own)]


def _likelihood_line(path: Path, found: dict[str, Any]) -> str:
    if found["nats"] is None:
        return f"{path}  impossible in float32: its mel is of another convention"
    z = found["z"]
    return (
        f"{path}  {found['nats']:.4f} nats per sample  {found['bits']:.2f} bits per sample at 16  "
        f"z: mean {z['mean']:+.3f}, std {z['std']:.3f}, excess kurtosis {z['kurtosis']:+.2f}"
    )
