"""Published WaveGlow checkpoints of every generation, as our config and parameter tree.

Read: NVIDIA's own files (a pickled module, or a training run's), the state dicts of
DeepLearningExamples and torch.hub, NeMo's `.nemo`, and safetensors with the original's names; all
by content, whatever the file is called, and without PyTorch. Written: a state dict that the
original's model loads.

PyTorch's convolutions are `[C_out, C_in, taps]`, its transposed one `[C_in, C_out, taps]`; ours
`[taps, C_in, C_out]`.
"""

import gzip
import io
import itertools
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from waveglow_jax.config import Config, DataConfig, config_from_dict
from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_containers import MAX_PIECE, InPieces
from waveglow_jax.files.torch_file import TorchFile, write_torch
from waveglow_jax.files.torch_values import Array, Holder, Tensor
from waveglow_jax.paths import check_no_device

HALVES_ALTERNATE = "glow_old"
"""The module of the oldest class, in whose odd flows the two halves change roles."""

_PLAIN = "plain weights"
_PARTS = ("upsample", "convinv", "WN", "wavenet")
_WRAPPED = ("module", "waveglow")  # where DataParallel and the like hold the model
_MAX_MODULES = 100_000
_GZIP = b"\x1f\x8b"
_MAX_GROWTH = 4  # of a compressed .nemo: weights hardly shrink at all
_MAX_MEMBERS = 1000
_FLOATS = ("float16", "bfloat16", "float32", "float64", "F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Moments:
    """Adam's state: steps done, and the running means of gradient and squared gradient, both in
    the layout of the parameters."""

    count: int
    mean: Any
    square: Any


@dataclass(frozen=True)
class Published:
    """What a file held. `params` are NumPy float32 in our layout.

    kind: container and content. generation: of the layers' names. notes: what was assumed or left
    aside, a sentence each. training: iteration, epoch, learning rate and the like. moments: Adam's,
    where they were asked for and are there.
    """

    config: Config
    params: dict[str, Any]
    kind: str
    generation: str
    notes: tuple[str, ...]
    training: dict[str, Any]
    moments: Moments | None = None


@dataclass(frozen=True)
class _Lazy:
    """A tensor whose numbers are read when asked for."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def read_published(
    path: Path, alternating_halves: bool = False, with_moments: bool = False
) -> Published:
    """Reads a published checkpoint. `alternating_halves`: the oldest class's odd flows, for files
    that do not say so themselves. `with_moments`: Adam's state too, where there is some; a note
    says if there is none or it cannot be told which moment is whose.

    Raises UserError if the file is damaged, is none of these, or wants to run something.
    """
    try:
        check_no_device(path)
        with open(path, "rb") as file:
            start = file.read(16)
            file.seek(257)
            if start[:2] == _GZIP or file.read(5) == b"ustar":  # gzip, tar
                with _inside_nemo(file, path) as inner:
                    kind = "NeMo archive, "
                    return _of_torch(inner, str(path), kind, alternating_halves, with_moments)
            if start[8:9] == b"{":
                return _of_safetensors(path, alternating_halves)
            return _of_torch(file, str(path), "", alternating_halves, with_moments)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextmanager
def _inside_nemo(file: io.BufferedIOBase, path: Path) -> Iterator[io.BufferedIOBase]:
    """The weights inside a .nemo, a tar that may be gzipped, copied to a temporary file."""
    size = file.seek(0, 2)
    file.seek(0)
    gzipped = file.read(2) == _GZIP
    file.seek(0)
    with tempfile.TemporaryFile() as copy:
        try:
            source = gzip.GzipFile(fileobj=file) if gzipped else file
            end = _MAX_GROWTH * size if gzipped else size
            pieces = cast(IO[bytes], InPieces(source, end))  # tarfile only reads, seeks and tells
            with tarfile.open(fileobj=pieces, mode="r:") as archive:
                _copy_ckpt(archive, end, path, copy)
        except UserError:  # a ValueError too, and said already
            raise
        except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
            raise UserError(f"{path}: damaged or cut short ({error}); copy it again") from None
        copy.seek(0)
        yield copy


def _copy_ckpt(archive: tarfile.TarFile, end: int, path: Path, copy: io.BufferedIOBase) -> None:
    for number, member in enumerate(archive):
        if member.size < 0 or number > _MAX_MEMBERS:
            break
        if member.isreg() and member.name.endswith(".ckpt"):
            if member.size > end:
                raise UserError(
                    f"{path}: {member.name[:80]} unpacks to {member.size} bytes, far more than "
                    "weights would; not unpacked"
                )
            source = archive.extractfile(member)
            assert source is not None  # of a regular file
            while piece := source.read(MAX_PIECE):
                copy.write(piece)
            return
    raise UserError(f"{path}: is an archive without a .ckpt; it is no .nemo of weights")


def _of_torch(
    file: io.BufferedIOBase, name: str, kind: str, alternating_halves: bool, with_moments: bool
) -> Published:
    torch_file = TorchFile(file, name)
    tree = torch_file.tree
    state, module, stale = _find_state(tree, name)
    said = tree.get("config") if isinstance(tree, dict) else None
    notes = [f"{stale} plain weights beside weight_g and weight_v are stale: ignored"] * (stale > 0)
    lazy = {
        key: _Lazy(tensor.shape, tensor.dtype, partial(torch_file.array, tensor))
        for key, tensor in state.items()
    }
    stride = None
    if module is not None:
        alternating_halves |= _is_of_the_oldest_class(module)
        stride = _stride(module)
    content = f"pickled module {module.kind}" if module is not None else "state dict"
    published = _published(
        lazy,
        name,
        kind=f"{kind}PyTorch file ({torch_file.container}), {content}",
        said=said if isinstance(said, dict) else {},
        stride=stride,
        alternating_halves=alternating_halves,
        notes=notes,
        training=_training(tree),
    )
    if not with_moments:
        return published
    found = _moments(tree, state, torch_file, published, name)
    if isinstance(found, str):
        return replace(published, notes=(*published.notes, f"optimizer state left out: {found}"))
    return replace(published, moments=found)


def _of_safetensors(path: Path, alternating_halves: bool) -> Published:
    import ml_dtypes  # noqa: F401 - NumPy learns bfloat16
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            lazy = {}
            for key in file.keys():  # noqa: SIM118 - no dict
                header = file.get_slice(key)
                lazy[key] = _Lazy(
                    tuple(header.get_shape()),
                    header.get_dtype(),
                    partial(file.get_tensor, key),
                )
            if "flows.0.conv" in lazy:
                raise UserError(
                    f"{path.parent / 'config.json'}: missing beside {path.name}; put it there"
                )
            kind = "safetensors with the original's names"
            return _published(lazy, str(path), kind=kind, alternating_halves=alternating_halves)
    except (safetensors.SafetensorError, TypeError) as error:
        raise UserError(f"{path}: damaged or not read ({error}); copy it again") from None


# ------------------------------------------------------------------------------ finding the tensors


def _find_state(tree: Any, name: str) -> tuple[dict[str, Tensor | Array], Holder | None, int]:
    """The tensors by their state dict's names, the module they were pickled in, and how many stale
    plain weights lie beside weight_g and weight_v."""
    for _ in range(3):  # {"model": {"state_dict": ...}} is the deepest there is
        for key in ("state_dict", "model", "model_state_dict", "waveglow"):
            if isinstance(tree, dict) and isinstance(tree.get(key), dict | Holder):
                tree = tree[key]
                break
    if isinstance(tree, Holder):
        state: dict[str, Tensor | Array] = {}
        stale = _walk(tree, "", state, set(), name)
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


def _walk(
    module: Holder, prefix: str, state: dict[str, Tensor | Array], seen: set[int], name: str
) -> int:
    """Collects a module's parameters and buffers under their state dict's names."""
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
        stale += _walk(child, f"{prefix}{key}.", state, seen, name)
    return stale


def _children(module: Holder) -> list[tuple[Any, Holder]]:
    inside = module.state if isinstance(module.state, dict) else {}
    items = _items(inside.get("_modules"))
    return [(key, child) for key, child in items if isinstance(child, Holder)]


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _is_of_the_oldest_class(module: Holder) -> bool:
    """Whether it, or the one inside DataParallel, is the class whose halves alternate."""
    return module.kind.module.split(".")[-1] == HALVES_ALTERNATE or any(
        _is_of_the_oldest_class(child) for key, child in _children(module) if key in _WRAPPED
    )


def _stride(module: Holder) -> int | None:
    """The upsampler's stride: the hop. Only a pickled module tells it."""
    for key, child in _children(module):
        if key == "upsample" and isinstance(child.state, dict):
            stride = child.state.get("stride")
            if isinstance(stride, tuple) and len(stride) == 1 and type(stride[0]) is int:
                return stride[0]
        if key in _WRAPPED and (inner := _stride(child)):
            return inner
    return None


def _training(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {}
    report = {
        key: tree[key]
        for key in ("iteration", "epoch", "learning_rate")
        if type(tree.get(key)) in (int, float)
    }
    optimizer = tree.get("optimizer")
    if isinstance(optimizer, dict) and isinstance(optimizer.get("state"), dict):
        report["optimizer_state_of"] = len(optimizer["state"])
    return report


def _moments(
    tree: Any, state: dict[str, Tensor | Array], file: TorchFile, published: Published, name: str
) -> Moments | str:
    """Adam's state in our layout, or why there is none.

    PyTorch's optimizer knows its parameters by their order in the model, which is the order of
    the state dict. That every moment has its parameter's shape bears it out.
    """
    optimizer = tree.get("optimizer") if isinstance(tree, dict) else None
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    told = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(told, dict) or not told:
        return "there is none in the file"
    if not (isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)):
        return "its parameters are in several groups"
    order = groups[0].get("params")
    if not isinstance(order, list) or len(order) != len(state):
        return "it has another number of parameters than the model"
    means, squares, counts = {}, {}, set()
    for (key, tensor), index in zip(state.items(), order, strict=True):
        entry = told.get(index) if type(index) is int else None
        moments = [
            moment
            for part in ("exp_avg", "exp_avg_sq")
            if isinstance(moment := _dict(entry).get(part), Tensor | Array)
            and moment.shape == tensor.shape
        ]
        if len(moments) < 2:
            return f"its entry for {key} is missing or of another shape"
        means[key], squares[key] = (
            _Lazy(m.shape, m.dtype, partial(file.array, m)) for m in moments
        )
        counts.add(_step(_dict(entry).get("step"), file))
    count = counts.pop() if len(counts) == 1 else None
    if count is None:
        return "its parameters have not all done the same number of steps"
    if published.generation.endswith(_PLAIN):
        return "the model's weights are not normalised, as they were in training"
    mean, square = (
        _params(_Source(*_canonical(lazy, name), name), published.config)
        for lazy in (means, squares)
    )
    return Moments(count, mean, square)


def _step(value: Any, file: TorchFile) -> int | None:
    """Adam's count, which newer versions of PyTorch keep as a tensor."""
    if isinstance(value, Tensor) and value.shape == () and value.dtype == "float32":
        value = float(file.array(value))
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None


# ------------------------------------------------------------------------------ the map


def _published(
    lazy: Mapping[str, _Lazy],
    name: str,
    *,
    kind: str,
    said: Mapping[str, Any] | None = None,
    stride: int | None = None,
    alternating_halves: bool = False,
    notes: list[str] | None = None,
    training: dict[str, Any] | None = None,
) -> Published:
    source = _Source(*_canonical(lazy, name), name)
    glow, said_notes = _hyper_parameters(source, said or {})
    raw = {
        "description": f"From {Path(name).name}.",
        "waveglow_config": {**glow, "alternating_halves": alternating_halves},
        "data_config": _data(glow, stride),
    }
    try:
        config = config_from_dict(raw)
    except UserError as error:
        raise UserError(f"{name}: its tensors make no WaveGlow: {error}") from None
    params = _params(source, config)
    notes = [*(notes or []), *said_notes]
    if stride is None:
        notes.append("hop, sampling rate and mel are not in the file: the published ones assumed")
    if source.widened:
        notes.append("half precision, widened to float32")
    if alternating_halves:
        notes.append("the halves change roles in odd flows (the oldest class)")
    if left := sorted(lazy.keys() - source.used - source.stale):
        notes.append(f"{len(left)} other tensors ignored: {', '.join(left[:3])[:200]} ...")
    generation = f"{source.conditioning}, {source.skips}, {source.norm}"
    return Published(config, params, kind, generation, tuple(notes), training or {})


def _params(source: "_Source", config: Config) -> dict[str, Any]:
    return {
        "upsample": {
            "kernel": source.kernel("upsample.weight", _upsample_shape(config), (2, 0, 1)),
            "bias": source.vector("upsample.bias", config.waveglow.n_mel_channels),
        },
        "flows": [_flow(source, config, k) for k in range(config.waveglow.n_flows)],
    }


def _canonical(lazy: Mapping[str, _Lazy], name: str) -> tuple[dict[str, _Lazy], dict[str, str]]:
    """Tensors by the original's names (`WN.0.start.bias`), whatever prefix the file puts before
    them; and the file's own name of each."""
    tensors, own_names, prefixes = {}, {}, set()
    for key, tensor in lazy.items():
        parts = key.split(".")
        at = next((i for i, part in enumerate(parts) if part in _PARTS), None)
        if at is None:
            continue
        prefixes.add(".".join(parts[:at]))
        parts[at] = "WN" if parts[at] == "wavenet" else parts[at]
        tensors[".".join(parts[at:])] = tensor
        own_names[".".join(parts[at:])] = key
    if not {"upsample.weight", "convinv.0.conv.weight"} <= tensors.keys():
        some = ", ".join(list(lazy)[:3])[:200] or "nothing"
        raise UserError(f"{name}: holds no WaveGlow: no upsample.weight, but {some} ...")
    if len(prefixes) > 1:
        one, two = sorted(prefixes)[:2]
        raise UserError(f"{name}: holds several models ({one!r} and {two!r}); save one alone")
    return tensors, own_names


class _Source:
    """The file's tensors under the original's names, checked and widened as they are read."""

    def __init__(self, tensors: dict[str, _Lazy], own_names: dict[str, str], name: str):
        self.tensors, self._own_names, self.name = tensors, own_names, name
        self.used: set[str] = set()
        self.stale: set[str] = set()
        self.widened = False
        self.norm = _PLAIN
        self.conditioning = "cond_layer" if "WN.0.cond_layer.bias" in tensors else "cond_layers"
        fused = "WN.0.res_skip_layers.0.bias" in tensors
        self.skips = "res_skip_layers" if fused else "res_layers and skip_layers"

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self.tensors:
            raise UserError(f"{self.name}: {key} is missing; it is no whole WaveGlow")
        return self.tensors[key].shape

    def weight_shape(self, layer: str) -> tuple[int, ...]:
        """Of a layer's weight, in whichever form it is there."""
        _, direction = self._norm_keys(layer)
        return self.shape(direction or f"{layer}.weight")

    def vector(self, key: str, size: int) -> np.ndarray:
        return self._read(key, (size,))

    def kernel(self, key: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(self._read(key, shape).transpose(axes))

    def normed(self, layer: str, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """A weight-normalised convolution `[C_out, C_in, taps]` as {v, g, bias}."""
        magnitude, direction = self._norm_keys(layer)
        if magnitude and direction:
            g = self._read(magnitude, (shape[0], 1, 1)).reshape(-1)
            v = self.kernel(direction, shape, (2, 1, 0))
            if f"{layer}.weight" in self.tensors:
                self.stale.add(self._own_names[f"{layer}.weight"])
        else:
            v = self.kernel(f"{layer}.weight", shape, (2, 1, 0))
            g = np.sqrt(np.sum(v * v, axis=(0, 1)))
        return {"v": v, "g": g, "bias": self.vector(f"{layer}.bias", shape[0])}

    def _norm_keys(self, layer: str) -> tuple[str | None, str | None]:
        for norm, (magnitude, direction) in {
            "weight_g and weight_v": ("weight_g", "weight_v"),
            "parametrizations": (
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            ),
        }.items():
            if f"{layer}.{direction}" in self.tensors:
                self.norm = norm
                return f"{layer}.{magnitude}", f"{layer}.{direction}"
        return None, None

    def _read(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        found, own = self.shape(key), self._own_names[key]
        if found != shape:
            raise UserError(f"{self.name}: {own} is {found}, the other tensors ask for {shape}")
        tensor = self.tensors[key]
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{self.name}: {own} is of type {tensor.dtype}, no floating point")
        self.widened |= "16" in tensor.dtype
        self.used.add(own)
        with np.errstate(over="ignore"):
            numbers = tensor.read().astype(np.float32, copy=False)
        if not np.isfinite(numbers).all():
            raise UserError(f"{self.name}: {own} holds values that are not finite")
        return numbers


def _hyper_parameters(source: _Source, said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`waveglow_config` from the tensors' shapes, and from the file's own config where there is
    one; a contradiction is refused."""
    bins, _, kernel = _rank(source, "upsample.weight", 3)
    n_flows = _count(source.tensors, r"convinv\.(\d{1,4})\.conv\.weight")
    channels = [_rank(source, f"convinv.{k}.conv.weight", 3)[0] for k in range(n_flows)]
    every, early = _leaving(channels, said)
    n_layers = _count(source.tensors, r"WN\.0\.in_layers\.(\d{1,4})\.bias")
    if not n_layers:
        raise UserError(f"{source.name}: WN.0.in_layers are missing; it is no whole WaveGlow")
    wn_channels = source.shape("WN.0.start.bias")[0]
    skip_channels = _rank(source, "WN.0.end.weight", 3)[1]
    conditioning = _conditioning_rows(source)
    glow: dict[str, Any] = {
        "n_mel_channels": bins,
        "n_flows": n_flows,
        "n_group": channels[0],
        "n_early_every": every,
        "n_early_size": early,
        "upsample_kernel": kernel,
        "conditioning": "group" if conditioning == bins and channels[0] > 1 else "sample",
        "WN_config": {
            "n_layers": n_layers,
            "n_channels": wn_channels,
            "n_skip_channels": 0 if skip_channels == wn_channels else skip_channels,
            "kernel_size": source.weight_shape("WN.0.in_layers.0")[-1],
        },
    }
    if not said:
        return glow, ["hyper-parameters inferred from the tensors' shapes"]
    for ours, theirs in ((glow, said), (glow["WN_config"], _dict(said.get("WN_config")))):
        for field in ours.keys() & theirs.keys() - {"WN_config"}:
            if ours[field] != theirs[field]:
                value = theirs[field] if isinstance(theirs[field], int | str) else "something else"
                raise UserError(
                    f"{source.name}: its config says {field} {str(value)[:40]}, its tensors "
                    f"{ours[field]}"
                )
    return glow, ["hyper-parameters from the file's own config, which its tensors bear out"]


def _leaving(channels: list[int], said: Mapping[str, Any]) -> tuple[int, int]:
    """(n_early_every, n_early_size) from the channels of every flow."""
    drops = [before - after for before, after in itertools.pairwise(channels)]
    first = next((k for k, drop in enumerate(drops, 1) if drop), None)
    if first is not None:
        return first, drops[first - 1]
    # Nothing leaves: any values say so whose first leaving lies behind the last flow.
    every, size = said.get("n_early_every"), said.get("n_early_size")
    return (
        every if type(every) is int and every >= len(channels) else len(channels),
        size if type(size) is int else 2,
    )


def _conditioning_rows(source: _Source) -> int:
    layer = "cond_layer" if source.conditioning == "cond_layer" else "cond_layers.0"
    return source.weight_shape(f"WN.0.{layer}")[1]


def _data(glow: Mapping[str, Any], stride: int | None) -> dict[str, Any]:
    segment = DataConfig.segment_length
    data = {"segment_length": segment - segment % max(glow["n_group"], 1)}
    if stride is not None:
        data["hop_length"] = stride
    return data


def _flow(source: _Source, config: Config, k: int) -> dict[str, Any]:
    glow, wn = config.waveglow, config.waveglow.WN
    channels = glow.channels(k)
    half, width, skip = channels // 2, wn.n_channels, wn.skip_channels
    seen = glow.n_mel_channels * (glow.n_group if glow.conditioning == "sample" else 1)
    layers = {"start": source.normed(f"WN.{k}.start", (width, half, 1))}
    for i in range(wn.n_layers):
        name, last = f"WN.{k}.in_layers.{i}", i == wn.n_layers - 1
        layers[f"in_layer_{i}"] = source.normed(name, (2 * width, width, wn.kernel_size))
        layers[f"res_skip_layer_{i}"] = _res_skip(source, k, i, last, width, skip)
    fused = (2 * width * wn.n_layers, seen, 1)
    if source.conditioning == "cond_layer":
        whole = source.normed(f"WN.{k}.cond_layer", fused)
        parts = [np.s_[..., 2 * width * i : 2 * width * (i + 1)] for i in range(wn.n_layers)]
        conditioning = [
            {key: np.ascontiguousarray(value[part]) for key, value in whole.items()}
            for part in parts
        ]
    else:
        conditioning = [
            source.normed(f"WN.{k}.cond_layers.{i}", (2 * width, seen, 1))
            for i in range(wn.n_layers)
        ]
    for i, layer in enumerate(conditioning):
        layers[f"cond_layer_{i}"] = layer
    layers["end"] = {
        "kernel": source.kernel(f"WN.{k}.end.weight", (channels, skip, 1), (2, 1, 0)),
        "bias": source.vector(f"WN.{k}.end.bias", channels),
    }
    weight = source.kernel(f"convinv.{k}.conv.weight", (channels, channels, 1), (0, 1, 2))
    return {"conv": weight[:, :, 0], "wn": layers}


def _res_skip(
    source: _Source, k: int, i: int, last: bool, width: int, skip: int
) -> dict[str, np.ndarray]:
    if source.skips == "res_skip_layers":
        features = skip if last else width + skip
        return source.normed(f"WN.{k}.res_skip_layers.{i}", (features, width, 1))
    of_skip = source.normed(f"WN.{k}.skip_layers.{i}", (skip, width, 1))
    if last:
        return of_skip
    of_residual = source.normed(f"WN.{k}.res_layers.{i}", (width, width, 1))
    return {key: np.concatenate([of_residual[key], of_skip[key]], axis=-1) for key in of_skip}


def _upsample_shape(config: Config) -> tuple[int, int, int]:
    bins = config.waveglow.n_mel_channels
    return (bins, bins, config.waveglow.upsample_kernel)


def _rank(source: _Source, key: str, rank: int) -> tuple[int, ...]:
    shape = source.shape(key)
    if len(shape) != rank:
        raise UserError(f"{source.name}: {key} is {shape}, {rank} dimensions expected")
    return shape


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """How many of the pattern's numbers are there from 0 on without a gap."""
    numbers = {int(found[1]) for name in names if (found := re.fullmatch(pattern, name))}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# ------------------------------------------------------------------------------ the way back


def write_original(
    path: Path, config: Config, params: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Writes {"state_dict", "config"} as `torch.save` does, under the names of the original's
    latest model: `model.load_state_dict(torch.load(path)["state_dict"])`.

    Raises UserError if the original has no such model, or a weight is not finite in `dtype`.
    """
    glow, wn = config.waveglow, config.waveglow.WN
    if glow.mel_whitening or glow.conditioning != "sample" or glow.alternating_halves:
        raise UserError(
            "waveglow_config has mel_whitening, conditioning 'group' or alternating_halves, which "
            "the original's model lacks; convert to a release instead"
        )
    if wn.skip_channels != wn.n_channels:
        raise UserError(
            f"waveglow_config.WN_config.n_skip_channels {wn.skip_channels} must equal n_channels "
            f"{wn.n_channels} in the original's model; convert to a release instead"
        )
    upsample = params["upsample"]
    tensors = {
        "upsample.weight": _laid_out(upsample["kernel"], (1, 2, 0)),
        "upsample.bias": np.asarray(upsample["bias"]),
    }
    for k, flow in enumerate(params["flows"]):
        layers = flow["wn"]
        names = {f"in_layers.{i}": layers[f"in_layer_{i}"] for i in range(wn.n_layers)}
        names |= {f"res_skip_layers.{i}": layers[f"res_skip_layer_{i}"] for i in range(wn.n_layers)}
        names["start"] = layers["start"]
        conditioning = [layers[f"cond_layer_{i}"] for i in range(wn.n_layers)]
        names["cond_layer"] = {
            key: np.concatenate([np.asarray(layer[key]) for layer in conditioning], axis=-1)
            for key in ("v", "g", "bias")
        }
        for name, layer in names.items():
            tensors[f"WN.{k}.{name}.weight_g"] = np.asarray(layer["g"]).reshape(-1, 1, 1)
            tensors[f"WN.{k}.{name}.weight_v"] = _laid_out(layer["v"], (2, 1, 0))
            tensors[f"WN.{k}.{name}.bias"] = np.asarray(layer["bias"])
        tensors[f"WN.{k}.end.weight"] = _laid_out(layers["end"]["kernel"], (2, 1, 0))
        tensors[f"WN.{k}.end.bias"] = np.asarray(layers["end"]["bias"])
        tensors[f"convinv.{k}.conv.weight"] = np.asarray(flow["conv"])[:, :, None]
    said = {
        **{name: getattr(glow, name) for name in ("n_mel_channels", "n_flows", "n_group")},
        **{name: getattr(glow, name) for name in ("n_early_every", "n_early_size")},
        "WN_config": {
            name: getattr(wn, name) for name in ("n_layers", "n_channels", "kernel_size")
        },
    }
    for name, tensor in tensors.items():
        with np.errstate(over="ignore"):
            tensors[name] = tensor.astype(dtype, copy=False)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{name} is not finite in {dtype}; take --dtype float32")
    write_torch(path, {"state_dict": tensors, "config": said})


def _laid_out(array: Any, axes: tuple[int, int, int]) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(array).transpose(axes))
