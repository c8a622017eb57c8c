"""The checksums of a checkpoint's files, in the form that `sha256sum -c SHA256SUMS` reads too."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import write_text

MANIFEST = "SHA256SUMS"


class DamagedError(UserError):
    """A checkpoint is not what was written."""


def write_manifest(folder: Path) -> None:
    """Writes the checksums of all files below a folder, whole or not at all."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    write_text(folder / MANIFEST, "".join(lines))


def verify(folder: Path, parts: Collection[str] | None = None) -> bool:
    """Whether there is a manifest; raises DamagedError, naming the file, if one is not as written.

    parts: what lies in these of its folders is looked at, and what lies in none; not given: all.
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
    """Names below the folder, sorted; hidden ones are what a write that was killed left behind."""
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
