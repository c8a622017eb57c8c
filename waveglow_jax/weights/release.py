"""Release folders: model.safetensors + config.json. Reading a voice, wherever it lies.

Tensor names are the paths in the parameter tree, joined by dots: `flows.3.wn.in_layer_2.v`.
"""

import json
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from waveglow_jax.audio.files import replacing, write_text
from waveglow_jax.config import Config, config_to_json, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import Params, init

BUNDLED_VOICE = Path(__file__).parent.parent / "assets" / "voice"
WEIGHTS = "model.safetensors"


def save(path: str | Path, config: Config, params: Params, dtype: str = "float32") -> None:
    """Writes a release folder; each file is written whole or not at all.

    dtype float16 halves the size: the weights are widened again at loading. Raises UserError if
    the folder cannot be written or a weight is not finite in that dtype.
    """
    path = Path(path)
    tensors = {}
    for name, leaf in _named(params).items():
        with np.errstate(over="ignore"):
            tensors[name] = np.asarray(leaf).astype(dtype)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} is not finite in {dtype}; not saved")
    with replacing(path / WEIGHTS) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata={"format": "waveglow_jax"}))
    write_text(path / "config.json", config_to_json(config))


def load_release(path: Path) -> tuple[Config, Params]:
    """Config and float32 parameters of a release folder.

    Raises UserError if a file is missing or damaged, or if the tensors are not those of the config.
    """
    config = load_config(path / "config.json")
    weights = path / WEIGHTS
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    expected = {name: leaf.shape for name, leaf in _named(shapes).items()}
    _check_header(weights, expected)
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error}); download it again") from None
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise UserError(f"{weights}: {name} holds values that are not finite")
    filled = [jnp.asarray(tensors[name], jnp.float32) for name in expected]
    return config, jax.tree.unflatten(jax.tree.structure(shapes), filled)


def load_weights(source: str | Path | None = None) -> tuple[Config, Params]:
    """A release folder or a training run; without a source the bundled voice.

    Raises UserError if it is neither.
    """
    path = BUNDLED_VOICE if source is None else Path(source)
    if (path / WEIGHTS).is_file():
        return load_release(path)
    from waveglow_jax.weights.run import is_run, load_run_voice  # orbax takes seconds to import

    if is_run(path):
        return load_run_voice(path)
    raise UserError(
        f"{path}: is no release folder ({WEIGHTS} + config.json) and no training run "
        "(checkpoints/ + config.json)" + ("" if path.exists() else "; it does not exist")
    )


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _check_header(path: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Names, shapes and sizes against the config's before the tensors take memory."""
    try:
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
