"""Plays sound through the first known player that the system has."""

import shutil
import subprocess
from pathlib import Path

from waveglow_jax.errors import UserError

_PLAYERS = (
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("aplay", "-q"),
    ("afplay",),
)


def player() -> tuple[str, ...]:
    """The command that plays a file given as its last argument; UserError if there is none."""
    for command in _PLAYERS:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in _PLAYERS)
    raise UserError(f"--play: none of {names} is installed; install ffmpeg, or write files by -o")


def play(path: Path) -> None:
    """Plays a file to its end. Raises UserError if the player cannot."""
    command = player()
    try:
        done = subprocess.run(
            [*command, str(path.resolve())],  # an absolute path is never taken for an option
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise UserError(f"{path}: {command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[0] if said else f"exit code {done.returncode}"
        raise UserError(
            f"{path}: {command[0]} did not play it ({reason}); is there a sound device? Write "
            "files by -o"
        )
