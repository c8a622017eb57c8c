"""The reverse pass as one file that does not need this package.

    import jax.export
    voice = jax.export.deserialize(open("voice.jaxexport", "rb").read())
    audio = voice.call(sigma * noise, mel)

JAX can read a file for six months after the release that wrote it; newer releases may refuse it
after that. Keep the weights, and run `export` again to renew the file.

noise `[B, N, G]` standard normal, N = ceil(F * hop / G), mel `[B, F, M]`, audio `[B, F * hop]`, all
float32; B and F are free. The file runs on CPUs, NVIDIA GPUs and TPUs.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import Config
from waveglow_jax.files.atomic import replacing
from waveglow_jax.flow.waveglow import Params, inverse_prepared, of_frames, prepare_inverse

PLATFORMS = ("cpu", "cuda", "tpu")


def export(config: Config, params: Params, dtype: str = "float32", consistency: int = 0) -> bytes:
    """Serialises the reverse pass, weights included.

    dtype: the compute dtype of the matmuls inside WN. consistency: the number of corrections
    towards the mel that follow the reverse pass.
    """
    from jax import export as jax_export

    prepared = prepare_inverse(params)

    def reverse(z: jax.Array, mel: jax.Array) -> jax.Array:
        audio, _ = inverse_prepared(prepared, config, z, mel, dtype=jnp.dtype(dtype))
        return consistent(of_frames(audio, mel.shape[1], config), mel, config, consistency)

    exported = jax_export.export(jax.jit(reverse), platforms=PLATFORMS)(*input_shapes(config))
    return bytes(exported.serialize())


def promise() -> str:
    """A message for the user on how long JAX can read the file."""
    return (
        f"JAX {jax.__version__} wrote it, and JAX promises to read it for six months; after that, "
        "run the same command again with the JAX of that day"
    )


def input_shapes(config: Config) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of z `[B, ceil(F * hop / G), G]` and mel `[B, F, M]`, with B and F free."""
    from jax import export as jax_export

    glow = config.waveglow
    batch, frames = jax_export.symbolic_shape("B, F")
    return (
        jax.ShapeDtypeStruct((batch, config.steps_of(frames), glow.n_group), jnp.float32),
        jax.ShapeDtypeStruct((batch, frames, glow.n_mel_channels), jnp.float32),
    )


def write_export(
    path: Path, config: Config, params: Params, dtype: str = "float32", consistency: int = 0
) -> None:
    """Writes the result of `export` to a file, whole or not at all. Raises UserError."""
    content = export(config, params, dtype, consistency)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
