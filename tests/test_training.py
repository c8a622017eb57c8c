"""Training: its data, its steps, and that a stop changes nothing."""

import dataclasses
import json
import resource
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from compiling import quick_jit

from waveglow_jax.audio.mel import log_mel, log_mel_of_padded
from waveglow_jax.config import (
    Config,
    SynthesisConfig,
    config_from_dict,
    config_to_dict,
    load_config,
)
from waveglow_jax.config_data import MelConfig
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.errors import UserError
from waveglow_jax.training import loop
from waveglow_jax.training.checkpoints import Checkpoints, Plateau, Progress
from waveglow_jax.training.dataset import (
    Corpus,
    Recording,
    read_context_clip,
    scan_corpus,
    training_batches,
    validation_batches,
)
from waveglow_jax.training.folder import claim_folder
from waveglow_jax.training.parallel import (
    check_batch,
    parallel_train_step,
    parallel_validation_step,
    replicate,
    split,
)
from waveglow_jax.training.step import init_state, schedule
from waveglow_jax.training.watching.monitor import Monitor
from waveglow_jax.weights.release import read_weights

RATE = 22050
PROGRESS = Progress(Plateau(), 0, None)


def tiny_config(**train) -> Config:
    return config_from_dict(
        {
            "waveglow_config": {
                "n_mel_channels": 8,
                "n_flows": 2,
                "n_group": 8,
                "upsample_kernel": 512,
                "conditioning": "group",
                "mel_whitening": {"block": 8, "floor": 0.002},
                "WN_config": {"n_layers": 1, "n_channels": 4},
            },
            "data_config": {"segment_length": 2048},
            "train_config": {
                "steps": 9,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "noise_std": 0.002,
                "validation_fraction": 0.3,
                "validation_clips": 8,
                "iters_per_validation": 4,
                "iters_per_checkpoint": 4,
                "keep_checkpoints": 2,
                "synthesis_clips": 0,
                **train,
            },
        }
    )


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """A voiced buzz with a moving pitch and some breath, in which no two places are alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 40 * np.sin(2 * np.pi * (1 + seed) * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.1 * buzz + 0.01 * rng.normal(size=t.size)).astype(np.float32)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", speech_like(0.6 + 0.2 * i, i), RATE, subtype="PCM_16")
    return folder


# ------------------------------------------------------------------------------ data


@pytest.mark.parametrize("frames", ["centred", HALF_HOP])
@pytest.mark.parametrize("segment", [2048, 2000])
def test_clip_has_the_mel_frames_of_the_whole_recording(tmp_path, segment, frames):
    config = tiny_config()
    mel = MelConfig(frames=frames)
    data = dataclasses.replace(config.data, segment_length=segment, mel=mel)
    config = dataclasses.replace(config, data=data)
    lead = {"centred": 512, HALF_HOP: 384}[frames]
    audio = speech_like(0.5, 3)
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    whole = np.asarray(log_mel(jnp.asarray(audio), config))
    last = (len(audio) - (segment if frames == "centred" else 2048)) // 256
    for frame in (0, 1, 2, 3, last // 2, last - 2, last - 1, last):
        clip = read_context_clip(Recording(path, len(audio)), frame, config)
        mel = np.asarray(log_mel_of_padded(jnp.asarray(clip), config))
        assert mel.shape == (config.clip_frames, 8)
        np.testing.assert_allclose(mel, whole[frame : frame + len(mel)], atol=2e-4)
        inside = clip[lead : lead + segment]
        np.testing.assert_array_equal(inside, audio[frame * 256 : frame * 256 + segment])


@pytest.mark.parametrize("frames", ["centred", HALF_HOP])
@pytest.mark.parametrize("length", [600, 1500, 2047, 2048, 2049, 2300, 2600])
def test_recording_about_as_short_as_a_clip(tmp_path, length, frames):
    config = tiny_config()
    data = dataclasses.replace(config.data, mel=MelConfig(frames=frames))
    config = dataclasses.replace(config, data=data)
    lead = {"centred": 512, HALF_HOP: 384}[frames]
    audio = speech_like(length / RATE + 0.001, 1)[:length]
    path = tmp_path / "short.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    filled = np.pad(audio, (0, max(0, 2048 - length)))
    clip = read_context_clip(Recording(path, length), 0, config)
    np.testing.assert_array_equal(clip[lead : lead + 2048], filled[:2048])
    mel = np.asarray(log_mel_of_padded(jnp.asarray(clip), config))
    whole = np.asarray(log_mel(jnp.asarray(filled), config))
    np.testing.assert_allclose(mel, whole[: len(mel)], atol=2e-4)


def test_batches_are_a_function_of_the_position(recordings):
    config = tiny_config()
    corpus = scan_corpus(str(recordings), config)

    def take(n, first_position):
        batches = training_batches(corpus.training, config, first_position)
        return [next(batches).clips for _ in range(n)]

    straight = take(5, first_position=0)
    for resumed, whole in zip(take(3, first_position=16), straight[2:], strict=True):
        np.testing.assert_array_equal(resumed, whole)
    assert not np.array_equal(straight[0], straight[1])
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert not np.array_equal(next(training_batches(corpus.training, other)).clips, straight[0])


def test_every_recording_comes_as_often_as_clips_fit_into_it(recordings):
    config = tiny_config(batch_size=1)
    corpus = scan_corpus(str(recordings), config)
    of_sample = {}
    for recording in corpus.training:
        audio, _ = soundfile.read(recording.path, dtype="float32")
        for frame in range(len(audio) // 256):
            of_sample[audio[frame * 256 : frame * 256 + 8].tobytes()] = recording.path
    fits = {r.path: round(r.n_samples / 2048) for r in corpus.training}
    batches = training_batches(corpus.training, config)
    seen = [of_sample[next(batches).clips[0, 512:520].tobytes()] for _ in range(sum(fits.values()))]
    assert {path: seen.count(path) for path in fits} == fits


def test_held_out_recordings_are_never_trained_on(recordings, tmp_path):
    by_fraction = scan_corpus(str(recordings), tiny_config())
    assert len(by_fraction.validation) == 2
    assert not set(by_fraction.training) & set(by_fraction.validation)
    listed = tmp_path / "held_out.txt"
    listed.write_text(f"{recordings}/1.wav\n{recordings}/4.wav\n")
    by_list = scan_corpus(str(recordings), tiny_config(validation_files=str(listed)))
    assert [r.path.name for r in by_list.validation] == ["1.wav", "4.wav"]
    assert [r.path.name for r in by_list.training] == ["0.wav", "2.wav", "3.wav", "5.wav"]


def test_unusable_recordings_are_left_out_by_name(recordings, tmp_path):
    soundfile.write(tmp_path / "good.wav", speech_like(0.5, 0), RATE)
    soundfile.write(tmp_path / "slow.wav", speech_like(0.5, 0), 16000)
    (tmp_path / "torn.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:5000])
    corpus = scan_corpus(str(tmp_path), tiny_config(validation_fraction=0.0))
    assert [r.path.name for r in corpus.training] == ["good.wav"]
    assert ["slow.wav" in line or "torn.wav" in line for line in corpus.left_out] == [True, True]
    (tmp_path / "good.wav").unlink()
    with pytest.raises(UserError, match="no usable recording"):
        scan_corpus(str(tmp_path), tiny_config())


@pytest.mark.slow
def test_worker_processes_change_nothing(recordings):
    corpus = scan_corpus(str(recordings), tiny_config())
    alone = training_batches(corpus.training, tiny_config())
    workers = training_batches(corpus.training, tiny_config(num_workers=2))
    for _ in range(4):
        np.testing.assert_array_equal(next(alone).clips, next(workers).clips)


# ------------------------------------------------------------------------------ step


def batch_of(config: Config, recordings) -> dict[str, np.ndarray]:
    corpus = scan_corpus(str(recordings), config)
    return next(training_batches(corpus.training, config))


@pytest.mark.devices(8)
def test_one_step_on_eight_devices_equals_one_on_one(recordings):
    config = tiny_config(gradient_clip=0.5, ema_decay=0.9)
    batch = batch_of(config, recordings)
    results = []
    for n in (1, 8):
        devices = jax.devices()[:n]
        state = replicate(init_state(config), devices)
        step = parallel_train_step(config, 9, devices)
        for _ in range(2):
            state, metrics = step(state, split(batch, n))
        assert all(leaf.shape == () for leaf in jax.tree.leaves(metrics))
        results.append(jax.tree.map(np.asarray, (state, metrics)))
    (one, one_metrics), (eight, eight_metrics) = results
    np.testing.assert_allclose(one_metrics["loss"], eight_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(
        one_metrics["gradient_norm"], eight_metrics["gradient_norm"], rtol=1e-3
    )
    # Adam divides a gradient by its own size, so a gradient of rounding noise gives a step of
    # noise. Agreement of two steps of 1e-3 to a twentieth of a step still reveals a wrong mean.
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.devices(2)
@pytest.mark.slow
def test_a_batch_in_parts_is_the_whole(recordings):
    """Noise and mean are those of the undivided batch, and so is the step."""
    results = []
    for parts in (1, 4):
        config = tiny_config(gradient_accumulation=parts, checkpoint_flows=parts > 1)
        devices = jax.devices()[:2]
        step = parallel_train_step(config, 9, devices)
        state = replicate(init_state(config), devices)
        for _ in range(2):
            state, metrics = step(state, split(batch_of(config, recordings), 2))
        results.append(jax.tree.map(np.asarray, (state.params, metrics)))
    (whole, whole_metrics), (in_parts, parts_metrics) = results
    np.testing.assert_allclose(whole_metrics["loss"], parts_metrics["loss"], rtol=1e-5)
    norms = (m["gradient_norm"] for m in (whole_metrics, parts_metrics))
    np.testing.assert_allclose(*norms, rtol=1e-3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(in_parts), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match=r"batch_size 8 .* gradient_accumulation 3"):
        tiny_config(gradient_accumulation=3)
    with pytest.raises(UserError, match=r"8 devices, 2 parts each .* take 16 or 32"):
        check_batch(tiny_config(batch_size=24, gradient_accumulation=2), 8)


@pytest.mark.slow
def test_first_step_is_adams(recordings):
    """The reference is optax alone on a gradient without pmap, clipping, noise or EMA."""
    config = tiny_config(noise_std=0.0)
    batch = batch_of(config, recordings)
    state = init_state(config)
    from waveglow_jax.flow.likelihood import loss
    from waveglow_jax.flow.waveglow import forward

    mel = log_mel_of_padded(batch.clips, config)
    audio = jnp.asarray(batch.clips[:, 512 : 512 + 2048])
    gradient = quick_jit(jax.grad(lambda p: loss(*forward(p, config, audio, mel))))(state.params)
    adam = optax.adam(1e-3)
    updates, _ = quick_jit(adam.update)(gradient, adam.init(state.params))
    expected = optax.apply_updates(state.params, updates)
    step = parallel_train_step(config, 9, jax.devices()[:1])
    ours, metrics = step(replicate(init_state(config), jax.devices()[:1]), split(batch, 1))
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    norm = np.sqrt(sum(float(np.sum(np.square(u))) for u in jax.tree.leaves(updates)))
    assert float(metrics["update_norm"]) == pytest.approx(norm, rel=1e-2)
    norm = np.sqrt(sum(float(np.sum(np.square(p))) for p in jax.tree.leaves(expected)))
    assert float(metrics["parameter_norm"]) == pytest.approx(norm, rel=1e-4)


@pytest.mark.slow
def test_non_finite_loss_changes_nothing_but_the_counters(recordings):
    config = tiny_config(ema_decay=0.9)
    batch = batch_of(config, recordings)
    step = parallel_train_step(config, 9, jax.devices()[:1])
    state, _ = step(replicate(init_state(config), jax.devices()[:1]), split(batch, 1))
    before = jax.tree.map(np.asarray, state)
    bad = batch._replace(clips=batch.clips.copy())
    bad.clips[3, 1000] = np.nan
    state, metrics = step(state, split(bad, 1))
    state, metrics = step(state, split(bad, 1))
    assert (int(metrics["skipped"]), int(metrics["bad_in_a_row"])) == (2, 2)
    assert float(metrics["update_norm"]) == 0.0
    for name in ("params", "optimizer", "ema"):
        old, new = getattr(before, name), getattr(state, name)
        jax.tree.map(np.testing.assert_array_equal, old, jax.tree.map(np.asarray, new))
    state, metrics = step(state, split(batch, 1))
    assert (int(metrics["skipped"]), int(metrics["bad_in_a_row"])) == (2, 0)
    assert int(state.step) == 4


def test_schedule():
    train = tiny_config(
        warmup_steps=10,
        decay_start=0.5,
        final_learning_rate=1e-5,
        noise_std=0.01,
        final_noise_std=0.0001,
    ).train
    at = {step: schedule(train, 100, jnp.asarray(step)) for step in (0, 9, 49, 75, 100, 200)}
    rates = {step: float(s.learning_rate) for step, s in at.items()}
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[49] == pytest.approx(1e-3)
    assert rates[75] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == rates[200] == pytest.approx(1e-5)
    assert float(at[49].noise) == pytest.approx(0.01)
    assert float(at[75].noise) == pytest.approx(0.001)
    assert float(at[100].noise) == pytest.approx(0.0001)
    constant = schedule(tiny_config().train, 100, jnp.asarray(99))
    assert float(constant.learning_rate) == pytest.approx(1e-3)
    assert float(constant.noise) == pytest.approx(0.002)


@pytest.mark.devices(2)
@pytest.mark.slow
def test_validation_counts_every_clip_once(recordings):
    """The mean over 5 clips in two batches of 4 is that of the 5 clips one by one."""
    config = tiny_config(validation_clips=5)
    held_out = scan_corpus(str(recordings), config).validation
    params = init_state(config).params
    devices = jax.devices()[:2]
    step = parallel_validation_step(config, devices)
    batches = validation_batches(held_out, config, 4)
    assert [b.weight.tolist() for b in batches] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    sums = [step(params, split(b, 2)) for b in batches]
    assert sum(float(s["weight"]) for s in sums) == 5
    singly = parallel_validation_step(config, devices[:1])
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    alone = [
        float(singly(params, split(jax.tree.map(lambda v, i=i: v[i : i + 1], whole), 1))["nats"])
        for i in range(5)
    ]
    assert sum(float(s["nats"]) for s in sums) == pytest.approx(sum(alone), rel=1e-5)


# ------------------------------------------------------------------------------ runs


def losses(run) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def stop_at(monkeypatch, step: int, number: signal.Signals) -> None:
    tell = Monitor.step

    def tell_and_stop(self, at, metrics):
        tell(self, at, metrics)
        if at == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Monitor, "step", tell_and_stop)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_by_bit(recordings, tmp_path, monkeypatch):
    number = signal.SIGINT
    config = tiny_config(ema_decay=0.9)
    assert loop.train(config, str(recordings), tmp_path / "whole").stopped_by is None
    with monkeypatch.context() as patch:
        stop_at(patch, 5, number)
        assert loop.train(config, str(recordings), tmp_path / "stopped").stopped_by == number
    assert max(losses(tmp_path / "stopped")) < 9
    assert loop.train(config, str(recordings), tmp_path / "stopped").stopped_by is None
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "whole")) == list(range(1, 10))
    ours, theirs = (read_weights(tmp_path / run).params for run in ("stopped", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_complete_run_has_nothing_left_to_do(recordings, tmp_path, monkeypatch):
    """No weights are drawn, nothing is compiled, no clip is read."""
    config = tiny_config(steps=2, iters_per_validation=1)
    assert loop.train(config, str(recordings), tmp_path).stopped_by is None
    before = losses(tmp_path)

    def never(*_, **__):
        raise AssertionError("there is nothing left to do")

    for name in ("init_state", "_Session", "training_batches", "validation_batches"):
        monkeypatch.setattr(loop, name, never)
    assert loop.train(config, str(recordings), tmp_path).stopped_by is None
    assert losses(tmp_path) == before


def test_a_run_that_was_stopped_in_its_last_validation_is_not_complete():
    config, recording = tiny_config(steps=4, iters_per_validation=2), Recording(Path("a.wav"), 1)
    held_out, none = Corpus((recording,), (recording,), ()), Corpus((recording,), (), ())
    validated, not_yet = loop.Plateau(1.0, 0, 4), loop.Plateau(1.0, 0, 2)
    assert loop._is_complete(4, 4, validated, held_out, config)
    assert not loop._is_complete(4, 4, not_yet, held_out, config)
    assert loop._is_complete(4, 4, not_yet, none, config)
    assert not loop._is_complete(3, 4, validated, none, config)


def test_a_folder_of_recordings_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "a.WAV").touch()
    with pytest.raises(UserError, match="holds recordings and no run"):
        claim_folder(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["a.WAV"]
    (tmp_path / "a.WAV").rename(tmp_path / "log.txt")
    claim_folder(tmp_path, Config())


@pytest.mark.parametrize(("before", "now"), [({}, {"mel": "hifigan"}), ({"mel": "hifigan"}, {})])
def test_a_run_of_another_mel_is_refused(tmp_path, before, now):
    """A config's JSON leaves the mel out where it is the default."""
    held, wanted = (config_from_dict({"data_config": each}) for each in (before, now))
    claim_folder(tmp_path, held)
    claim_folder(tmp_path, held)
    frames = f"data_config.mel.frames {held.data.mel.frames}, not {wanted.data.mel.frames}"
    with pytest.raises(UserError, match=frames):
        claim_folder(tmp_path, wanted)
    assert load_config(tmp_path / "config.json") == held


