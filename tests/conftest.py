"""Strict numerics for every test: eight CPU devices, no silent rank promotion.

What one test compiles, another finds, in whatever process: for as long as the run lasts.
"""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first of all processes
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="waveglow_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"])

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

from browser import browser  # noqa: E402, F401 - a fixture


@pytest.fixture(autouse=True)
def no_program_cache(monkeypatch):
    """Commands run by a test keep nothing in the user's cache folder."""
    monkeypatch.setattr("waveglow_jax.synthesis.program_cache.keep_programs", lambda folder: None)
