"""What a run reports: figures of the fit, TensorBoard, and the report of a run's folder."""

import dataclasses
import json
import math
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import recordings, tiny_config  # noqa: F401 - a fixture
from test_vocoder import lively_params, some_mel

import waveglow_jax as wg
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.cli import main
from waveglow_jax.config import Config, SynthesisConfig, config_from_dict, config_to_json
from waveglow_jax.errors import UserError
from waveglow_jax.flow.steps import COUPLING, Context, flow_steps
from waveglow_jax.flow.waveglow import conditioning_of, encode, latent_noise
from waveglow_jax.training import loop
from waveglow_jax.training.checkpoints import Checkpoints
from waveglow_jax.training.dataset import scan_corpus, validation_batches
from waveglow_jax.training.parallel import parallel_validation_step, split
from waveglow_jax.training.samples import sigmas_to_hear, synthesis_program
from waveglow_jax.training.step import init_state
from waveglow_jax.training.watching.figures import peak_memory, validation_figures
from waveglow_jax.training.watching.history import read_history, window_means
from waveglow_jax.training.watching.inspection import report_run
from waveglow_jax.training.watching.monitor import Monitor
from waveglow_jax.weights.release import read_weights


def three_exits() -> Config:
    """A plain config with groups of 8: 2 channels leave before flow 1, 2 before flow 2, 4 at the
    end."""
    return config_from_dict(
        {
            "waveglow_config": {
                **{"n_mel_channels": 8, "n_flows": 3, "n_early_every": 1, "upsample_kernel": 512},
                "WN_config": {"n_layers": 1, "n_channels": 4},
            },
            "data_config": {"segment_length": 2048},
            "train_config": {"batch_size": 4, "validation_fraction": 0.3, "validation_clips": 5},
        }
    )


# ------------------------------------------------------------------------------ figures


def log_s_of_flows(params, config, audio, mel):
    _, log_dets = encode(params, config, audio, mel)
    return [each.local for each in log_dets if each.kind == COUPLING.kind]


