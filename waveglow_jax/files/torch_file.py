"""Reads PyTorch's files without PyTorch, as inert data: it imports, calls and runs nothing in them.

A file of `torch.save` holds a pickle, which is a program for a small stack machine, and raw
storages. The machine here implements only PyTorch's own globals. A global becomes a name that is
never looked up, an object of a class becomes a `Holder` of its state, and a tensor becomes a
`Tensor` that gives the place of its numbers. Any other request of the program is refused, with its
name in the message. Sizes are checked against the file before memory is allocated, and a tensor's
numbers are read only on request.

Both containers are read: the zip of torch >= 1.6, and the older one of four pickles and then the
storages. `write_torch` writes the zip. Besides the other `torch_` modules, this module needs only
`errors` of this package, so that `files/mels.py` can read mels with it.
"""

import io
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_containers import Legacy, Zip
from waveglow_jax.files.torch_machine import CODE
from waveglow_jax.files.torch_values import DTYPES, Array, Holder, RefusedError, Storage, Tensor

_LONGEST_NAME = 100
# The content of the older container's first pickle.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_MAGIC = b"\x8a\x0a" + _MAGIC_NUMBER.to_bytes(10, "little")


class TorchFile:
    """An opened file: the saved object as `tree`, and access to the numbers of its tensors.

    tree: dicts, lists, tuples, strings, bytes, numbers and None, with `Tensor`, `Array`, `Holder`
    and `Token` in place of other objects. Sets become tuples. The tree may hold cycles and shared
    parts, as the file does.
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
                self._container: Zip | Legacy = Zip(file)
            elif start[:1] == b"\x80" and _LEGACY_MAGIC in start:
                self._container = Legacy(file)
            else:
                raise RefusedError(_what_it_is(start))
            self.tree = self._container.tree

    @property
    def container(self) -> str:
        return self._container.NAME

    def array(self, tensor: Tensor | Array) -> np.ndarray:
        """The tensor's numbers as a contiguous array; bfloat16 is converted to float32.

        Tensors may share a storage, which is read once for consecutive requests. Raises UserError
        if the numbers are damaged, or if all arrays together exceed the file's size: then its
        tensors overlap.
        """
        with self._refusals():
            if isinstance(tensor, Array) and tensor.stored is None:
                raise RefusedError(f"an array of NumPy's type {tensor.dtype} is not read")
            dtype = np.dtype(DTYPES[tensor.dtype])
            self._unviewed -= math.prod(tensor.shape) * dtype.itemsize
            if self._unviewed < 0:
                raise RefusedError("its tensors overlap: together they are larger than the file")
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
            itemsize = np.dtype(DTYPES[storage.dtype]).itemsize
            self._unread -= storage.numel * itemsize
            if self._unread < 0:
                raise RefusedError("its tensors share their storages crosswise; save copies")
            raw = self._container.read(storage.key, storage.start * itemsize, storage.numel)
            self._last = storage, raw
        return self._last[1]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except RefusedError as refused:
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
    """Every tensor and array of a tree with its name, such as `out.mel` or `out[0]`."""
    found: list[tuple[str, Tensor | Array]] = []
    seen: set[int] = set()
    to_visit: list[tuple[str, Any]] = [("", tree)]
    while to_visit:
        name, node = to_visit.pop()
        name = name[-_LONGEST_NAME:]  # the names of a deep tree would grow with its depth
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


# How sound files begin: WAV, W64, FLAC, Ogg, AIFF, AU, CAF, and MP3 with and without tags.
_SOUND = (
    *(b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"ID3"),
    *(b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"),
)


def _what_it_is(start: bytes) -> str:
    if not start:
        return "the file is empty; copy it again"
    if start[:1] == b"\x80":
        return "is a pickle, but none that torch.save wrote; nothing else is unpickled"
    if start.startswith(_SOUND):
        return "is a recording and holds no weights; give weights"
    if start.startswith(b"\x93NUMPY"):
        return "is a NumPy array, such as a mel, and holds no weights; give weights"
    return "is no file of PyTorch's, or its beginning is damaged; copy it again"


def write_torch(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as `torch.save` does.

    The tree is an array of float32 or float16, or nested dicts and lists of such arrays, numbers
    and strings.

    `torch.load(path, weights_only=True)` reads it. Raises ValueError for anything else.
    """
    arrays: list[np.ndarray] = []
    program = CODE["PROTO"] + b"\2" + _pickled(tree, arrays) + CODE["STOP"]
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
            return CODE["NEWTRUE" if value else "NEWFALSE"]
        case int() if -(2**31) <= value < 2**31:
            return CODE["BININT"] + struct.pack("<i", value)
        case float():
            return CODE["BINFLOAT"] + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return CODE["BINUNICODE"] + struct.pack("<I", len(raw)) + raw
        case np.ndarray():
            arrays.append(value)
            return _pickled_tensor(value, str(len(arrays) - 1))
        case Mapping():
            items = b"".join(_pickled(k, arrays) + _pickled(v, arrays) for k, v in value.items())
            return CODE["EMPTY_DICT"] + CODE["MARK"] + items + CODE["SETITEMS"]
        case list():
            items = b"".join(_pickled(v, arrays) for v in value)
            return CODE["EMPTY_LIST"] + CODE["MARK"] + items + CODE["APPENDS"]
    raise ValueError(f"a {type(value).__name__} has no place in a state dict")


def _pickled_tensor(array: np.ndarray, key: str) -> bytes:
    kinds = {"float32": "FloatStorage", "float16": "HalfStorage"}
    if array.dtype.name not in kinds:
        raise ValueError(f"an array of {array.dtype} has no place in a state dict")

    def of(*values: int | str) -> bytes:
        return b"".join(_pickled(value, []) for value in values)

    def named(module: str, name: str) -> bytes:
        return CODE["GLOBAL"] + f"{module}\n{name}\n".encode()

    def tuple_of(*items: bytes) -> bytes:
        return CODE["MARK"] + b"".join(items) + CODE["TUPLE"]

    def called(function: bytes, arguments: bytes) -> bytes:
        return function + arguments + CODE["REDUCE"]

    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    storage = tuple_of(
        of("storage"), named("torch", kinds[array.dtype.name]), of(key, "cpu", array.size)
    )
    hooks = called(named("collections", "OrderedDict"), CODE["EMPTY_TUPLE"])
    return called(
        named("torch._utils", "_rebuild_tensor_v2"),
        tuple_of(
            storage + CODE["BINPERSID"],
            of(0),  # the offset
            tuple_of(of(*array.shape)),
            tuple_of(of(*strides)),
            CODE["NEWFALSE"],  # requires no gradient
            hooks,
        ),
    )
