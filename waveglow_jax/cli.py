"""Every command. Exit code 0: done; 1: something could not be done; 2: wrong arguments.

Errors are one line on stderr. JAX is imported by the command that needs it, not before.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax import __version__
from waveglow_jax.audio.files import (
    AUDIO_SUFFIXES,
    MEL_SUFFIXES,
    Input,
    audio_frames,
    find_inputs,
    pcm16,
    read_audio,
    read_mel,
    replacing,
    write_mel,
    write_wav_blocks,
)
from waveglow_jax.config import DTYPES, Config, load_config
from waveglow_jax.errors import UserError

INTERRUPTED, TERMINATED = 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns its exit code."""
    parser = argparse.ArgumentParser(prog="waveglow-jax", description="WaveGlow in JAX.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, _) in COMMANDS.items():
        doc = add_arguments.__doc__
        add_arguments(commands.add_parser(name, help=doc, description=doc))
    return run_command(parser, argv)


def run_single(command: str, argv: Sequence[str] | None = None) -> int:
    """One command as a program of its own, as train.py and synthesize.py are."""
    add_arguments, _ = COMMANDS[command]
    parser = argparse.ArgumentParser(description=add_arguments.__doc__)
    parser.set_defaults(command=command)
    add_arguments(parser)
    return run_command(parser, argv)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    plain, overrides = _split_overrides(sys.argv[1:] if argv is None else argv, parser)
    arguments = parser.parse_args(plain)
    if overrides and arguments.command not in ("train", "preflight"):
        parser.error(f"unrecognized arguments: --{min(overrides)}")
    arguments.overrides = overrides
    _, run = COMMANDS[arguments.command]
    try:
        return run(arguments)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; so that the interpreter does not complain at exit:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(line: str) -> int:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return 1


def _split_overrides(
    argv: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], dict[str, Any]]:
    """Takes `--train.batch_size 8` and `--data.segment_length=8192` out of the arguments.

    An option with a dot in its name sets a field of the config; values are JSON, or else strings.
    """
    plain: list[str] = []
    overrides: dict[str, Any] = {}
    rest = iter(argv)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if not name.startswith("--") or "." not in name:
            plain.append(argument)
            continue
        if not has_value:
            value = next(rest, None)
            if value is None:
                parser.error(f"{name} has no value; a field is set by {name} VALUE")
        try:
            overrides[name[2:]] = json.loads(value)
        except (ValueError, RecursionError):
            overrides[name[2:]] = value
    return plain, overrides


def _sigma(text: str) -> float:
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0; 0.6 to 1 is usual")
    return value


def _strength(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0; 0.01 to 0.1 is usual")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {2**32 - 1}")
    return value


