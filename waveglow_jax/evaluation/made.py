"""Records of the outputs that a system has made, so that an evaluation can resume.

The records are lines of JSON in a file beside the outputs.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.errors import UserError

TIMED_FILES = 8
MADE = "made.jsonl"


def file_state(path: Path) -> list[int]:
    """A file's size and modification time, by which a changed file is recognised.

    Raises UserError if the file cannot be read.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return [found.st_size, found.st_mtime_ns]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one object per line; an empty list if there is no file.

    A line that a crash cut off is skipped. Raises UserError if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete it") from None
    records = []
    for line in text.split("\n"):  # a name may hold U+2028, at which splitlines would split
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Appends a line to such a file. Raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            # The newline comes first, so that this line never continues one that a crash cut off.
            file.write("\n" + json.dumps(record, ensure_ascii=False))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Made:
    """The audio of a system, by name of the recording.

    seconds: computing time of the files that were timed. nats: log-likelihoods.
    """

    files: dict[str, Path]
    seconds: dict[str, float]
    nats: dict[str, float] = field(default_factory=dict)


def with_seconds(
    synthesize: Callable[[], np.ndarray], again: bool
) -> tuple[np.ndarray, float | None]:
    """The samples, and the seconds of a second run if `again` is set, otherwise None.

    The first run imports and compiles everything that this length needs.
    """
    samples = synthesize()
    if not again:
        return samples, None
    began = time.monotonic()
    synthesize()
    return samples, time.monotonic() - began


def made_from(
    folder: Path,
    done: dict[str, dict[str, Any]],
    references: dict[str, Path],
    nats: dict[str, float] | None = None,
) -> Made:
    return Made(
        files={name: folder / f"{name}.wav" for name in references},
        seconds={n: done[n]["seconds"] for n in references if done[n]["seconds"] is not None},
        nats=nats or {},
    )


def already_made(folder: Path, references: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Records, by name, of the outputs that exist and were made from exactly these recordings."""
    return {
        each["name"]: each
        for each in read_records(folder / MADE)
        if same_file(each, references) and (folder / f"{each['name']}.wav").is_file()
    }


def same_file(record: dict[str, Any], references: dict[str, Path]) -> bool:
    path = references.get(str(record.get("name")))
    return path is not None and record.get("of") == file_state(path)


def digest_of(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def file_name_of(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "system"
