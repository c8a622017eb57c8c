"""The text of compiled programs, and the command with and without the compiler."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from waveglow_jax.config import load_config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import parameter_shapes
from waveglow_jax.performance.chips import CHIPS, link_seconds
from waveglow_jax.performance.hlo import Collective, collectives, instructions
from waveglow_jax.performance.preflight import (
    _compiled,
    _devices,
    as_json,
    as_text,
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


def test_collectives_are_found_with_their_bytes_and_whether_anything_overlaps_them():
    loop = TEXT.replace(
        "  %while.9", "  %reduce-scatter.1 = bf16[6]{0} reduce-scatter(%q)\n  %while.9"
    )
    entry = """
  %all-reduce.1 = (f32[3,5]{1,0:T(8,128)S(1)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=1
  %all-reduce.2 = f32[10]{0} all-reduce(%c), channel_id=2
  %all-reduce-start.3 = ((f32[100]{0}), f32[100]{0}) all-reduce-start(%d), channel_id=3
  %fusion.7 = f32[10,10]{0} fusion(%a), kind=kLoop
  %all-reduce-start.4 = ((f32[100]{0}), f32[100]{0}) all-reduce-start(%d), channel_id=4
  %fusion.8 = f32[1]{0} fusion(%a), kind=kLoop
  %all-reduce-done.4 = f32[100]{0} all-reduce-done(%all-reduce-start.4)
  %all-reduce-done.3 = f32[100]{0} all-reduce-done(%all-reduce-start.3)
  ROOT %fusion.1"""
    assert collectives(loop.replace("\n  ROOT %fusion.1", entry)) == (
        Collective("all-reduce", 3, 4 * 16 + 40 + 400, overlapped=False),
        Collective("all-reduce", 1, 400, overlapped=True),
        Collective("reduce-scatter", 10, 10 * 12, overlapped=False),
    )


def test_the_links_time_is_that_of_rings():
    """By hand, for 1 GB: a chip sends all but its own share once, and twice in an all-reduce."""
    of = Collective("all-reduce", 1, 10**9, overlapped=False)
    for topology, seconds in (
        ("v5e:1x1", 0),
        ("v5e:1x2", 2 * 0.5 / 50),  # two chips have one link between them
        ("v5e:2x4", 2 * 7 / 8 / 100),  # a ring of 8 through the rectangle, in both directions
        ("v5e:8x8", 2 * 63 / 64 / 100),
        ("v5e:16x16", 2 * 255 / 256 / 200),  # the axes close into rings
        ("v5p:2x2x1", 2 * 3 / 4 / 200),
        ("v5p:4x4x4", 2 * 63 / 64 / 600),
        ("v5p:2x4x4", 2 * 31 / 32 / 300),  # half a cube: nothing closes
        ("h100:8", 2 * 7 / 8 / 450),
        ("h100:64", 2 * 7 / 8 / 450 + 2 * 7 / 8 / 8 / 50),
    ):
        assert link_seconds(of, topology) == pytest.approx(seconds), topology
    gather = Collective("all-gather", 1, 10**9, overlapped=False)
    assert link_seconds(gather, "v5e:16x16") == pytest.approx(255 / 256 / 200)


@pytest.mark.devices(2)
def test_the_report_names_the_collectives():
    def step(x):
        return jax.lax.psum(x, "d"), jax.lax.all_gather(x * 2, "d")

    devices = jax.devices()[:2]
    function = jax.pmap(step, "d", devices=devices)
    shapes = (jax.ShapeDtypeStruct((2, 1 << 18), jnp.float32),)
    found = _compiled(function, shapes, CHIPS["v5e"], devices, "v5e:1x2", "train", 2, 512)
    gathered, reduced = found.collectives
    assert (gathered.kind, gathered.count, gathered.bytes) == ("all-gather", 1, 1 << 21)
    assert (reduced.kind, reduced.count, reduced.bytes) == ("all-reduce", 1, 1 << 20)
    wait = (1 << 20) * (1 + 1) / 50e9
    assert found.waiting_seconds == pytest.approx(wait)
    text = as_text(found)
    assert "2 collectives of 3.0 MiB together" in text
    assert "1 x all-reduce: 1.0 MiB per chip, overlapped by nothing" in text
    assert f"{1e3 * wait:.2f} ms" in text
    told = as_json(found)
    assert told["collective_bytes"] == 3 << 20 and told["collectives"][1]["kind"] == "all-reduce"
    # The CPU's compiler estimates no time. If a step took as long as the wait, a chip would wait
    # half of the time.
    estimated = dataclasses.replace(
        found, estimated_seconds=wait, estimated_samples_per_second=1.0, share_of_peak=0.5
    )
    assert "a chip waits for 50.0% of the step" in as_text(estimated)
    assert json.dumps(as_json(estimated)) and as_json(estimated)["waiting_share"] == 0.5


@pytest.mark.devices(2)
def test_flops_are_counted_by_hand():
    """A loop of five turns, forward and backward, on the given platform, for one device's share."""
    w = jnp.zeros((3, 3))

    def step(w, x):
        def turn(h, _):
            return jax.lax.platform_dependent(h, cpu=lambda h: h, default=lambda h: h @ w), None

        return jnp.sum(jax.lax.scan(turn, x, length=5)[0])

    function = jax.pmap(jax.grad(step), "d", in_axes=(None, 0), devices=jax.devices()[:2])
    jaxpr = jax.make_jaxpr(function)(w, jnp.zeros((2, 7, 3)))
    a_product = 2 * 7 * 3 * 3
    assert product_flops(jaxpr, "cpu") == 0
    # Forward, and backward to h and to w. The first turn needs no gradient of h, but the loop
    # computes it.
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
        ("libtpu", "v5e:8x8", "train"),
        ("libtpu", "v5p:2x2x1", "synthesize"),
        ("jax_cuda12_plugin", "h100:16", "train"),
    ],
)
def test_with_the_compiler(library, topology, task):
    pytest.importorskip(library)
    # A step of 8 clips needs no temporary bytes in a TPU's main memory.
    batch = "64" if task == "train" else "8"
    tiny = "--config", "configs/tiny.json", "--batch", batch, "--json"
    done = run(*tiny, "--topology", topology, "--task", task)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    chips = math.prod(int(side) for side in re.findall(r"\d+", topology.partition(":")[2]))
    assert found["fits"] and found["devices"] == (chips if task == "train" else 1)
    assert found["flops"] > 1e6 and found["temporary_bytes"] > 0
    assert (found["collective_count"] > 0) == (task == "train")
    if task == "train":  # every gradient is summed over the chips once, with the loss and notes
        (reduced,) = found["collectives"]
        config = load_config(ROOT / "configs/tiny.json")
        parameters = sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(config))
        )
        assert reduced["kind"] == "all-reduce" and not reduced["overlapped"]
        assert reduced["count"] == 1 and reduced["bytes"] == 4 * (parameters + 3)
    if topology.startswith("h100"):
        assert found["estimated_seconds"] is None and found["share_of_peak"] is None
    else:
        assert found["estimated_seconds"] > 0


@pytest.mark.slow
def test_a_small_step_takes_little_memory():
    """The optimizer's vector in the shape of a W would be padded to 32 times its size."""
    pytest.importorskip("libtpu")
    done = run("--config", "configs/tiny.json", "--batch", "8", "--json", "--topology", "v5e:2x4")
    found = json.loads(done.stdout)
    # Adam's two moments and the parameters: three vectors.
    assert found["temporary_bytes"] < 8 * found["argument_bytes"] / 3