@pytest.mark.slow
def test_a_run_of_another_config_is_refused(recordings, tmp_path):
    config = tiny_config(steps=1)
    assert loop.train(config, str(recordings), tmp_path).stopped_by is None
    other = dataclasses.replace(config, waveglow=dataclasses.replace(config.waveglow, n_flows=3))
    with pytest.raises(UserError, match=r"n_flows 2, not 3"):
        loop.train(other, str(recordings), tmp_path)
    # Even if somebody swaps the config under it:
    text = (tmp_path / "config.json").read_text().replace('"n_flows": 2', '"n_flows": 3')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"does not fit the run's config\.json"):
        loop.train(other, str(recordings), tmp_path)
    with pytest.raises(UserError, match=r"does not fit the run's config\.json"):
        read_weights(tmp_path)


def test_a_run_from_before_the_synthesis_section_is_resumed(recordings, tmp_path):
    config = tiny_config(steps=1)
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(init_state(config).replace(step=jnp.asarray(1)), PROGRESS, -1.0)
    old = config_to_dict(config)
    del old["synthesis_config"]
    old["train_config"]["synthesis_sigma"] = 0.9
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_weights(tmp_path).config.synthesis == SynthesisConfig(sigma=0.9)
    # No field of this section takes part in training, so a change makes no other run.
    changed = dataclasses.replace(config, synthesis=SynthesisConfig(sigma=0.8, consistency=32))
    assert loop.train(changed, str(recordings), tmp_path).stopped_by is None
    assert read_weights(tmp_path).config == changed


