"""Chooses, orders and reads training clips. Decodes only the clip, not the whole recording.

A clip is `segment_length` samples from a multiple of the hop on, with the real context that its
frames include on either side (half an FFT for centred frames), so that the mel computed from it
equals those frames of the whole recording's mel.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs, find_unread
from waveglow_jax.files.sound import (
    audio_frames,
    decoded_from_start,
    prepare_command,
    read_audio,
    read_clip,
)
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.mels import MelFolder, MisalignedError, mel_frames, resemblance

SLOW_SECONDS = 60
"""Above this length, decoding every clip from the recording's start becomes slow."""
MAX_UNREADABLE = 16
"""Recordings tried for one clip before the whole corpus is considered unreadable."""


@dataclass(frozen=True)
class Recording:
    """A recording; `mel` is the file of a mel to use instead of the recording's own, if any."""

    path: Path
    n_samples: int
    mel: Path | None = None


@dataclass(frozen=True)
class Corpus:
    """Recordings to train on and to validate with.

    left_out: the unusable recordings and why, including those in formats that are not supported.
    doubts: what looks wrong about the mels, or makes the recordings slow to read.
    """

    training: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    left_out: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def scan_corpus(data: str, config: Config, mels: str | None = None) -> Corpus:
    """Finds the recordings of a folder or list file and splits off the held-out ones.

    mels: a folder with a mel for each, to use instead of the recording's own (`training/mels.py`).

    The held-out recordings are those of `train_config.validation_files` (a folder or list; files
    that are in `data` too are dropped from training, by their real path), otherwise a
    `validation_fraction` spread evenly over the list. Raises UserError if no usable recording is
    left, or if the length of a mel does not fit its recording.
    """
    train = config.train
    folder = MelFolder(mels) if mels else None
    recordings, left_out = _usable(data, config, folder)
    validation: list[Recording] = []
    if train.validation_files:
        validation, also_left_out = _usable(train.validation_files, config, folder)
        left_out += also_left_out
        held_out = {os.path.realpath(recording.path) for recording in validation}
        recordings = [r for r in recordings if os.path.realpath(r.path) not in held_out]
    elif train.validation_fraction:
        every = max(2, round(1 / train.validation_fraction))
        validation = recordings[every - 1 :: every]
        recordings = [r for i, r in enumerate(recordings) if i % every != every - 1]
    if not recordings:
        raise UserError(f"{data}: no usable recording to train on" + _first(left_out))
    pairs = [(r.path, r.n_samples, r.mel) for r in recordings if r.mel]
    doubts = resemblance(pairs, config) if pairs else []
    doubts += _slow(recordings, config)
    return Corpus(tuple(recordings), tuple(validation), tuple(left_out), tuple(doubts))


def _slow(recordings: Sequence[Recording], config: Config) -> list[str]:
    long = SLOW_SECONDS * config.data.sampling_rate
    slow = [r.path for r in recordings if r.n_samples > long and decoded_from_start(r.path)]
    if not slow:
        return []
    return [
        f"{len(slow)} recordings of over {SLOW_SECONDS} s (the first: {slow[0]}) are in a format "
        "that has to be decoded from its start for every clip, which is slow; make WAV files of "
        f"them with: {prepare_command(config.data.sampling_rate)}"
    ]


def _usable(
    source: str, config: Config, mels: MelFolder | None
) -> tuple[list[Recording], list[str]]:
    usable, left_out = [], []
    for found in find_inputs([source], AUDIO_SUFFIXES, with_outputs=False):
        try:
            n_samples = audio_frames(found.path, config.data.sampling_rate)
            mel = mels.of(found.path, found.relative, n_samples, config) if mels else None
        except MisalignedError:
            raise
        except UserError as error:
            left_out.append(str(error))
        else:
            usable.append(Recording(found.path, n_samples, mel))
    left_out += [f"{path}: {reason}" for path, reason in find_unread([source])]
    return usable, left_out


def _first(left_out: list[str]) -> str:
    return f"; {len(left_out)} left out, the first: {left_out[0]}" if left_out else ""


def clips_per_epoch(recordings: tuple[Recording, ...], config: Config) -> int:
    return len(_slots(recordings, config))


def _slots(recordings: tuple[Recording, ...], config: Config) -> np.ndarray:
    """`[clips]` the recording of each clip of an epoch.

    A recording occurs as often as clips fit into it, so that all seconds of speech are equally
    likely.
    """
    segment = config.data.segment_length
    fits = [max(1, round(recording.n_samples / segment)) for recording in recordings]
    return np.repeat(np.arange(len(recordings)), fits)


