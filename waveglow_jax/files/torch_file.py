"""PyTorch's files without PyTorch: read as inert data, nothing in them imported, called or run.

A file of `torch.save` is a pickle, a program for a small stack machine, beside raw storages. The
machine here knows PyTorch's own vocabulary and no other: a global is a name that is never looked
up, an object of a class a `Holder` of its state, a tensor a `Tensor` that says where its numbers
lie. Whatever else the program asks for is refused by its name. Sizes are checked against the file
before memory is taken, and a tensor's numbers are read only when they are asked for.

Both containers are read: the zip of torch >= 1.6, and the older one of four pickles and then the
storages. `write_torch` writes the former. Of the house this needs only `errors`, so that
`files/mels.py` reads mels with it.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickletools import opcodes
from typing import Any, Literal, NamedTuple

import numpy as np

from waveglow_jax.errors import UserError

MAX_PICKLE_BYTES = 64 << 20
MAX_OPS = 1_000_000  # three times those of the largest published model with its optimizer
CALL_COST = 10
"""What a tensor or a storage takes in time, in operations."""
MAX_STRING = 16 << 20
MAX_INTEGER_BYTES = 32
MAX_DIMENSIONS = 8
MAX_NUMBERS = 1 << 48
MAX_ZIP_ENTRIES = 20_000
_LONGEST_NAME = 100
MAX_PIECE = 4 << 20
"""Bytes that are read from a file at once."""

# Little-endian, as the files' checked byte order; bfloat16 is the upper half of a float32.
_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint8": "|u1",
    "bool": "|b1",
}
_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
_NUMPY_TYPES = {
    **{"f2": "float16", "f4": "float32", "f8": "float64", "b1": "bool"},
    **{"i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8"},
}
# The first pickle of the older container.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_MAGIC = b"\x8a\x0a" + _MAGIC_NUMBER.to_bytes(10, "little")


class Token(NamedTuple):
    """The name of a global: of a class or function that the file mentions. Never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_ENCODE = Token("_codecs", "encode")
"""Makes bytes of a text in protocol 2, which has none."""


@dataclass(frozen=True)
class Storage:
    """`numel` numbers from the `start`-th on of the file's storage `key`."""

    key: str
    dtype: str
    start: int
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in numbers: the same meaning as PyTorch's offset, size and stride."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Holder:
    """An object of the class that `kind` names: what the file says about it, and no more."""

    kind: Token
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class NumPyType:
    """A dtype of NumPy's: `code` as "f4"; `order` is "<", ">" or, where there is none, "|"."""

    code: str
    order: str = "<"


class Stored(NamedTuple):
    """An array's numbers: bytes, or as protocol 2 has them, a text whose letters are the bytes.

    As they are in the file, for a few bytes of it can ask for the same text over and over.
    """

    content: bytes | str
    dtype: np.dtype
    order: Literal["C", "F"]

    def numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        content = self.content
        try:
            raw = content.encode("latin-1") if isinstance(content, str) else content
        except UnicodeEncodeError:
            raise _RefusedError("damaged: an array of NumPy's is no latin-1") from None
        return np.frombuffer(raw, self.dtype).reshape(shape, order=self.order)


@dataclass(eq=False)
class Array:
    """An array of NumPy's inside the pickle; `stored` is None if it is not of plain numbers."""

    dtype: str = "object"
    shape: tuple[int, ...] = ()
    stored: Stored | None = None


class _RefusedError(Exception):
    """Why a file is not read; becomes a UserError that names the file."""