@pytest.mark.slow
def test_ten_non_finite_losses_in_a_row_stop_the_run(recordings, tmp_path, monkeypatch):
    config = tiny_config(steps=40)
    good = loop.training_batches

    def bad_from_step_6(*arguments, **keywords):
        for i, batch in enumerate(good(*arguments, **keywords)):
            yield batch if i < 5 else batch._replace(clips=batch.clips * np.nan)

    monkeypatch.setattr(loop, "training_batches", bad_from_step_6)
    with pytest.raises(UserError, match="step 15: 10 losses or gradients in a row"):
        loop.train(config, str(recordings), tmp_path)
    params = read_weights(tmp_path).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert all(np.isfinite(value) for step, value in losses(tmp_path).items() if step <= 5)


def test_a_non_finite_state_is_never_saved(tmp_path):
    config = tiny_config()
    state = init_state(config)
    params = {
        **state.params,
        "upsample": jax.tree.map(lambda x: x * jnp.nan, state.params["upsample"]),
    }
    with Checkpoints(tmp_path, config) as checkpoints:
        with pytest.raises(UserError, match="not finite"):
            checkpoints.save(state.replace(params=params), PROGRESS, None)
        assert checkpoints.latest_step is None


def test_last_checkpoints_and_the_best_are_kept(tmp_path):
    config = tiny_config(keep_checkpoints=2)
    state = init_state(config)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step, loss in ((1, -1.0), (2, -3.0), (3, -2.0), (4, -2.5), (5, None)):
            checkpoints.save(state.replace(step=jnp.asarray(step)), PROGRESS, loss)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [2, 4, 5]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's loop
