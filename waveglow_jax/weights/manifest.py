"""Checksums of a checkpoint's files, in the format that `sha256sum -c SHA256SUMS` reads."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import write_text

MANIFEST = "SHA256SUMS"


class DamagedError(UserError):
    """A checkpoint differs from what was written."""


def write_manifest(folder: Path) -> None:
    """Writes the checksums of all files below a folder, atomically."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    write_text(folder / MANIFEST, "".join(lines))


def verify(folder: Path, parts: Collection[str] | None = None) -> bool:
    """Returns whether there is a manifest; raises DamagedError, naming the file, if a file is
    missing, unlisted, unreadable or changed.

    parts: the sub-folders to verify, besides the files outside any sub-folder; by default all.
    """
    path = folder / MANIFEST
    if not path.exists():
        return False
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: damaged, not a list of checksums") from error
    if not text.endswith("\n"):
        raise DamagedError(f"{path}: damaged, cut short")
    lines = (line.partition("  ") for line in text.splitlines())
    written = {name: digest for digest, _, name in lines}
    found = _files(folder)
    for name in sorted(written.keys() | set(found)):
        if parts is not None and "/" in name and name.split("/")[0] not in parts:
            continue
        if name not in found:
            raise DamagedError(f"{folder / name}: missing")
        if name not in written:
            raise DamagedError(f"{folder / name}: not in {MANIFEST}, which is damaged or cut short")
        try:
            digest = _sha256(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if digest != written[name]:
            raise DamagedError(
                f"{folder / name}: damaged, its bytes are not those that were written"
            )
    return True


def _files(folder: Path) -> list[str]:
    """Sorted names of the files below the folder, without leftovers of a killed atomic write."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and not _is_temporary(path)
    )


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and len(path.stem) == 33


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
