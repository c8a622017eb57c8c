"""The reverse pass as one file that needs nothing of this package.

    import jax.export
    voice = jax.export.deserialize(open("voice.jaxexport", "rb").read())
    audio = voice.call(sigma * noise, mel)

JAX reads a file for six months after the release that wrote it, and newer releases may refuse it
then: keep the weights, and run `export` again to renew it.

noise `[B, F * hop / G, G]` standard normal, mel `[B, F, M]`, audio `[B, F * hop]`, all float32; B
and F are free. It runs on CPUs, NVIDIA GPUs and TPUs.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import Config
from waveglow_jax.files.atomic import replacing
from waveglow_jax.flow.waveglow import Params, inverse_prepared, prepare_inverse

PLATFORMS = ("cpu", "cuda", "tpu")


def export(config: Config, params: Params, dtype: str = "float32", consistency: int = 0) -> bytes:
    """Serialises the reverse pass, weights included. dtype: of the products inside WN;
    consistency: corrections towards the mel that follow it.
    """
    from jax import export as jax_export

    prepared = prepare_inverse(params)

    def reverse(z: jax.Array, mel: jax.Array) -> jax.Array:
        audio, _ = inverse_prepared(prepared, config, z, mel, dtype=jnp.dtype(dtype))
        return consistent(audio, mel, config, consistency)

    exported = jax_export.export(jax.jit(reverse), platforms=PLATFORMS)(*input_shapes(config))
    return bytes(exported.serialize())


def promise() -> str:
    """How long the file can be read, for the person who keeps it."""
    return (
        f"JAX {jax.__version__} wrote it, and JAX promises to read it for six months; after that, "
        "run the same command again with the JAX of that day"
    )


def input_shapes(config: Config) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """z `[B, F * hop / G, G]` and mel `[B, F, M]`, B and F free."""
    from jax import export as jax_export

    glow, hop = config.waveglow, config.data.hop_length
    batch, frames = jax_export.symbolic_shape("B, F")
    return (
        jax.ShapeDtypeStruct((batch, frames * (hop // glow.n_group), glow.n_group), jnp.float32),
        jax.ShapeDtypeStruct((batch, frames, glow.n_mel_channels), jnp.float32),
    )


def write_export(
    path: Path, config: Config, params: Params, dtype: str = "float32", consistency: int = 0
) -> None:
    """`export` to a file, written whole or not at all. Raises UserError."""
    content = export(config, params, dtype, consistency)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
