"""Inert values in a file of `torch.save`: tensors, storages, arrays, states of objects."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

MAX_DIMENSIONS = 8
MAX_NUMBERS = 1 << 48
# All are little-endian, like the files, whose byte order is checked. bfloat16 is the upper half of
# a float32.
DTYPES = {
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
STORAGES = {
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
NUMPY_TYPES = {
    **{"f2": "float16", "f4": "float32", "f8": "float64", "b1": "bool"},
    **{"i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8"},
}


class Token(NamedTuple):
    """The name of a global, which is a class or function that the file names; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


ENCODE = Token("_codecs", "encode")
"""The function by which protocol 2, which has no bytes, converts a text to bytes."""


@dataclass(frozen=True)
class Storage:
    """`numel` numbers from the `start`-th on of the file's storage `key`."""

    key: str
    dtype: str
    start: int
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset, shape and strides count numbers, as PyTorch's do."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Holder:
    """An object of the class that `kind` names; it holds only the data from the file."""

    kind: Token
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class NumPyType:
    """A NumPy dtype: `code` such as "f4"; `order` is "<", ">" or "|" (no byte order)."""

    code: str
    order: str = "<"


class Stored(NamedTuple):
    """An array's numbers: bytes, or in protocol 2 a text whose characters are the bytes.

    They stay undecoded here, because a few bytes of a file can refer to the same text over and
    over.
    """

    content: bytes | str
    dtype: np.dtype
    order: Literal["C", "F"]

    def numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        content = self.content
        try:
            raw = content.encode("latin-1") if isinstance(content, str) else content
        except UnicodeEncodeError:
            raise RefusedError("damaged: an array of NumPy's is no latin-1") from None
        return np.frombuffer(raw, self.dtype).reshape(shape, order=self.order)


@dataclass(eq=False)
class Array:
    """A NumPy array inside the pickle; `stored` is None if it does not hold plain numbers."""

    dtype: str = "object"
    shape: tuple[int, ...] = ()
    stored: Stored | None = None


class RefusedError(Exception):
    """The reason why a file is not read; becomes a UserError that names the file."""


def storage_of(pid: Any, sizes: dict[str, tuple[str, int]]) -> Any:
    """The value of a persistent id; records each storage's size for the container to check.

    The id is ('storage', type, key, device, numel), to which the older container appends a view
    (key, start, numel); or ('module', class, file, source), whose source is ignored.
    """
    match pid:
        case ("module", Token() as kind, *_):
            return kind
        case ("storage", Token(name=name) as kind, str(key), _, int(numel), *rest):
            dtype = STORAGES.get(name) if kind.module in ("torch", "torch.storage") else None
            if dtype is None:
                raise RefusedError(f"its storage {key[:80]} is of the unknown type {kind}")
            if isinstance(numel, bool) or not 0 <= numel < MAX_NUMBERS:
                raise RefusedError(f"its storage {key[:80]} promises {numel} numbers")
            if sizes.setdefault(key, (dtype, numel)) != (dtype, numel):
                raise RefusedError(f"its storage {key[:80]} has two sizes or types")
            match rest:
                case [] | [None]:
                    return Storage(key, dtype, 0, numel)
                case [(_, int(start), int(length))]:
                    if not (0 <= start and 0 <= length and start + length <= numel):
                        raise RefusedError(f"a view of its storage {key[:80]} lies outside of it")
                    return Storage(key, dtype, start, length)
    raise RefusedError(f"damaged: {said(pid)} is no persistent id")


def fill(into: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise RefusedError("damaged: a key in its pickle has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Nested tuples as keys take too long to hash, and large integers can share one hash.
        if not (key is None or isinstance(key, str | int | float)):
            raise RefusedError(f"a dictionary in its pickle has {said(key)} for a key")
        if isinstance(key, int) and not -(2**63) <= key < 2**64:
            raise RefusedError("a dictionary in its pickle has an integer over 64 bits for a key")
        into[key] = value


def said(value: Any) -> str:
    """A description of a tree's value in words."""
    if isinstance(value, Token):
        return str(value)[:120]
    if isinstance(value, Holder):
        return f"an object of {value.kind}"[:120]
    return {type(None): "None", str: "a text"}.get(type(value), f"a {type(value).__name__}")


def set_array(
    array: Array, content: Any, kind: NumPyType, shape: tuple[Any, ...], order: Literal["C", "F"]
) -> None:
    """Fills an array. An array of other values than plain numbers stays empty, as it is unused."""
    match content:
        case Holder(kind=kind_of_content, state=(str(text), "latin1" | "latin-1")):
            content = text if kind_of_content == ENCODE else None
    array.dtype = NUMPY_TYPES.get(kind.code, kind.code)
    if kind.code not in NUMPY_TYPES or not isinstance(content, bytes | str):
        return
    sizes_make_sense = all(type(n) is int and 0 <= n < MAX_NUMBERS for n in shape)
    if len(shape) > MAX_DIMENSIONS or not sizes_make_sense:
        raise RefusedError("damaged: an array of NumPy's has no shape")
    dtype = np.dtype(kind.order + kind.code)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise RefusedError(
            f"damaged: an array of NumPy's with the shape {shape} has {len(content)} bytes"
        )
    array.shape, array.stored = shape, Stored(content, dtype, order)
