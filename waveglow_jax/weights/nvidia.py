"""Reads published WaveGlow checkpoints of every generation into our config and parameter tree.

It reads NVIDIA's own files (a pickled module, or a training run's checkpoint), the state dicts of
DeepLearningExamples and torch.hub, NeMo's `.nemo`, and safetensors with the original's names. It
distinguishes them by content, whatever the file name, and does not need PyTorch. It writes a state
dict that the original's model loads.
"""

import io
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.config import Config, DataConfig, config_from_dict
from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_file import TorchFile, write_torch
from waveglow_jax.paths import check_no_device
from waveglow_jax.weights.correspondence import (
    LazyTensor,
    Published,
    Shape,
    read_params,
    recognised,
    torch_tensors,
)
from waveglow_jax.weights.moments import Moments, torch_moments
from waveglow_jax.weights.nemo import inside_nemo, is_archive
from waveglow_jax.weights.torch_content import (
    dict_or_empty,
    find_state,
    is_of_the_oldest_class,
    training_progress,
    upsampler_stride,
)
from waveglow_jax.weights.weights import Weights, with_alternating_halves


def read_published(path: Path) -> Weights:
    """Reads a published checkpoint, without Adam's moments.

    Raises UserError if the file is damaged, has none of these formats, or asks to run code.
    """
    if _is_safetensors(path):
        return _of_safetensors(path)
    with _torch_file(path) as (kind, file):
        return _of_torch(file, str(path), kind)


