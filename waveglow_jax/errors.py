"""The one error that reaches the person at the keyboard."""


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
    """One line: a file was read, and what is odd about it. Commands print it to stderr."""


class LevelWarning(UserWarning):
    """One line: samples, given or made, are far beyond full scale. Commands print it to stderr."""


def why(error: Exception) -> str:
    """The reason that an error gives, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
