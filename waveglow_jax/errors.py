"""The one error that reaches the person at the keyboard, and what may be shown to them."""

import re

# What a terminal obeys rather than shows: control characters, and marks that turn the direction of
# text, so that a name reads as another one.
_COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """One line: which file or field, what is wrong with it, and what to do about it.

    Commands print it to stderr without a traceback and exit with 1. Names that come out of a file
    may hold anything: what does not print becomes a question mark, and a byte that is no character
    of UTF-8, as in names of files from elsewhere, its number.
    """

    def __init__(self, message: str):
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how Python holds such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return " " if character.isspace() else "?"


class FileWarning(UserWarning):
    """One line: what is odd about a file or folder, without which things go on. Commands print it
    to stderr."""

    def __init__(self, message: str):
        super().__init__(escaped(message))


def escaped(text: str, keep: str = "") -> str:
    """The text with what a terminal would obey written out, as Python writes it: `\\x1b`.

    keep: such characters to leave as they are. Names and descriptions out of files hold anything.
    """

    def written(found: re.Match[str]) -> str:
        character = found[0]
        return character if character in keep else repr(character)[1:-1]

    return _COMMANDS.sub(written, text)


class LevelWarning(UserWarning):
    """One line: samples, given or made, are far beyond full scale. Commands print it to stderr."""


def why(error: Exception) -> str:
    """The reason that an error gives, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
