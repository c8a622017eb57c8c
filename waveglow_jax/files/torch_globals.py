"""PyTorch's own globals: the inert value that each global of a checkpoint builds.

A global is a name that is never looked up. A global that is not in `FUNCTIONS` stays a `Token`,
and an object of it becomes a `Holder`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from waveglow_jax.files.torch_values import (
    DTYPES,
    ENCODE,
    MAX_DIMENSIONS,
    MAX_NUMBERS,
    Array,
    Holder,
    NumPyType,
    RefusedError,
    Storage,
    Tensor,
    Token,
    fill,
    said,
    set_array,
)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str) -> Tensor:
    """The tensor; refuses one that does not lie inside its storage."""
    sizes = (offset, *shape, *strides) if _tuples(shape, strides) else (None,)
    if not isinstance(storage, Storage) or not all(
        type(n) is int and 0 <= n < MAX_NUMBERS for n in sizes
    ):
        raise RefusedError("damaged: a tensor in its pickle has no storage or no shape")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise RefusedError(f"damaged: a tensor of {len(shape)} dimensions, {len(strides)} strides")
    numel = math.prod(shape)
    if math.prod(max(n, 1) for n in shape) >= MAX_NUMBERS:
        raise RefusedError(f"a tensor in its pickle has the impossible shape {shape}")
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    itemsize, stored = (np.dtype(DTYPES[name]).itemsize for name in (dtype, storage.dtype))
    capacity = storage.numel * stored // itemsize
    if numel and (reach > capacity or numel > capacity):
        raise RefusedError(
            f"a tensor of {numel} numbers does not fit its storage {storage.key[:80]} of {capacity}"
        )
    # Along an axis of length 1 the stride has no meaning and may have any value.
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
        if dtype not in DTYPES:
            raise RefusedError(f"a tensor of the unknown type {said(named)}")
    return _tensor(storage, offset, shape, strides, dtype)


def _rebuild_parameter(function: Token, arguments: tuple[Any, ...]) -> Tensor | Array:
    data, *_ = _at_least(1, function, arguments)
    if not isinstance(data, Tensor | Array):
        raise RefusedError(f"damaged: a parameter that is {said(data)}")
    return data


def _rebuild_subclass(function: Token, arguments: tuple[Any, ...]) -> Tensor | Array:
    """Rebuilds a tensor with attributes or an own class: (function, class, arguments, state)."""
    inner, _, inner_arguments, *_ = _at_least(4, function, arguments)
    rebuild = _TENSORS.get(inner) if isinstance(inner, Token) else None
    if rebuild is None or not isinstance(inner_arguments, tuple):
        raise RefusedError(f"damaged: a tensor that {said(inner)} makes")
    return rebuild(inner, inner_arguments)


def _rebuild_type(function: Token, arguments: tuple[Any, ...]) -> NumPyType:
    code, *_ = _at_least(1, function, arguments)
    return NumPyType(code if isinstance(code, str) else "")


def _rebuild_array(function: Token, arguments: tuple[Any, ...]) -> Array:
    return Array()  # the pickle's next operations fill it


def _rebuild_from_buffer(function: Token, arguments: tuple[Any, ...]) -> Array:
    content, kind, shape, order, *_ = _at_least(4, function, arguments)
    array = Array()
    if isinstance(kind, NumPyType) and isinstance(shape, tuple) and order in ("C", "F"):
        set_array(array, content, kind, shape, order)
    return array


def _rebuild_dict(function: Token, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    if function.name == "OrderedDict" and arguments:
        pairs = arguments[0]
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
        ):
            raise RefusedError("damaged: an OrderedDict in its pickle is not made of pairs")
        fill(result, [each for pair in pairs for each in pair])
    return result


def _rebuild_set(function: Token, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    items = arguments[0] if arguments else ()
    if not isinstance(items, list | tuple):
        raise RefusedError(f"damaged: a set of {said(items)}")
    return tuple(items)


def _rebuild_bytes(function: Token, arguments: tuple[Any, ...]) -> bytes | Holder:
    """Protocol 2 has no bytes: bytes() gives empty ones, and a latin-1 text gives a bytearray."""
    match arguments:
        case ():
            return b""
        case (str(), "latin-1"):
            return Holder(ENCODE, state=arguments)
    raise RefusedError(f"damaged: {function} of {said(arguments)}")


def _rebuild_inert(function: Token, arguments: tuple[Any, ...]) -> Holder:
    return Holder(function, state=arguments)


def _rebuild_old_object(function: Token, arguments: tuple[Any, ...]) -> Holder:
    kind, *_ = _at_least(1, function, arguments)
    if not isinstance(kind, Token):
        raise RefusedError(f"damaged: its pickle makes an object of {said(kind)}")
    return Holder(kind)


def _at_least(count: int, function: Token, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) < count:
        raise RefusedError(f"damaged: {function} with {len(arguments)} arguments")
    return arguments


_BUILTINS = ("builtins", "__builtin__")
OF_TENSORS = ("torch._utils", "torch._tensor")
# Neither these functions nor any others are called: the values build an inert form of their result.
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
            # For tensors of TPUs and other devices: the tensor, or array, as it was on the CPU.
            "_rebuild_device_tensor_from_cpu_tensor",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_xla_tensor",
        )
    },
    Token("torch.nn.parameter", "Parameter"): _rebuild_parameter,  # of torch 0.3
}
FUNCTIONS: dict[Token, Callable[[Token, tuple[Any, ...]], Any]] = {
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
    # Parts of optimizers, random states and hyper-parameters, which this package does not read.
    **{
        token: _rebuild_inert
        for token in (
            Token("torch.nn.backends.thnn", "_get_thnn_function_backend"),  # modules of torch 1
            Token("torch", "device"),
            ENCODE,
            Token("numpy.core.multiarray", "scalar"),
            Token("numpy._core.multiarray", "scalar"),
        )
    },
}