def _synthesize_arguments(parser: argparse.ArgumentParser) -> None:
    """Audio from mels, or from recordings by way of their mel (copy-synthesis)."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="recordings or mels (.npy, .npz, .pt, .safetensors): files, folders, globs, a list "
        "file (.txt), or - for a list on stdin",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", metavar="DIR", help="one .wav each")
    where.add_argument(
        "--stream",
        action="store_true",
        help="raw samples to stdout as they come (16 bits, little-endian, mono): | aplay -f S16_LE "
        "-r 22050",
    )
    parser.add_argument(
        "-w",
        "--weights",
        help="release folder, training run, published checkpoint, or OWNER/NAME on the Hugging "
        "Face hub (default: the bundled voice)",
    )
    parser.add_argument("-s", "--sigma", type=_sigma, help="temperature (default: the voice's own)")
    parser.add_argument(
        "-d",
        "--denoise",
        type=_strength,
        default=0.0,
        metavar="STRENGTH",
        help="take out the voice's own bias (default: 0, not at all; 0.01 to 0.1 is usual)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=_seed, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--plot", action="store_true", help="a picture each: mel of the input above the output's"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")
    parser.add_argument(
        "--window", type=_count, metavar="FRAMES", help="computed at once (default: by the lengths)"
    )
    parser.add_argument(
        "--batch", type=_count, metavar="N", help="windows at once (default: by the lengths)"
    )
    parser.add_argument(
        "--chunk", type=_count, metavar="FRAMES", help="of a block of the stream: fewer come sooner"
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="keep no compiled programs in the user's cache folder, and use none from there",
    )
    parser.add_argument("--verbose", action="store_true", help="tell the windows that were chosen")
    parser.set_defaults(refuse=parser.error)


def _synthesize(arguments: argparse.Namespace) -> int:
    unfit = ("json", "plot", "window", "batch") if arguments.stream else ("chunk",)
    for name in unfit:
        if getattr(arguments, name):
            with_or_without = "with" if arguments.stream else "without"
            arguments.refuse(f"--{name} is of no use {with_or_without} --stream")
    items = find_inputs(arguments.inputs, AUDIO_SUFFIXES + MEL_SUFFIXES)
    if not arguments.no_cache:
        from waveglow_jax.synthesis.program_cache import cache_folder, keep_programs

        keep_programs(cache_folder())
    from waveglow_jax.synthesis.vocoder import load

    voice = load(arguments.weights)
    if arguments.sigma is None:
        arguments.sigma = voice.config.train.synthesis_sigma
    # An unfinished file goes then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    return (_synthesize_stream if arguments.stream else _synthesize_files)(items, arguments, voice)


def _synthesize_files(items: Sequence[Input], arguments: argparse.Namespace, voice: Any) -> int:
    """Files in, files out, by way of windows that may hold several: read and written in order."""
    inputs = {item.path.resolve() for item in items}
    config, data, dtype = voice.config, voice.config.data, arguments.dtype
    lengths = [n for item in items if (n := _frames_of(item.path, voice))]
    try:
        plan = voice.plan(lengths, dtype, window=arguments.window, batch=arguments.batch)
    except ValueError as error:
        raise UserError(f"--window or --batch: {error}") from None
    compile_seconds = voice.compile(plan, dtype) if lengths else 0.0
    if lengths and arguments.denoise:
        began = time.monotonic()
        voice.bias_spectrum  # noqa: B018 - computed when first asked for
        compile_seconds += time.monotonic() - began
    if lengths and arguments.verbose:
        print(plan, file=sys.stderr)
    failed, clock = 0, _Clock()
    under_way: deque[tuple[Input, Path, Any]] = deque()

    def mels() -> Iterator[Any]:
        nonlocal failed
        for item in items:
            try:
                with clock.stopped():
                    target = _target(item, arguments, ".wav", inputs)
                    mel = _mel_of(item.path, voice)
            except UserError as error:
                failed += _fail(str(error))
                continue
            under_way.append((item, target, mel))
            yield mel

    blocks = voice.blocks(mels(), plan, arguments.sigma, arguments.seed, arguments.denoise, dtype)
    done_seconds = 0.0
    for _, of_one in groupby(clock.timed(blocks), itemgetter(0)):
        item, target, mel = under_way.popleft()
        samples = (block for _, block in of_one)
        try:
            if arguments.plot:
                samples = list(samples)
            write_wav_blocks(target, samples, data.sampling_rate)
            if arguments.plot:
                _plot(target.with_suffix(".png"), mel, voice.mel(np.concatenate(samples)), config)
        except UserError as error:
            failed += _fail(str(error))
            continue
        # Windows hold parts of several files: a file's time is its share of all so far.
        seconds = len(mel) * data.hop_length / data.sampling_rate
        done_seconds += seconds
        speed = done_seconds / max(clock.seconds, 1e-9)
        result = {
            "output": str(target),
            "seconds": round(seconds, 3),
            "times_real_time": round(speed, 2),
            "run_seconds": round(seconds / speed, 3),
            "compile_seconds": round(compile_seconds, 3),
        }
        compile_seconds = 0.0
        _tell(item, result, arguments)
    return _exit_code(failed, items)


@dataclass
class _Clock:
    """Seconds that computing took."""

    seconds: float = 0.0

    def timed(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """The same, with the time that each took to come."""
        while True:
            began = time.monotonic()
            block = next(blocks, None)
            self.seconds += time.monotonic() - began
            if block is None:
                return
            yield block

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves out what happens meanwhile."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds -= time.monotonic() - began


def _synthesize_stream(items: Sequence[Input], arguments: argparse.Namespace, voice: Any) -> int:
    """Files in, raw samples to stdout, one file after another."""
    if sys.stdout.isatty():
        raise UserError("--stream writes raw samples: pipe them, as to | aplay -f S16_LE -r 22050")
    data, chunk, denoise = voice.config.data, arguments.chunk, arguments.denoise
    began = time.monotonic()
    voice.compile_stream(chunk, arguments.dtype)
    if denoise:
        voice.bias_spectrum  # noqa: B018 - computed when first asked for
    compile_seconds = time.monotonic() - began
    frames = voice.latency_frames(chunk, denoise)
    heard = frames * data.hop_length / data.sampling_rate
    if arguments.verbose:
        print(voice.stream_plan(chunk), file=sys.stderr)
    failed, first = 0, True
    for item in items:
        try:
            mel = _mel_of(item.path, voice)
            began = time.monotonic()
            blocks = voice.stream(
                mel, chunk, arguments.sigma, arguments.seed, denoise, arguments.dtype
            )
            for block in blocks:
                sys.stdout.buffer.write(pcm16(block, item.path))
                sys.stdout.buffer.flush()
                if first:
                    print(
                        f"latency: {frames} frames ({heard:.2f} s) of mel; first samples after "
                        f"{time.monotonic() - began:.2f} s of computing "
                        f"({compile_seconds:.1f} s of compiling before)",
                        file=sys.stderr,
                    )
                first = False
        except UserError as error:
            failed += _fail(str(error))
    return _exit_code(failed, items)


def _mel_of(path: Path, voice: Any) -> Any:
    if path.suffix.lower() in MEL_SUFFIXES:
        return read_mel(path, voice.config.waveglow.n_mel_channels)
    return _mel_of_recording(path, voice)


def _frames_of(path: Path, voice: Any) -> int:
    """The frames of a file's mel, 0 if it cannot be read: that is told when its turn comes."""
    try:
        if path.suffix.lower() in MEL_SUFFIXES:
            return len(read_mel(path, voice.config.waveglow.n_mel_channels))
        data = voice.config.data
        return 1 + audio_frames(path, data.sampling_rate) // data.hop_length
    except UserError:
        return 0


