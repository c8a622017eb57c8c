"""Adam's state in a published training run: each moment finds its weight, and Adam goes on from
it."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_vocoder import lively_params

from waveglow_jax.config import Config, config_from_dict
from waveglow_jax.files.torch_file import open_torch, write_torch
from waveglow_jax.training.step import init_state, optimizer
from waveglow_jax.weights.nvidia import read_published, write_original
from waveglow_jax.weights.release import read_weights


def small() -> Config:
    """A config of the original's kind: groups of 8, conditioned by sample, two layers."""
    return config_from_dict(
        {
            "waveglow_config": {
                **{"n_mel_channels": 4, "n_flows": 3, "n_early_every": 2, "upsample_kernel": 1024},
                "WN_config": {"n_layers": 2, "n_channels": 4},
            },
            "train_config": {"learning_rate": 1e-3},
        }
    )


@pytest.fixture(scope="module")
def tensors(tmp_path_factory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("original") / "a.pt"
    write_original(path, small(), lively_params(small()))
    with open_torch(path) as file:
        return {name: file.array(t) for name, t in file.tree["state_dict"].items()}


def random_like(tensors, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.uniform(0.1, 1, t.shape).astype(np.float32) for n, t in tensors.items()}


def with_adam(tensors, means, squares) -> dict:
    """A checkpoint as older versions of PyTorch write it: the optimizer's keys have no order."""
    keys = [100_000 - 7 * i for i in range(len(tensors))]
    state = {
        key: {"step": 321, "exp_avg": means[name], "exp_avg_sq": squares[name]}
        for key, name in reversed(list(zip(keys, tensors, strict=True)))
    }
    optimizer = {"state": state, "param_groups": [{"lr": 1e-4, "params": keys}]}
    return {"state_dict": tensors, "optimizer": optimizer, "iteration": 321}


def as_params(tmp_path, tensors):
    write_torch(tmp_path / "tensors.pt", {"state_dict": tensors})
    return read_published(tmp_path / "tensors.pt").params


def equal(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


@pytest.mark.slow
def test_every_moment_goes_where_its_weight_goes(tmp_path, tensors):
    means, squares = random_like(tensors, 1), random_like(tensors, 2)
    write_torch(tmp_path / "run.pt", with_adam(tensors, means, squares))
    found = read_weights(tmp_path / "run.pt", with_moments=True)
    assert found.moments.count == 321
    assert not any("optimizer" in note for note in found.notes)
    # The reader that moves weights to their places moves a file of means to the same places.
    assert equal(found.moments.mean, as_params(tmp_path, means))
    assert equal(found.moments.square, as_params(tmp_path, squares))
    of_layer = means["WN.1.cond_layer.weight_v"]  # both layers' rows, one above the other
    second = found.moments.mean["flows"][1]["wn"]["cond_layer_1"]["v"]
    np.testing.assert_array_equal(second[0], of_layer[8:, :, 0].T)
    assert read_weights(tmp_path / "run.pt").moments is None
    state = init_state(small(), found.params, found.moments)
    adam = next(part for part in state.optimizer if hasattr(part, "mu"))
    assert int(adam.count) == 321 and float(adam.mu.sum()) == pytest.approx(
        sum(float(m.sum()) for m in means.values()), rel=1e-4
    )


def other_shape(run, tensors):
    key = run["optimizer"]["param_groups"][0]["params"][4]
    run["optimizer"]["state"][key]["exp_avg_sq"] = np.zeros(3, np.float32)


def without_one(run, tensors):
    del run["optimizer"]["state"][run["optimizer"]["param_groups"][0]["params"][-1]]


def two_groups(run, tensors):
    run["optimizer"]["param_groups"] *= 2


def another_number(run, tensors):
    run["optimizer"]["param_groups"][0]["params"].pop()


def another_step(run, tensors):
    run["optimizer"]["state"][run["optimizer"]["param_groups"][0]["params"][2]]["step"] = 320


def another_order(run, tensors):
    run["optimizer"]["param_groups"][0]["params"].reverse()


def none_at_all(run, tensors):
    del run["optimizer"]


def empty(run, tensors):
    run["optimizer"] = {"state": {}, "param_groups": []}


def folded(run, tensors):
    """weight_g and weight_v as one plain weight, as in a model made ready for synthesis."""
    kept = {n: t for n, t in tensors.items() if not n.endswith("weight_g")}
    names = {n: n.replace("weight_v", "weight") for n in kept}
    full = with_adam(kept, kept, kept)
    run.clear()
    run.update({**full, "state_dict": {names[n]: t for n, t in kept.items()}})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (other_shape, "of another shape"),
        (without_one, "missing or of another shape"),
        (two_groups, "several groups"),
        (another_number, "another number of parameters"),
        (another_step, "same number of steps"),
        (another_order, "of another shape"),
        (none_at_all, "none in the file"),
        (empty, "none in the file"),
        (folded, "not normalised"),
    ],
)
def test_what_is_not_certain_is_left_out_and_said(tmp_path, tensors, change, why):
    run = with_adam(tensors, tensors, tensors)
    change(run, tensors)
    write_torch(tmp_path / "run.pt", run)
    found = read_weights(tmp_path / "run.pt", with_moments=True)
    assert found.moments is None
    assert [why in note for note in found.notes if "optimizer state left out" in note] == [True]


def test_a_release_has_no_optimizer_state():
    found = read_weights(None, with_moments=True)
    assert found.moments is None and any("optimizer state left out" in n for n in found.notes)


def test_adam_goes_on_as_pytorch_would(tmp_path, tensors):
    """PyTorch makes three steps and saves; then both PyTorch and this package make the fourth."""
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.from_numpy(t.copy())) for name, t in tensors.items()}
    adam = torch.optim.Adam(params.values(), lr=1e-3)

    def step(seed: int) -> dict[str, np.ndarray]:
        gradients = random_like(tensors, seed)
        for name, parameter in params.items():
            parameter.grad = torch.from_numpy(gradients[name])
        adam.step()
        return gradients

    for seed in (5, 6, 7):
        step(seed)
    state = {name: p.detach() for name, p in params.items()}
    torch.save({"state_dict": state, "optimizer": adam.state_dict()}, tmp_path / "run.pt")
    found = read_weights(tmp_path / "run.pt", with_moments=True)
    assert found.moments.count == 3
    config = dataclasses.replace(small(), waveglow=found.config.waveglow)
    ours = init_state(config, found.params, found.moments)
    gradients = as_params(tmp_path, step(8))
    updates, _ = optimizer(config.train).update(ravel_pytree(gradients)[0], ours.optimizer)
    new = ravel_pytree(ours.params)[0] - 1e-3 * updates
    theirs = as_params(tmp_path, {name: p.detach().numpy() for name, p in params.items()})
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(*map(jax.tree.leaves, (theirs, found.params)), strict=True)
    ]
    assert min(moved) > 1e-4
    np.testing.assert_allclose(new, ravel_pytree(theirs)[0], atol=2e-6)
