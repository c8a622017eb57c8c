"""What a compiled program's text tells, and the command where the compiler is or is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from waveglow_jax.lab.preflight import instructions

ROOT = Path(__file__).parent.parent
TEXT = """HloModule jit_f, is_scheduled=true

%inner (p: f32[4]) -> f32[4] {
  %deep.1 = f32[4]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"7"}
}

%body.2 (q: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion.3 = f32[4]{0} fusion(%q), kind=kLoop, backend_config={"estimated_cycles":"5"}
  %while.9 = (s32[], f32[4]) while(%t), condition=%cond.5, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

%never (r: f32[4]) -> f32[4] {
  %fusion.6 = f32[4]{0} fusion(%r), kind=kLoop, backend_config={"estimated_cycles":"1000"}
}

ENTRY %main.4 (a: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]) while(%t), condition=%cond.1, body=%body.2, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %fusion.1 = f32[4]{0} fusion(%a), kind=kLoop, backend_config={"estimated_cycles":"11"}
}
"""  # noqa: E501 - as the compiler prints it


def test_loops_count_as_often_as_they_run():
    cycles = {}
    for line, times in instructions(TEXT):
        if "estimated_cycles" in line:
            cycles[line.split("=")[0].strip()] = times
    assert cycles == {"%deep.1": 30, "%fusion.3": 10, "ROOT %fusion.1": 1}


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "waveglow_jax", "preflight", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def test_bad_topologies_are_one_line():
    for topology in ("v99:2x4", "v5e", "v5e:lots"):
        done = run("--topology", topology)
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert topology in line and "v5e:2x4" in line


def test_without_the_compiler_the_remedy_is_told():
    try:
        import libtpu  # noqa: F401
    except ImportError:
        done = run("--config", "configs/tiny.json", "--batch", "8")
        assert done.returncode == 1
        assert "waveglow-jax[tpu-preflight]" in done.stderr
    else:
        pytest.skip("the compiler is installed")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["train", "synthesize"])
def test_with_the_compiler(task):
    pytest.importorskip("libtpu")
    done = run("--config", "configs/tiny.json", "--task", task, "--batch", "8", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["devices"] == (8 if task == "train" else 1)
    assert found["flops"] > 1e6 and found["estimated_seconds"] > 0
    assert (found["collective_count"] > 0) == (task == "train")
    if task == "train":  # every gradient is summed over the chips once
        assert found["collective_bytes"] > 4 * 1000
