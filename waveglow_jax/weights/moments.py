"""Adam's moments, and reading them from a checkpoint of a PyTorch training run."""

from dataclasses import dataclass
from typing import Any

from waveglow_jax.config import Config
from waveglow_jax.files.torch_file import TorchFile
from waveglow_jax.files.torch_values import Array, Tensor
from waveglow_jax.weights.correspondence import PLAIN, LazyTensor, read_params, recognised
from waveglow_jax.weights.torch_content import State, dict_or_empty


@dataclass(frozen=True)
class Moments:
    """Adam's state: the number of steps done, and the running means of the gradient and of its
    square, both as trees with the layout of the parameters."""

    count: int
    mean: Any
    square: Any


def torch_moments(
    tree: Any, state: State, file: TorchFile, config: Config, name: str
) -> Moments | str:
    """Adam's state in our layout, or the reason why there is none.

    PyTorch's optimizer identifies parameters by their order in the model, which is the order of
    the state dict. The shapes serve as a check: every moment must have its parameter's shape.
    """
    optimizer = dict_or_empty(dict_or_empty(tree).get("optimizer"))
    groups, entries = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(entries, dict) or not entries:
        return "there is none in the file"
    if not (isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)):
        return "its parameters are in several groups"
    order = groups[0].get("params")
    if not isinstance(order, list) or len(order) != len(state):
        return "it has another number of parameters than the model"
    means, squares, counts = {}, {}, set()
    for (key, tensor), index in zip(state.items(), order, strict=True):
        entry = dict_or_empty(entries.get(index) if type(index) is int else None)
        moments = [
            moment
            for part in ("exp_avg", "exp_avg_sq")
            if isinstance(moment := entry.get(part), Tensor | Array)
            and moment.shape == tensor.shape
        ]
        if len(moments) < 2:
            return f"its entry for {key} is missing or of another shape"
        means[key], squares[key] = (LazyTensor.of(file, moment) for moment in moments)
        counts.add(_step(entry.get("step"), file))
    count = counts.pop() if len(counts) == 1 else None
    if count is None:
        return "its parameters have not all done the same number of steps"
    mean, square = recognised(means, name), recognised(squares, name)
    if mean.generation.norm == PLAIN:
        return "the model's weights are not normalised, as they were in training"
    return Moments(count, read_params(mean, config), read_params(square, config))


def _step(value: Any, file: TorchFile) -> int | None:
    """Adam's number of steps, which newer versions of PyTorch store as a tensor."""
    if isinstance(value, Tensor) and value.shape == () and value.dtype == "float32":
        value = float(file.array(value))
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None
