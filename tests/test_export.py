"""The exported reverse pass: run by JAX alone, in a process that cannot import this package."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_vocoder import lively_params, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.cli import main
from waveglow_jax.config import config_from_dict, config_to_dict
from waveglow_jax.errors import UserError
from waveglow_jax.flow.waveglow import latent_noise
from waveglow_jax.synthesis import onnx_export
from waveglow_jax.synthesis.export import export

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
sys.modules["waveglow_jax"] = None
import numpy as np
import jax.export
voice = jax.export.deserialize(open(sys.argv[1], "rb").read())
inputs = np.load(sys.argv[2])
np.savez(sys.argv[3], **{
    str(i): voice.call(inputs[f"z{i}"], inputs[f"mel{i}"]) for i in range(2)
})
"""


def predicting(block: int = 16):
    raw = config_to_dict(tiny_config())
    raw["waveglow_config"]["mel_whitening"] = {"block": block, "order": 8}
    return config_from_dict(raw)


# A predicting voice, too, has its conditioning at the rate of the groups.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "sample", "predicting"])
def test_any_batch_and_length_without_this_package(tmp_path, kind):
    config = predicting() if kind == "predicting" else tiny_config(kind)
    params = lively_params(config)
    wg.save(tmp_path / "release", config, params)
    target = tmp_path / "voice.jaxexport"
    assert main(["export", str(tmp_path / "release"), "-o", str(target)]) == 0
    rng, group = np.random.default_rng(0), config.waveglow.n_group
    inputs, ours = {}, []
    for i, (batch, frames) in enumerate(((1, 3), (2, 7))):
        z = rng.normal(size=(batch, frames * 256 // group, group)).astype(np.float32)
        mel = np.stack([some_mel(frames, seed) for seed in range(batch)])
        inputs |= {f"z{i}": z, f"mel{i}": mel}
        ours.append(wg.inverse(params, config, z, mel)[0])
    np.savez(tmp_path / "in.npz", **inputs)
    paths = [str(tmp_path / name) for name in ("voice.jaxexport", "in.npz", "out.npz")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as theirs:
        for i, audio in enumerate(ours):
            scale = np.abs(audio).max()
            np.testing.assert_allclose(theirs[str(i)], audio, atol=1e-4 * scale)


# Cosine sums for its FFT cost the prediction a digit. With blocks of 64 its last group of blocks is
# not full, as in the bundled voice.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "tolerance"),
    [(tiny_config("sample"), 1e-5), (predicting(), 1e-4), (predicting(64), 1e-4)],
    ids=["sample", "predicting", "predicting, blocks of 64"],
)
def test_onnx_of_any_batch_and_length(tmp_path, config, tolerance):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    params, group = lively_params(config), config.waveglow.n_group
    onnx_export.write_onnx(tmp_path / "voice.onnx", config, params)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "voice.onnx", options)
    for batch, frames in ((2, 5), (1, 3)):
        z = np.random.default_rng(0).normal(size=(batch, frames * 256 // group, group))
        mel = np.stack([some_mel(frames, seed) for seed in range(batch)])
        (theirs,) = session.run(None, {"z": z.astype(np.float32), "mel": mel})
        ours = np.asarray(wg.inverse(params, config, z.astype(np.float32), mel)[0])
        assert theirs.shape == ours.shape == (batch, frames * 256)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.abs(ours).max())


@pytest.mark.slow
def test_with_corrections(tmp_path, capsys):
    """With the voice's own number of corrections, and with another one."""
    import jax.export

    raw = config_to_dict(tiny_config())
    config = config_from_dict({**raw, "synthesis_config": {"consistency": 2}})
    params, mel = lively_params(config), some_mel(7)[None]
    wg.save(tmp_path / "release", config, params)
    z = np.asarray(latent_noise(0, config, 7))[None]
    for options, corrections in (([], 2), (["--consistency", "0"], 0)):
        target = tmp_path / f"{corrections}.jaxexport"
        assert main(["export", str(tmp_path / "release"), "-o", str(target), *options]) == 0
        assert f"JAX {jax.__version__} wrote it" in (told := capsys.readouterr().out)
        assert "six months" in told
        made = jax.export.deserialize(bytearray(target.read_bytes())).call(z, mel)
        bare = wg.inverse(params, config, z, mel)[0]
        expected = np.asarray(consistent(bare, mel, config, corrections))
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_the_bundled_voice_and_the_published_shape():
    """These are so large that some forms are chosen by size, which an export of free sizes cannot
    do."""
    voice = wg.load()
    assert len(export(voice.config, voice.params, consistency=1)) > 4 * 4_000_000
    raw = config_to_dict(wg.load_config(ROOT / "configs" / "nvidia256.json"))
    raw["waveglow_config"] |= {"n_flows": 2, "n_early_every": 1}
    config = config_from_dict(raw)
    assert export(config, wg.init(jax.random.key(0), config))


def test_what_onnx_cannot_hold(tmp_path, capsys):
    config = tiny_config()
    wg.save(tmp_path / "voice", config, lively_params(config))
    command = ["export", str(tmp_path / "voice"), "-o", str(tmp_path / "a.onnx")]
    assert main(command) == 1
    assert "mel_whitening has no order" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--dtype", "bfloat16"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--consistency", "2"])
    assert stopped.value.code == 2 and "jax.export" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_onnx_library_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"waveglow-jax\[onnx\]"):
        onnx_export.write_onnx(tmp_path / "a.onnx", tiny_config("sample"), {})


def test_bad_arguments(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), "-o", str(tmp_path / "a")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
