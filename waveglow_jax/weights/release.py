"""Release folders (model.safetensors + config.json), and reading weights from any source.

Tensor names are the paths in the parameter tree, joined by dots: `flows.3.wn.in_layer_2.v`.
"""

import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from waveglow_jax.config import Config, config_to_json, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.flow.waveglow import Params, parameter_shapes
from waveglow_jax.paths import check_no_device, local_path
from waveglow_jax.trees import named, nested
from waveglow_jax.weights.hub import download, is_hub_name
from waveglow_jax.weights.moments import Moments
from waveglow_jax.weights.nvidia import read_published, read_published_moments
from waveglow_jax.weights.weights import Weights, with_alternating_halves
from waveglow_jax.weights.weights import with_moments as moments_added

BUNDLED_VOICE = Path(__file__).parent.parent / "assets" / "voice"
WEIGHTS = "model.safetensors"
PUBLISHED_SUFFIXES = (".pt", ".pth", ".ckpt", ".nemo", ".safetensors")

_NAMED = 5
"""The most names that an error lists."""

ReadMoments = Callable[[], Moments | str | None]
"""Reads Adam's moments, or gives the reason why there are none; None needs no reason."""


def save(path: str | Path, config: Config, params: Params, dtype: str = "float32") -> None:
    """Writes a release folder; both files are written completely, or neither is replaced.

    dtype float16 halves the size; loading converts the weights back to float32. Raises UserError
    if the folder cannot be written or a weight is not finite in that dtype.
    """
    path = Path(local_path(path))
    tensors = {}
    for name, leaf in named(params).items():
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(np.asarray(leaf).astype(dtype, copy=False))
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} is not finite in {dtype}; not saved")
    with replacing(path / "config.json") as of_config, replacing(path / WEIGHTS) as of_weights:
        of_config.write_text(config_to_json(config), encoding="utf-8")
        try:
            save_file(tensors, of_weights, metadata={"format": "waveglow_jax"})
            of_weights.chmod(of_config.stat().st_mode)  # the library lets only the owner read it
        except SafetensorError as error:
            raise UserError(
                f"{path / WEIGHTS}: cannot be written ({error}); free some space or choose "
                "another place"
            ) from None


def load_release(path: Path) -> tuple[Config, Params]:
    """Config and float32 parameters of a release folder.

    Raises UserError if a file is missing or damaged, or if the tensors do not fit the config.
    """
    config = load_config(path / "config.json")
    weights = path / WEIGHTS
    expected = {name: leaf.shape for name, leaf in named(parameter_shapes(config)).items()}
    _check_header(weights, expected)
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error}); download it again") from None
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise UserError(f"{weights}: {name} holds values that are not finite")
    return config, nested({k: v.astype(np.float32, copy=False) for k, v in tensors.items()})


def read_weights(
    source: str | Path | None = None,
    *,
    alternating_halves: bool = False,
    with_moments: bool = False,
) -> Weights:
    """Reads weights of any kind, recognised by content; without a source, the bundled voice.

    source: a release folder, a training run, a published checkpoint (`weights/nvidia`), or a model
    on the Hugging Face hub (OWNER/NAME or OWNER/NAME@REVISION). alternating_halves: for published
    files of the oldest class that do not record their class. with_moments: also reads Adam's state
    if the training run or published checkpoint has one; a note says why there is none.
    Raises UserError if the source is none of these, is damaged, or asks to run code.
    """
    found, moments = _found(_path_of(source))
    if alternating_halves and found.generation:
        found = with_alternating_halves(found)
    return moments_added(found, moments()) if with_moments else found


def _path_of(source: str | Path | None) -> Path:
    """The folder or file that contains the weights."""
    if source is None:
        return BUNDLED_VOICE
    source = local_path(source)
    path = Path(source)
    if not os.path.exists(path) and is_hub_name(source):
        return download(source)
    if not os.path.exists(path):
        raise UserError(f"{source}: no such file or folder; check the path")
    if path.name == WEIGHTS and (path.parent / "config.json").is_file():
        return path.parent
    return path


def _found(path: Path) -> tuple[Weights, ReadMoments]:
    """The weights at a path, and a function that reads their Adam moments."""
    if not path.is_dir():
        found = read_published(path)
        return found, partial(read_published_moments, path, found.config)
    if (path / WEIGHTS).is_file() and (path / "config.json").is_file():
        return Weights(*load_release(path), kind="release folder"), lambda: "a release has none"
    from waveglow_jax.weights.run import is_run, load_run_moments, load_run_voice  # slow: orbax

    if is_run(path):
        return Weights(*load_run_voice(path), kind="training run"), partial(load_run_moments, path)
    published = [p for p in sorted(path.iterdir()) if p.suffix.lower() in PUBLISHED_SUFFIXES]
    if len(published) == 1:
        return _found(published[0])
    if there := [*published, *_voices_in(path)]:
        more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
        counted = (
            f"{len(published)} published checkpoints: " if len(published) == len(there) else ""
        )
        raise UserError(
            f"{path}: is no release folder and no training run, but holds {counted}"
            f"{', '.join(map(str, there[:_NAMED]))}{more}; name one"
        )
    raise UserError(
        f"{path}: is no release folder ({WEIGHTS} + config.json), no training run (checkpoints/ + "
        "config.json), and holds no published checkpoint; check the path"
    )


def _voices_in(path: Path) -> list[Path]:
    """The sub-folders that are release folders or training runs."""
    contents = (WEIGHTS, "checkpoints", "metrics.jsonl")
    return [
        each
        for each in sorted(path.iterdir())
        if os.path.isfile(each / "config.json")
        and any(os.path.exists(each / name) for name in contents)
    ]


def _check_header(path: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Checks the header, its names, types and shapes, before the tensors take memory."""
    try:
        check_no_device(path)
        with path.open("rb") as file:
            size = path.stat().st_size
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            found = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            for name, entry in entries.items():
                if entry["dtype"] not in ("F64", "F32", "F16"):
                    raise ValueError(f"{name} is of type {entry['dtype']}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise UserError(f"{path}: is damaged ({error}); download it again") from None
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{path}: does not fit its config.json: {name} is {found.get(name, 'missing')}, "
                f"the config asks for {expected.get(name, 'none of that name')}"
            )
