"""What a compiled program's text tells, and the command where the compiler is or is not there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from waveglow_jax.errors import UserError
from waveglow_jax.performance.preflight import (
    CHIPS,
    _compiled,
    _devices,
    instructions,
    product_flops,
)

ROOT = Path(__file__).parent.parent
TEXT = """HloModule jit_f, is_scheduled=true

%inner (p: f32[4]) -> f32[4] {
  %deep.1 = f32[4]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"7"}
}

%body.2 (q: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion.3 = f32[4]{0} fusion(%q), kind=kLoop, backend_config={"estimated_cycles":"5"}
  %while.9 = (s32[], f32[4]) while(%t), condition=%cond.5, body=%inner, metadata={op_name="a"}
}

%cond.5 (u: (s32[], f32[4])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%get.1, %constant.2), direction=LT, metadata={op_name="b"}
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


@pytest.mark.devices(2)
def test_flops_are_counted_by_hand():
    """A loop of five, both directions, on the platform asked for, one device's share."""
    w = jnp.zeros((3, 3))

    def step(w, x):
        def turn(h, _):
            return jax.lax.platform_dependent(h, cpu=lambda h: h, default=lambda h: h @ w), None

        return jnp.sum(jax.lax.scan(turn, x, length=5)[0])

    function = jax.pmap(jax.grad(step), "d", in_axes=(None, 0), devices=jax.devices()[:2])
    jaxpr = jax.make_jaxpr(function)(w, jnp.zeros((2, 7, 3)))
    a_product = 2 * 7 * 3 * 3
    assert product_flops(jaxpr, "cpu") == 0
    # There, and back by h and by w, except by h in the first turn, which is not taken out.
    assert product_flops(jaxpr, "tpu") == 3 * 5 * a_product
    image, kernel = jnp.zeros((1, 2, 8)), jnp.zeros((6, 2, 3))
    jaxpr = jax.make_jaxpr(lambda x, k: jax.lax.conv(x, k, (1,), "VALID"))(image, kernel)
    assert product_flops(jaxpr, "tpu") == 2 * 6 * 6 * 2 * 3


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "waveglow_jax", "preflight", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


@pytest.mark.slow
def test_bad_topologies_are_one_line():
    for topology in ("v99:2x4", "v5e:lots", "h100:0", "h100:12"):
        with pytest.raises(UserError) as error:
            _devices(topology)
        line = str(error.value)
        assert topology in line and ("v5e:2x4" in line or "eights" in line)
    done = run("--topology", "v5e")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "v5e:2x4" in line


def test_what_the_compiler_finds_too_large_is_one_line():
    class TooLarge:
        def __call__(self, x):
            return x

        def lower(self, x):
            return self

        def compile(self):
            text = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, 34.51G exceeds 15.75G.\n\n more"
            raise jax.errors.JaxRuntimeError(text)

    with pytest.raises(UserError) as error:
        _compiled(TooLarge(), (jnp.zeros(1),), CHIPS["v5e"], [], "v5e:2x4", "train", 24, 384_000)
    line = str(error.value)
    assert "batch 24" in line and "34.51G exceeds 15.75G" in line and "--batch" in line
    assert "\n" not in line and "more" not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "topology", "extra"),
    [("libtpu", "v5e:2x4", "tpu"), ("jax_cuda12_plugin", "h100:8", "cuda12")],
)
def test_without_the_compiler_the_remedy_is_told(library, topology, extra):
    if importlib.util.find_spec(library):
        pytest.skip("the compiler is installed")
    done = run("--config", "configs/tiny.json", "--batch", "8", "--topology", topology)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert f"waveglow-jax[{extra}]" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "topology", "task"),
    [
        ("libtpu", "v5e:2x4", "train"),
        ("libtpu", "v5p:2x2x1", "synthesize"),
        ("jax_cuda12_plugin", "h100:8", "train"),
    ],
)
def test_with_the_compiler(library, topology, task):
    pytest.importorskip(library)
    # A step of 8 clips leaves nothing in a TPU's main memory.
    batch = "64" if task == "train" else "8"
    tiny = "--config", "configs/tiny.json", "--batch", batch, "--json"
    done = run(*tiny, "--topology", topology, "--task", task)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] and found["devices"] == (8 if task == "train" else 1)
    assert found["flops"] > 1e6 and found["temporary_bytes"] > 0
    assert (found["collective_count"] > 0) == (task == "train")
    if task == "train":  # every gradient is summed over the chips once
        assert found["collective_bytes"] > 4 * 1000
    if topology.startswith("h100"):
        assert found["estimated_seconds"] is None and found["share_of_peak"] is None
    else:
        assert found["estimated_seconds"] > 0


@pytest.mark.slow
def test_a_small_step_takes_little_memory():
    """The optimizer's vector, shaped as a 1x1 convolution's W, would be padded to 32 times that."""
    pytest.importorskip("libtpu")
    done = run("--config", "configs/tiny.json", "--batch", "8", "--json", "--topology", "v5e:2x4")
    found = json.loads(done.stdout)
    # Adam's two moments and the parameters: three vectors.
    assert found["temporary_bytes"] < 8 * found["argument_bytes"] / 3
