"""The table that maps the tensors of a published checkpoint to leaves of our parameter tree.

`rows` lists it for one generation of the original's layer names. `read_params` applies the table
in one direction, `torch_tensors` in the other.

PyTorch's convolution kernels are `[C_out, C_in, taps]`, its transposed ones `[C_in, C_out, taps]`;
ours are `[taps, C_in, C_out]`, so that output channels always come last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_file import TorchFile
from waveglow_jax.files.torch_values import Array, Tensor
from waveglow_jax.trees import named, nested

Shape = tuple[int, ...]
PLAIN = "plain weights"
# The names (magnitude, direction) in each form of weight normalisation that PyTorch has used.
_NORMS = {
    "weight_g and weight_v": ("weight_g", "weight_v"),
    "parametrizations": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}
_PARTS = ("upsample", "convinv", "WN", "wavenet")
_FLOATS = ("float16", "bfloat16", "float32", "float64", "F16", "BF16", "F32", "F64")


class Generation(NamedTuple):
    """How a checkpoint names its layers.

    conditioning: "cond_layer" if one layer conditions all layers of a WN, otherwise "cond_layers".
    skips: "res_skip_layers", or "res_layers and skip_layers". norm: the form of weight
    normalisation.
    """

    conditioning: str = "cond_layer"
    skips: str = "res_skip_layers"
    norm: str = "weight_g and weight_v"


LATEST = Generation()


# ------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Layout:
    """Converts between our layout of a tensor and theirs; `to_ours` inverts `to_theirs`."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


_CONVOLUTION = Layout(lambda t: t.transpose(2, 1, 0), lambda t: t.transpose(2, 1, 0))
_TRANSPOSED_CONVOLUTION = Layout(lambda t: t.transpose(2, 0, 1), lambda t: t.transpose(1, 2, 0))
_MAGNITUDE = Layout(lambda t: t.reshape(-1), lambda t: t.reshape(-1, 1, 1))
_MATRIX = Layout(lambda t: t[:, :, 0], lambda t: t[:, :, None])
_VECTOR = Layout(lambda t: t, lambda t: t)


class Row(NamedTuple):
    """One row of the table: (theirs, ours, layout).

    theirs: names and PyTorch shapes of tensors to concatenate along their output channels. ours:
    the leaves among which these channels are split in equal parts.
    """

    theirs: tuple[tuple[str, Shape], ...]
    ours: tuple[str, ...]
    layout: Layout


