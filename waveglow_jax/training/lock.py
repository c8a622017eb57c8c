"""One run, one writer: a lock on its folder that ends with its process, however that ends."""

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
    """Keeps every other process from training into the run's folder, which is made if need be.

    The system itself holds the lock, over NFS its server: a killed process leaves none behind.
    Where a file system has no locks, a line says so and nothing is locked. A folder that was made
    for the lock, and holds nothing else when it is given back, goes too. Raises UserError if
    another process has the lock, or if the folder cannot be written.
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
    """The descriptor of the lock's file, which is locked for as long as it is open."""
    path = run / LOCK
    while True:
        # Open for writing, without which NFS gives no lock.
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
        os.close(file)  # whoever had it has just deleted it
