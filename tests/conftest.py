"""Strict numerics for every test: eight CPU devices, no silent rank promotion.

`WAVEGLOW_JAX_TEST_DEVICE=accelerator pytest -n 0` runs the tests on the devices that JAX finds.
Float32 matmuls are exact there too (`highest`) unless a test asks for the device's default. Tests
that need more devices than JAX finds are skipped.

All tests of a run, in all its processes, share one cache of compiled programs.
"""

import atexit
import os
import shutil
import tempfile

ON_ACCELERATOR = os.environ.get("WAVEGLOW_JAX_TEST_DEVICE", "cpu") == "accelerator"
if not ON_ACCELERATOR:
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("NPROC", "16")  # XLA's threads: each waiting device occupies one
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first of all processes
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="waveglow_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"])

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
if ON_ACCELERATOR:
    jax.config.update("jax_default_matmul_precision", "highest")

from browser import browser  # noqa: E402, F401 - a fixture


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that are marked with more devices than there are."""
    there = jax.device_count()
    for item in items:
        marker = item.get_closest_marker("devices")
        if marker and marker.args[0] > there:
            reason = f"{marker.args[0]} devices are needed, {there} are there"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def no_program_cache(monkeypatch):
    """Commands that a test runs write nothing to the user's cache folder."""
    monkeypatch.setattr("waveglow_jax.synthesis.program_cache.keep_programs", lambda folder: None)


@pytest.fixture(autouse=True)
def float64_off_afterwards():
    """Switches float64 off after each test, because some commands switch it on for their
    process."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def no_full_scale(monkeypatch):
    """Disables the limit at full scale: random weights exceed it, and their samples stay as is."""
    monkeypatch.setattr("waveglow_jax.synthesis.levels.FULL_SCALE", float("inf"))