def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands in for a full disk: the writes really fail."""
    config = tiny_config()
    state = init_state(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(state.replace(step=jnp.asarray(1)), PROGRESS, None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(UserError, match=r"step 2 not saved \(.*\); free some space"):
                checkpoints.save(state.replace(step=jnp.asarray(2)), PROGRESS, None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    with Checkpoints(tmp_path, config) as checkpoints:
        restored, _ = checkpoints.restore(checkpoints.latest_step)
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)


@pytest.mark.slow
def test_plateau_drops_the_learning_rate_once(recordings, tmp_path, monkeypatch):
    config = tiny_config(
        steps=8, iters_per_validation=1, iters_per_checkpoint=8, plateau_patience=2
    )
    # A validation loss that never gets better after the first.
    constant = {
        **{name: np.float32(8.0) for name in ("nats", "weight")},
        **{name: np.full(8, 8.0, np.float32) for name in ("z", "z_squared")},
        "max_log_s": np.zeros(2, np.float32),
    }
    monkeypatch.setattr(loop, "parallel_validation_step", lambda *_: lambda *_: constant)
    assert loop.train(config, str(recordings), tmp_path).stopped_by is None
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates == pytest.approx([1e-3] * 3 + [5e-5] * 5)


@pytest.mark.slow
def test_weights_to_start_from(recordings, tmp_path):
    config = tiny_config(steps=1, learning_rate=1e-12)
    given = jax.tree.map(lambda leaf: leaf + 0.01, init_state(config).params)
    assert loop.train(config, str(recordings), tmp_path, given).stopped_by is None
    params = read_weights(tmp_path).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), params, given)
    wider = config_from_dict(
        {"waveglow_config": {"n_mel_channels": 8, "n_flows": 2, "WN_config": {"n_channels": 4}}}
    )
    with pytest.raises(UserError, match=r"do not fit the config: .* is \(.*\), .* asks for \("):
        init_state(wider, given)


@pytest.mark.devices(8)
def test_a_batch_that_the_devices_do_not_divide_is_refused(recordings, tmp_path):
    with pytest.raises(UserError, match=r"batch_size 12 .* 8 devices"):
        loop.train(tiny_config(batch_size=12), str(recordings), tmp_path)
