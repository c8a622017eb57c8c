"""The voice that comes with the package: it is there, small and described, and it speaks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

import waveglow_jax as wg
from waveglow_jax.config import config_to_dict
from waveglow_jax.files.sound import read_audio
from waveglow_jax.weights.release import BUNDLED_VOICE

ROOT = Path(__file__).parent.parent
RATE, HOP = 22050, 256


@pytest.fixture(scope="module")
def voice():
    return wg.load()


def recordings() -> list[Path]:
    return sorted((BUNDLED_VOICE / "recordings").glob("*.wav"))


def test_small_enough_to_come_along():
    paths = [path for path in BUNDLED_VOICE.rglob("*") if path.is_file()]
    assert paths, f"{BUNDLED_VOICE} holds nothing"
    assert sum(path.stat().st_size for path in paths) <= 20e6


def test_weights_are_float16_and_all_different_from_a_new_model():
    tensors = load_file(BUNDLED_VOICE / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    ends = [tensor for name, tensor in tensors.items() if name.endswith("wn.end.kernel")]
    assert ends and all(np.abs(end).max() > 0 for end in ends)


@pytest.mark.slow
def test_config_is_that_of_the_recipe(voice):
    recipe = config_to_dict(wg.load_config(ROOT / "configs" / "voice.json"))
    bundled = config_to_dict(voice.config)
    assert bundled["waveglow_config"] == recipe["waveglow_config"]
    assert bundled["data_config"] == {
        **recipe["data_config"],
        "training_files": bundled["data_config"]["training_files"],
    }
    written = json.loads((BUNDLED_VOICE / "config.json").read_text())
    assert not Path(written["data_config"].get("training_files", "")).is_absolute()


def test_model_card():
    """What it was trained on, under which licences, and how well it does on speech held out."""
    card = (BUNDLED_VOICE / "README.md").read_text(encoding="utf-8")
    assert re.search("festvox", card, re.I)
    assert re.search("licen[cs]e", card, re.I) and re.search("BSD|CC-BY", card)
    assert re.search("held[- ]out", card, re.I)
    for figure in ("PESQ", "STOI", "nats"):
        assert re.search(rf"{figure}[^\n]*\d\.\d|\d\.\d[^\n]*{figure}", card), figure


def test_recordings():
    """They are of a training speaker, but held out from training, and have their licence."""
    paths = recordings()
    assert 2 <= len(paths) <= 3
    for path in paths:
        assert soundfile.info(path).subtype == "PCM_16"
        audio = read_audio(path, RATE)
        assert 1 <= len(audio) / RATE <= 20
        number = re.fullmatch(r"ru_(\d{4})", path.stem)
        assert number and int(number[1]) >= 755
    folder = paths[0].parent
    assert [p for p in folder.iterdir() if re.match(r"(?i)(licen[cs]e|copyright|copying)", p.name)]


@pytest.mark.slow
def test_it_speaks(voice):
    """Copy-synthesis: the mel of the output is that of the input."""
    mel = voice.mel(read_audio(recordings()[0], RATE))[:256]
    audio = voice.synthesize(mel)
    assert audio.shape == (len(mel) * HOP,)
    assert np.isfinite(audio).all()
    assert 0.01 < np.sqrt(np.mean(audio**2)) < 0.5 and np.abs(audio).max() < 2
    again = voice.mel(audio)[: len(mel)]
    assert np.corrcoef(mel.ravel(), again.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_nothing_is_heard_above_its_recordings_band(voice):
    """The recordings and the mel end at 8,000 Hz: above it, the flow only makes hiss."""
    mel = voice.mel(read_audio(recordings()[0], RATE))[40:104]

    def above(audio: np.ndarray) -> float:
        inner = audio[4 * HOP : -4 * HOP]
        return np.abs(np.fft.rfft(inner * np.hanning(len(inner))))[
            len(inner) * 8300 // RATE :
        ].max()

    assert above(voice.synthesize(mel)) < 0.01 * above(voice.synthesize(mel, consistency=0))
