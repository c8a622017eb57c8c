"""The one exception meant for the person at the keyboard."""


class UserError(ValueError):
    """One line that names the file or field, what is wrong, and what to do.

    Names that come out of a file may hold anything: what does not print becomes a question mark.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else "?" for c in message))
