"""Tests that hold on any device, at the device's default precision.

TF32 keeps 10 bits of a float32 significand and bfloat16 keeps 7, in the operands of matmuls. The
flow's own stream, its log-determinants and the loss stay in float32, so that the errors below come
from the conditioner alone: both directions of one precision round it alike and cancel.
`highest` is float32 on every device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_vocoder import lively_params, some_mel, tiny_config

import waveglow_jax as wg

pytestmark = pytest.mark.slow

FRAMES = 8
TOLERANCE = {"default": 2e-2, "highest": 1e-4}
"""The error that is allowed, relative to the largest value that the CPU computes in float32."""


def values(config, device, precision):
    """z, log_det and the samples back, computed on the device."""
    audio = 0.1 * np.random.default_rng(0).normal(size=(1, FRAMES * 256)).astype(np.float32)
    mel = some_mel(FRAMES)[None]
    params = jax.device_put(lively_params(config), device)
    inputs = jax.device_put((audio, mel), device)
    with jax.default_matmul_precision(precision):
        z, log_det = jax.jit(wg.forward, static_argnums=1)(params, config, *inputs)
        back, _ = jax.jit(wg.inverse, static_argnums=1)(params, config, z, inputs[1])
    return audio, np.asarray(z), np.asarray(log_det), np.asarray(back)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_device_computes_what_the_cpu_does(precision):
    config = tiny_config("sample")
    _, z, log_det, _ = values(config, jax.devices("cpu")[0], "highest")
    _, there, log_det_there, _ = values(config, jax.devices()[0], precision)
    np.testing.assert_allclose(there, z, atol=TOLERANCE[precision] * np.abs(z).max())
    np.testing.assert_allclose(
        log_det_there, log_det, atol=TOLERANCE[precision] * np.abs(log_det).max()
    )


@pytest.mark.parametrize("precision", TOLERANCE)
def test_round_trip(precision):
    audio, _, _, back = values(tiny_config("sample"), jax.devices()[0], precision)
    np.testing.assert_allclose(back, audio, atol=TOLERANCE[precision] * np.abs(audio).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_low_precision_of_the_conditioner(dtype, tolerance):
    config, mel = tiny_config("sample"), some_mel(FRAMES)
    voice = wg.Voice(config, lively_params(config), tuple(jax.devices()[:1]))
    exact = voice.synthesize(mel, consistency=0)
    rough = voice.synthesize(mel, dtype=dtype, consistency=0)
    assert jnp.isfinite(rough).all() and not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=tolerance * np.abs(exact).max())
