"""convert-mel: converts mels of other conventions; other commands use it for their inputs."""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.cli.arguments import (
    CONVENTION_NAMES,
    FILES,
    check_file,
    convention,
    corrections,
    examples,
    given,
    output_arguments,
    seed,
    weights_argument,
)
from waveglow_jax.cli.data import mel_of_recording
from waveglow_jax.cli.doctor import config_of_weights
from waveglow_jax.cli.outcome import each, inputs_of
from waveglow_jax.cli.player import play
from waveglow_jax.config import LATENT, Config
from waveglow_jax.conventions import Convention
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import MEL_SUFFIXES, Input
from waveglow_jax.files.mels import read_any_mel, read_mel, write_mel
from waveglow_jax.files.sound import audio_frames
from waveglow_jax.files.wav import write_wav_blocks
from waveglow_jax.text import number_of

NO_VOICE = "tacotron2"
"""The convention that --no-network takes by default."""


def convert_mel_arguments(parser: argparse.ArgumentParser) -> None:
    """Converts mels of one convention to another: exactly, or else through a signal."""
    parser.add_argument("inputs", type=given, nargs="+", metavar="IN", help=f"mels: {FILES}")
    parser.add_argument(
        "--from",
        dest="source",
        type=convention,
        required=True,
        metavar="NAME",
        help=f"the convention of the mels: one of {CONVENTION_NAMES}",
    )
    parser.add_argument(
        "--to",
        dest="target",
        type=convention,
        metavar="NAME",
        help="the convention that is wanted, one of the same names (default: the voice's own)",
    )
    weights_argument(parser)
    output_arguments(parser, ".npy")
    parser.add_argument(
        "--consistency",
        type=corrections,
        default=32,
        metavar="N",
        help="corrections of the signal towards the mel (default: 32)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default: 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a file on stdout")
    parser.set_defaults(refuse=parser.error)
    examples(
        parser,
        "mels --from vocos-24khz -o converted",
        "mel.npy --from hifigan --to espnet -f converted.npy",
    )


def foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of synthesize for mels of other conventions."""
    parser.add_argument(
        "--mel-convention",
        type=convention,
        metavar="NAME",
        help=f"the convention of the mels: one of {CONVENTION_NAMES}; they are converted, exactly "
        f"or through a signal (default: the voice's own, with --no-network {NO_VOICE})",
    )
    parser.add_argument(
        "--no-network",
        action="store_true",
        help="no voice: noise corrected towards the mel, as often as --consistency says (default: "
        "32), at the convention's rate",
    )


def check_no_network(arguments: argparse.Namespace) -> None:
    """Refuses the options of synthesize that need a voice, for --no-network."""
    unfit = ("weights", "denoise", "stream", "window", "batch", "chunk", "verbose")
    given_ones = [f"--{name}" for name in unfit if getattr(arguments, name)]
    given_ones += ["--sigma"] * (arguments.sigma is not None)  # 0 is a sigma
    given_ones += ["--dtype"] * (arguments.dtype != "float32")
    given_ones += [f"--consistency {LATENT}"] * (arguments.consistency == LATENT)
    if given_ones:
        arguments.refuse(f"{given_ones[0]} needs a voice: it does not go with --no-network")


@dataclass(frozen=True)
class Reader:
    """Reads inputs as mels `[F, M]` of the config; the files' own convention is `source`'s.

    Without a source it is the config's. seed: of the noise that a conversion begins with.
    """

    config: Config
    source: Config | None = None
    seed: int = 0

    def mel(self, path: Path) -> Any:
        """The mel of a file. Raises UserError of one line if it cannot be read or converted."""
        if self.source in (None, self.config):
            return self._read(path, self.config)
        from waveglow_jax.synthesis.foreign import CORRECTIONS

        mel = self._read(path, self.source)
        return converted_file(path, mel, self.source, self.config, CORRECTIONS, self.seed)

    def frames(self, path: Path) -> int:
        """The number of frames of `mel`, without converting; 0 for a file that cannot be read."""
        from waveglow_jax.synthesis.foreign import frames_after

        own = self.source or self.config
        try:
            if path.suffix.lower() in MEL_SUFFIXES:
                frames = len(self._read(path, own))
            else:
                rate = own.data.sampling_rate
                frames = own.data.frames_of(audio_frames(path, rate, convert=True))
        except UserError:
            return 0
        return frames if self.source is None else frames_after(frames, self.source, self.config)

    def _read(self, path: Path, config: Config) -> Any:
        if path.suffix.lower() not in MEL_SUFFIXES:
            return mel_of_recording(path, config, convert=True)
        if self.source is None:
            return read_mel(path, config.waveglow.n_mel_channels)
        return read_foreign(path, config)


def reader_of(config: Config, named: Convention | None, seed: int) -> Reader:
    """The reader for inputs of this convention; prints to stderr what their conversion loses."""
    if named is None:
        return Reader(config)
    from waveglow_jax.synthesis.foreign import CORRECTIONS, config_of

    source = config_of(named)
    print(f"{named.key}: {_told(source, config, CORRECTIONS)}", file=sys.stderr)
    return Reader(config, source, seed)


def read_foreign(path: Path, config: Config) -> np.ndarray:
    """A mel file of a row of the table, `[F, M]` float32.

    Raises UserError as `read_mel` does, and if the values cannot be of that convention.
    """
    from waveglow_jax.synthesis.foreign import why_not_of

    bands, key = config.waveglow.n_mel_channels, config.convention.key
    array = read_any_mel(path)
    if bands not in array.shape:
        shape = " x ".join(map(str, array.shape))
        raise UserError(
            f"{path}: its shape is {shape}, but a mel of {key} has {bands} bands; name its own "
            "convention"
        )
    with np.errstate(over="ignore"):
        mel = np.asarray(array.T if array.shape[0] == bands else array, np.float32)
    if not np.isfinite(mel).all():
        raise UserError(f"{path}: holds values that are not finite numbers; compute the mel again")
    if reason := why_not_of(mel, config):
        raise UserError(
            f"{path}: no mel of {key}: {reason}; name its own convention, which `doctor` finds"
        )
    return mel


def converted_file(
    path: Path, mel: np.ndarray, source: Config, target: Config, n: int, seed: int
) -> np.ndarray:
    """The mel of this file in the target's convention. n: the number of corrections."""
    from waveglow_jax.synthesis.foreign import converted, too_short

    if too_short(len(mel), source, target):
        raise UserError(
            f"{path}: {len(mel)} frames are too short for a mel of the other convention; leave it "
            "out"
        )
    return converted(mel, source, target, n, seed)