class TorchFile:
    """An opened file: `tree`, what was saved, and the numbers of its tensors.

    tree: dicts, lists, tuples, strings, bytes, numbers and None, with `Tensor`, `Array`, `Holder`
    and `Token` in their places. Sets are tuples. Cycles and shared parts are possible, as in the
    file.
    """

    def __init__(self, file: io.BufferedIOBase, name: str):
        self._name = name
        self._size = file.seek(0, 2)
        file.seek(0)
        start = file.read(32)
        self._unread = self._unviewed = self._size
        self._last: tuple[Storage, np.ndarray] | None = None
        with self._refusals():
            if start[:4] == b"PK\x03\x04":
                self._container: _Zip | _Legacy = _Zip(file)
            elif start[:1] == b"\x80" and _LEGACY_MAGIC in start:
                self._container = _Legacy(file)
            else:
                raise _RefusedError(_what_it_is(start))
            self.tree = self._container.tree

    @property
    def container(self) -> str:
        return self._container.NAME

    def array(self, tensor: Tensor | Array) -> np.ndarray:
        """The tensor's numbers, in a contiguous array of their own; bfloat16 widened to float32.

        Tensors may share a storage, read once for those that follow each other. Raises UserError
        if they are damaged, or if all that was read exceeds the file: then its tensors overlap.
        """
        with self._refusals():
            if isinstance(tensor, Array) and tensor.stored is None:
                raise _RefusedError(f"an array of NumPy's type {tensor.dtype} is not read")
            dtype = np.dtype(_DTYPES[tensor.dtype])
            self._unviewed -= math.prod(tensor.shape) * dtype.itemsize
            if self._unviewed < 0:
                raise _RefusedError("its tensors overlap: together they are larger than the file")
            if isinstance(tensor, Array):
                assert tensor.stored is not None  # refused above
                return np.array(tensor.stored.numbers(tensor.shape), dtype, order="C")
            raw = self._raw(tensor.storage)
            numbers = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(dtype)
            numbers = numbers[tensor.offset :]
            strides = [numbers.itemsize * s for s in tensor.strides]
            view = np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
            if tensor.dtype == "bfloat16":
                return (view.astype(np.uint32) << 16).view(np.float32)
            whole = view.size == numbers.size and view.flags.c_contiguous
            return view if whole else np.ascontiguousarray(view)

    def _raw(self, storage: Storage) -> np.ndarray:
        """A storage's bytes."""
        if self._last is None or self._last[0] != storage:
            itemsize = np.dtype(_DTYPES[storage.dtype]).itemsize
            self._unread -= storage.numel * itemsize
            if self._unread < 0:
                raise _RefusedError("its tensors share their storages crosswise; save copies")
            raw = self._container.read(storage.key, storage.start * itemsize, storage.numel)
            self._last = storage, raw
        return self._last[1]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except _RefusedError as refused:
            raise UserError(f"{self._name}: {refused}") from None
        except OSError as error:
            raise UserError(f"{self._name}: cannot be read ({error.strerror or error})") from None


@contextmanager
def open_torch(path: str | Path) -> Iterator[TorchFile]:
    """Opens a PyTorch file. Raises UserError if it is none, is damaged, or is not wholly inert."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; check the path") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        yield TorchFile(file, str(path))


_BRANCHES = (Tensor, Array, dict, list, tuple, Holder)


def tensors_in(tree: Any) -> list[tuple[str, Tensor | Array]]:
    """Every tensor and array of a tree with its name there, such as `out.mel` or `out[0]`."""
    found: list[tuple[str, Tensor | Array]] = []
    seen: set[int] = set()
    to_visit: list[tuple[str, Any]] = [("", tree)]
    while to_visit:
        name, node = to_visit.pop()
        name = name[-_LONGEST_NAME:]  # a deep tree would have names as long as it is deep
        children: list[tuple[str, Any]] = []
        match node:
            case Tensor() | Array():
                found.append((name, node))
                continue
            case dict():
                children = [(f"{name}.{str(k)[:_LONGEST_NAME]}", v) for k, v in node.items()]
            case list() | tuple():
                children = [(f"{name}[{i}]", value) for i, value in enumerate(node)]
            case Holder():
                children = [(name, node.state), (name, node.items)]
        if id(node) not in seen:
            seen.add(id(node))
            to_visit += [each for each in reversed(children) if isinstance(each[1], _BRANCHES)]
    return [(name.removeprefix("."), value) for name, value in found]


def _what_it_is(start: bytes) -> str:
    if not start:
        return "the file is empty; copy it again"
    if start[:1] == b"\x80":
        return "is a pickle, but none that torch.save wrote; nothing else is unpickled"
    return "is no file of PyTorch's, or its beginning is damaged; copy it again"


# ------------------------------------------------------------------------------ containers


class InPieces:
    """A file that is never read in larger pieces than MAX_PIECE, nor beyond `end`.

    For the readers of archives, which would believe a size that lies. They see a ValueError.
    """

    def __init__(self, file: io.BufferedIOBase, end: int | None = None):
        """end: by default the file's size."""
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


