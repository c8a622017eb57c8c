"""synthesize: converts mels or recordings to audio, as files or as a stream."""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from waveglow_jax.cli.arguments import (
    FILES,
    check_file,
    consistency,
    count,
    examples,
    given,
    output_arguments,
    seed,
    sigma,
    strength,
    weights_argument,
)
from waveglow_jax.cli.foreign import (
    check_no_network,
    foreign_arguments,
    plot_mels,
    reader_of,
    synthesize_without_network,
)
from waveglow_jax.cli.outcome import (
    each,
    exit_code,
    fail,
    inputs_of,
    levels_of,
    target_of,
    tell,
)
from waveglow_jax.cli.player import play, player
from waveglow_jax.cli.progress import audio_seconds, stages, tell_speed
from waveglow_jax.config import DTYPES, LATENT
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, MEL_SUFFIXES, Input
from waveglow_jax.files.wav import pcm16, write_wav, write_wav_blocks


def synthesize_arguments(parser: argparse.ArgumentParser) -> None:
    """Makes audio from mels, or from recordings by way of their mel (copy-synthesis)."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=given,
        metavar="INPUT",
        help=f"recordings or mels (.npy, .npz, .pt, .safetensors): {FILES}",
    )
    where = output_arguments(parser, ".wav")
    where.add_argument(
        "--stream",
        action="store_true",
        help="raw samples to stdout as they come (16 bits, little-endian, mono): | aplay -f S16_LE "
        "-r 22050",
    )
    parser.add_argument(
        "--play",
        action="store_true",
        help="play each when it is done (by ffplay, aplay or afplay); without -o or -f nothing is "
        "kept",
    )
    weights_argument(parser)
    foreign_arguments(parser)
    _sound_arguments(parser)
    _machine_arguments(parser)
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "recording.wav -f again.wav --play",
        "mels -o out -w waveglow_256channels_universal_v5.pt -s 0.6 -d 0.01",
        "mel.npy --stream | aplay -f S16_LE -r 22050",
    )


def _sound_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", "--sigma", type=sigma, help="temperature (default: the voice's own)")
    parser.add_argument(
        "--consistency",
        type=consistency,
        metavar="N|latent",
        help="corrections that bring the sample to its mel; latent: search for a typical z that "
        "has this mel (default: the voice's own, 0 for published weights as in the original; 32 "
        "makes a weak voice clear and costs little)",
    )
    parser.add_argument(
        "-d",
        "--denoise",
        type=strength,
        default=0.0,
        metavar="STRENGTH",
        help="take out the voice's own bias (default: 0, not at all; 0.01 to 0.1 is usual)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the products inside WN (default: float32)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default: 0)")


def _machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plot", action="store_true", help="a picture each: mel of the input above the output's"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")
    parser.add_argument(
        "--window",
        type=count,
        metavar="FRAMES",
        help="of mel computed at once (default: by the lengths)",
    )
    parser.add_argument(
        "--batch", type=count, metavar="N", help="windows at once (default: by the lengths)"
    )
    parser.add_argument(
        "--chunk",
        type=count,
        metavar="FRAMES",
        help="of mel in a block of the stream: fewer come sooner (default: about the context)",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="keep no compiled programs in the user's cache folder, and use none from there",
    )
    parser.add_argument("--verbose", action="store_true", help="tell the windows that were chosen")


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together."""
    arguments.keep = bool(arguments.output or arguments.file)
    if not (arguments.keep or arguments.stream or arguments.play):
        arguments.refuse("give -o/--output DIR, -f/--file OUT.wav, --stream or --play")
    unfit = ("json", "plot", "window", "batch", "play") if arguments.stream else ("chunk",)
    for name in unfit:
        if getattr(arguments, name):
            with_or_without = "with" if arguments.stream else "without"
            arguments.refuse(f"--{name} is of no use {with_or_without} --stream")
    if arguments.no_network:
        check_no_network(arguments)
    if arguments.plot and not arguments.keep:
        arguments.refuse("--plot puts a picture beside each file; give -o or -f too")
    if arguments.consistency == LATENT:
        for name in ("stream", "window", "batch"):
            if getattr(arguments, name):
                arguments.refuse(
                    f"--{name} does not go with --consistency {LATENT}, which needs each mel as a "
                    "whole; give a number, such as 32"
                )