def rows(config: Config, generation: Generation = LATEST) -> Iterator[Row]:
    """The table for a model of this config. A layer's direction precedes its magnitude."""
    glow, wn = config.waveglow, config.waveglow.WN
    bins, width, skip = glow.n_mel_channels, wn.n_channels, wn.skip_channels
    upsampler = ("upsample.weight", (bins, bins, glow.upsample_kernel))
    yield Row((upsampler,), ("upsample.kernel",), _TRANSPOSED_CONVOLUTION)
    yield Row((("upsample.bias", (bins,)),), ("upsample.bias",), _VECTOR)
    seen = bins * (glow.n_group if glow.conditioning == "sample" else 1)
    for k in range(glow.n_flows):
        theirs, ours, channels = f"WN.{k}", f"flows.{k}.wn", glow.channels(k)
        yield from _normed({f"{theirs}.start": width}, [f"{ours}.start"], channels // 2, 1)
        for i in range(wn.n_layers):
            in_layer = {f"{theirs}.in_layers.{i}": 2 * width}
            yield from _normed(in_layer, [f"{ours}.in_layer_{i}"], width, wn.kernel_size)
            residual = 0 if i == wn.n_layers - 1 else width
            res_skip = {f"{theirs}.res_skip_layers.{i}": residual + skip}
            if generation.skips != LATEST.skips:
                res_skip = {f"{theirs}.res_layers.{i}": residual, f"{theirs}.skip_layers.{i}": skip}
                res_skip = {name: n for name, n in res_skip.items() if n}
            yield from _normed(res_skip, [f"{ours}.res_skip_layer_{i}"], width, 1)
        cond = [f"{ours}.cond_layer_{i}" for i in range(wn.n_layers)]
        if generation.conditioning == LATEST.conditioning:
            yield from _normed({f"{theirs}.cond_layer": 2 * width * wn.n_layers}, cond, seen, 1)
        else:
            for i, layer in enumerate(cond):
                yield from _normed({f"{theirs}.cond_layers.{i}": 2 * width}, [layer], seen, 1)
        end = (f"{theirs}.end.weight", (channels, skip, 1))
        yield Row((end,), (f"{ours}.end.kernel",), _CONVOLUTION)
        yield Row(((f"{theirs}.end.bias", (channels,)),), (f"{ours}.end.bias",), _VECTOR)
        conv = (f"convinv.{k}.conv.weight", (channels, channels, 1))
        yield Row((conv,), (f"flows.{k}.conv",), _MATRIX)


def _normed(theirs: Mapping[str, int], ours: Sequence[str], c_in: int, taps: int) -> Iterator[Row]:
    """The rows of weight-normalised convolutions; `theirs` gives their output channels."""

    def row(tensor: str, leaf: str, shape: Shape, layout: Layout) -> Row:
        named = tuple((f"{layer}.{tensor}", (c_out, *shape)) for layer, c_out in theirs.items())
        return Row(named, tuple(f"{layer}.{leaf}" for layer in ours), layout)

    yield row("weight_v", "v", (c_in, taps), _CONVOLUTION)
    yield row("weight_g", "g", (1, 1), _MAGNITUDE)
    yield row("bias", "bias", (), _VECTOR)


# ------------------------------------------------------------------------------ the file's tensors


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are read only when `read` is called."""

    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]

    @staticmethod
    def of(file: TorchFile, tensor: Tensor | Array) -> "LazyTensor":
        return LazyTensor(tensor.shape, tensor.dtype, partial(file.array, tensor))


@dataclass(frozen=True)
class Published:
    """A file's tensors by the original's names (`WN.0.start.bias`), and their names in the file."""

    tensors: Mapping[str, LazyTensor]
    own_names: Mapping[str, str]
    file: str

    @cached_property
    def generation(self) -> Generation:
        fused = "WN.0.res_skip_layers.0.bias" in self.tensors
        norms = (
            norm
            for norm, (_, direction) in _NORMS.items()
            if any(name.endswith(f".{direction}") for name in self.tensors)
        )
        return Generation(
            "cond_layer" if "WN.0.cond_layer.bias" in self.tensors else "cond_layers",
            "res_skip_layers" if fused else "res_layers and skip_layers",
            next(norms, PLAIN),
        )

    def shape(self, name: str) -> Shape:
        """The tensor's shape. Raises UserError if the file lacks the tensor."""
        found = self.found_as(name)
        if found not in self.tensors:
            raise UserError(f"{self.file}: {found} is missing; it is no whole WaveGlow")
        return self.tensors[found].shape

    def found_as(self, name: str) -> str:
        """The name under which the file has the tensor that the latest model calls `name`."""
        layer, _, tensor = name.rpartition(".")
        if tensor not in ("weight_g", "weight_v"):
            return name
        for magnitude, direction in _NORMS.values():
            if f"{layer}.{direction}" in self.tensors:
                return f"{layer}.{magnitude if tensor == 'weight_g' else direction}"
        return f"{layer}.weight"

    def read(self, name: str, shape: Shape) -> np.ndarray:
        """The tensor in float32 and PyTorch's layout.

        Raises UserError if it is missing, has another shape, is not floating point, or contains
        values that are not finite.
        """
        found = self.shape(name)
        tensor, own = self.tensors[self.found_as(name)], self.own_names[self.found_as(name)]
        if found != shape:
            raise UserError(f"{self.file}: {own} is {found}, the other tensors ask for {shape}")
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{self.file}: {own} is of type {tensor.dtype}, no floating point")
        with np.errstate(over="ignore"):
            numbers = tensor.read().astype(np.float32, copy=False)
        if not np.isfinite(numbers).all():
            raise UserError(f"{self.file}: {own} holds values that are not finite")
        return numbers

    def used(self, config: Config) -> set[str]:
        """The names of the tensors that `read_params` reads."""
        wanted = (name for row in rows(config, self.generation) for name, _ in row.theirs)
        return {self.found_as(name) for name in wanted}

    @property
    def stale(self) -> set[str]:
        """The names of plain weights that weight_g and weight_v in the same layer replace."""
        plain = {name for name in self.tensors if name.endswith(".weight")}
        return {name for name in plain if self.found_as(f"{name}_v") != name}


def recognised(tensors: Mapping[str, LazyTensor], file: str) -> Published:
    """The tensors by the original's names, without the prefix that the file gives them.

    Raises UserError if they contain no WaveGlow, or several.
    """
    found, own_names, prefixes = {}, {}, set()
    for own, tensor in tensors.items():
        parts = own.split(".")
        at = next((i for i, part in enumerate(parts) if part in _PARTS), None)
        if at is None:
            continue
        prefixes.add(".".join(parts[:at]))
        parts[at] = "WN" if parts[at] == "wavenet" else parts[at]
        found[".".join(parts[at:])] = tensor
        own_names[".".join(parts[at:])] = own
    if not {"upsample.weight", "convinv.0.conv.weight"} <= found.keys():
        some = ", ".join(list(tensors)[:3])[:200] or "nothing"
        raise UserError(f"{file}: holds no WaveGlow: no upsample.weight, but {some} ...")
    if len(prefixes) > 1:
        one, two = sorted(prefixes)[:2]
        raise UserError(f"{file}: holds several models ({one!r} and {two!r}); save one alone")
    return Published(found, own_names, file)


# ------------------------------------------------------------------------------ the two ways


def read_params(published: Published, config: Config) -> Any:
    """The parameter tree in NumPy float32. Raises UserError as `Published.read` does.

    A layer without weight normalisation gets the norm of its weights as its magnitude g.
    """
    leaves: dict[str, np.ndarray] = {}
    for row in rows(config, published.generation):
        if row.layout is _MAGNITUDE and published.found_as(row.theirs[0][0]).endswith(".weight"):
            for g in row.ours:
                v = leaves[f"{g.removesuffix('.g')}.v"]
                leaves[g] = np.sqrt(np.sum(v * v, axis=(0, 1)))
            continue
        parts = [row.layout.to_ours(published.read(name, shape)) for name, shape in row.theirs]
        whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        for leaf, part in zip(row.ours, np.split(whole, len(row.ours), axis=-1), strict=True):
            leaves[leaf] = np.ascontiguousarray(part)
    return nested(leaves)


def torch_tensors(params: Any, config: Config) -> dict[str, np.ndarray]:
    """The state dict of the original's latest model: the inverse of `read_params`."""
    leaves = named(params)
    tensors = {}
    for row in rows(config, LATEST):
        ((name, _),) = row.theirs
        parts = [np.asarray(leaves[leaf]) for leaf in row.ours]
        whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        tensors[name] = np.ascontiguousarray(row.layout.to_theirs(whole))
    return tensors
