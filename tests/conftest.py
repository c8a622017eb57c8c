"""Strict numerics for every test: eight CPU devices, no silent rank promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

from browser import browser  # noqa: E402, F401 - a fixture


@pytest.fixture(autouse=True)
def no_program_cache(monkeypatch):
    """Commands run by a test keep nothing in the user's cache folder."""
    monkeypatch.setattr("waveglow_jax.synthesis.program_cache.keep_programs", lambda folder: None)
