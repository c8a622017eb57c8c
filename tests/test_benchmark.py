"""The benchmark's command and figures; nothing here asserts a speed."""

import json

import jax
import numpy as np
import pytest

from waveglow_jax.cli import main
from waveglow_jax.config import config_from_dict, load_config
from waveglow_jax.flow.waveglow import init, prepare_inverse
from waveglow_jax.performance.benchmark import benchmark_reverse, forward_flops, random_voice
from waveglow_jax.performance.timing import (
    Contender,
    as_text,
    check_same,
    rows_of,
    signal_to_noise,
)

PUBLISHED_KIND = {"waveglow.conditioning": "sample", "waveglow.mel_whitening": None}
TINY = ["--config", "configs/tiny.json"]


def tiny():
    return load_config("configs/tiny.json", {**PUBLISHED_KIND, "waveglow.n_flows": 2})


@pytest.mark.slow
def test_the_reverse_pass_beside_torch():
    pytest.importorskip("torch")
    found = benchmark_reverse(random_voice(tiny()), [0.1], ["float32", "bfloat16"], 2, True)
    assert [row.what.split(", ")[1] for row in found.rows] == ["ours"] * 2 + ["PyTorch"] * 2
    exact, rounded = found.rows[:2]
    assert exact.snr is None and 20 < rounded.snr < 120
    assert set(exact.times_torch) == {"float32", "bfloat16"}
    assert exact.times_real_time == pytest.approx(exact.samples_per_second / 22050)
    assert exact.fastest <= exact.seconds <= exact.slowest
    assert exact.memory_bytes > 4 * (80 * 2) * 16 * 2 * 8  # a conditioning layer
    header, *rows = [line for line in as_text(found).splitlines() if line.startswith("|")]
    assert len(rows) == 1 + len(found.rows)
    assert {row.count("|") for row in rows} == {header.count("|")}


@pytest.mark.slow
def test_the_training_step_as_json(capsys):
    argv = ["benchmark", "--config", "configs/tiny.json", "--task", "train", "--repeats", "1"]
    argv += ["--dtype", "float32", "--waveglow.n_flows", "1", "--data.segment_length", "256"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert row["what"] == "2 clips of 256, ours" and row["compile_seconds"] > 0
    assert row["samples_per_second"] == pytest.approx(512 / row["seconds"])


def test_the_torch_model_is_the_same_in_both_directions():
    torch = pytest.importorskip("torch")
    from waveglow_jax.performance.benchmark import _torch

    config = tiny()
    voice = random_voice(config)
    _, model_of = _torch(config)
    model = model_of.from_params(voice.params, config)
    rng = np.random.default_rng(0)
    audio = torch.from_numpy(0.1 * rng.normal(size=(2, 1024)).astype(np.float32))
    mel = torch.from_numpy(rng.normal(size=(2, 80, 4)).astype(np.float32))
    with torch.no_grad():
        z, log_det = model(audio, mel)
    back = model.ready_for_synthesis(torch.float32).inverse(z, mel)
    assert np.abs(back.numpy() - audio.numpy()).max() < 1e-5
    ours = voice.encode(audio.numpy(), mel.numpy().transpose(0, 2, 1))[0]
    assert np.abs(ours - z.numpy()).max() < 1e-4 * np.abs(ours).max()
    assert torch.isfinite(log_det).all()


def test_another_model_is_no_comparison():
    from waveglow_jax.errors import UserError

    def contender(name, output):
        return Contender(name, "float32", lambda: None, output=np.asarray(output))

    check_same([contender("ours", [1.0, 2.0]), contender("PyTorch", [1.0, 2.001])])
    with pytest.raises(UserError, match="not the same model"):
        check_same([contender("ours", [1.0, 2.0]), contender("PyTorch", [1.0, 2.1])])


def test_ratios_are_of_rounds():
    ours = Contender("ours", "float32", None, seconds=[1.0, 5.0, 2.0], cpu_seconds=[1.0] * 3)
    theirs = Contender("PyTorch", "float32", None, seconds=[3.0, 10.0, 8.0], cpu_seconds=[2.0] * 3)
    row, _ = rows_of("x", [ours, theirs], 22050, 4e9, 22050, {"float32": 1e10})
    assert row.times_torch == {"float32": 3.0} and row.times_torch_cpu == {"float32": 2.0}
    assert row.seconds == 2 and row.times_real_time == 0.5 and row.share_of_peak == 0.2


def test_signal_to_noise():
    exact = np.array([3.0, -4.0])
    assert signal_to_noise(exact, np.array([3.3, -4.4])) == pytest.approx(20)


@pytest.mark.slow
def test_flops_are_two_a_weight_and_step():
    """Every kernel but the upsampler's is used once per group of samples."""
    config = config_from_dict({})
    params = jax.eval_shape(lambda: prepare_inverse(init(jax.random.key(0), config)))
    kernels = [
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(params["flows"])
        if jax.tree_util.keystr(path[-1:]) in ("['kernel']", "['inverse']")
    ]
    upsampler = params["upsample"]["kernel"].size / 256
    assert forward_flops(config, 8000) == 2 * 8000 * (sum(kernels) / 8 + upsampler)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--task", "train", "--against", "torch", *TINY], "mel_whitening"),
        (["--against", "torch", *TINY, "--waveglow.n_flows", "1"], "mel_whitening"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(argv, named, capsys):
    assert main(["benchmark", *argv]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_without_torch_the_remedy_is_told(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    argv = ["benchmark", "--against", "torch", "--config", "configs/nvidia256.json"]
    assert main([*argv, "--task", "train"]) == 1
    assert "pip install torch" in capsys.readouterr().err
