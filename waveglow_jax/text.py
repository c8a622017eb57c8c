"""Reads text files from any editor: UTF-8 with or without a byte order mark, or UTF-16 or UTF-32
with one; makes values fit for JSON; writes numbers of things."""

import codecs
import json
import math
import os
import stat
from typing import Any

from waveglow_jax.errors import UserError

MARK = "\ufeff"
"""The byte order mark, as a character. Concatenated files may have one inside."""

# Limits in bytes. Lists of millions of recordings are that long; a device may never end.
_LONGEST, _LONGEST_PIPE = 1 << 30, 16 << 20

# The longer marks come first: UTF-32's begins with UTF-16's.
_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"", "utf-8"),
)


def number_of(count: int, noun: str, form: str = "") -> str:
    """The count with its noun, in the plural unless it is 1: "1 step"; form ",": "1,024 steps"."""
    return f"{count:{form}} {noun}{'s' * (count != 1)}"


def decode(content: bytes, name: str | os.PathLike[str], what: str = "file") -> str:
    """The text of a file's bytes, without byte order marks at its start.

    name, what: the file's name and kind, for the UserError that is raised if the bytes are not such
    a text.
    """
    encoding = next(encoding for mark, encoding in _ENCODINGS if content.startswith(mark))
    try:
        text = content.decode(encoding).lstrip(MARK)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: byte {error.start} is not {encoding.upper()} ({error.reason}); save the "
            f"{what} as UTF-8"
        ) from None
    if "\0" in text:  # UTF-16 without a mark looks like this
        raise UserError(f"{name}: is no text, or in another encoding; save the {what} as UTF-8")
    return text


def read_text(path: str | os.PathLike[str], what: str = "file") -> str:
    """A file's text; `what` is the kind of file. Raises UserError if it is unreadable."""
    try:
        content = _content(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:  # an invalid name
        raise UserError(f"{path}: cannot be read ({error}); check the path") from None
    if content is None:
        raise UserError(f"{path}: holds more than a {what} can; check the path")
    return decode(content, path, what)


def _content(path: str | os.PathLike[str]) -> bytes | None:
    """A file's bytes; None if there are too many.

    The file may be a pipe, such as a shell's `<(...)`; a pipe without a writer is not waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        os.set_blocking(descriptor, True)
        found = os.fstat(descriptor)
        most = _LONGEST if stat.S_ISREG(found.st_mode) else _LONGEST_PIPE
        if found.st_size > most:
            return None
        content = file.read(most + 1)
    return content if len(content) <= most else None


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises UserError if it cannot be read or is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no valid JSON ({error}); mend it at that place") from None


def finite_json(value: Any) -> Any:
    """The value in the types of JSON: arrays become lists, and non-finite numbers become null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: finite_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
