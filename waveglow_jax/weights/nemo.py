"""NeMo's `.nemo`: a tar archive, gzipped or not, that holds a config and a state dict."""

import gzip
import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_containers import MAX_PIECE, InPieces

_GZIP = b"\x1f\x8b"
_MAX_GROWTH = 4  # the most a compressed archive may grow: weights hardly compress
_MAX_MEMBERS = 1000


def is_archive(file: io.BufferedIOBase) -> bool:
    """Whether the file starts like a gzip or tar file."""
    file.seek(0)
    start = file.read(2)
    file.seek(257)
    return start == _GZIP or file.read(5) == b"ustar"


@contextmanager
def inside_nemo(file: io.BufferedIOBase, path: Path) -> Iterator[io.BufferedIOBase]:
    """The archive's `.ckpt`, copied to a temporary file.

    Raises UserError if the archive is damaged, has no `.ckpt`, or unpacks to far more than its
    own size.
    """
    size = file.seek(0, 2)
    file.seek(0)
    gzipped = file.read(2) == _GZIP
    file.seek(0)
    with tempfile.TemporaryFile() as copy:
        try:
            source = gzip.GzipFile(fileobj=file) if gzipped else file
            end = _MAX_GROWTH * size if gzipped else size
            pieces = cast(IO[bytes], InPieces(source, end))  # tarfile only reads, seeks and tells
            with tarfile.open(fileobj=pieces, mode="r:") as archive:
                _copy_ckpt(archive, end, path, copy)
        except UserError:  # also a ValueError, but with its message already
            raise
        except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
            raise UserError(f"{path}: damaged or cut short ({error}); copy it again") from None
        copy.seek(0)
        yield copy


def _copy_ckpt(archive: tarfile.TarFile, end: int, path: Path, copy: io.BufferedIOBase) -> None:
    for number, member in enumerate(archive):
        if member.size < 0 or number > _MAX_MEMBERS:
            break
        if member.isreg() and member.name.endswith(".ckpt"):
            if member.size > end:
                raise UserError(
                    f"{path}: {member.name[:80]} unpacks to {member.size} bytes, far more than "
                    "weights would; not unpacked"
                )
            source = archive.extractfile(member)
            assert source is not None  # it is a regular file
            while piece := source.read(MAX_PIECE):
                copy.write(piece)
            return
    raise UserError(f"{path}: is an archive without a .ckpt; it is no .nemo of weights")
