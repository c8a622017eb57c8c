"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waveglow_jax.errors import UserError, why
from waveglow_jax.interrupts import unfinished
from waveglow_jax.paths import check_no_device

_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, with the same suffix, that becomes `path` at the end.

    The folder is created. If the block raises, the temporary file is removed and an existing file
    at `path` stays unchanged. An OSError (no space, not permitted, ...) becomes a UserError.

        with replacing(target) as temporary:
            temporary.write_bytes(content)
    """
    path = Path(path)
    # The name is hidden, so that a concurrent search of the folder does not find the file. It does
    # not come from tempfile, because only the owner may read tempfile's files.
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            check_no_device(path)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {_fault(error, path)}") from error
    finally:
        # If the folder could not be created, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        unfinished.discard(temporary)


def _fault(error: OSError, path: Path) -> str:
    """The reason for an error of writing, and what helps against it."""
    file = next((folder for folder in path.parents if os.path.isfile(folder)), None)
    if file is not None:
        return f"{file} is a file and no folder; choose another folder"
    if error.errno in _NO_PERMISSION:
        return f"{why(error)}; choose another place"
    return f"{why(error)}; free some space or choose another place"


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all, and creates its folders. Raises UserError.

    Characters that UTF-8 cannot encode, which occur only in file names from other systems, are
    escaped.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