def _mel_of_recording(path: Path, voice: Any) -> Any:
    audio = read_audio(path, voice.config.data.sampling_rate)
    needed = voice.config.data.filter_length // 2 + 1
    if len(audio) < needed:
        raise UserError(
            f"{path}: {len(audio)} samples are too short for a mel; {needed} are needed"
        )
    return voice.mel(audio)


def _plot(path: Path, mel_in: Any, mel_out: Any, config: Config) -> None:
    from waveglow_jax.audio.picture import mel_figure

    figure = mel_figure([("input", mel_in), ("output", mel_out)], config.data)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _mel_arguments(parser: argparse.ArgumentParser) -> None:
    """Log-mels of recordings, [80, frames] .npy, as WaveGlow wants them."""
    parser.add_argument("inputs", nargs="+", metavar="RECORDING", help="as for synthesize")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="one .npy each")
    parser.add_argument(
        "-w", "--weights", help="the voice whose mel it is (default: the bundled voice)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")


def _mel(arguments: argparse.Namespace) -> int:
    items = find_inputs(arguments.inputs, AUDIO_SUFFIXES)
    from waveglow_jax.synthesis.vocoder import load

    voice = load(arguments.weights)

    def convert(item: Input, target: Path) -> dict[str, Any]:
        mel = _mel_of_recording(item.path, voice)
        write_mel(target, mel)
        return {"output": str(target), "frames": len(mel)}

    return _each(items, arguments, ".npy", convert)


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Any folder of audio to mono recordings of one rate, fit to train on."""
    parser.add_argument("inputs", nargs="+", metavar="IN", help="as for synthesize")
    parser.add_argument("-o", "--output", required=True, metavar="OUT")
    parser.add_argument("--rate", type=int, default=22050, help="sampling rate (default: 22050)")
    parser.add_argument(
        "--level", type=float, metavar="DBFS", help="bring speech to this RMS level, such as -22"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def _prepare(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from waveglow_jax.audio.prepare import prepare

    if arguments.rate < 1:
        raise UserError(f"--rate {arguments.rate} must be at least 1 Hz")
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
    for path, reason in report.left_out:
        print(f"left out: {path}: {reason}")
    print(
        f"{report.written} written, {report.kept} kept, {len(report.left_out)} left out; "
        f"{report.seconds / 3600:.2f} h in {arguments.output}"
    )
    return 0 if report.written + report.kept else 1


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    """Trains on recordings; any field of the config can be set by --section.field VALUE."""
    parser.add_argument("config", metavar="CONFIG.json", help="such as configs/voice.json")
    parser.add_argument(
        "--data", metavar="DIR_OR_LIST", help="recordings (default: data_config.training_files)"
    )
    parser.add_argument("--output", required=True, metavar="RUN", help="resumed if it is there")
    parser.add_argument("--init-from", metavar="WEIGHTS", help="start from these weights")


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    data = arguments.data or config.data.training_files
    if not data:
        raise UserError(f"{arguments.config}: names no training_files; give --data DIR_OR_LIST")
    params = None
    if arguments.init_from:
        from waveglow_jax.weights.release import read_weights

        params = read_weights(arguments.init_from).params
    from waveglow_jax.training.loop import train

    return train(config, data, Path(arguments.output), params)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights of any kind to a release folder, or to a state dict for the original's model."""
    _source_arguments(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="folder, or with --to torch a .pt file"
    )
    parser.add_argument("--to", choices=("release", "torch"), default="release")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument(
        "--check", metavar="RECORDING", help="also tell this recording's log-likelihood"
    )


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="WEIGHTS",
        help="published checkpoint (.pt, .nemo, .safetensors ...), release folder, training run, "
        "or OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "--alternating-halves",
        action="store_true",
        help="the oldest published class, when the file does not say so itself",
    )


