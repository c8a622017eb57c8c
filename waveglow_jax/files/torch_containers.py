"""Both containers of `torch.save`: the zip of torch >= 1.6, and the older one of four pickles.

Sizes are checked against the file before memory is allocated.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from waveglow_jax.files.torch_machine import Machine
from waveglow_jax.files.torch_values import DTYPES, RefusedError, storage_of

MAX_PICKLE_BYTES = 64 << 20
MAX_ZIP_ENTRIES = 20_000
MAX_PIECE = 4 << 20
"""The most bytes that one read takes from a file."""


class InPieces:
    """A file that is never read in pieces larger than MAX_PIECE, nor beyond `end`.

    It protects the readers of archives, which would trust a false size. A larger read raises
    ValueError in them.
    """

    def __init__(self, file: io.BufferedIOBase, end: int | None = None):
        """end: where the readable part ends (default: the file's size)."""
        self._file, self._end = file, file.seek(0, 2) if end is None else end
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        size = self._end - self.tell() if size < 0 else size
        if size > MAX_PIECE:
            raise ValueError(f"{size} bytes where few are expected")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset > self._end:
            raise ValueError("a place beyond its end")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class Zip:
    """One folder with `data.pkl` and `data/KEY`, stored without compression."""

    NAME = "zip"

    def __init__(self, file: io.BufferedIOBase):
        with _zip_refusals():
            self._archive = zipfile.ZipFile(InPieces(file))
            self._entries = _checked_entries(self._archive, file.seek(0, 2))
        root = next(iter(self._entries)).split("/")[0]
        self._root = root
        if f"{root}/data.pkl" not in self._entries:
            raise RefusedError("holds no data.pkl; it is a zip, but none that torch.save wrote")
        if any(name.startswith(f"{root}/code/") for name in self._entries):
            raise RefusedError(
                "is a TorchScript program, which is never run; save its state_dict()"
            )
        order = f"{root}/byteorder"
        if order in self._entries and self._all_of(order, limit=16) != b"little":
            raise RefusedError("is not little-endian; save it again on a little-endian machine")
        pickled = self._all_of(f"{root}/data.pkl", limit=MAX_PICKLE_BYTES)
        sizes: dict[str, tuple[str, int]] = {}
        machine = Machine(pickled, lambda pid: storage_of(pid, sizes))
        self.tree = machine.run()
        for key, (dtype, numel) in sizes.items():
            entry = self._entries.get(f"{root}/data/{key}")
            if entry is None:
                raise RefusedError(f"storage {key} is missing; copy it again")
            promised = numel * np.dtype(DTYPES[dtype]).itemsize
            if entry.file_size != promised:
                raise RefusedError(
                    f"storage {key} has {entry.file_size} bytes, {promised} are promised"
                )

    def read(self, key: str, start: int, numel: int) -> np.ndarray:
        """The whole storage with verified checksum, `[bytes]`; this container has no views."""
        return self._contents(f"{self._root}/data/{key}")

    def _all_of(self, name: str, limit: int) -> bytes:
        size = self._entries[name].file_size
        if size > limit:
            raise RefusedError(
                f"{name} has {size} bytes, over {limit}; arrays of that size must be tensors"
            )
        return self._contents(name).tobytes()

    def _contents(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        raw = np.empty(entry.file_size, np.uint8)
        with _zip_refusals(), self._archive.open(entry) as file:
            done = 0
            while done < len(raw):
                piece = file.read(min(len(raw) - done, MAX_PIECE))
                if not piece:
                    raise RefusedError(f"its entry {name[:80]!r} is cut short; copy it again")
                raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
            file.read(1)  # zipfile compares the checksum at the end
        return raw


@contextmanager
def _zip_refusals() -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        NotImplementedError,
        EOFError,
        ValueError,
        IndexError,
        RuntimeError,
        OverflowError,
    ) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise RefusedError(f"damaged or cut short ({why[:200]}); copy it again") from None


def _checked_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Every entry by its name; refuses archives that torch.save never writes."""
    entries: dict[str, zipfile.ZipInfo] = {}
    listed = archive.infolist()
    if not 0 < len(listed) <= MAX_ZIP_ENTRIES:
        raise RefusedError(f"is a zip of {len(listed)} entries, 1 to {MAX_ZIP_ENTRIES} expected")
    for entry in listed:
        name = entry.filename
        said = repr(name[:80])
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise RefusedError(f"its entry {said} is compressed, which torch.save never does")
        if entry.flag_bits & 0x1:
            raise RefusedError(f"its entry {said} is encrypted")
        if name in entries:
            raise RefusedError(f"its entry {said} is there twice")
        parts = name.split("/")
        if ".." in parts or "" in parts[:-1] or "\\" in name or ":" in parts[0]:
            raise RefusedError(f"its entry {said} leads out of the archive")
        entries[name] = entry
    roots = sorted({name.split("/")[0] for name in entries})
    if len(roots) > 1:
        raise RefusedError(f"holds several folders ({roots[0][:80]!r}, {roots[1][:80]!r} ...)")
    end_of_last, last = 0, ""
    for entry in sorted(listed, key=lambda e: e.header_offset):
        if entry.header_offset < end_of_last:
            raise RefusedError(f"its entries {last[:80]!r} and {entry.filename[:80]!r} overlap")
        end_of_last, last = entry.header_offset + 30 + entry.file_size, entry.filename
    if end_of_last > size:
        raise RefusedError(f"its entry {last[:80]!r} is cut short; copy it again")
    return entries


class Legacy:
    """Four pickles (magic number, version, system, saved object), the keys, the storages."""

    NAME = "older than torch 1.6"

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(MAX_PICKLE_BYTES)
        self._sizes: dict[str, tuple[str, int]] = {}

        def persistent(pid: Any) -> Any:
            return storage_of(pid, self._sizes)

        position, parts = 0, []
        for _ in range(5):
            machine = Machine(head, persistent, position)
            parts.append(machine.run())
            position = machine.position
        _, version, system, self.tree, keys = parts
        if version != 1001:
            raise RefusedError("is of another version of its format than 1001")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise RefusedError("is not little-endian; save it again on a little-endian machine")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RefusedError("damaged: its list of storages is none")
        self._places = self._find(keys, position, size)
        for key in self._sizes.keys() - self._places.keys():
            raise RefusedError(f"storage {key[:80]} is missing; copy it again")

    def _find(self, keys: list[str], position: int, size: int) -> dict[str, int]:
        """The position of each storage's numbers; their count stands before them."""
        places: dict[str, int] = {}
        for key in keys:
            if key not in self._sizes or key in places:
                raise RefusedError(f"damaged: its storage {key[:80]!r} is unknown or there twice")
            dtype, numel = self._sizes[key]
            self._file.seek(position)
            count = self._file.read(8)
            if len(count) < 8 or struct.unpack("<q", count)[0] != numel:
                raise RefusedError(
                    f"storage {key[:80]} is cut short or of another size; copy it again"
                )
            places[key] = position + 8
            position += 8 + numel * np.dtype(DTYPES[dtype]).itemsize
            if position > size:
                raise RefusedError(f"storage {key[:80]} is cut short; copy it again")
        return places

    def read(self, key: str, start: int, numel: int) -> np.ndarray:
        """The bytes of `numel` numbers of a storage, from byte `start` on, `[bytes]`."""
        raw = np.empty(numel * np.dtype(DTYPES[self._sizes[key][0]]).itemsize, np.uint8)
        self._file.seek(self._places[key] + start)
        if self._file.readinto(memoryview(raw)) != len(raw):
            raise RefusedError(f"storage {key} is cut short; copy it again")
        return raw
