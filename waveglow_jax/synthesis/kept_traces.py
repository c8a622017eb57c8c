"""A cache of traced programs, so that later runs need not trace them again.

JAX's persistent cache stores the result of XLA's compilation, but JAX must first trace and lower
the Python code to know which program it is; on a CPU that takes longer than synthesising a
sentence. This module therefore stores the traced form (StableHLO, `jax.export`) in the same folder.
The file name contains a hash of everything the trace depends on: the arguments, the device, JAX's
version and settings, and this package's sources.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from waveglow_jax.files.atomic import replacing

SUFFIX = ".stablehlo"
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
)
"""The settings of JAX that change what a function traces to."""
MOST_KEPT = 64
"""Maximum number of files, each about 100 KB; beyond it the oldest files are deleted."""


def compile_once(
    function: Callable[..., Any],
    *arguments: Any,
    name: str,
    devices: Sequence[jax.Device],
    made_for: Any = None,
    **jit: Any,
) -> jax.stages.Compiled:
    """`jax.jit(function, **jit).lower(*arguments).compile()`, traced once for many runs.

    arguments: arrays or `jax.ShapeDtypeStruct`s, all for those devices. name, made_for: together
    with the arguments they must determine everything that the function depends on; the `repr` of
    made_for must be complete in this sense.
    Nothing is stored without JAX's persistent cache (`program_cache.keep_programs`), without
    flatbuffers, which JAX needs for writing, or for a program of several devices.
    """
    jitted = jax.jit(function, **jit)
    folder = jax.config.jax_compilation_cache_dir
    if not folder or len(devices) > 1 or not find_spec("flatbuffers"):
        return jitted.lower(*arguments).compile()
    path = Path(folder) / f"{name}-{_fingerprint(arguments, devices[0], made_for)}{SUFFIX}"
    exported = _read(path)
    if exported is None:
        exported = jax.export.export(jitted, platforms=[devices[0].platform])(*arguments)
        _write(path, bytes(exported.serialize()))
    return jax.jit(exported.call, **jit).lower(*arguments).compile()


def _fingerprint(arguments: Any, device: jax.Device, made_for: Any) -> str:
    leaves, structure = jax.tree.flatten(arguments)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
    settings = [getattr(jax.config, name) for name in _SETTINGS]
    of_device = device.platform, device.device_kind
    parts = jax.__version__, settings, of_device, made_for, shapes, str(structure)
    return hashlib.sha256(f"{_sources()} {parts!r}".encode()).hexdigest()[:32]


@cache
def _sources() -> str:
    """A hash of this package's sources, which changes whenever a line of them does."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Any:
    """The exported program, or None where no file is stored or the file is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None  # the caller then writes it anew
    return jax.export.deserialize(bytearray(content[32:]))


def _write(path: Path, content: bytes) -> None:
    """Writes the file whole, and deletes the oldest files where there are too many.

    Other processes may do the same at the same time. On a full disk nothing is stored, without an
    error.
    """
    with suppress(OSError):
        with replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        kept = []
        for each in path.parent.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                kept.append((each.stat().st_mtime, each))
        for _, old in sorted(kept)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