def _told(source: Config, target: Config, n: int) -> str:
    """A phrase for the user: whether a conversion is exact, and its expected error if not.

    n: the number of corrections.
    """
    from waveglow_jax.synthesis.foreign import CORRECTIONS, lost, same_spectrum

    if same_spectrum(source, target):
        unknown = lost(source, target)
        return f"converted exactly, except for values {unknown}" if unknown else "converted exactly"
    error = _error_after(n, source, target)
    if error is None and n != CORRECTIONS:
        return f"converted through a signal: the error was measured for {CORRECTIONS} corrections"
    if error is None:
        return "converted through a signal: the error was not measured for this voice's own mel"
    return f"converted through a signal: expected error {error:.2f} (mean absolute, in units of ln)"


def _error_after(n: int, source: Config, target: Config) -> float | None:
    """The measured error of a conversion by n corrections; None if it was not measured."""
    from waveglow_jax.synthesis.foreign import CORRECTIONS, expected_error

    same = n == CORRECTIONS
    return expected_error(source.convention.key, target.convention.key) if same else None


def run_convert_mel(arguments: argparse.Namespace) -> int:
    if not (arguments.output or arguments.file):
        arguments.refuse("give -o/--output DIR or -f/--file OUT.npy")
    if arguments.target and arguments.weights:
        arguments.refuse("--to names the convention that -w would give; leave one out")
    items = inputs_of(arguments.inputs, MEL_SUFFIXES)
    check_file(arguments, items, ".npy")
    from waveglow_jax.synthesis.foreign import config_of, same_spectrum

    source, n = config_of(arguments.source), arguments.consistency
    named = arguments.target
    target = config_of(named) if named else config_of_weights(arguments.weights)
    print(f"{arguments.source.key}: {_told(source, target, n)}", file=sys.stderr)
    exact = same_spectrum(source, target)
    error = 0.0 if exact else _error_after(n, source, target)

    def convert(item: Input, path: Path) -> dict[str, Any]:
        mel = read_foreign(item.path, source)
        made = converted_file(item.path, mel, source, target, n, arguments.seed)
        write_mel(path, made)
        return {"output": str(path), "frames": len(made), "exact": exact, "expected_error": error}

    return each(items, arguments, ".npy", convert)


def synthesize_without_network(items: list[Input], arguments: argparse.Namespace) -> int:
    """Writes the sound of each input's mel by corrections of noise; returns the exit code."""
    from waveglow_jax.conventions import convention_named
    from waveglow_jax.synthesis.foreign import (
        CORRECTIONS,
        compile_sound,
        config_of,
        sound_blocks,
    )
    from waveglow_jax.synthesis.levels import limited
    from waveglow_jax.synthesis.program_cache import keep_programs_if_possible

    if not arguments.no_cache:
        keep_programs_if_possible()
    config = config_of(arguments.mel_convention or convention_named(NO_VOICE))
    n = CORRECTIONS if arguments.consistency is None else arguments.consistency
    # The reader checks files as those of the convention, which is also the one that is wanted.
    reader, rate = Reader(config, config), config.data.sampling_rate
    compile_seconds = compile_sound(config, n)

    def work(item: Input, target: Path) -> dict[str, Any]:
        mel = reader.mel(item.path)
        began = time.monotonic()
        blocks = limited(block for _, block in sound_blocks([mel], config, n, arguments.seed))
        if arguments.plot:
            blocks = iter(made := list(blocks))
        write_wav_blocks(target, blocks, rate)
        run_seconds = time.monotonic() - began
        if arguments.plot:
            plot_mels(target.with_suffix(".png"), mel, np.concatenate(made), config)
        if arguments.play:
            play(target)
        seconds = len(mel) * config.data.hop_length / rate
        speed = seconds / run_seconds
        return {
            "said": f"{seconds:.2f} s of audio at {rate} Hz, {speed:.1f} x real time, no network, "
            f"{number_of(n, 'correction')}",
            "output": str(target) if arguments.keep else None,
            "seconds": round(seconds, 3),
            "sampling_rate": rate,
            "times_real_time": round(speed, 2),
            "run_seconds": round(run_seconds, 3),
            "compile_seconds": round(compile_seconds, 3),
            "consistency": n,
        }

    return each(items, arguments, ".wav", work)


def plot_mels(path: Path, mel: np.ndarray, samples: np.ndarray, config: Config) -> None:
    """Writes a picture of the mel above the mel of the samples that were made from it."""
    from waveglow_jax.audio.picture import mel_figure
    from waveglow_jax.files.atomic import replacing
    from waveglow_jax.synthesis.mels import mel_of_samples

    of_output = mel_of_samples(samples, config)[: len(mel)]
    figure = mel_figure([("input", mel), ("output", of_output)], config.data)
    with replacing(path) as temporary:
        figure.savefig(temporary)