def run_synthesize(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    items = inputs_of(
        arguments.inputs, AUDIO_SUFFIXES + MEL_SUFFIXES, arguments.keep, arguments.output
    )
    check_file(arguments, items, ".wav")
    if arguments.play:
        player()  # a missing player is refused before any computation
    with _memory_told():
        make = synthesize_without_network if arguments.no_network else _with_voice(arguments)
        if arguments.keep or arguments.stream:
            return make(items, arguments)
        with TemporaryDirectory() as to_be_played:
            arguments.output = to_be_played
            return make(items, arguments)


def _with_voice(arguments: argparse.Namespace) -> Callable[..., int]:
    """Loads the voice, fills in its own settings, and returns the function that uses it."""
    from waveglow_jax.synthesis.vocoder import load

    with stages("loading the voice"):
        voice = load(arguments.weights, keep_programs=not arguments.no_cache)
    own = voice.config.synthesis
    arguments.sigma = own.sigma if arguments.sigma is None else arguments.sigma
    if arguments.consistency is None:
        arguments.consistency = own.consistency
    arguments.reader = reader_of(voice.config, arguments.mel_convention, arguments.seed)
    if arguments.stream:
        return partial(_synthesize_stream, voice=voice)
    make = _search_files if arguments.consistency == LATENT else _synthesize_files
    return partial(make, voice=voice)


@contextmanager
def _memory_told() -> Iterator[None]:
    """Converts the out-of-memory errors of accelerators and NumPy to a UserError of one line."""
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        raise UserError(
            "the memory is not enough for so much at once; take a smaller --window, --batch or "
            f"--chunk (with --consistency {LATENT} a shorter mel)"
        ) from None


def _synthesize_files(items: Sequence[Input], arguments: argparse.Namespace, voice: Any) -> int:
    """Synthesises files in order, by windows that may hold several; returns the exit code."""
    data, dtype = voice.config.data, arguments.dtype
    to_do = [item.path for item in items if item.rival is None]
    lengths = [n for path in to_do if (n := arguments.reader.frames(path))]
    try:
        plan = voice.plan(lengths, dtype, window=arguments.window, batch=arguments.batch)
    except ValueError as error:
        raise UserError(f"--window or --batch: {error}") from None
    if lengths and arguments.verbose:
        print(plan, file=sys.stderr)
    with audio_seconds(sum(lengths) * data.hop_length / data.sampling_rate) as bar:
        compile_seconds = voice.compile(plan, dtype, arguments.consistency) if lengths else 0.0
        if lengths and arguments.denoise:
            began = time.monotonic()
            voice.bias_spectrum  # noqa: B018 - computed when first asked for
            compile_seconds += time.monotonic() - began
        return _write_files(items, arguments, voice, plan, compile_seconds, bar)


def _write_files(
    items: Sequence[Input],
    arguments: argparse.Namespace,
    voice: Any,
    plan: Any,
    compile_seconds: float,
    bar: Any,
) -> int:
    """Synthesises and writes the files of a compiled plan; returns the exit code."""
    inputs = {os.path.realpath(item.path) for item in items}
    config, data, dtype = voice.config, voice.config.data, arguments.dtype
    failed, clock = 0, _Clock()
    under_way: deque[tuple[Input, Path, Any]] = deque()

    def mels() -> Iterator[Any]:
        nonlocal failed
        for item in items:
            try:
                with clock.stopped():
                    target = target_of(item, arguments, ".wav", inputs)
                    mel = arguments.reader.mel(item.path)
            except UserError as error:
                failed += fail(str(error))
                continue
            under_way.append((item, target, mel))
            yield mel

    settings = arguments.sigma, arguments.seed, arguments.denoise, dtype, arguments.consistency
    blocks = voice.blocks(mels(), plan, *settings)
    done_seconds = 0.0
    shown = _shown(clock.timed(blocks), clock, bar, data.sampling_rate)
    for _, of_one in groupby(shown, itemgetter(0)):
        item, target, mel = under_way.popleft()
        samples: Any = (block for _, block in of_one)
        try:
            with levels_of(item.path):
                if arguments.plot:
                    samples = list(samples)
                write_wav_blocks(target, samples, data.sampling_rate)
            if arguments.plot:
                plot_mels(target.with_suffix(".png"), mel, np.concatenate(samples), config)
        except UserError as error:
            failed += fail(str(error))
            continue
        # Windows hold parts of several files, so a file's time is its share of the time so far.
        seconds = len(mel) * data.hop_length / data.sampling_rate
        done_seconds += seconds
        speed = done_seconds / max(clock.seconds, 1e-9)
        result = {
            "output": str(target) if arguments.keep else None,
            "seconds": round(seconds, 3),
            "times_real_time": round(speed, 2),
            "run_seconds": round(seconds / speed, 3),
            "compile_seconds": round(compile_seconds, 3),
            "sigma": arguments.sigma,
            "consistency": arguments.consistency,
        }
        compile_seconds = 0.0
        tell(item, result, arguments)
        if arguments.play:
            try:
                play(target)
            except UserError as error:
                failed += fail(str(error))
    return exit_code(failed, items)


def _shown(blocks: Iterator[Any], clock: "_Clock", bar: Any, rate: int) -> Iterator[Any]:
    """The same blocks; reports each to the bar."""
    for number, block in blocks:
        tell_speed(bar, len(block) / rate, clock.seconds)
        yield number, block


def _search_files(items: Sequence[Input], arguments: argparse.Namespace, voice: Any) -> int:
    """Synthesises each file as the flow's typical sample for its whole mel, found by a search.

    Returns the exit code.
    """
    from waveglow_jax.synthesis.denoiser import denoise
    from waveglow_jax.synthesis.levels import limited

    rate, dtype = voice.config.data.sampling_rate, arguments.dtype

    def work(item: Input, target: Path) -> dict[str, Any]:
        mel = arguments.reader.mel(item.path)
        began = time.monotonic()
        try:
            voice.compile_typical(len(mel), dtype)
        except ValueError as error:
            raise UserError(f"{item.path}: {error}") from None
        if arguments.denoise:
            voice.bias_spectrum  # noqa: B018 - computed when first asked for
        compile_seconds = time.monotonic() - began
        began = time.monotonic()
        found = voice.typical_sample(mel, arguments.sigma, arguments.seed, dtype)
        run_seconds = time.monotonic() - began
        samples = found.audio
        if arguments.denoise:
            samples = denoise(samples, voice.bias_spectrum, arguments.denoise)
        (samples,) = limited([samples])
        write_wav(target, samples, rate)
        if arguments.plot:
            plot_mels(target.with_suffix(".png"), mel, samples, voice.config)
        if arguments.play:
            play(target)
        seconds = len(samples) / rate
        return {
            "output": str(target) if arguments.keep else None,
            "seconds": round(seconds, 3),
            "times_real_time": round(seconds / run_seconds, 2),
            "run_seconds": round(run_seconds, 3),
            "compile_seconds": round(compile_seconds, 3),
            "sigma": arguments.sigma,
            "consistency": arguments.consistency,
            "nats": found.nats,
        }

    return each(items, arguments, ".wav", work)


@dataclass
class _Clock:
    """Measures the seconds spent computing."""

    seconds: float = 0.0

    def timed(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """The same blocks; adds the time that each took to the clock."""
        while True:
            began = time.monotonic()
            block = next(blocks, None)
            self.seconds += time.monotonic() - began
            if block is None:
                return
            yield block

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Excludes the time of the block from the clock."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds -= time.monotonic() - began


def _synthesize_stream(items: Sequence[Input], arguments: argparse.Namespace, voice: Any) -> int:
    """Writes the files' raw samples to stdout, one after another; returns the exit code."""
    if sys.__stdout__ is None:
        raise UserError("--stream writes samples to stdout, which is closed; pipe them somewhere")
    if sys.stdout.isatty():
        raise UserError("--stream writes raw samples: pipe them, as to | aplay -f S16_LE -r 22050")
    data, chunk, denoise = voice.config.data, arguments.chunk, arguments.denoise
    began = time.monotonic()
    with stages("compiling"):
        try:
            voice.compile_stream(chunk, arguments.dtype, arguments.consistency)
        except ValueError as error:
            raise UserError(f"--chunk: {error}") from None
        if denoise:
            voice.bias_spectrum  # noqa: B018 - computed when first asked for
    compile_seconds = time.monotonic() - began
    frames = voice.latency_frames(chunk, denoise, arguments.consistency)
    heard = frames * data.hop_length / data.sampling_rate
    if arguments.verbose:
        print(voice.stream_plan(chunk), file=sys.stderr)
    failed, first = 0, True
    for item in items:
        try:
            mel = arguments.reader.mel(item.path)
            began = time.monotonic()
            settings = arguments.sigma, arguments.seed, denoise, arguments.dtype
            blocks = _of_file(item, voice.stream(mel, chunk, *settings, arguments.consistency))
            for block in blocks:
                sys.stdout.buffer.write(pcm16(block, item.path))
                sys.stdout.buffer.flush()
                if first:
                    print(
                        f"latency: {frames} frames ({heard:.2f} s) of mel; first samples after "
                        f"{time.monotonic() - began:.2f} s of computing "
                        f"({compile_seconds:.1f} s of compiling or loading before)",
                        file=sys.stderr,
                    )
                first = False
        except UserError as error:
            failed += fail(str(error))
    return exit_code(failed, items)


def _of_file(item: Input, blocks: Iterator[Any]) -> Iterator[Any]:
    """The blocks of a stream; errors and warnings about them name the file."""
    with levels_of(item.path):
        try:
            yield from blocks
        except ValueError as error:
            raise UserError(f"{item.path}: {error}") from None
