"""A corpus's fingerprint: equal fingerprints mean the same clips in the same order."""

import os
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.training.dataset import Corpus, Recording

ORDER_VERSION = 1
"""Must be increased when a change makes the same files, seed and position give another clip."""
NAMED = 3


def fingerprint(corpus: Corpus, config: Config) -> dict[str, Any]:
    """JSON of everything that determines the order of clips.

    That is the order's version, the seed, the clip length, and for each recording its path
    relative to the folder common to all, its size in bytes and in samples, and the bytes of the
    mel that it comes with, if any.
    """
    recordings = corpus.training + corpus.validation
    folder = os.path.commonpath([os.path.abspath(r.path.parent) for r in recordings])
    files = {
        name: [[os.path.relpath(os.path.abspath(r.path), folder), *_sizes(r)] for r in some]
        for name, some in (("training", corpus.training), ("validation", corpus.validation))
    }
    return {
        "version": ORDER_VERSION,
        "seed": config.train.seed,
        "segment_length": config.data.segment_length,
        **files,
    }


def _sizes(recording: Recording) -> list[int]:
    """Bytes and samples, and the bytes of its mel's file if the recording comes with one."""
    mel = [recording.mel.stat().st_size] if recording.mel else []
    return [recording.path.stat().st_size, recording.n_samples, *mel]


def check_unchanged(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError if anything has changed; the message names the first few files."""
    changes = [
        f"{field} {before[field]}, now {now[field]}"
        for field in ("version", "seed", "segment_length")
        if before[field] != now[field]
    ]
    moved = _moved(before, now)
    for part in ("training", "validation"):
        own = ([file for file in files[part] if file[0] not in moved] for files in (before, now))
        changes += _changed_files(part, *own)
    if moved:
        changes.append(
            f"of the same recordings others are held out than before ({_named(sorted(moved))}): "
            "train.validation_fraction or validation_files is not what it was"
        )
    if changes:
        raise UserError(
            f"the data are not those of the run's checkpoint: {'; '.join(changes)}; put them back "
            "as they were, or go on with these by --allow-changed-data"
        )


def _moved(before: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """Names of recordings that moved between the training and the validation part."""
    old, new = (
        {part: {file[0] for file in files[part]} for part in ("training", "validation")}
        for files in (before, now)
    )
    return old["training"] & new["validation"] | old["validation"] & new["training"]


def _named(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _changed_files(part: str, before: list[list[Any]], now: list[list[Any]]) -> list[str]:
    old, new = ({name: sizes for name, *sizes in files} for files in (before, now))
    found = [f"{name} is gone" for name in old if name not in new]
    found += [f"{name} is new" for name in new if name not in old]
    found += [
        f"{name} had {_words(old[name])}, has {_words(new[name])}"
        for name in old
        if name in new and old[name] != new[name]
    ]
    if not found and before != now:
        found = ["the order of the list is another"]
    if not found:
        return []
    return [f"{part} files: {_named(found)}"]


def _words(sizes: list[int]) -> str:
    size, samples, *mel = sizes
    return f"{size:,} bytes ({samples:,} samples)" + "".join(f" and a mel of {m:,}" for m in mel)
