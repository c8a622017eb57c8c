"""The one error that reaches the person at the keyboard."""


class UserError(ValueError):
    """One line: which file or field, what is wrong with it, and what to do about it.

    Commands print it to stderr without a traceback and exit with 1.
    """
