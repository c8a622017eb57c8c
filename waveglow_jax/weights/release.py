"""Release folders: model.safetensors + config.json. Reading weights, wherever they lie.

Tensor names are the paths in the parameter tree, joined by dots: `flows.3.wn.in_layer_2.v`.
"""

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from waveglow_jax.config import Config, config_to_json, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.flow.waveglow import Params, parameter_shapes
from waveglow_jax.paths import check_no_device, local_path
from waveglow_jax.weights.hub import download, is_hub_name
from waveglow_jax.weights.nvidia import Moments, read_published

BUNDLED_VOICE = Path(__file__).parent.parent / "assets" / "voice"
WEIGHTS = "model.safetensors"
PUBLISHED_SUFFIXES = (".pt", ".pth", ".ckpt", ".nemo", ".safetensors")


@dataclass(frozen=True)
class Weights:
    """A config and its float32 parameters, with what was found out about their file.

    params: of NumPy or JAX, not yet on a device. kind: what the file is. generation: of a published
    checkpoint's layer names. notes: what was assumed or left aside. training: iteration, epoch and
    the like, where the file tells. moments: Adam's, where they were asked for and are there.
    """

    config: Config
    params: Params = field(repr=False)
    kind: str
    generation: str = ""
    notes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    moments: Moments | None = field(default=None, repr=False)


def save(path: str | Path, config: Config, params: Params, dtype: str = "float32") -> None:
    """Writes a release folder; both files are written whole or neither is replaced.

    dtype float16 halves the size: the weights are widened again at loading. Raises UserError if
    the folder cannot be written or a weight is not finite in that dtype.
    """
    path = Path(local_path(path))
    tensors = {}
    for name, leaf in _named(params).items():
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(np.asarray(leaf).astype(dtype, copy=False))
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} is not finite in {dtype}; not saved")
    with replacing(path / "config.json") as of_config, replacing(path / WEIGHTS) as of_weights:
        of_config.write_text(config_to_json(config), encoding="utf-8")
        try:
            save_file(tensors, of_weights, metadata={"format": "waveglow_jax"})
            of_weights.chmod(of_config.stat().st_mode)  # the library makes it the owner's alone
        except SafetensorError as error:
            raise UserError(
                f"{path / WEIGHTS}: cannot be written ({error}); free some space or choose "
                "another place"
            ) from None


def load_release(path: Path) -> tuple[Config, Params]:
    """Config and float32 parameters of a release folder.

    Raises UserError if a file is missing or damaged, or if the tensors are not those of the config.
    """
    config = load_config(path / "config.json")
    weights = path / WEIGHTS
    shapes = parameter_shapes(config)
    expected = {name: leaf.shape for name, leaf in _named(shapes).items()}
    _check_header(weights, expected)
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error}); download it again") from None
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise UserError(f"{weights}: {name} holds values that are not finite")
    filled = [tensors[name].astype(np.float32, copy=False) for name in expected]
    return config, jax.tree.unflatten(jax.tree.structure(shapes), filled)


def read_weights(
    source: str | Path | None = None,
    *,
    alternating_halves: bool = False,
    with_moments: bool = False,
) -> Weights:
    """Weights of any kind, told apart by content; without a source the bundled voice.

    source: a release folder, a training run, a published checkpoint (`weights/nvidia`), or a model
    on the Hugging Face hub (OWNER/NAME or OWNER/NAME@REVISION). alternating_halves: for published
    files of the oldest class that do not say so themselves. with_moments: Adam's state too, of a
    training run or a published checkpoint that has some; a note says where there is none.
    Raises UserError if it is none of these, damaged, or wants to run something.
    """
    if source is None:
        return _of_folder(BUNDLED_VOICE, alternating_halves, with_moments)
    source = local_path(source)
    path = Path(source)
    if not os.path.exists(path) and is_hub_name(source):
        path = download(source)
    if os.path.isdir(path):
        return _of_folder(path, alternating_halves, with_moments)
    if not os.path.exists(path):
        raise UserError(f"{source}: no such file or folder; check the path")
    if path.name == WEIGHTS and (path.parent / "config.json").is_file():
        return _of_folder(path.parent, alternating_halves, with_moments)
    return _of_file(path, alternating_halves, with_moments)


def _of_folder(path: Path, alternating_halves: bool, with_moments: bool) -> Weights:
    if (path / WEIGHTS).is_file() and (path / "config.json").is_file():
        notes = ("optimizer state left out: a release has none",) if with_moments else ()
        return Weights(*load_release(path), kind="release folder", notes=notes)
    from waveglow_jax.weights.run import is_run, load_run_moments, load_run_voice  # slow: orbax

    if is_run(path):
        moments = load_run_moments(path) if with_moments else None
        return Weights(*load_run_voice(path), kind="training run", moments=moments)
    published = [p for p in sorted(path.iterdir()) if p.suffix.lower() in PUBLISHED_SUFFIXES]
    if len(published) == 1:
        return _of_file(published[0], alternating_halves, with_moments)
    raise UserError(
        f"{path}: is no release folder ({WEIGHTS} + config.json), no training run (checkpoints/ + "
        f"config.json), and holds {len(published)} published checkpoints; name one"
    )


def _of_file(path: Path, alternating_halves: bool, with_moments: bool) -> Weights:
    return Weights(**vars(read_published(path, alternating_halves, with_moments)))


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _check_header(path: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Names, shapes and sizes against the config's before the tensors take memory."""
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
