"""The one error that reaches the person at the keyboard."""


class UserError(ValueError):
    """One line: which file or field, what is wrong with it, and what to do about it.

    Commands print it to stderr without a traceback and exit with 1. Names that come out of a file
    may hold anything: what does not print becomes a question mark.
    """

    def __init__(self, message: str):
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "?"
