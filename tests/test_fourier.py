"""Fourier transforms in groups that no thread pool splits: the same bits as JAX's own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import waveglow_jax
from waveglow_jax.audio import fourier

SIGNALS = np.random.default_rng(0).normal(size=(3, 7, 96)).astype(np.float32)


@pytest.mark.parametrize("shape", [(96,), (1, 96), (3, 7, 96)])
@pytest.mark.parametrize("n", [None, 128, 64])
def test_the_same_bits_in_small_groups(shape, n, monkeypatch):
    monkeypatch.setattr(fourier, "SPLITS_BATCHES", True)
    signals = SIGNALS.reshape(-1)[: np.prod(shape)].reshape(shape)
    spectra = jax.jit(lambda x: fourier.rfft(x, n))(signals)
    np.testing.assert_array_equal(spectra, jnp.fft.rfft(signals, n))
    again = jax.jit(lambda x: fourier.irfft(x, n))(spectra)
    np.testing.assert_array_equal(again, jnp.fft.irfft(spectra, n))


def test_no_transform_that_a_pool_would_split(monkeypatch):
    monkeypatch.setattr(fourier, "SPLITS_BATCHES", True)
    lowered = jax.jit(lambda x: fourier.rfft(x)).lower(SIGNALS).as_text()
    (line,) = [line for line in lowered.splitlines() if "stablehlo.fft" in line]
    assert "tensor<4x96xf32>" in line


def test_sizes_that_an_export_leaves_free(monkeypatch):
    monkeypatch.setattr(fourier, "SPLITS_BATCHES", True)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, f, 96"), jnp.float32)
    exported = export.export(jax.jit(lambda x: fourier.irfft(fourier.rfft(x))))(shape)
    for signals in (SIGNALS, SIGNALS[:1, :1]):
        np.testing.assert_array_equal(exported.call(signals), jnp.fft.irfft(jnp.fft.rfft(signals)))


def test_every_transform_goes_through_it():
    package = Path(waveglow_jax.__file__).parent
    users = {path.name for path in package.rglob("*.py") if "jnp.fft" in path.read_text()}
    assert users == {"fourier.py"}
