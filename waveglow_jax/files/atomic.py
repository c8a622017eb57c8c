"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waveglow_jax.errors import UserError, why
from waveglow_jax.interrupts import unfinished
from waveglow_jax.paths import check_no_device


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, with the same suffix, that becomes `path` at the end.

    The folder is created. If the block raises, the temporary file is removed and whatever stood at
    `path` is left as it was. An OSError (no space, not permitted, ...) becomes a UserError.

        with replacing(target) as temporary:
            temporary.write_bytes(content)
    """
    path = Path(path)
    # Hidden, so that a search of the folder in the meantime does not find it; a fresh name rather
    # than one from tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            check_no_device(path)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {why(error)}; free some space or choose another place"
        ) from error
    finally:
        # If the folder itself is what failed, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        unfinished.discard(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all, creating folders. Raises UserError.

    What UTF-8 cannot hold, which only names of files from elsewhere have, is escaped.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
