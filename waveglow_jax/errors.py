"""The error and the warnings that reach the user, and the escaping of text shown to them."""

import re

# Characters that a terminal interprets rather than shows: control characters, and marks that change
# the direction of text, by which one name can look like another.
_COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """One line: which file or field, what is wrong with it, and what to do about it.

    Commands print it to stderr without a traceback and exit with 1. Names that come from a file may
    hold any characters: unprintable ones become a question mark, and a byte that is not valid
    UTF-8, as in file names from other systems, becomes its number.
    """

    def __init__(self, message: str):
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # Python's form of such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return " " if character.isspace() else "?"


class FileWarning(UserWarning):
    """One line: an oddity of a file or folder that does not stop the command.

    Commands print it to stderr.
    """

    def __init__(self, message: str):
        super().__init__(escaped(message))


def escaped(text: str, keep: str = "") -> str:
    """The text with characters that a terminal would interpret escaped as in Python: `\\x1b`.

    keep: such characters to leave as they are. Names and descriptions from files may hold any
    characters.
    """

    def written(found: re.Match[str]) -> str:
        character = found[0]
        return character if character in keep else repr(character)[1:-1]

    return _COMMANDS.sub(written, text)


class LevelWarning(UserWarning):
    """One line: input or output samples are far beyond full scale. Commands print it to stderr."""


def why(error: Exception) -> str:
    """The reason that an error gives, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
