"""Programs are traced once for many runs, and again whenever anything about them has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from waveglow_jax.synthesis import kept_traces
from waveglow_jax.synthesis.kept_traces import SUFFIX, compile_once


@pytest.fixture
def folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def run(traced: list[str], factor: float = 2.0, made_for=None, length: int = 3) -> np.ndarray:
    def function(x):
        traced.append("once more")
        return {"scaled": factor * x}

    x = jnp.arange(float(length))
    program = compile_once(
        function, x, name="scaling", devices=jax.devices()[:1], made_for=made_for or factor
    )
    return np.asarray(program(x)["scaled"])


def test_the_second_run_does_not_trace(folder):
    first, second = [], []
    assert (run(first) == run(second)).all()
    assert len(first) == 1 and not second


def test_whatever_changes_is_traced_again(folder, monkeypatch):
    run([])
    for change in ({"factor": 3.0}, {"length": 4}, {"made_for": "another"}):
        traced = []
        run(traced, **change)
        assert traced, change
    monkeypatch.setattr(kept_traces, "_sources", lambda: "a line of the package changed")
    traced = []
    run(traced)
    assert traced


def test_a_damaged_file_is_made_anew(folder):
    right = run([])
    (path,) = folder.glob(f"*{SUFFIX}")
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-1], whole[:100] + b"?" + whole[101:]):
        path.write_bytes(damaged)
        traced = []
        assert (run(traced) == right).all() and traced
        assert len(path.read_bytes()) == len(whole)


def test_the_oldest_ones_go(folder, monkeypatch):
    monkeypatch.setattr(kept_traces, "MOST_KEPT", 3)
    for length in range(1, 7):
        run([], length=length)
    assert len(list(folder.glob(f"*{SUFFIX}"))) == 3
    traced = []
    run(traced, length=6)
    assert not traced


def test_what_other_processes_delete_meanwhile_is_no_fault(folder, monkeypatch):
    (folder / f".unfinished{SUFFIX}").symlink_to("gone")  # it is listed but no longer exists
    assert (run([]) == run([])).all()

    def full(path):
        raise OSError("no space left")

    monkeypatch.setattr(kept_traces, "replacing", full)
    assert len(run([], length=5)) == 5  # nothing can be stored


def test_without_a_cache_nothing_is_kept(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    run([])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("with_x64", [True, False])
def test_a_trace_made_with_float64_switched_on_serves_only_such_runs(folder, with_x64):
    """With float64 on, random numbers are float64 and have other values."""

    def drawn(x):
        return x + jax.random.normal(jax.random.key(0), x.shape)

    def run_drawn() -> np.ndarray:
        x = np.zeros(3, np.float32)
        program = compile_once(drawn, x, name="drawn", devices=jax.devices()[:1])
        return np.asarray(program(x))

    for on in (with_x64, not with_x64):
        with jax.enable_x64(on):
            found = run_drawn()
        assert found.dtype == ("float64" if on else "float32")
