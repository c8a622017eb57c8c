"""A conditioner and a bijection from outside the package work in everything that the flow does."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from test_waveglow import BINS, HOP, inputs, lively, small, to

from waveglow_jax.flow import steps, waveglow
from waveglow_jax.flow.likelihood import loss
from waveglow_jax.flow.waveglow import encode, forward, init, inverse, parameter_shapes
from waveglow_jax.performance.benchmark import forward_flops, random_voice
from waveglow_jax.synthesis.plan import context_of

DOCS = Path(__file__).parent.parent / "docs/explanation"


def toy(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def with_mlp(monkeypatch):
    """A config whose couplings have the perceptron."""
    found = toy("toy_conditioner")
    monkeypatch.setitem(steps.CONDITIONERS, found.MLPConfig, found.MLP_CONDITIONER)
    config = small(n_flows=2)
    return replace(config, waveglow=replace(config.waveglow, WN_config=found.MLPConfig(6)))


@pytest.fixture
def with_scale(monkeypatch):
    """A config with a scale in every flow."""
    bijections = steps.CONVOLUTION, toy("toy_bijection").SCALE, steps.COUPLING
    for module in (steps, waveglow):
        monkeypatch.setattr(module, "BIJECTIONS", bijections)
    return small(n_flows=2)


def holds_both_ways(config):
    """Checks the round trip and the log-determinants, against each other and the Jacobian."""
    with jax.enable_x64(True):
        params, (audio, mel, _) = to("float64", (lively(config), inputs(config, 32, 2)))

        def ahead(x):
            return forward(params, config, x, mel, dtype="float64")

        z, log_det = quick_jit(ahead)(audio)
        back, minus = quick_jit(lambda z: inverse(params, config, z, mel, dtype="float64"))(z)
        np.testing.assert_allclose(back, audio, atol=1e-9)
        np.testing.assert_allclose(log_det, -minus, atol=1e-9)

        def second(x):
            return ahead(jnp.stack([audio[0], x]))[0][1].ravel()

        jacobian = quick_jit(jax.jacrev(second))
        exact = np.linalg.slogdet(np.asarray(jacobian(audio[1])))[1]
        assert float(log_det[1]) == pytest.approx(exact, abs=1e-8)
        assert abs(exact) > 0.1


def learns(config):
    """A step along the gradient lowers the loss."""
    params, (audio, mel, _) = to("float32", (lively(config), inputs(config, 32, 2)))

    def objective(params):
        return loss(*forward(params, config, audio, mel, checkpoint_flows=True))

    before, gradient = quick_jit(jax.value_and_grad(objective))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    after = objective(jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient))
    assert float(after) < float(before)


def test_a_toy_conditioner_takes_wns_place(with_mlp):
    holds_both_ways(with_mlp)
    learns(with_mlp)
    fresh = init(jax.random.key(0), with_mlp)
    assert set(fresh["flows"][0]["wn"]) == {"in", "out"}
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, parameter_shapes(with_mlp))
    # Receptive field: two flows of one step, a frame; its FLOPs, two for each weight and step.
    assert context_of(with_mlp).right == 1
    kernels = sum(leaf.size for flow in fresh["flows"] for leaf in jax.tree.leaves(flow))
    upsampler = fresh["upsample"]["kernel"].size / HOP
    assert forward_flops(with_mlp, 64) == 2 * 64 * (kernels / 8 + upsampler)


@pytest.mark.slow
def test_a_voice_with_a_toy_conditioner_speaks_in_windows(with_mlp, no_full_scale):
    voice = random_voice(with_mlp)
    mel = np.random.default_rng(0).normal(size=(40, BINS)).astype(np.float32)
    whole = voice.synthesize(mel, consistency=0)
    assert whole.shape == (40 * HOP,)
    blocks = list(voice.stream(mel, chunk_frames=8, consistency=0))
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


def test_a_toy_bijection_joins_every_flow(with_scale):
    holds_both_ways(with_scale)
    learns(with_scale)
    fresh = init(jax.random.key(0), with_scale)
    assert list(fresh["flows"][1]) == ["conv", "scale", "wn"]
    audio, mel, _ = to("float32", inputs(with_scale, 32, 2))
    _, log_dets = encode(fresh, with_scale, audio, mel)
    kinds = [each.kind for each in log_dets if each.flow == 1]
    assert kinds == ["1x1 convolution", "scale", "coupling"]
