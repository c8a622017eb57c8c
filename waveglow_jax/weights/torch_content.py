"""Finds a PyTorch file's state dict, its module and the progress of its training."""

from collections.abc import Mapping
from typing import Any

from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_values import Array, Holder, Tensor

HALVES_ALTERNATE = "glow_old"
"""The Python module of the oldest class, whose odd flows swap the roles of the two halves."""
_WRAPPED = ("module", "waveglow")  # attributes in which DataParallel and the like keep a model
_MAX_MODULES = 100_000

State = dict[str, Tensor | Array]


def find_state(tree: Any, name: str) -> tuple[State, Holder | None, int]:
    """The tensors by their names in the state dict, the module that they were pickled in, and the
    number of stale plain weights beside weight_g and weight_v.

    Raises UserError if the tree contains no weights, or the same module twice.
    """
    for _ in range(3):  # {"model": {"state_dict": ...}} is the deepest nesting known
        for key in ("state_dict", "model", "model_state_dict", "waveglow"):
            if isinstance(tree, dict) and isinstance(tree.get(key), dict | Holder):
                tree = tree[key]
                break
    if isinstance(tree, Holder):
        state: State = {}
        stale = _collect(tree, "", state, set(), name)
        return state, tree, stale
    if isinstance(tree, dict):
        tensors = {
            key: value
            for key, value in tree.items()
            if isinstance(key, str) and isinstance(value, Tensor | Array)
        }
        if tensors:
            return tensors, None, 0
    raise UserError(f"{name}: holds no weights; expected a model, a state dict or a training run")


def _collect(module: Holder, prefix: str, state: State, seen: set[int], name: str) -> int:
    """Adds a module's parameters and buffers to `state`; returns the number of stale weights."""
    inside = module.state if isinstance(module.state, dict) else {}
    if id(module) in seen or len(seen) >= _MAX_MODULES or prefix.count(".") > 32:
        raise UserError(f"{name}: one of its modules is there twice; not read")
    seen.add(id(module))
    for kind in ("_parameters", "_buffers"):
        for key, value in _items(inside.get(kind)):
            if isinstance(value, Tensor | Array):
                state[f"{prefix}{key}"] = value
    own = inside.get("_parameters")
    plain = isinstance(inside.get("weight"), Tensor)
    stale = int(plain and isinstance(own, dict) and "weight_v" in own)
    for key, child in _children(module):
        stale += _collect(child, f"{prefix}{key}.", state, seen, name)
    return stale


def _children(module: Holder) -> list[tuple[Any, Holder]]:
    inside = module.state if isinstance(module.state, dict) else {}
    items = _items(inside.get("_modules"))
    return [(key, child) for key, child in items if isinstance(child, Holder)]


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def is_of_the_oldest_class(module: Holder) -> bool:
    """Whether the module, or the one inside DataParallel, is the class whose halves alternate."""
    return module.kind.module.split(".")[-1] == HALVES_ALTERNATE or any(
        is_of_the_oldest_class(child) for key, child in _children(module) if key in _WRAPPED
    )


def upsampler_stride(module: Holder) -> int | None:
    """The upsampler's stride, which is the hop length; None if the module has none."""
    for key, child in _children(module):
        if key == "upsample" and isinstance(child.state, dict):
            stride = child.state.get("stride")
            if isinstance(stride, tuple) and len(stride) == 1 and type(stride[0]) is int:
                return stride[0]
        if key in _WRAPPED and (inner := upsampler_stride(child)):
            return inner
    return None


def training_progress(tree: Any) -> dict[str, Any]:
    """The iteration, epoch, learning rate and number of parameters with an optimizer state, as far
    as the file has them."""
    report = {
        key: value
        for key in ("iteration", "epoch", "learning_rate")
        if type(value := dict_or_empty(tree).get(key)) in (int, float)
    }
    states = dict_or_empty(dict_or_empty(tree).get("optimizer")).get("state")
    return {**report, "optimizer_state_of": len(states)} if isinstance(states, dict) else report


def dict_or_empty(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}