def read_published_moments(path: Path, config: Config) -> Moments | str:
    """Adam's moments in a published checkpoint of this config, or the reason why there are none.

    Raises UserError as `read_published` does.
    """
    if _is_safetensors(path):
        return "safetensors hold none"
    with _torch_file(path) as (_, file):
        state, _, _ = find_state(file.tree, str(path))
        return torch_moments(file.tree, state, file, config, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    try:
        check_no_device(path)
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _is_safetensors(path: Path) -> bool:
    with _opened(path) as file:
        return not is_archive(file) and _first(file, 9)[8:] == b"{"


def _first(file: io.BufferedReader, count: int) -> bytes:
    file.seek(0)
    return file.read(count)


@contextmanager
def _torch_file(path: Path) -> Iterator[tuple[str, TorchFile]]:
    """The kind of archive around a PyTorch file, as a prefix for its description, and the file."""
    with _opened(path) as file:
        if is_archive(file):
            with inside_nemo(file, path) as inner:
                yield "NeMo archive, ", TorchFile(inner, str(path))
        else:
            yield "", TorchFile(file, str(path))


def _of_torch(file: TorchFile, name: str, kind: str) -> Weights:
    state, module, stale = find_state(file.tree, name)
    notes = [f"{stale} plain weights beside weight_g and weight_v are stale: ignored"] * (stale > 0)
    content = f"pickled module {module.kind}" if module is not None else "state dict"
    weights = _of_tensors(
        {key: LazyTensor.of(file, tensor) for key, tensor in state.items()},
        name,
        kind=f"{kind}PyTorch file ({file.container}), {content}",
        said=dict_or_empty(dict_or_empty(file.tree).get("config")),
        stride=upsampler_stride(module) if module is not None else None,
        notes=notes,
        training=training_progress(file.tree),
    )
    oldest = module is not None and is_of_the_oldest_class(module)
    return with_alternating_halves(weights) if oldest else weights


def _of_safetensors(path: Path) -> Weights:
    import ml_dtypes  # noqa: F401 - NumPy learns bfloat16
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {}
            for key in file.keys():  # noqa: SIM118 - no dict
                header = file.get_slice(key)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                tensors[key] = LazyTensor(shape, dtype, partial(file.get_tensor, key))
            if "flows.0.conv" in tensors:
                raise UserError(
                    f"{path.parent / 'config.json'}: missing beside {path.name}; put it there"
                )
            kind = "safetensors with the original's names"
            return _of_tensors(tensors, str(path), kind=kind)
    except (safetensors.SafetensorError, TypeError) as error:
        raise UserError(f"{path}: damaged or not read ({error}); copy it again") from None


def _of_tensors(
    tensors: Mapping[str, LazyTensor],
    name: str,
    *,
    kind: str,
    said: Mapping[str, Any] | None = None,
    stride: int | None = None,
    notes: list[str] | None = None,
    training: dict[str, Any] | None = None,
) -> Weights:
    """Makes Weights of a file's tensors. said: its own `waveglow_config`; stride: its hop."""
    published = recognised(tensors, name)
    glow, said_notes = _hyper_parameters(published, said or {})
    raw = {
        "description": f"From {Path(name).name}.",
        "waveglow_config": glow,
        "data_config": _data(glow, stride),
    }
    try:
        config = config_from_dict(raw)
    except UserError as error:
        raise UserError(f"{name}: its tensors make no WaveGlow: {error}") from None
    params = read_params(published, config)
    notes = [*(notes or []), *said_notes]
    if stride is None:
        notes.append("hop, sampling rate and mel are not in the file: the published ones assumed")
    used = published.used(config)
    if any("16" in published.tensors[tensor].dtype for tensor in used & published.tensors.keys()):
        notes.append("half precision, widened to float32")
    known = {published.own_names[n] for n in (used | published.stale) & published.tensors.keys()}
    if left := sorted(tensors.keys() - known):
        notes.append(f"{len(left)} other tensors ignored: {', '.join(left[:3])[:200]} ...")
    generation = ", ".join(published.generation)
    return Weights(config, params, kind, generation, tuple(notes), training or {})


# ------------------------------------------------------------------------------ hyper-parameters


def _hyper_parameters(
    published: Published, said: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The `waveglow_config` that follows from the tensors' shapes, and notes on its origin.

    Raises UserError if the file's own config `said` contradicts it.
    """
    bins, _, kernel = _of_rank(published, "upsample.weight", 3)
    n_flows = _count(published.tensors, r"convinv\.(\d{1,4})\.conv\.weight")
    channels = [_of_rank(published, f"convinv.{k}.conv.weight", 3)[0] for k in range(n_flows)]
    every, early = _early_outputs(channels, said)
    n_layers = _count(published.tensors, r"WN\.0\.in_layers\.(\d{1,4})\.bias")
    if not n_layers:
        raise UserError(f"{published.file}: WN.0.in_layers are missing; it is no whole WaveGlow")
    wn_channels = published.shape("WN.0.start.bias")[0]
    skip_channels = _of_rank(published, "WN.0.end.weight", 3)[1]
    fused = published.generation.conditioning == "cond_layer"
    cond = "WN.0.cond_layer" if fused else "WN.0.cond_layers.0"
    seen = published.shape(f"{cond}.weight_v")[1]
    glow: dict[str, Any] = {
        "n_mel_channels": bins,
        "n_flows": n_flows,
        "n_group": channels[0],
        "n_early_every": every,
        "n_early_size": early,
        "upsample_kernel": kernel,
        "conditioning": "group" if seen == bins and channels[0] > 1 else "sample",
        "WN_config": {
            "n_layers": n_layers,
            "n_channels": wn_channels,
            "n_skip_channels": 0 if skip_channels == wn_channels else skip_channels,
            "kernel_size": published.shape("WN.0.in_layers.0.weight_v")[-1],
        },
    }
    if not said:
        return glow, ["hyper-parameters inferred from the tensors' shapes"]
    for ours, theirs in ((glow, said), (glow["WN_config"], dict_or_empty(said.get("WN_config")))):
        for field in ours.keys() & theirs.keys() - {"WN_config"}:
            if ours[field] != theirs[field]:
                value = theirs[field] if isinstance(theirs[field], int | str) else "something else"
                raise UserError(
                    f"{published.file}: its config says {field} {str(value)[:40]}, its tensors "
                    f"{ours[field]}"
                )
    return glow, ["hyper-parameters from the file's own config, which its tensors bear out"]


def _early_outputs(channels: list[int], said: Mapping[str, Any]) -> tuple[int, int]:
    """(n_early_every, n_early_size), from the channels of every flow."""
    drops = [before - after for before, after in itertools.pairwise(channels)]
    first = next((k for k, drop in enumerate(drops, 1) if drop), None)
    if first is not None:
        return first, drops[first - 1]
    # Without early outputs, any values fit that place the first output after the last flow.
    every, size = said.get("n_early_every"), said.get("n_early_size")
    return (
        every if type(every) is int and every >= len(channels) else len(channels),
        size if type(size) is int else 2,
    )


def _data(glow: Mapping[str, Any], stride: int | None) -> dict[str, Any]:
    segment = DataConfig.segment_length
    data = {"segment_length": segment - segment % max(glow["n_group"], 1)}
    if stride is not None:
        data["hop_length"] = stride
    return data


def _of_rank(published: Published, name: str, rank: int) -> Shape:
    """A tensor's shape. Raises UserError if it is missing or has another number of dimensions."""
    shape = published.shape(name)
    if len(shape) != rank:
        raise UserError(f"{published.file}: {name} is {shape}, {rank} dimensions expected")
    return shape


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """The number of names that match the pattern with 0, 1, 2 ..., up to the first gap."""
    numbers = {int(found[1]) for name in names if (found := re.fullmatch(pattern, name))}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


# ------------------------------------------------------------------------------ the way back


def write_original(
    path: Path, config: Config, params: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Writes {"state_dict", "config"} in the format of `torch.save`, with the names of the
    original's latest model: `model.load_state_dict(torch.load(path)["state_dict"])`.

    Raises UserError if the original's model cannot represent the config, or if a weight is not
    finite in `dtype`.
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
    said = {
        **{name: getattr(glow, name) for name in ("n_mel_channels", "n_flows", "n_group")},
        **{name: getattr(glow, name) for name in ("n_early_every", "n_early_size")},
        "WN_config": {
            name: getattr(wn, name) for name in ("n_layers", "n_channels", "kernel_size")
        },
    }
    tensors = torch_tensors(params, config)
    for name, tensor in tensors.items():
        with np.errstate(over="ignore"):
            tensors[name] = tensor.astype(dtype, copy=False)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{name} is not finite in {dtype}; take --dtype float32")
    write_torch(path, {"state_dict": tensors, "config": said})