def training_batches(
    recordings: tuple[Recording, ...],
    config: Config,
    first_position: int = 0,
    rows: range | None = None,
) -> Iterator[Batch]:
    """Endless batches of the clips from `first_position` on in the run's fixed order of clips.

    Only the given `rows` of each batch (by default all) are read.

    The order and the clips' places in their recordings depend on seed and position alone, so a
    resumed run, or one that reads other rows, gets the same clips. A clip of another recording,
    also determined by the position, replaces one of an unreadable recording. With `num_workers`
    above 0, worker processes decode. Raises UserError if many recordings in a row cannot be read.
    """
    train = config.train
    rows = rows or range(train.batch_size)
    index = np.asarray(rows, np.int32)

    def clip(slot: int, rng: np.random.Generator) -> dict[str, Any]:
        unreadable = -1
        for _ in range(MAX_UNREADABLE):
            recording = recordings[slot]
            last = max(0, recording.n_samples - config.clip_span)
            frame = int(rng.integers(last // config.data.hop_length + 1))
            try:
                example = read_example(recording, frame, config)
                return {**example, "unreadable": np.int32(unreadable)}
            except UserError as error:
                unreadable, why = int(slot), error
                slot = int(rng.integers(len(recordings)))
        raise UserError(f"{MAX_UNREADABLE} recordings in a row could not be read, the last: {why}")

    clips = (
        grain.MapDataset.source(_slots(recordings, config))
        .seed(train.seed)
        .shuffle()
        .repeat()
        .random_map(clip)
    )

    def batch(step: int) -> dict[str, np.ndarray]:
        start = first_position + step * train.batch_size
        return {**_stack([clips[start + row] for row in rows]), "index": index}

    batches = (
        grain.MapDataset.range(2**62 // train.batch_size)
        .map(batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )
    if train.num_workers:
        flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which only absl's main parses
        options = grain.MultiprocessingOptions(num_workers=train.num_workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_end_with_parent)
    return map(_as_batch, batches)


def _as_batch(arrays: dict[str, np.ndarray]) -> Batch:
    return Batch(**arrays)


def _stack(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _end_with_parent(_worker: int, _workers: int) -> None:
    """Ends a worker with its parent: it would otherwise wait forever for a killed one."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def validation_batches(
    recordings: tuple[Recording, ...], config: Config, batch_size: int, rows: range | None = None
) -> list[Batch]:
    """Up to `validation_clips` clips, evenly spread over all that fit, in whole batches.

    Only the given `rows` of each batch (by default all) are read.
    """
    rows = rows or range(batch_size)
    segment, hop = config.data.segment_length, config.data.hop_length
    places = [
        (recording, start // hop)
        for recording in recordings
        for start in range(0, max(1, recording.n_samples - config.clip_span + 1), segment)
    ]
    n = min(len(places), config.train.validation_clips)
    places = [places[i * len(places) // n] for i in range(n)]
    batches = []
    for start in range(0, n, batch_size):
        here = [start + row for row in rows]
        filled = [places[i] if i < n else places[0] for i in here]
        batches.append(
            Batch(
                **_stack([read_example(*place, config) for place in filled]),
                index=np.asarray(here, np.int32),
                weight=np.asarray([i < n for i in here], np.float32),
            )
        )
    return batches


def why_unreadable(recording: Recording, config: Config) -> str:
    """The file's name and what is wrong with it."""
    try:
        read_audio(recording.path, config.data.sampling_rate)
        if recording.mel:
            read_example(recording, 0, config)
    except UserError as error:
        return str(error)
    return f"{recording.path}: could not be read, and now it can"


def read_example(recording: Recording, frame: int, config: Config) -> dict[str, np.ndarray]:
    """The clip from sample `frame * hop` on: {clips `[clip_length]`}, and {mel
    `[clip_frames, M]`} if the recording comes with one."""
    example = {"clips": read_context_clip(recording, frame, config)}
    if recording.mel:
        n_frames = config.clip_frames
        example["mel"] = mel_frames(recording.mel, recording.n_samples, frame, n_frames, config)
    return example


def read_context_clip(recording: Recording, frame: int, config: Config) -> np.ndarray:
    """`[clip_length]` float32, from a frame's first sample on.

    Beyond its ends the recording is reflected, as for the mel of the whole recording; a recording
    shorter than the clip is first padded with zeros.
    """
    data = config.data
    half = data.filter_length // 2
    start = frame * data.hop_length - data.lead
    stop = start + config.clip_length
    # Reflection at the end reads half an FFT more of the recording than the clip contains.
    first = max(0, min(start, recording.n_samples - half - 1))
    samples = read_clip(recording.path, first, min(stop, recording.n_samples))
    end = max(recording.n_samples, config.clip_span)
    samples = np.pad(samples, (0, max(0, min(stop, end) - first - len(samples))))
    samples = np.pad(samples, (max(0, -start), max(0, stop - first - len(samples))), mode="reflect")
    offset = max(0, start) - first
    return samples[offset : offset + stop - start]
