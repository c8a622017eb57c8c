"""Training on altered mels: off, nothing changes; on, only the mels of training clips do."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from scipy.ndimage import gaussian_filter1d
from test_training import batch_of, losses, recordings, stop_at, tiny_config  # noqa: F401

from waveglow_jax.config import config_from_dict, config_to_dict
from waveglow_jax.config_train import AlteredMels
from waveglow_jax.errors import UserError
from waveglow_jax.training import loop, step
from waveglow_jax.training.altered_mels import altered_mels, blurred, flattened
from waveglow_jax.training.parallel import (
    parallel_train_step,
    parallel_validation_step,
    replicate,
    split,
)
from waveglow_jax.training.step import init_state
from waveglow_jax.weights.release import read_weights

NOTHING = {
    "smoothing_frames": 0.0,
    "smoothing_bands": 0.0,
    "dropout_frames": 0,
    "dropout_bands": 0,
    "jitter": 0.0,
}
F, M = 20, 8
MEL = np.random.default_rng(0).normal(-4, 2, (F, M)).astype(np.float32)


def many(n: int, at: int = 5, mel: np.ndarray = MEL, **how) -> np.ndarray:
    """`[n, F, M]`: one mel, altered as each of n clips of a batch."""
    alter = quick_jit(altered_mels, static_argnums=(3, 4))
    mels = np.broadcast_to(mel, (n, *mel.shape))
    train = tiny_config().train
    return np.asarray(alter(mels, np.arange(n), np.int32(at), train, AlteredMels(**how)))


def config_with(**how):
    return tiny_config(altered_mels={"dropout_bands": 4, **how}, ema_decay=0.9)


# ------------------------------------------------------------------------------ the alterations


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("width", [0.3, 1.0, 2.7])
def test_the_blur_is_scipys(width, axis):
    ours = quick_jit(blurred, static_argnums=(2, 3))(MEL, np.float32(width), 9, axis)
    theirs = gaussian_filter1d(MEL.astype(np.float64), width, axis, mode="nearest", radius=9)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_blur_of_no_width_changes_no_bit():
    np.testing.assert_array_equal(blurred(MEL, jnp.float32(0), 6, 0), MEL)


@pytest.mark.parametrize(("start", "length"), [(0, 4), (5, 1), (3, 5), (4, 4), (2, 0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_range_takes_its_mean(start, length, axis):
    wanted = np.moveaxis(MEL.astype(np.float64), axis, 0).copy()
    if length:
        wanted[start : start + length] = wanted[start : start + length].mean(axis=0)
    ours = quick_jit(flattened, static_argnums=3)(MEL, start, length, axis)
    np.testing.assert_allclose(ours, np.moveaxis(wanted, 0, axis), atol=1e-5)


# ------------------------------------------------------------------------------ what is drawn


def test_as_many_clips_are_altered_as_the_probability_says():
    clips = many(4000, probability=0.3)
    same = (clips == MEL).all(axis=(1, 2))
    assert (~same).mean() == pytest.approx(0.3, abs=0.03)  # four standard deviations
    distinct = {clip.tobytes() for clip in clips[~same]}
    assert len(distinct) == (~same).sum()


def test_the_jitter_has_the_documented_sizes():
    noise = many(2000, probability=1.0, **{**NOTHING, "jitter": 0.4}) - MEL
    sizes = noise.std(axis=(1, 2))
    # Uniform between 0 and 0.4, each known to 1 / sqrt(2 F M) of itself.
    quartiles = np.quantile(sizes, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [0.1, 0.2, 0.3], atol=0.02)
    assert 0.38 < sizes.max() < 0.5
    assert abs(noise.mean()) < 0.002
    # Noise of one value tells nothing of its neighbours in time and in bands.
    unit = noise / sizes[:, None, None]
    for a, b in ((unit[:, 1:], unit[:, :-1]), (unit[:, :, 1:], unit[:, :, :-1])):
        assert abs((a * b).mean()) < 0.01


@pytest.mark.parametrize(("field", "axis"), [("smoothing_frames", 0), ("smoothing_bands", 1)])
def test_the_blurs_have_the_documented_widths(field, axis):
    """An impulse becomes a Gaussian, whose variance is the square of the width that was drawn."""
    impulse = np.zeros((31, 31), np.float32)
    impulse[15, 15] = 1
    clips = many(1000, mel=impulse, probability=1.0, **{**NOTHING, field: 2.0})
    profile = clips[:, :, 15] if axis == 0 else clips[:, 15, :]
    across = clips[:, 15, :] if axis == 0 else clips[:, :, 15]
    assert (np.count_nonzero(across, axis=1) == 1).all()
    np.testing.assert_allclose(profile.sum(axis=1), 1, atol=1e-5)
    widths = np.sqrt((profile * (np.arange(31) - 15) ** 2).sum(axis=1))
    # A sampled Gaussian's variance is the nominal one only from about half a sample on.
    np.testing.assert_allclose(np.quantile(widths, [0.5, 0.75]), [1.0, 1.5], atol=0.1)
    assert 1.8 < widths.max() < 2.0


@pytest.mark.parametrize(("field", "axis"), [("dropout_frames", 0), ("dropout_bands", 1)])
def test_the_ranges_have_the_documented_lengths_and_places(field, axis):
    clips = many(4000, probability=1.0, **{**NOTHING, field: 5})
    changed = np.abs(clips - MEL).max(axis=2 - axis) > 1e-4  # [clips, places]
    lengths = changed.sum(axis=1)
    # A range of one value is its own mean. The others are equally frequent.
    counts = np.bincount(lengths, minlength=6) / len(clips)
    np.testing.assert_allclose(counts, [2 / 6, 0, 1 / 6, 1 / 6, 1 / 6, 1 / 6], atol=0.03)
    size, starts = changed.shape[1], changed[lengths == 5].argmax(axis=1)
    assert set(starts) == set(range(size - 4))
    for clip, row in zip(clips[:200], changed[:200], strict=True):
        inside = np.compress(row, clip, axis=axis)
        assert np.ptp(inside, axis=axis).max() < 1e-4 if row.any() else True


def test_seed_step_and_place_in_the_batch_decide():
    first = many(8, probability=1.0)
    np.testing.assert_array_equal(first, many(8, probability=1.0))
    assert len({clip.tobytes() for clip in (*first, *many(8, at=6, probability=1.0))}) == 16
    # The place is that in the global batch: a device that holds rows 4 to 7 gets the same ones.
    train, how = tiny_config().train, AlteredMels(probability=1.0)
    alter = quick_jit(altered_mels, static_argnums=(3, 4))
    rows = alter(np.broadcast_to(MEL, (4, F, M)), np.arange(4, 8), np.int32(5), train, how)
    np.testing.assert_array_equal(rows, first[4:])
    other = alter(
        np.broadcast_to(MEL, (4, F, M)),
        np.arange(4, 8),
        np.int32(5),
        dataclasses.replace(train, seed=1),
        how,
    )
    assert not np.array_equal(other, first[4:])


# ------------------------------------------------------------------------------ the step


def seen(config, batch, monkeypatch, at: int = 5) -> tuple[np.ndarray, np.ndarray, float]:
    """Audio and mel that the flow gets in a training step, and the largest gradient."""
    got = []

    def forward(params, config, audio, mel, **_):
        got.append((audio, mel))
        z = audio[..., None] * params["a"] + mel.mean()
        return z, jnp.zeros(audio.shape[0])

    with monkeypatch.context() as patch:
        patch.setattr(step, "forward", forward)
        patch.setattr(
            step.jax, "value_and_grad", lambda f: lambda params: (f(params), jax.grad(f)(params))
        )
        with jax.disable_jit():
            _, gradients = step._value_and_gradients(
                {"a": jnp.float32(0.5)}, batch, config, jnp.int32(at), jnp.float32(0.002)
            )
    return np.asarray(got[0][0]), np.asarray(got[0][1]), float(gradients["a"])
