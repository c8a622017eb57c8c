"""Every command on models that people use: the bundled voice, and the published shape.

The other tests run commands on tiny models, whose sizes choose other forms of the same layers. A
tiny voice whose frames lie half a hop late takes recordings whose last samples have no frame.
"""

import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from test_vocoder import lively_params, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import COMMANDS, main
from waveglow_jax.config import config_from_dict, config_to_dict
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.files.sound import read_audio
from waveglow_jax.weights.release import BUNDLED_VOICE

ROOT = Path(__file__).parent.parent
RATE = 22050
NEEDS = {"export to ONNX": "jax2onnx", "preflight": "libtpu"}
"""Optional libraries."""


def published_shape(folder: Path) -> Path:
    """Writes a release of the published shape with two of its twelve flows, no weight at zero."""
    raw = config_to_dict(wg.load_config(ROOT / "configs" / "nvidia256.json"))
    raw["waveglow_config"] |= {"n_flows": 2, "n_early_every": 1}
    config = config_from_dict(raw)
    params = wg.init(jax.random.key(0), config)
    rng = np.random.default_rng(0)
    for flow in params["flows"]:
        end = flow["wn"]["end"]
        end["kernel"] = np.asarray(rng.normal(0, 1e-3, end["kernel"].shape), np.float32)
    wg.save(folder, config, params)
    return folder


def late_frames(folder: Path) -> Path:
    changes = {
        "data.mel.frames": HALF_HOP,
        "waveglow.mel_whitening": {"block": 32, "order": 24, "floor": 0.001},
    }
    config = config_from_dict(config_to_dict(tiny_config()), changes)
    wg.save(folder, config, lively_params(config))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Two recordings of 0.6 s, the mel of one, and the weights."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "in").mkdir()
    audio = read_audio(BUNDLED_VOICE / "recordings" / "ru_0773.wav", RATE)
    for i, name in enumerate("ab"):
        begin = RATE + i * RATE
        soundfile.write(folder / "in" / f"{name}.wav", audio[begin : begin + 6 * RATE // 10], RATE)
    assert main(["mel", str(folder / "in" / "a.wav"), "-o", str(folder)]) == 0
    published_shape(folder / "published")
    late_frames(folder / "late")
    return folder


def command_lines(work: Path, weights: str, out: Path) -> dict[str, list]:
    """The words of each command line that is tried."""
    a, b, few = work / "in/a.wav", work / "in/b.wav", ["--consistency", "2"]
    flow_options = ["-w", weights, "-o", out]
    float32 = ["--precision", "float32", "-o", out]
    benchmark = ["--seconds", "0.2", "--dtype", "float32", "bfloat16", "--repeats", "1"]
    train = [ROOT / "configs/tiny.json", "--data", work / "in", "--output", out]
    # JAX 0.10 deadlocks on fewer cores than devices with a larger model.
    small = {"waveglow.n_flows": 2, "data.segment_length": 2048, "train.steps": 1}
    small |= {"train.validation_clips": 8, "train.synthesis_clips": 0}
    return {
        "synthesize": [b, work / "a.npy", *flow_options, "--plot"],
        "train": [*train, *(f"--{name}={value}" for name, value in small.items())],
        "prepare": [work / "in", "-o", out],
        "mel": [work / "in", "-o", out],
        "convert-mel": [work / "a.npy", "--from", "hifigan", "-w", weights, "-o", out],
        "convert": [weights, "-o", out, "--dtype", "float16", "--check", a],
        "inspect": [weights, "--json"],
        "export": [weights, "-o", out / "a.jaxexport", "--json"],
        "export to ONNX": [weights, "-o", out / "a.onnx"],
        "benchmark": [weights, *benchmark],
        "preflight": ["--task", "synthesize", "--seconds", "1"],
        "invertibility": [weights, a, "--seconds", "0.1", "--close-samples", "256", *float32],
        "likelihood": [work / "in", "-w", weights, "--plot", "-o", out],
        "evaluate": [
            *("--reference", work / "in", "--files", "1", "-o", out),
            *("--baselines", "noise", "--system", f"x={weights}"),
        ],
        "resynthesize": [a, *flow_options, *few, "--replace", "0.5"],
        "interpolate": [a, b, *flow_options, *few, "--steps", "2"],
        "sweep": [a, *flow_options, *few, "-s", "0.5"],
        "doctor": [a, work / "a.npy", "-w", weights],
        "listening-test": [
            *("make", "-o", out),
            *("--system", f"x={work / 'in'}", "--system", f"y={work / 'in'}"),
        ],
    }


OF_NO_WEIGHTS = ("train", "prepare", "mel", "preflight", "listening-test")
TRIED = [
    # Converting the bundled voice takes minutes.
    pytest.param(kind, name, marks=pytest.mark.stress if "ONNX" in name else pytest.mark.slow)
    for kind in ("bundled", "published", "late")
    for name in command_lines(Path(), "", Path())
    if kind == "bundled" or name not in OF_NO_WEIGHTS
]


def test_none_is_missing():
    of_the_bundled_recordings = {"demo"}  # in test_cli.py
    assert {each.values[1].split()[0] for each in TRIED} == set(
        COMMANDS
    ) - of_the_bundled_recordings


@pytest.mark.parametrize(("kind", "name"), TRIED)
def test_it_ends_well(work, tmp_path, capsys, kind, name):
    needed = NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    weights = str(BUNDLED_VOICE if kind == "bundled" else work / kind)
    words = command_lines(work, weights, tmp_path / "out")[name]
    code = main([name.split()[0], *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "Traceback" not in err and not re.search(r"\bnan\b", out, re.IGNORECASE)
    if "--json" in words:
        json.loads(out)