def _convert(arguments: argparse.Namespace) -> int:
    from waveglow_jax.weights.release import read_weights, save

    weights = read_weights(arguments.source, alternating_halves=arguments.alternating_halves)
    if arguments.to == "torch":
        from waveglow_jax.weights.nvidia import write_original

        with replacing(arguments.output) as temporary:
            write_original(temporary, weights.config, weights.params, arguments.dtype)
    else:
        save(arguments.output, weights.config, weights.params, arguments.dtype)
    print(f"{arguments.output}: from {weights.kind}")
    for note in weights.notes:
        print(note)
    if arguments.check:
        print(_likelihood_line(Path(arguments.check), weights))
    return 0


def _likelihood_line(recording: Path, weights: Any) -> str:
    """Trained weights find speech far more likely than the same noise level at random does."""
    from waveglow_jax.synthesis.vocoder import Voice

    voice = Voice(weights.config, weights.params)
    mel = _mel_of_recording(recording, voice)
    audio = read_audio(recording, voice.config.data.sampling_rate)
    hop = voice.config.data.hop_length
    frames = len(audio) // hop
    _, nats = voice.encode(audio[None, : frames * hop], mel[None, : frames + 1])
    return f"{recording}: {float(nats[0]):.4f} nats per sample"


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """What a file of weights is: its kind, hyper-parameters, and anything suspicious."""
    _source_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _inspect(arguments: argparse.Namespace) -> int:
    from waveglow_jax.weights.inspection import as_text, report
    from waveglow_jax.weights.release import read_weights

    found = report(read_weights(arguments.source, alternating_halves=arguments.alternating_halves))
    print(json.dumps(found) if arguments.json else as_text(found))
    return 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    """The reverse pass as one file for jax.export, which needs nothing of this package."""
    _source_arguments(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="inside WN")


def _export(arguments: argparse.Namespace) -> int:
    from waveglow_jax.synthesis.export import write_export
    from waveglow_jax.weights.release import read_weights

    weights = read_weights(arguments.source, alternating_halves=arguments.alternating_halves)
    write_export(Path(arguments.output), weights.config, weights.params, arguments.dtype)
    print(f"{arguments.output}: from {weights.kind}")
    return 0


