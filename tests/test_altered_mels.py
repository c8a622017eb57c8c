"""Training on altered mels: only the mels of training clips change, and only if it is on."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from scipy.ndimage import gaussian_filter1d
from test_training import batch_of, losses, recordings, stop_at, tiny_config  # noqa: F401

from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.config import Config, config_from_dict, config_to_dict
from waveglow_jax.config_train import AlteredMels
from waveglow_jax.errors import UserError
from waveglow_jax.training import loop, step
from waveglow_jax.training.altered_mels import altered_mels, blurred, flattened
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.parallel import AXIS, parallel_train_step, replicate, split
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


def config_with(noise_std: float = 0.002, **how) -> Config:
    return tiny_config(noise_std=noise_std, altered_mels={"dropout_bands": 4, **how}, ema_decay=0.9)


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
    # The noise of a value is independent of that of its neighbours in time and in bands.
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
    # A range of one value equals its mean and cannot be seen. Other lengths are equally frequent.
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


def seen(config, batch, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """The audio and the mel that the flow gets in training step 5."""
    got = []

    def forward(params, config, audio, mel, **_):
        got.append((np.asarray(audio), np.asarray(mel)))
        return audio[..., None] * params["a"], jnp.zeros(audio.shape[:1])

    with monkeypatch.context() as patch:
        patch.setattr(step, "forward", forward)
        number, noise = jnp.int32(5), jnp.float32(config.train.noise_std)
        step._value_and_gradients({"a": jnp.float32(1)}, batch, config, number, noise)
    return got[0]


@pytest.mark.parametrize("given", [False, True], ids=["own mels", "given mels"])
def test_only_the_mels_change(recordings, monkeypatch, given):  # noqa: F811
    off, on = tiny_config(ema_decay=0.9), config_with()
    batch = batch_of(off, recordings)
    mel = np.asarray(log_mel_of_padded(jnp.asarray(batch.clips), off))
    if given:
        mel = mel[::-1].copy()
        batch = batch._replace(mel=jnp.asarray(mel))
    (audio, unaltered), (same_audio, result) = (seen(c, batch, monkeypatch) for c in (off, on))
    np.testing.assert_array_equal(audio, same_audio)
    np.testing.assert_array_equal(unaltered, mel)
    how = on.train.altered_mels
    wanted = altered_mels(jnp.asarray(mel), batch.index, jnp.int32(5), on.train, how)
    np.testing.assert_array_equal(result, wanted)
    differs = (result != mel).any(axis=(1, 2))
    assert differs.any() and not differs.all()


def jaxpr(function, *arguments) -> str:
    return str(jax.make_jaxpr(function, axis_env=[(AXIS, 1)])(*arguments))


def test_off_adds_no_operation_and_validation_is_the_same(recordings):  # noqa: F811
    off, on = tiny_config(noise_std=0.0, ema_decay=0.9), config_with(noise_std=0.0)
    batch = batch_of(off, recordings)
    state = init_state(off)
    held_out = batch._replace(weight=jnp.ones(len(batch.clips)))
    validation = [
        jaxpr(lambda p, b, c=c: step.validation_step(p, b, c, AXIS), state.params, held_out)
        for c in (off, on)
    ]
    assert validation[0] == validation[1]
    programs = [
        jaxpr(lambda s, b, c=c: step.train_step(s, b, c, 9, AXIS), state, batch) for c in (off, on)
    ]
    assert ["random_bits" in program for program in programs] == [False, True]


@pytest.mark.devices(8)
@pytest.mark.slow
def test_eight_devices_get_the_mels_of_one(recordings):  # noqa: F811
    config = config_with(probability=0.9)
    batch = batch_of(config, recordings)
    results = []
    for n in (1, 8):
        devices = jax.devices()[:n]
        take = parallel_train_step(config, 9, devices)
        state, metrics = take(replicate(init_state(config), devices), split(batch, n))
        results.append(jax.tree.map(np.asarray, (state, metrics)))
    (one, one_metrics), (eight, eight_metrics) = results
    assert np.isfinite(one_metrics["gradient_norm"]) and not one_metrics["skipped"]
    np.testing.assert_allclose(one_metrics["loss"], eight_metrics["loss"], rtol=1e-5)
    norms = (m["gradient_norm"] for m in (one_metrics, eight_metrics))
    np.testing.assert_allclose(*norms, rtol=1e-3)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_gradients_are_finite_at_the_largest_strengths():
    """The clips are silence, full scale and a click, whitened by the altered mels."""
    config = config_with(
        probability=1.0,
        smoothing_frames=16,
        smoothing_bands=16,
        dropout_frames=9,
        dropout_bands=8,
        jitter=2,
    )
    clips = np.zeros((8, 2048 + 1024), np.float32)
    clips[1] = np.sign(np.sin(np.arange(clips.shape[1]) / 20))
    clips[2, 1500] = 1
    batch = Batch(jnp.asarray(clips), jnp.arange(8))
    take = quick_jit(step._value_and_gradients, static_argnums=2)
    for number in range(3):
        value, gradients = take(
            init_state(config).params, batch, config, jnp.int32(number), jnp.float32(0.002)
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_mels(recordings, tmp_path, monkeypatch):  # noqa: F811
    config = config_with()
    assert loop.train(config, str(recordings), tmp_path / "whole").stopped_by is None
    with monkeypatch.context() as patch:
        stop_at(patch, 5, signal.SIGINT)
        assert loop.train(config, str(recordings), tmp_path / "stopped").stopped_by
    assert loop.train(config, str(recordings), tmp_path / "stopped").stopped_by is None
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    ours, theirs = (read_weights(tmp_path / run).params for run in ("stopped", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ------------------------------------------------------------------------------ the config


def test_off_by_default_and_on_by_any_field():
    assert tiny_config().train.altered_mels is None
    on = config_from_dict({}, {"train.altered_mels.probability": 0.25})
    assert on.train.altered_mels == AlteredMels(probability=0.25)
    assert config_from_dict(config_to_dict(on)) == on


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"probability": 0}, r"altered_mels.probability 0.0 must be above 0"),
        ({"probability": 1.5}, r"altered_mels.probability 1.5 must .* at most 1"),
        ({"jitter": -1}, r"altered_mels.jitter -1.0 must be at least 0"),
        ({"dropout_frames": 64}, r"dropout_frames 64 must be at most 63, the number of frames of"),
        ({"dropout_bands": 81}, r"dropout_bands 81 must be at most 80, the number of bands of"),
        ({"smoothing": 1}, r"altered_mels.smoothing is no known field"),
    ],
)
def test_impossible_is_refused(how, message):
    with pytest.raises(UserError, match=message):
        config_from_dict({"train_config": {"altered_mels": how}})