@pytest.mark.slow
def test_log_s_is_what_a_coupling_does_to_its_second_half():
    """The reference is autodiff along the direction that the 1x1 convolution maps to that half."""
    config = three_exits()
    params = lively_params(config)
    keys = jax.random.split(jax.random.key(3))
    audio = 0.3 * jax.random.normal(keys[0], (2, 1024))
    mel = jax.random.normal(keys[1], (2, 5, 8)) - 4
    log_s = log_s_of_flows(params, config, audio, mel)
    x = audio.reshape(2, 128, 8)
    conditioning = conditioning_of(params, config, mel, 128, jnp.float32)
    steps = list(flow_steps(params["flows"], Context(config, conditioning)))
    for k, flow in enumerate(params["flows"]):
        x = x[:, :, 2 * (k > 0) :]
        half = x.shape[-1] // 2
        second = jnp.concatenate([jnp.zeros(half), jnp.ones(half)])
        direction = jnp.linalg.solve(flow["conv"], second)
        x, scaled = jax.jvp(
            lambda x, k=k: steps[2 * k + 1].forward(steps[2 * k].forward(x)[0])[0],
            (x,),
            (jnp.broadcast_to(direction, x.shape),),
        )
        np.testing.assert_allclose(log_s[k], jnp.log(scaled[:, :, half:]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.devices(2)
def test_validation_figures_are_those_of_the_clips_one_by_one(recordings):  # noqa: F811
    """Five clips in two batches of four: the three that fill up are not counted."""
    config = three_exits()
    params = lively_params(config)
    held_out = scan_corpus(str(recordings), config).validation
    batches = validation_batches(held_out, config, 4)
    step = parallel_validation_step(config, jax.devices()[:2])
    found = validation_figures([step(params, split(b, 2)) for b in batches], params, config)
    clips = np.concatenate([b.clips for b in batches])[:5]
    z, log_det = wg.forward(params, config, clips[:, 512:2560], log_mel_of_padded(clips, config))
    z = np.asarray(z, np.float64)
    exits = [z[:, :, :2], z[:, :, 2:4], z[:, :, 4:]]
    assert found["z_mean"] == pytest.approx(z.mean(), abs=1e-6)
    assert found["z_std"] == pytest.approx(z.std(), rel=1e-5)
    assert found["z_mean_by_exit"] == pytest.approx([e.mean() for e in exits], abs=1e-6)
    assert found["z_std_by_exit"] == pytest.approx([e.std() for e in exits], rel=1e-5)
    loss = (0.5 * np.sum(z**2) - np.sum(np.asarray(log_det, np.float64))) / z.size
    assert found["validation_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["nats_per_sample"] == pytest.approx(-loss - 0.5 * np.log(2 * np.pi), rel=1e-5)
    mel = log_mel_of_padded(clips, config)
    log_s = log_s_of_flows(params, config, clips[:, 512:2560], mel)
    assert found["max_log_s"] == pytest.approx([np.abs(s).max() for s in log_s], rel=1e-5)
    for k, flow in enumerate(params["flows"]):
        singular = np.linalg.svd(np.asarray(flow["conv"], np.float64), compute_uv=False)
        assert found["determinants"][k] == pytest.approx(np.prod(singular), rel=1e-6)
        condition = singular[0] / singular[-1]
        assert found["condition_numbers"][k] == pytest.approx(condition, rel=1e-6)


def test_exits_of_the_published_shape():
    assert Config().waveglow.exits() == [slice(0, 2), slice(2, 4), slice(4, 8)]
    none = dataclasses.replace(Config().waveglow, n_early_size=0)
    assert none.exits() == [slice(0, 8)]


def test_peak_memory_is_what_the_kernel_says():
    """The kernel gives its high-water mark in kB, a page late or so."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("Linux tells it there")
    told = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory() == pytest.approx(1024 * int(told.split()[1]), rel=0.05)


# ------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny_config(
        steps=12,
        iters_per_validation=12,
        iters_per_checkpoint=12,
        synthesis_clips=1,
        synthesis_sigmas=[0.5, 1],
    )
    assert loop.train(config, str(recordings), folder).stopped_by is None
    return folder


def events(run) -> dict[str, list[int]]:
    """Tag -> steps of TensorBoard's files, read by their own format: length, sum, event, sum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[int]] = {}
    for path in (run / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


@pytest.mark.slow
def test_tensorboard_has_the_figures_clips_and_pictures(run):
    tags = events(run)
    for name in ("loss", "gradient_norm", "update_norm", "parameter_norm", "learning_rate"):
        assert tags[f"train/{name}"] == [10], name
    for name in ("skipped", "data_wait", "samples_per_second", "peak_memory"):
        assert tags[f"train/{name}"] == [10], name
    for name in ("validation_loss", "nats_per_sample", "z_mean", "z_std"):
        assert tags[f"validation/{name}"] == [12], name
    for name in ("max_log_s", "determinants", "condition_numbers"):
        assert tags[f"{name}/00"] == tags[f"{name}/01"] == [12], name
    # The clip of the first held-out recording, 3.wav by the corpus's split.
    name = next(tag for tag in tags if tag.startswith("mel/")).removeprefix("mel/")
    # The voice's own sigma, 0.6, is used although synthesis_sigmas does not name it.
    for what in ("original", "sigma 0.6", "sigma 0.5", "sigma 1"):
        assert any(tag.startswith(f"synthesis/{name}, {what}") for tag in tags), (what, list(tags))


def test_the_voices_own_sigma_is_heard_first_and_each_once():
    config = tiny_config(synthesis_sigmas=[0.6, 0.8, 1, 0.8])
    assert sigmas_to_hear(config) == (0.6, 0.8, 1.0)
    own = dataclasses.replace(config, synthesis=SynthesisConfig(sigma=1.0))
    assert sigmas_to_hear(own) == (1.0, 0.6, 0.8)


@pytest.mark.slow
def test_clips_have_the_voices_own_corrections():
    config = dataclasses.replace(tiny_config(), synthesis=SynthesisConfig(consistency=2))
    params, mel = (
        lively_params(config),
        jnp.asarray(some_mel(12)[:, : config.waveglow.n_mel_channels]),
    )
    sigmas = jnp.asarray([0.0, 0.7])
    z = np.float32([0.0, 0.7])[:, None, None] * np.asarray(latent_noise(0, config, 12))
    mels = jnp.stack([mel, mel])
    bare, _ = wg.inverse(params, config, jnp.asarray(z), mels)
    expected = np.asarray(consistent(bare, mels, config, 2))
    clips = synthesis_program(params, mel, sigmas, config)
    np.testing.assert_allclose(clips, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_every_step_tells_its_figures(run):
    history = read_history(run / "metrics.jsonl")
    assert history.steps["step"].tolist() == list(range(1, 13))
    for name in ("loss", "gradient_norm", "update_norm", "parameter_norm", "data_wait"):
        assert np.isfinite(history.steps[name]).all(), name
    assert np.isfinite(history.steps["samples_per_second"]).tolist() == [False] + [True] * 11
    assert np.isfinite(history.steps["peak_memory"]).tolist() == [i == 9 for i in range(12)]
    (session,) = history.sessions
    assert (session["step"], session["total_steps"], session["devices"]) == (0, 12, 8)
    assert (history.non_finite, history.unreadable, history.cut) == (0, 0, False)


def inspect(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.mark.slow
def test_report_of_a_run_that_is_done(run, capsys, tmp_path):
    code, out, _ = inspect(capsys, run, "--plot", tmp_path / "curves.png")
    assert code == 0
    assert len(out.splitlines()) <= 25
    assert out.splitlines()[-1] == f"written: {tmp_path / 'curves.png'}"
    for words in (
        *("training run", "2 flows in groups of 8", "step 12 of 12 (100.0%)", "samples/s"),
        *("nats per sample", "gradient", "condition numbers up to", "12 (0.1 MiB, the best)"),
        *("8 x cpu", "steps skipped: 0", "peak memory"),
    ):
        assert words in out, words
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(inspect(capsys, run, "--json")[1])
    assert (found["step"], found["total_steps"]) == (12, 12)
    losses = read_history(run / "metrics.jsonl").steps["loss"]
    assert found["loss"]["recent_mean"] == pytest.approx(losses.mean())
    sizes = [p.stat().st_size for p in (run / "checkpoints" / "12").rglob("*") if p.is_file()]
    assert [(c["step"], c["bytes"]) for c in found["checkpoints"]] == [(12, sum(sizes))]
    assert "release folder" not in out


@pytest.mark.slow
def test_the_weights_of_a_run(run, capsys):
    code, out, _ = inspect(capsys, "-w", run)
    assert code == 0 and "million parameters" in out
    weights = wg.load(run)
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(weights.params)) / 1e6:.2f}" in out


@pytest.mark.slow
def test_another_run_starts_with_its_weights_and_adams_state(run):
    config = wg.load(run).config
    with Checkpoints(run, config) as checkpoints:
        saved, _ = checkpoints.restore(12)
    found = read_weights(run, with_moments=True)
    assert found.moments.count == 12
    state = init_state(config, found.params, found.moments)
    assert int(state.step) == 0
    for ours, theirs in zip(
        jax.tree.leaves(state.optimizer), jax.tree.leaves(saved.optimizer), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert read_weights(run).moments is None


# ------------------------------------------------------------------------------ W&B


def told_to_wandb(folder) -> None:
    config = tiny_config(wandb_project="voices")
    rng = np.random.default_rng(0)
    clip = rng.normal(0, 0.1, 4000).astype(np.float32), rng.normal(-5, 1, (16, 8))
    folder.mkdir(exist_ok=True)
    with Monitor(folder, config, 9, 30) as monitor:
        monitor.step(10, {"loss": -1.5, "gradient_norm": 1.0})
        monitor.validation(10, {"validation_loss": -2.0, "nats_per_sample": 1.1, "z": [0.5, 0.6]})
        monitor.clip(10, "a", clip, {0.6: clip})


def test_figures_clips_and_pictures_go_to_wandb(tmp_path, monkeypatch):
    """A stand-in for the library records the calls, and the id of the second start."""
    logged, begun = {}, []

    class Run:
        def log(self, data, step):
            logged.update({(step, tag): value for tag, value in data.items()})

        def finish(self):
            begun.append("finished")

    stand_in = SimpleNamespace(
        init=lambda **settings: begun.append(settings) or Run(),
        Settings=lambda **settings: settings,
        Audio=lambda audio, sample_rate: ("audio", audio.shape, sample_rate),
        Image=lambda pixels: ("image", pixels.shape[2]),
        errors=SimpleNamespace(Error=ZeroDivisionError),
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    told_to_wandb(tmp_path / "run")
    assert logged[10, "train/loss"] == -1.5 and logged[10, "z/01"] == 0.6
    assert logged[10, "validation/nats_per_sample"] == 1.1
    assert logged[10, "synthesis/a, sigma 0.6"] == ("audio", (4000,), 22050)
    assert logged[10, "synthesis/a, original"] == ("audio", (4000,), 22050)
    assert logged[10, "mel/a"] == ("image", 3)
    settings, finished = begun
    assert finished == "finished" and settings["project"] == "voices" and settings["name"] == "run"
    assert settings["config"]["waveglow_config"]["n_flows"] == 2
    told_to_wandb(tmp_path / "run")
    assert begun[2]["id"] == settings["id"] and begun[2]["resume"] == "allow"
    stand_in.init = lambda **_: 1 / 0
    with pytest.raises(UserError, match=r"'voices': division by zero; run `wandb login`"):
        told_to_wandb(tmp_path / "other")


def test_wandb_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'waveglow-jax\[wandb\]'"):
        told_to_wandb(tmp_path)


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    told_to_wandb(tmp_path / "run")
    (record,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"train/loss" in content and b"synthesis/a, sigma 0.6" in content


# ------------------------------------------------------------------------------ made-up runs


def written(folder, lines, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config_to_json(config or tiny_config(steps=5000)))
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def going_well(n=2000, **changes):
    """Steps as early versions recorded them: no speed, and no norm except the gradient's."""
    rng = np.random.default_rng(0)
    return [
        {
            **{"step": i, "loss": -4 - i / n + 0.1 * rng.normal(), "gradient_norm": 1.0},
            **{"learning_rate": 1e-3, "skipped": 0.0, "data_wait": 0.001},
            **{name: value(i) for name, value in changes.items()},
        }
        for i in range(1, n + 1)
    ]


HEALTHY = {
    **{"step": 2000, "validation_loss": -5.0, "nats_per_sample": 4.08, "z_mean": 0.0, "z_std": 1.0},
    **{"z_mean_by_exit": [0.0], "z_std_by_exit": [1.0], "max_log_s": [1.0, 2.0]},
    **{"determinants": [1.0, 0.7], "condition_numbers": [1.5, 3.0]},
}


def test_a_run_from_before_speed_and_fit_were_told(tmp_path, capsys):
    old = {"step": 2000, "validation_loss": -5.0, "nats_per_sample": 4.08}
    run = written(tmp_path / "old", [*going_well(), old])
    found = report_run(run)
    assert found["samples_per_second"] is None and found["data_wait_share"] is None
    assert (found["step"], found["total_steps"]) == (2000, 5000)
    assert found["warnings"] == ["no checkpoint, though one was due every 4 steps"]
    code, out, _ = inspect(capsys, run, "--plot", tmp_path / "old.png")
    assert code == 0 and "4.08 nats per sample" in out and (tmp_path / "old.png").exists()


def test_a_run_that_is_being_written_or_was_killed(tmp_path, capsys):
    run = written(tmp_path / "cut", [*going_well(50)])
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 51, "loss": -4.')
    found = report_run(run)
    assert (found["step"], found["last_line_cut"], found["unreadable_lines"]) == (50, True, 0)
    (run / "checkpoints" / "48.orbax-checkpoint-tmp-7").mkdir(parents=True)
    assert any("save is under way" in w for w in report_run(run)["warnings"])
    # Bytes in the middle that are no line, and lines that are JSON of another kind.
    path.write_bytes(
        b'\x00\xff\xfe\n[1]\n{"loss": 3}\n{"step": 1, "session": 3}\n' + path.read_bytes()
    )
    found = report_run(run)
    assert (found["step"], found["last_line_cut"], found["unreadable_lines"]) == (50, True, 4)
    assert inspect(capsys, run)[0] == 0


@pytest.mark.slow
def test_lines_of_another_kind_are_no_reason_to_fail(tmp_path, capsys):
    steps = [{"step": i, "loss": -1.0, "samples_per_second": 100} for i in range(1, 5)]
    odd = [
        {"step": 5, "loss": "low", "gradient_norm": [1], "data_wait": {}},
        {**HEALTHY, "determinants": [1.0], "max_log_s": ["x", None], "z_std": None},
        {**HEALTHY, "condition_numbers": "fine", "z_std_by_exit": 3, "z_mean": "0"},
        {"step": 6, "validation_loss": -9.0, "z_std": 1.0},
    ]
    for i in range(len(odd)):
        run = written(tmp_path / str(i), [*steps, *odd[: i + 1]])
        code, out, _ = inspect(capsys, run, "--plot", tmp_path / "odd.png")
        assert code == 0 and "100 samples/s" in out and "waiting for data" not in out
        assert json.loads(inspect(capsys, run, "--json")[1])["data_wait_share"] is None


def test_a_run_that_has_only_begun(tmp_path, capsys):
    session = {"total_steps": 70, "devices": 4, "kind": "TPU v9", "processes": 1}
    run = written(tmp_path / "new", [{"step": 0, "session": session}])
    code, out, _ = inspect(capsys, run, "--plot", tmp_path / "new.png")
    assert code == 0 and "step 0 of 70" in out and "4 x TPU v9" in out
    assert "no validation yet" in out and "checkpoints: none yet" in out
    (run / "metrics.jsonl").write_text("")
    assert inspect(capsys, run)[0] == 0


def test_a_run_that_goes_well_is_not_warned_of(tmp_path):
    run = written(tmp_path / "well", [*going_well(), HEALTHY])
    (run / "checkpoints" / "2000").mkdir(parents=True)
    assert report_run(run)["warnings"] == []


def late(i: int, good, bad):
    return bad if i > 1900 else good


@pytest.mark.parametrize(
    ("steps", "validation", "words"),
    [
        ({"loss": lambda i: late(i, -4.5, -4.1)}, {}, "the loss rises: -4.1"),
        ({"loss": lambda i: None if i == 1300 else -4}, {}, "1 step with a loss.*step 1,300"),
        ({"gradient_norm": lambda i: None if i == 7 else 1}, {}, "1 step with a loss or gradient"),
        # A batch has 8 x 2048 samples: at 32,768 samples/s a step takes half a second.
        (
            {"samples_per_second": lambda _: 32768, "data_wait": lambda _: 0.25},
            {},
            "50% of a step goes by waiting",
        ),
        ({}, {"condition_numbers": [2.0, 3e5]}, "flow 1: W's condition number is 3e.05"),
        ({}, {"determinants": [1e-5, 1.0]}, r"flow 0: \|det W\| is 1e-05"),
        ({}, {"condition_numbers": [2.0, None]}, "flow 1: W's condition number is nan"),
        ({}, {"max_log_s": [12.5, 1.0]}, r"flow 0: \|log_s\| reaches 12.5"),
        ({}, {"z_std": 1.31}, "standard deviation 1.31, not 1"),
    ],
)
def test_what_goes_wrong_is_named(tmp_path, steps, validation, words):
    run = written(tmp_path / "bad", [*going_well(**steps), {**HEALTHY, **validation}])
    (run / "checkpoints" / "2000").mkdir(parents=True)
    (warning,) = report_run(run)["warnings"]
    assert re.search(words, warning), warning


def test_validations_that_get_no_better_are_named(tmp_path):
    told = [
        {**HEALTHY, "step": 100 * i, "validation_loss": -5.0 + 0.01 * abs(i - 5)} for i in range(20)
    ]
    run = written(tmp_path / "over", [*going_well(), *told])
    (run / "checkpoints" / "500").mkdir(parents=True)
    found = report_run(run)
    assert found["validation"]["best"]["step"] == 500
    assert ["not got better for 14 validations" in w for w in found["warnings"]] == [True]


def test_window_means():
    values = np.array([1.0, 3.0, math.nan, 5.0, 7.0, math.nan])
    np.testing.assert_allclose(
        window_means(values, least=3), [[0, 2, 2, 1 / math.sqrt(2)], [3, 5, 6, 1 / math.sqrt(2)]]
    )
    assert window_means(np.array([])).shape == (0, 4)
    assert window_means(np.full(100, math.nan)).shape == (0, 4)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_run_with_a_file_missing(tmp_path, capsys, name):
    run = written(tmp_path / "half", going_well(5))
    (run / "checkpoints").mkdir()
    (run / name).unlink()
    code, out, err = inspect(capsys, run)
    assert code == 1 and not out
    assert len(err.splitlines()) == 1 and str(run) in err


def test_a_plot_is_of_runs_alone(tmp_path, capsys):
    code, _, err = inspect(capsys, tmp_path, "--plot", tmp_path / "a.png")
    assert code == 1 and "--plot" in err and not (tmp_path / "a.png").exists()
    run = written(tmp_path / "run", going_well(30))
    code, _, err = inspect(capsys, run, "--plot", tmp_path / "a.what")
    assert code == 1 and "a.what" in err and "\n" not in err.strip()