def _preflight_arguments(parser: argparse.ArgumentParser) -> None:
    """What training or synthesis would take on accelerators that are not there."""
    parser.add_argument("--topology", default="v5e:2x4", help="chips (default: v5e:2x4)")
    parser.add_argument(
        "--config", default="configs/nvidia256.json", help="(default: configs/nvidia256.json)"
    )
    parser.add_argument("--task", choices=("train", "synthesize"), default="train")
    parser.add_argument(
        "--batch", type=int, help="clips over all chips (default: the config's), or utterances (1)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance (default: 10)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="inside WN")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _preflight(arguments: argparse.Namespace) -> int:
    from waveglow_jax.lab import preflight

    preflight.prepare_environment()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.batch is not None and arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch} must be at least 1")
    if arguments.task == "train":
        train = dataclasses.replace(
            config.train,
            batch_size=arguments.batch or config.train.batch_size,
            wn_dtype=arguments.dtype,
        )
        config = dataclasses.replace(config, train=train)
        result = preflight.preflight_training(config, arguments.topology)
    else:
        if not 0 < arguments.seconds <= 3600:
            raise UserError(f"--seconds {arguments.seconds} must be above 0, at most 3600")
        result = preflight.preflight_synthesis(
            config, arguments.topology, arguments.batch or 1, arguments.seconds, arguments.dtype
        )
    print(json.dumps(preflight.as_json(result)) if arguments.json else preflight.as_text(result))
    return 0


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """How near systems come to recordings: metrics, intervals, differences; Markdown and HTML."""
    parser.add_argument("--reference", required=True, metavar="DIR", help="the recordings")
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="a folder of any vocoder's output, files named as the recordings, or weights: "
        "NAME=WEIGHTS:sigma=0.8,denoise=0.01,dtype=bfloat16,seed=1 (every setting may be left "
        "out; without WEIGHTS the bundled voice); may be given again",
    )
    parser.add_argument("-o", "--output", required=True, metavar="REPORT", help="resumed if there")
    parser.add_argument(
        "--baseline",
        default="Griffin-Lim",
        metavar="NAME",
        help="what the others are compared with, file by file (default: Griffin-Lim)",
    )
    parser.add_argument(
        "--griffin-lim-iterations", type=_count, default=32, metavar="N", help="(default: 32)"
    )
    parser.add_argument("--files", type=_count, metavar="N", help="only the first N recordings")
    parser.add_argument(
        "--players", type=int, default=6, metavar="N", help="files shown and heard (default: 6)"
    )
    parser.add_argument("--no-audio", action="store_true", help="a report.html without sound")
    parser.add_argument("--workers", type=_count, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")


def _evaluate(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from waveglow_jax.lab.evaluation import evaluate, summary_dict
    from waveglow_jax.lab.report import markdown_summary, write_reports
    from waveglow_jax.lab.systems import parse_system

    systems = [parse_system(text) for text in arguments.system]
    with tqdm(unit="file", disable=None) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        found = evaluate(
            arguments.reference,
            systems,
            arguments.output,
            baseline=arguments.baseline,
            griffin_lim_iterations=arguments.griffin_lim_iterations,
            files=arguments.files,
            workers=arguments.workers,
            progress=progress,
        )
    paths = write_reports(found, arguments.output, arguments.players, not arguments.no_audio)
    if arguments.json:
        print(json.dumps(summary_dict(found)))
    else:
        print(markdown_summary(found))
        print("written: " + ", ".join(map(str, paths)))
    for why in dict.fromkeys(found.missing.values()):
        keys = ", ".join(key for key, its in found.missing.items() if its == why)
        print(f"left out: {keys}: {why}; install with: pip install -e '.[eval]'", file=sys.stderr)
    for what, why in found.left_out:
        _fail(f"{what}: {why}; left out")
    return 1 if found.left_out else 0


def _listening_test_arguments(parser: argparse.ArgumentParser) -> None:
    """A listening test as a web page (make), and mean opinion scores from its results (score)."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="make|score")
    make = parts.add_parser("make", help="a folder that any web host serves, and its key")
    make.add_argument(
        "--system",
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="recordings of one system, the real ones among them; files of one name are one "
        "utterance; given at least twice",
    )
    make.add_argument("-o", "--output", required=True, metavar="TEST")
    make.add_argument(
        "--utterances", type=_count, default=40, metavar="N", help="drawn from all (default: 40)"
    )
    make.add_argument(
        "--training", metavar="DIR_OR_LIST", help="leave out what the systems were trained on"
    )
    make.add_argument(
        "--post", default="", metavar="URL", help="where results are sent (default: saved as files)"
    )
    make.add_argument("--title", default="Listening test")
    make.add_argument("--seed", type=_seed, default=0, help="of the drawing (default: 0)")
    score = parts.add_parser("score", help="the card's table, with 95% confidence intervals")
    score.add_argument("key", metavar="TEST/key.json")
    score.add_argument("results", nargs="+", metavar="RESULT", help="files, or folders of .json")
    score.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _listening_test(arguments: argparse.Namespace) -> int:
    return {"make": _listening_test_make, "score": _listening_test_score}[arguments.part](arguments)


def _listening_test_make(arguments: argparse.Namespace) -> int:
    from waveglow_jax.lab.listening_test.make import make

    systems = []
    for text in arguments.system:
        name, _, folder = (part.strip() for part in text.partition("="))
        if not name or not Path(folder).is_dir():
            raise UserError(f"--system {text!r}: write NAME=DIR, a folder of recordings")
        systems.append((name, folder))
    made = make(
        systems,
        arguments.output,
        utterances=arguments.utterances,
        training=arguments.training,
        post_url=arguments.post,
        title=arguments.title,
        seed=arguments.seed,
    )
    for note in made.notes:
        print(f"note: {note}")
    print(
        f"{len(made.utterances)} utterances of {len(made.systems)} systems: serve {made.page} "
        f"(index.html), keep {made.key} to yourself"
    )
    return 0


def _listening_test_score(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from waveglow_jax.lab.listening_test.score import score, table

    found = score(arguments.key, arguments.results)
    for path, why in found.rejected:
        print(f"rejected: {path}: {why}", file=sys.stderr)
    print(json.dumps(asdict(found)) if arguments.json else table(found))
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _each(
    items: Sequence[Input],
    arguments: argparse.Namespace,
    suffix: str,
    work: Callable[[Input, Path], dict[str, Any]],
) -> int:
    """Does the work from each file to its output; one that fails is told of and left out."""
    failed = 0
    inputs = {item.path.resolve() for item in items}
    for item in items:
        try:
            result = work(item, _target(item, arguments, suffix, inputs))
        except UserError as error:
            failed += _fail(str(error))
            continue
        _tell(item, result, arguments)
    return _exit_code(failed, items)


def _target(
    item: Input, arguments: argparse.Namespace, suffix: str, inputs: Collection[Path]
) -> Path:
    """Where a file's result goes. Raises UserError if an input is there."""
    target = Path(arguments.output) / item.relative.with_suffix(suffix)
    if target.resolve() in inputs:
        raise UserError(
            f"{item.path}: its output {target} would overwrite an input; choose another -o"
        )
    return target


def _tell(item: Input, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    print(json.dumps({"input": str(item.path), **result}) if arguments.json else _line(result))
    sys.stdout.flush()


def _exit_code(failed: int, items: Sequence[Input]) -> int:
    if failed and len(items) > 1:
        print(f"{failed} of {len(items)} files could not be done", file=sys.stderr)
    return 1 if failed else 0


def _line(result: dict[str, Any]) -> str:
    if "frames" in result:
        return f"{result['output']}  {result['frames']} frames"
    compiled = result["compile_seconds"]
    return (
        f"{result['output']}  {result['seconds']:.2f} s of audio, "
        f"{result['times_real_time']:.1f} x real time"
        + (f" (after {compiled:.1f} s of compiling)" if compiled else "")
    )


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]] = {
    "synthesize": (_synthesize_arguments, _synthesize),
    "train": (_train_arguments, _train),
    "prepare": (_prepare_arguments, _prepare),
    "mel": (_mel_arguments, _mel),
    "convert": (_convert_arguments, _convert),
    "inspect": (_inspect_arguments, _inspect),
    "export": (_export_arguments, _export),
    "preflight": (_preflight_arguments, _preflight),
    "evaluate": (_evaluate_arguments, _evaluate),
    "listening-test": (_listening_test_arguments, _listening_test),
}
