"""Locks a run's folder for one process; the lock ends with the process, even a killed one."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waveglow_jax.errors import UserError
from waveglow_jax.training.watching.monitor import say

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps other processes from training into the run's folder, and creates it if necessary.

    The operating system (over NFS the server) holds the lock, so a killed process leaves none
    behind. On a file system without locks, it prints a warning and locks nothing. Releasing the
    lock removes its file if the folder contains nothing else, and then the folder if it was created
    here. Raises UserError if another process holds the lock or the folder cannot be written.
    """
    made = not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _acquired(run)
    except OSError as error:
        raise UserError(
            f"{run}: cannot be written ({error.strerror}); choose another --output"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            if os.listdir(run) == [LOCK]:
                (run / LOCK).unlink()
                if made:
                    run.rmdir()
        os.close(file)


def _acquired(run: Path) -> int:
    """The descriptor of the lock file, which stays locked as long as it is open."""
    path = run / LOCK
    while True:
        # NFS locks only files that are open for writing.
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(
                    f"warning: {run}: its file system has no locks ({error.strerror}); see to it "
                    "that no second train.py is started on it"
                )
                return file
            holder = os.read(file, 200).decode("utf-8", "replace").strip()
            os.close(file)
            if not isinstance(error, BlockingIOError) and error.errno != errno.EACCES:
                raise
            raise UserError(
                f"{run}: another train.py is at work there ({holder or 'just started'}); wait for "
                "its end or stop it, or choose another --output"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
        os.close(file)  # its previous holder has just deleted the file