class _Zip:
    """One folder with `data.pkl` and `data/KEY`, stored without compression."""

    NAME = "zip"

    def __init__(self, file: io.BufferedIOBase):
        with _zip_refusals():
            self._archive = zipfile.ZipFile(InPieces(file))
            self._entries = _checked_entries(self._archive, file.seek(0, 2))
        root = next(iter(self._entries)).split("/")[0]
        self._root = root
        if f"{root}/data.pkl" not in self._entries:
            raise _RefusedError("holds no data.pkl; it is a zip, but none that torch.save wrote")
        if any(name.startswith(f"{root}/code/") for name in self._entries):
            raise _RefusedError(
                "is a TorchScript program, which is never run; save its state_dict()"
            )
        order = f"{root}/byteorder"
        if order in self._entries and self._all_of(order, limit=16) != b"little":
            raise _RefusedError("is not little-endian; save it again on a little-endian machine")
        pickled = self._all_of(f"{root}/data.pkl", limit=MAX_PICKLE_BYTES)
        sizes: dict[str, tuple[str, int]] = {}
        machine = _Machine(pickled, lambda pid: _storage_of(pid, sizes))
        self.tree = machine.run()
        for key, (dtype, numel) in sizes.items():
            entry = self._entries.get(f"{root}/data/{key}")
            if entry is None:
                raise _RefusedError(f"storage {key} is missing; copy it again")
            promised = numel * np.dtype(_DTYPES[dtype]).itemsize
            if entry.file_size != promised:
                raise _RefusedError(
                    f"storage {key} has {entry.file_size} bytes, {promised} are promised"
                )

    def read(self, key: str, start: int, numel: int) -> np.ndarray:
        """The whole storage, its checksum verified, `[bytes]`; views of a storage have no place
        in this container."""
        return self._contents(f"{self._root}/data/{key}")

    def _all_of(self, name: str, limit: int) -> bytes:
        size = self._entries[name].file_size
        if size > limit:
            raise _RefusedError(
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
                    raise _RefusedError(f"its entry {name[:80]!r} is cut short; copy it again")
                raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
            file.read(1)  # the end is where the checksum is compared
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
        raise _RefusedError(f"damaged or cut short ({why[:200]}); copy it again") from None


def _checked_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Every entry by its name; refuses what torch.save never writes."""
    entries: dict[str, zipfile.ZipInfo] = {}
    listed = archive.infolist()
    if not 0 < len(listed) <= MAX_ZIP_ENTRIES:
        raise _RefusedError(f"is a zip of {len(listed)} entries, 1 to {MAX_ZIP_ENTRIES} expected")
    for entry in listed:
        name = entry.filename
        said = repr(name[:80])
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise _RefusedError(f"its entry {said} is compressed, which torch.save never does")
        if entry.flag_bits & 0x1:
            raise _RefusedError(f"its entry {said} is encrypted")
        if name in entries:
            raise _RefusedError(f"its entry {said} is there twice")
        parts = name.split("/")
        if ".." in parts or "" in parts[:-1] or "\\" in name or ":" in parts[0]:
            raise _RefusedError(f"its entry {said} leads out of the archive")
        entries[name] = entry
    roots = sorted({name.split("/")[0] for name in entries})
    if len(roots) > 1:
        raise _RefusedError(f"holds several folders ({roots[0][:80]!r}, {roots[1][:80]!r} ...)")
    end_of_last, last = 0, ""
    for entry in sorted(listed, key=lambda e: e.header_offset):
        if entry.header_offset < end_of_last:
            raise _RefusedError(f"its entries {last[:80]!r} and {entry.filename[:80]!r} overlap")
        end_of_last, last = entry.header_offset + 30 + entry.file_size, entry.filename
    if end_of_last > size:
        raise _RefusedError(f"its entry {last[:80]!r} is cut short; copy it again")
    return entries


class _Legacy:
    """Four pickles (magic number, version, system, what was saved), the keys, the storages."""

    NAME = "older than torch 1.6"

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(MAX_PICKLE_BYTES)
        self._sizes: dict[str, tuple[str, int]] = {}

        def persistent(pid: Any) -> Any:
            return _storage_of(pid, self._sizes)

        position, parts = 0, []
        for _ in range(5):
            machine = _Machine(head, persistent, position)
            parts.append(machine.run())
            position = machine.position
        _, version, system, self.tree, keys = parts
        if version != 1001:
            raise _RefusedError("is of another version of its format than 1001")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _RefusedError("is not little-endian; save it again on a little-endian machine")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise _RefusedError("damaged: its list of storages is none")
        self._places = self._find(keys, position, size)
        for key in self._sizes.keys() - self._places.keys():
            raise _RefusedError(f"storage {key[:80]} is missing; copy it again")

    def _find(self, keys: list[str], position: int, size: int) -> dict[str, int]:
        """Where each storage's numbers begin; before them stands how many there are."""
        places: dict[str, int] = {}
        for key in keys:
            if key not in self._sizes or key in places:
                raise _RefusedError(f"damaged: its storage {key[:80]!r} is unknown or there twice")
            dtype, numel = self._sizes[key]
            self._file.seek(position)
            count = self._file.read(8)
            if len(count) < 8 or struct.unpack("<q", count)[0] != numel:
                raise _RefusedError(
                    f"storage {key[:80]} is cut short or of another size; copy it again"
                )
            places[key] = position + 8
            position += 8 + numel * np.dtype(_DTYPES[dtype]).itemsize
            if position > size:
                raise _RefusedError(f"storage {key[:80]} is cut short; copy it again")
        return places

    def read(self, key: str, start: int, numel: int) -> np.ndarray:
        """The bytes of `numel` numbers from byte `start` of a storage on, `[bytes]`."""
        raw = np.empty(numel * np.dtype(_DTYPES[self._sizes[key][0]]).itemsize, np.uint8)
        self._file.seek(self._places[key] + start)
        if self._file.readinto(memoryview(raw)) != len(raw):
            raise _RefusedError(f"storage {key} is cut short; copy it again")
        return raw


def _storage_of(pid: Any, sizes: dict[str, tuple[str, int]]) -> Any:
    """What a persistent id stands for; keeps the size of each storage for its container to check.

    ('storage', type, key, device, numel), the older container with a view (key, start, numel) at
    the end; or ('module', class, file, source), whose source is ignored.
    """
    match pid:
        case ("module", Token() as kind, *_):
            return kind
        case ("storage", Token(name=name) as kind, str(key), _, int(numel), *rest):
            dtype = _STORAGES.get(name) if kind.module in ("torch", "torch.storage") else None
            if dtype is None:
                raise _RefusedError(f"its storage {key[:80]} is of the unknown type {kind}")
            if isinstance(numel, bool) or not 0 <= numel < MAX_NUMBERS:
                raise _RefusedError(f"its storage {key[:80]} promises {numel} numbers")
            if sizes.setdefault(key, (dtype, numel)) != (dtype, numel):
                raise _RefusedError(f"its storage {key[:80]} has two sizes or types")
            match rest:
                case [] | [None]:
                    return Storage(key, dtype, 0, numel)
                case [(_, int(start), int(length))]:
                    if not (0 <= start and 0 <= length and start + length <= numel):
                        raise _RefusedError(f"a view of its storage {key[:80]} lies outside of it")
                    return Storage(key, dtype, start, length)
    raise _RefusedError(f"damaged: {said(pid)} is no persistent id")


# ------------------------------------------------------------------------------ the machine


_CODE = {opcode.name: opcode.code.encode("latin-1") for opcode in opcodes}
"""The byte of each operation, by its name in the pickle protocol."""


class _Mark:
    pass


_MARK = _Mark()


class _Machine:
    """Runs one pickle (protocols 2 to 5) over inert values."""

    def __init__(self, data: bytes, persistent: Callable[[Any], Any], position: int = 0):
        self._data = data
        self._persistent = persistent
        self.position = position
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_OPS

    def run(self) -> Any:
        """What the pickle builds; `position` is then behind it."""
        while True:
            self._left -= 1
            if self._left < 0:
                self._spend(0)
            code = self._take(1)
            if code == _CODE["STOP"]:
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise _RefusedError(
                    f"damaged or not PyTorch's: operation {code!r} at byte {self.position - 1}"
                )
            operation(self)

    def _spend(self, operations: int) -> None:
        self._left -= operations
        if self._left < 0:
            raise _RefusedError(f"its pickle has over {MAX_OPS} operations, far more than weights")

    # The stack and the bytes.

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise _RefusedError("damaged or cut short: its pickle ends too early; copy it again")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _unsigned(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _RefusedError("damaged: its pickle takes from an empty stack")
        return self._stack.pop()

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        items = tuple(self._stack[-count:])
        if len(items) < count or _MARK in items:
            raise _RefusedError("damaged: its pickle takes from an empty stack")
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise _RefusedError("damaged: its pickle looks for a mark that is not there")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # Operations, by the names of the pickle protocol.

    def _proto(self) -> None:
        if (version := self._unsigned(1)) > 5:
            raise _RefusedError(f"damaged: pickle protocol {version}")

    def _frame(self) -> None:
        self._take(8)

    def _text(self, width: int) -> None:
        raw = self._bounded(width)
        try:
            self._push(raw.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise _RefusedError("damaged: a text in its pickle is no UTF-8") from None

    def _bounded(self, width: int) -> bytes:
        if (length := self._unsigned(width)) > MAX_STRING:
            raise _RefusedError(f"a text of {length} bytes in its pickle, over {MAX_STRING}")
        return self._take(length)

    def _integer(self, width: int) -> None:
        if (length := self._unsigned(width)) > MAX_INTEGER_BYTES:
            raise _RefusedError(f"an integer of {length} bytes in its pickle")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _global(self) -> None:
        names = []
        for _ in range(2):
            end = self._data.find(b"\n", self.position, self.position + 1024)
            if end < 0:
                raise _RefusedError("damaged: a name in its pickle has no end")
            names.append(self._take(end - self.position).decode("utf-8", "replace"))
            self._take(1)
        self._push(Token(*names))

    def _stack_global(self) -> None:
        module, name = self._pop_many(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _RefusedError("damaged: a global in its pickle has no name")
        self._push(Token(module, name))

    def _get(self, width: int) -> None:
        index = self._unsigned(width)
        if index not in self._memo:
            raise _RefusedError("damaged: its pickle remembers what it never said")
        self._push(self._memo[index])

    def _put(self, width: int) -> None:
        self._remember(self._unsigned(width))

    def _remember(self, index: int | None = None) -> None:
        value = self._pop()
        self._push(value)
        self._memo[len(self._memo) if index is None else index] = value

    def _append(self, items: list[Any]) -> None:
        target = self._pop()
        self._push(target)
        if not isinstance(target, list):
            raise _RefusedError(f"damaged: its pickle appends to {said(target)}")
        target += items

    def _set_items(self, items: list[Any]) -> None:
        target = self._pop()
        self._push(target)
        into = target.items if isinstance(target, Holder) else target
        if not isinstance(into, dict):
            raise _RefusedError(f"damaged: its pickle sets items of {said(target)}")
        _fill(into, items)

    def _add_items(self) -> None:
        # A set: kept as a list, whose items need no hash.
        self._append_to_mark()

    def _append_to_mark(self) -> None:
        self._append(self._pop_to_mark())

    def _new_dict(self) -> None:
        items = self._pop_to_mark()
        self._push({})
        self._set_items(items)

    def _reduce(self) -> None:
        function, arguments = self._pop_many(2)
        if not isinstance(function, Token) or not isinstance(arguments, tuple):
            raise _RefusedError(f"damaged: its pickle calls {said(function)}")
        rebuild = _FUNCTIONS.get(function)
        if rebuild is None:
            if function.module in _OF_TENSORS:
                raise _RefusedError(
                    f"holds a tensor of a kind that is not read ({function}); save it again as a "
                    "plain one, from the CPU: tensor.detach().cpu()"
                )
            raise _RefusedError(
                f"wants to call {function}, which no weights need; it is never called"
            )
        self._push(self._rebuilt(rebuild, function, arguments))

    def _rebuilt(self, rebuild: Callable[..., Any], function: Token, arguments: tuple) -> Any:
        # What is remembered can be copied over and over by a few bytes each.
        copied = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
        self._spend(CALL_COST + len(copied))
        return rebuild(function, arguments)

    def _new_object(self) -> None:
        kind, arguments = self._pop_many(2)
        if not isinstance(kind, Token) or not isinstance(arguments, tuple):
            raise _RefusedError(f"damaged: its pickle makes an object of {said(kind)}")
        rebuild = _FUNCTIONS.get(kind)
        self._push(self._rebuilt(rebuild, kind, arguments) if rebuild else Holder(kind))

    def _new_object_ex(self) -> None:
        self._pop()  # keyword arguments
        self._new_object()

    def _build(self) -> None:
        state = self._pop()
        target = self._pop()
        self._push(target)
        if isinstance(target, Holder):
            target.state = state
        elif isinstance(target, NumPyType):
            if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
                target.order = state[1]
        elif isinstance(target, Array):
            match state:
                case (int(), tuple(shape), NumPyType() as kind, bool(by_columns), content):
                    _set_array(target, content, kind, shape, "F" if by_columns else "C")
        elif not isinstance(target, dict | Tensor):  # whose attributes say nothing of weights
            raise _RefusedError(f"wants to set the state of {said(target)}; it is not touched")

    def _persistent_id(self) -> None:
        self._spend(CALL_COST)
        self._push(self._persistent(self._pop()))


def _fill(into: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise _RefusedError("damaged: a key in its pickle has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Nested tuples as keys take for ever to hash, and large integers can share one hash.
        if not (key is None or isinstance(key, str | int | float)):
            raise _RefusedError(f"a dictionary in its pickle has {said(key)} for a key")
        if isinstance(key, int) and not -(2**63) <= key < 2**64:
            raise _RefusedError("a dictionary in its pickle has an integer over 64 bits for a key")
        into[key] = value


def said(value: Any) -> str:
    """What a value of a tree is, in words."""
    if isinstance(value, Token):
        return str(value)[:120]
    if isinstance(value, Holder):
        return f"an object of {value.kind}"[:120]
    return {type(None): "None", str: "a text"}.get(type(value), f"a {type(value).__name__}")


_OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    _CODE["PROTO"]: _Machine._proto,
    _CODE["FRAME"]: _Machine._frame,
    _CODE["MARK"]: lambda m: m._push(_MARK),
    _CODE["POP"]: lambda m: m._stack.pop() if m._stack else m._pop(),
    _CODE["POP_MARK"]: lambda m: m._pop_to_mark(),
    _CODE["NONE"]: lambda m: m._push(None),
    _CODE["NEWTRUE"]: lambda m: m._push(True),
    _CODE["NEWFALSE"]: lambda m: m._push(False),
    _CODE["BININT"]: lambda m: m._push(int.from_bytes(m._take(4), "little", signed=True)),
    _CODE["BININT1"]: lambda m: m._push(m._unsigned(1)),
    _CODE["BININT2"]: lambda m: m._push(m._unsigned(2)),
    _CODE["LONG1"]: lambda m: m._integer(1),
    _CODE["LONG4"]: lambda m: m._integer(4),
    _CODE["BINFLOAT"]: lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    _CODE["BINUNICODE"]: lambda m: m._text(4),
    _CODE["SHORT_BINUNICODE"]: lambda m: m._text(1),
    _CODE["BINUNICODE8"]: lambda m: m._text(8),
    _CODE["BINSTRING"]: lambda m: m._push(m._bounded(4).decode("latin-1")),  # Python 2's str
    _CODE["SHORT_BINSTRING"]: lambda m: m._push(m._bounded(1).decode("latin-1")),
    _CODE["BINBYTES"]: lambda m: m._push(m._bounded(4)),
    _CODE["SHORT_BINBYTES"]: lambda m: m._push(m._bounded(1)),
    _CODE["BINBYTES8"]: lambda m: m._push(m._bounded(8)),
    _CODE["BYTEARRAY8"]: lambda m: m._push(m._bounded(8)),  # a bytearray
    _CODE["EMPTY_LIST"]: lambda m: m._push([]),
    _CODE["EMPTY_TUPLE"]: lambda m: m._push(()),
    _CODE["EMPTY_DICT"]: lambda m: m._push({}),
    _CODE["EMPTY_SET"]: lambda m: m._push([]),
    _CODE["LIST"]: lambda m: m._push(m._pop_to_mark()),
    _CODE["TUPLE"]: lambda m: m._push(tuple(m._pop_to_mark())),
    _CODE["TUPLE1"]: lambda m: m._push(m._pop_many(1)),
    _CODE["TUPLE2"]: lambda m: m._push(m._pop_many(2)),
    _CODE["TUPLE3"]: lambda m: m._push(m._pop_many(3)),
    _CODE["FROZENSET"]: lambda m: m._push(tuple(m._pop_to_mark())),
    _CODE["DICT"]: _Machine._new_dict,
    _CODE["APPEND"]: lambda m: m._append([m._pop()]),
    _CODE["APPENDS"]: _Machine._append_to_mark,
    _CODE["SETITEM"]: lambda m: m._set_items(list(m._pop_many(2))),
    _CODE["SETITEMS"]: lambda m: m._set_items(m._pop_to_mark()),
    _CODE["ADDITEMS"]: _Machine._add_items,
    _CODE["GLOBAL"]: _Machine._global,
    _CODE["STACK_GLOBAL"]: _Machine._stack_global,
    _CODE["BINGET"]: lambda m: m._get(1),
    _CODE["LONG_BINGET"]: lambda m: m._get(4),
    _CODE["BINPUT"]: lambda m: m._put(1),
    _CODE["LONG_BINPUT"]: lambda m: m._put(4),
    _CODE["MEMOIZE"]: lambda m: m._remember(),
    _CODE["REDUCE"]: _Machine._reduce,
    _CODE["NEWOBJ"]: _Machine._new_object,
    _CODE["NEWOBJ_EX"]: _Machine._new_object_ex,
    _CODE["BUILD"]: _Machine._build,
    _CODE["BINPERSID"]: _Machine._persistent_id,
}


# ------------------------------------------------------------------------------ what may be called


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str) -> Tensor:
    """A tensor whose every number lies inside its storage."""
    sizes = (offset, *shape, *strides) if _tuples(shape, strides) else (None,)
    if not isinstance(storage, Storage) or not all(
        type(n) is int and 0 <= n < MAX_NUMBERS for n in sizes
    ):
        raise _RefusedError("damaged: a tensor in its pickle has no storage or no shape")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise _RefusedError(f"damaged: a tensor of {len(shape)} dimensions, {len(strides)} strides")
    numel = math.prod(shape)
    if math.prod(max(n, 1) for n in shape) >= MAX_NUMBERS:
        raise _RefusedError(f"a tensor in its pickle has the impossible shape {shape}")
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    itemsize, stored = (np.dtype(_DTYPES[name]).itemsize for name in (dtype, storage.dtype))
    capacity = storage.numel * stored // itemsize
    if numel and (reach > capacity or numel > capacity):
        raise _RefusedError(
            f"a tensor of {numel} numbers does not fit its storage {storage.key[:80]} of {capacity}"
        )
    # Along an axis of one number the stride means nothing; it may be anything.
    strides = tuple(s if n > 1 and numel else 0 for n, s in zip(shape, strides, strict=True))
    return Tensor(storage, dtype, offset if numel else 0, shape, strides)


def _tuples(*values: Any) -> bool:
    return all(isinstance(value, tuple) for value in values)


def _rebuild_tensor(function: Token, arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, strides, *rest = _at_least(4, function, arguments)
    dtype = storage.dtype if isinstance(storage, Storage) else "float32"
    if function.name == "_rebuild_tensor_v3":  # ..., requires_grad, hooks, dtype
        named = rest[2] if len(rest) > 2 else None
        dtype = named.name if isinstance(named, Token) and named.module == "torch" else ""
        if dtype not in _DTYPES:
            raise _RefusedError(f"a tensor of the unknown type {said(named)}")
    return _tensor(storage, offset, shape, strides, dtype)


def _rebuild_parameter(function: Token, arguments: tuple[Any, ...]) -> Tensor | Array:
    data, *_ = _at_least(1, function, arguments)
    if not isinstance(data, Tensor | Array):
        raise _RefusedError(f"damaged: a parameter that is {said(data)}")
    return data


def _rebuild_subclass(function: Token, arguments: tuple[Any, ...]) -> Tensor | Array:
    """Of a tensor with attributes or a class of its own: (function, class, arguments, state)."""
    inner, _, inner_arguments, *_ = _at_least(4, function, arguments)
    rebuild = _TENSORS.get(inner) if isinstance(inner, Token) else None
    if rebuild is None or not isinstance(inner_arguments, tuple):
        raise _RefusedError(f"damaged: a tensor that {said(inner)} makes")
    return rebuild(inner, inner_arguments)


def _rebuild_type(function: Token, arguments: tuple[Any, ...]) -> NumPyType:
    code, *_ = _at_least(1, function, arguments)
    return NumPyType(code if isinstance(code, str) else "")


def _rebuild_array(function: Token, arguments: tuple[Any, ...]) -> Array:
    return Array()  # to be filled by what follows it in the pickle


def _rebuild_from_buffer(function: Token, arguments: tuple[Any, ...]) -> Array:
    content, kind, shape, order, *_ = _at_least(4, function, arguments)
    array = Array()
    if isinstance(kind, NumPyType) and isinstance(shape, tuple) and order in ("C", "F"):
        _set_array(array, content, kind, shape, order)
    return array


def _set_array(
    array: Array, content: Any, kind: NumPyType, shape: tuple[Any, ...], order: Literal["C", "F"]
) -> None:
    """Fills an array. One that is not of plain numbers stays without any: nobody reads it."""
    match content:
        case Holder(kind=kind_of_content, state=(str(text), "latin1" | "latin-1")):
            content = text if kind_of_content == _ENCODE else None
    array.dtype = _NUMPY_TYPES.get(kind.code, kind.code)
    if kind.code not in _NUMPY_TYPES or not isinstance(content, bytes | str):
        return
    sizes_make_sense = all(type(n) is int and 0 <= n < MAX_NUMBERS for n in shape)
    if len(shape) > MAX_DIMENSIONS or not sizes_make_sense:
        raise _RefusedError("damaged: an array of NumPy's has no shape")
    dtype = np.dtype(kind.order + kind.code)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _RefusedError(
            f"damaged: an array of NumPy's with the shape {shape} has {len(content)} bytes"
        )
    array.shape, array.stored = shape, Stored(content, dtype, order)


def _rebuild_dict(function: Token, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    if function.name == "OrderedDict" and arguments:
        pairs = arguments[0]
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
        ):
            raise _RefusedError("damaged: an OrderedDict in its pickle is not made of pairs")
        _fill(result, [each for pair in pairs for each in pair])
    return result


def _rebuild_set(function: Token, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    items = arguments[0] if arguments else ()
    if not isinstance(items, list | tuple):
        raise _RefusedError(f"damaged: a set of {said(items)}")
    return tuple(items)


def _rebuild_bytes(function: Token, arguments: tuple[Any, ...]) -> bytes | Holder:
    """Protocol 2 has no bytes: empty ones are bytes(), a bytearray is that of a latin-1 text."""
    match arguments:
        case ():
            return b""
        case (str(), "latin-1"):
            return Holder(_ENCODE, state=arguments)
    raise _RefusedError(f"damaged: {function} of {said(arguments)}")


def _rebuild_inert(function: Token, arguments: tuple[Any, ...]) -> Holder:
    return Holder(function, state=arguments)


def _rebuild_old_object(function: Token, arguments: tuple[Any, ...]) -> Holder:
    kind, *_ = _at_least(1, function, arguments)
    if not isinstance(kind, Token):
        raise _RefusedError(f"damaged: its pickle makes an object of {said(kind)}")
    return Holder(kind)


def _at_least(count: int, function: Token, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) < count:
        raise _RefusedError(f"damaged: {function} with {len(arguments)} arguments")
    return arguments


_BUILTINS = ("builtins", "__builtin__")
_OF_TENSORS = ("torch._utils", "torch._tensor")
# Neither these functions nor any other is called: the right column only notes what they would make.
_TENSORS: dict[Token, Callable[[Token, tuple[Any, ...]], Tensor | Array]] = {
    **{
        Token("torch._utils", name): _rebuild_tensor
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
    },
    **{
        Token("torch._utils", name): _rebuild_parameter
        for name in (
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            # Of a TPU's and other devices': the tensor, or array, as it was on the CPU.
            "_rebuild_device_tensor_from_cpu_tensor",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_xla_tensor",
        )
    },
    Token("torch.nn.parameter", "Parameter"): _rebuild_parameter,  # of torch 0.3
}
_FUNCTIONS: dict[Token, Callable[[Token, tuple[Any, ...]], Any]] = {
    **_TENSORS,
    Token("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
    Token("numpy", "dtype"): _rebuild_type,
    **{
        Token(f"numpy.{core}.multiarray", "_reconstruct"): _rebuild_array
        for core in ("core", "_core")
    },
    **{
        Token(f"numpy.{core}.numeric", "_frombuffer"): _rebuild_from_buffer
        for core in ("core", "_core")
    },
    **{Token("collections", name): _rebuild_dict for name in ("OrderedDict", "defaultdict")},
    **{Token(module, name): _rebuild_set for module in _BUILTINS for name in ("set", "frozenset")},
    **{Token(module, "_reconstructor"): _rebuild_old_object for module in ("copyreg", "copy_reg")},
    Token("torch", "Size"): _rebuild_set,
    **{
        Token(module, name): _rebuild_bytes
        for module in _BUILTINS
        for name in ("bytes", "bytearray")
    },
    # What optimizers, random states and hyper-parameters are made of; nobody reads them here.
    **{
        token: _rebuild_inert
        for token in (
            Token("torch.nn.backends.thnn", "_get_thnn_function_backend"),  # modules of torch 1
            Token("torch", "device"),
            _ENCODE,
            Token("numpy.core.multiarray", "scalar"),
            Token("numpy._core.multiarray", "scalar"),
        )
    },
}


# ------------------------------------------------------------------------------ writing


def write_torch(path: Path, tree: Any) -> None:
    """Writes an array of float32 or float16, or nested dicts and lists of those, numbers and
    strings, as `torch.save` does.

    `torch.load(path, weights_only=True)` reads it. Raises ValueError for anything else.
    """
    arrays: list[np.ndarray] = []
    program = _CODE["PROTO"] + b"\2" + _pickled(tree, arrays) + _CODE["STOP"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for number, array in enumerate(arrays):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as entry:
                entry.write(memoryview(np.ascontiguousarray(array)).cast("B"))
        archive.writestr("archive/version", b"3\n")


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    match value:
        case bool():
            return _CODE["NEWTRUE" if value else "NEWFALSE"]
        case int() if -(2**31) <= value < 2**31:
            return _CODE["BININT"] + struct.pack("<i", value)
        case float():
            return _CODE["BINFLOAT"] + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return _CODE["BINUNICODE"] + struct.pack("<I", len(raw)) + raw
        case np.ndarray():
            arrays.append(value)
            return _pickled_tensor(value, str(len(arrays) - 1))
        case Mapping():
            items = b"".join(_pickled(k, arrays) + _pickled(v, arrays) for k, v in value.items())
            return _CODE["EMPTY_DICT"] + _CODE["MARK"] + items + _CODE["SETITEMS"]
        case list():
            items = b"".join(_pickled(v, arrays) for v in value)
            return _CODE["EMPTY_LIST"] + _CODE["MARK"] + items + _CODE["APPENDS"]
    raise ValueError(f"a {type(value).__name__} has no place in a state dict")


def _pickled_tensor(array: np.ndarray, key: str) -> bytes:
    kinds = {"float32": "FloatStorage", "float16": "HalfStorage"}
    if array.dtype.name not in kinds:
        raise ValueError(f"an array of {array.dtype} has no place in a state dict")

    def of(*values: int | str) -> bytes:
        return b"".join(_pickled(value, []) for value in values)

    def named(module: str, name: str) -> bytes:
        return _CODE["GLOBAL"] + f"{module}\n{name}\n".encode()

    def tuple_of(*items: bytes) -> bytes:
        return _CODE["MARK"] + b"".join(items) + _CODE["TUPLE"]

    def called(function: bytes, arguments: bytes) -> bytes:
        return function + arguments + _CODE["REDUCE"]

    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    storage = tuple_of(
        of("storage"), named("torch", kinds[array.dtype.name]), of(key, "cpu", array.size)
    )
    hooks = called(named("collections", "OrderedDict"), _CODE["EMPTY_TUPLE"])
    return called(
        named("torch._utils", "_rebuild_tensor_v2"),
        tuple_of(
            storage + _CODE["BINPERSID"],
            of(0),  # the offset
            tuple_of(of(*array.shape)),
            tuple_of(of(*strides)),
            _CODE["NEWFALSE"],  # requires no gradient
            hooks,
        ),
    )
