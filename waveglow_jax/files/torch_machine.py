"""The stack machine that reads a pickle without running it."""

import struct
from collections.abc import Callable
from pickletools import opcodes
from typing import Any

from waveglow_jax.files.torch_globals import FUNCTIONS, OF_TENSORS
from waveglow_jax.files.torch_values import (
    Array,
    Holder,
    NumPyType,
    RefusedError,
    Tensor,
    Token,
    fill,
    said,
    set_array,
)

MAX_OPS = 1_000_000  # three times as many as the largest published model with its optimizer has
CALL_COST = 10
"""The time cost of a tensor or a storage, counted in operations."""
MAX_STRING = 16 << 20
MAX_INTEGER_BYTES = 32


CODE = {opcode.name: opcode.code.encode("latin-1") for opcode in opcodes}
"""The byte of each operation, by its name in the pickle protocol."""


class _Mark:
    pass


_MARK = _Mark()


class Machine:
    """Runs one pickle (protocols 2 to 5) over inert values."""

    def __init__(self, data: bytes, persistent: Callable[[Any], Any], position: int = 0):
        self._data = data
        self._persistent = persistent
        self.position = position
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_OPS

    def run(self) -> Any:
        """The value that the pickle builds; `position` is then the first byte after the pickle."""
        while True:
            self._left -= 1
            if self._left < 0:
                self._spend(0)
            code = self._take(1)
            if code == CODE["STOP"]:
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise RefusedError(
                    f"damaged or not PyTorch's: operation {code!r} at byte {self.position - 1}"
                )
            operation(self)

    def _spend(self, operations: int) -> None:
        self._left -= operations
        if self._left < 0:
            raise RefusedError(f"its pickle has over {MAX_OPS} operations, far more than weights")

    # The stack and the bytes.

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise RefusedError("damaged or cut short: its pickle ends too early; copy it again")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _unsigned(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError("damaged: its pickle takes from an empty stack")
        return self._stack.pop()

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        items = tuple(self._stack[-count:])
        if len(items) < count or _MARK in items:
            raise RefusedError("damaged: its pickle takes from an empty stack")
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise RefusedError("damaged: its pickle looks for a mark that is not there")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # Operations, by the names of the pickle protocol.

    def _proto(self) -> None:
        if (version := self._unsigned(1)) > 5:
            raise RefusedError(f"damaged: pickle protocol {version}")

    def _frame(self) -> None:
        self._take(8)

    def _text(self, width: int) -> None:
        raw = self._bounded(width)
        try:
            self._push(raw.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise RefusedError("damaged: a text in its pickle is no UTF-8") from None

    def _bounded(self, width: int) -> bytes:
        if (length := self._unsigned(width)) > MAX_STRING:
            raise RefusedError(f"a text of {length} bytes in its pickle, over {MAX_STRING}")
        return self._take(length)

    def _integer(self, width: int) -> None:
        if (length := self._unsigned(width)) > MAX_INTEGER_BYTES:
            raise RefusedError(f"an integer of {length} bytes in its pickle")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _global(self) -> None:
        names = []
        for _ in range(2):
            end = self._data.find(b"\n", self.position, self.position + 1024)
            if end < 0:
                raise RefusedError("damaged: a name in its pickle has no end")
            names.append(self._take(end - self.position).decode("utf-8", "replace"))
            self._take(1)
        self._push(Token(*names))

    def _stack_global(self) -> None:
        module, name = self._pop_many(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise RefusedError("damaged: a global in its pickle has no name")
        self._push(Token(module, name))

    def _get(self, width: int) -> None:
        index = self._unsigned(width)
        if index not in self._memo:
            raise RefusedError("damaged: its pickle remembers what it never said")
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
            raise RefusedError(f"damaged: its pickle appends to {said(target)}")
        target += items

    def _set_items(self, items: list[Any]) -> None:
        target = self._pop()
        self._push(target)
        into = target.items if isinstance(target, Holder) else target
        if not isinstance(into, dict):
            raise RefusedError(f"damaged: its pickle sets items of {said(target)}")
        fill(into, items)

    def _add_items(self) -> None:
        # The machine stores a set as a list, whose items need no hash.
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
            raise RefusedError(f"damaged: its pickle calls {said(function)}")
        rebuild = FUNCTIONS.get(function)
        if rebuild is None:
            if function.module in OF_TENSORS:
                raise RefusedError(
                    f"holds a tensor of a kind that is not read ({function}); save it again as a "
                    "plain one, from the CPU: tensor.detach().cpu()"
                )
            raise RefusedError(
                f"wants to call {function}, which no weights need; it is never called"
            )
        self._push(self._rebuilt(rebuild, function, arguments))

    def _rebuilt(self, rebuild: Callable[..., Any], function: Token, arguments: tuple) -> Any:
        # A few bytes suffice to copy a memoized list, over and over, so each copy costs its length.
        copied = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
        self._spend(CALL_COST + len(copied))
        return rebuild(function, arguments)

    def _new_object(self) -> None:
        kind, arguments = self._pop_many(2)
        if not isinstance(kind, Token) or not isinstance(arguments, tuple):
            raise RefusedError(f"damaged: its pickle makes an object of {said(kind)}")
        rebuild = FUNCTIONS.get(kind)
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
                    set_array(target, content, kind, shape, "F" if by_columns else "C")
        elif not isinstance(target, dict | Tensor):  # their attributes are no part of the weights
            raise RefusedError(f"wants to set the state of {said(target)}; it is not touched")

    def _persistent_id(self) -> None:
        self._spend(CALL_COST)
        self._push(self._persistent(self._pop()))


_OPERATIONS: dict[bytes, Callable[[Machine], object]] = {
    CODE["PROTO"]: Machine._proto,
    CODE["FRAME"]: Machine._frame,
    CODE["MARK"]: lambda m: m._push(_MARK),
    CODE["POP"]: lambda m: m._stack.pop() if m._stack else m._pop(),
    CODE["POP_MARK"]: lambda m: m._pop_to_mark(),
    CODE["NONE"]: lambda m: m._push(None),
    CODE["NEWTRUE"]: lambda m: m._push(True),
    CODE["NEWFALSE"]: lambda m: m._push(False),
    CODE["BININT"]: lambda m: m._push(int.from_bytes(m._take(4), "little", signed=True)),
    CODE["BININT1"]: lambda m: m._push(m._unsigned(1)),
    CODE["BININT2"]: lambda m: m._push(m._unsigned(2)),
    CODE["LONG1"]: lambda m: m._integer(1),
    CODE["LONG4"]: lambda m: m._integer(4),
    CODE["BINFLOAT"]: lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    CODE["BINUNICODE"]: lambda m: m._text(4),
    CODE["SHORT_BINUNICODE"]: lambda m: m._text(1),
    CODE["BINUNICODE8"]: lambda m: m._text(8),
    CODE["BINSTRING"]: lambda m: m._push(m._bounded(4).decode("latin-1")),  # Python 2's str
    CODE["SHORT_BINSTRING"]: lambda m: m._push(m._bounded(1).decode("latin-1")),
    CODE["BINBYTES"]: lambda m: m._push(m._bounded(4)),
    CODE["SHORT_BINBYTES"]: lambda m: m._push(m._bounded(1)),
    CODE["BINBYTES8"]: lambda m: m._push(m._bounded(8)),
    CODE["BYTEARRAY8"]: lambda m: m._push(m._bounded(8)),  # a bytearray
    CODE["EMPTY_LIST"]: lambda m: m._push([]),
    CODE["EMPTY_TUPLE"]: lambda m: m._push(()),
    CODE["EMPTY_DICT"]: lambda m: m._push({}),
    CODE["EMPTY_SET"]: lambda m: m._push([]),
    CODE["LIST"]: lambda m: m._push(m._pop_to_mark()),
    CODE["TUPLE"]: lambda m: m._push(tuple(m._pop_to_mark())),
    CODE["TUPLE1"]: lambda m: m._push(m._pop_many(1)),
    CODE["TUPLE2"]: lambda m: m._push(m._pop_many(2)),
    CODE["TUPLE3"]: lambda m: m._push(m._pop_many(3)),
    CODE["FROZENSET"]: lambda m: m._push(tuple(m._pop_to_mark())),
    CODE["DICT"]: Machine._new_dict,
    CODE["APPEND"]: lambda m: m._append([m._pop()]),
    CODE["APPENDS"]: Machine._append_to_mark,
    CODE["SETITEM"]: lambda m: m._set_items(list(m._pop_many(2))),
    CODE["SETITEMS"]: lambda m: m._set_items(m._pop_to_mark()),
    CODE["ADDITEMS"]: Machine._add_items,
    CODE["GLOBAL"]: Machine._global,
    CODE["STACK_GLOBAL"]: Machine._stack_global,
    CODE["BINGET"]: lambda m: m._get(1),
    CODE["LONG_BINGET"]: lambda m: m._get(4),
    CODE["BINPUT"]: lambda m: m._put(1),
    CODE["LONG_BINPUT"]: lambda m: m._put(4),
    CODE["MEMOIZE"]: lambda m: m._remember(),
    CODE["REDUCE"]: Machine._reduce,
    CODE["NEWOBJ"]: Machine._new_object,
    CODE["NEWOBJ_EX"]: Machine._new_object_ex,
    CODE["BUILD"]: Machine._build,
    CODE["BINPERSID"]: Machine._persistent_id,
}
