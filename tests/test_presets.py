"""The presets for other software's mels: their descriptions, and that they train and speak.

They are shrunk so that they compile in a second; the mel's settings stay the preset's.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from test_training import speech_like

from waveglow_jax.config import Config, load_config
from waveglow_jax.presets import presets
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.training.dataset import scan_corpus, training_batches
from waveglow_jax.training.parallel import parallel_train_step, replicate, split
from waveglow_jax.training.step import init_state

KEYS = {
    "hifigan22k": "hifigan",
    "vocos24k": "vocos-24khz",
    "espnet24k": "espnet-24khz",
    "tacotron16k": "own",
    "bigvgan44k": "bigvgan-44khz",
}
PUBLISHED_SECONDS = 1.11
"""The receptive field of the published model to either side."""


def shrunk(name: str) -> Config:
    whole = load_config(name)
    hop = whole.data.hop_length
    return load_config(
        name,
        {
            "waveglow.n_flows": 2,
            "waveglow.n_early_every": 1,
            "waveglow.upsample_kernel": 2 * hop,
            "waveglow.WN_config.n_layers": 2,
            "waveglow.WN_config.n_channels": 8,
            "waveglow.WN_config.n_skip_channels": 8,
            "data.segment_length": 10 * hop,
            "train.batch_size": 2,
            "train.learning_rate": 1e-3,
            "train.validation_fraction": 0.0,
        },
    )


@pytest.mark.parametrize("name", KEYS)
def test_the_description_tells_size_and_receptive_field(name):
    config = load_config(name)
    rate = config.data.sampling_rate
    told = re.search(
        r"(\S+) million parameters, a receptive field of (\S+) s .*, clips of (\S+) s",
        config.description,
    )
    size, field, clip = map(float, told.groups())
    assert size == round(config.waveglow.n_parameters / 1e6, 1)
    assert field == round(config.waveglow.reach / rate, 2)
    assert clip == pytest.approx(config.data.segment_length / rate, abs=0.01)
    assert field == pytest.approx(PUBLISHED_SECONDS, rel=0.2)
    assert clip == pytest.approx(0.73, abs=0.015)


@pytest.mark.parametrize(("name", "key"), KEYS.items())
def test_the_mel_is_that_of_the_row(name, key):
    config = load_config(name)
    assert config.convention.key == key
    assert config.waveglow.upsample_kernel % config.data.hop_length == 0


def test_the_16_khz_mel_is_tacotrons():
    spectrum = load_config("tacotron16k").convention.spectrum
    assert (spectrum.rate, spectrum.hop, spectrum.n_fft, spectrum.win) == (16000, 200, 1024, 800)
    assert (spectrum.n_mels, spectrum.fmin, spectrum.fmax) == (80, 0, 8000)


def test_every_preset_is_in_the_manual():
    table = (Path(__file__).parent.parent / "docs/how-to/training.md").read_text(encoding="utf-8")
    for name in presets():
        assert f"| `{name}` |" in table


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "hifigan22k" else pytest.mark.slow) for n in KEYS],
)
def test_a_preset_trains_and_speaks(name, tmp_path):
    config = shrunk(name)
    rate, hop = config.data.sampling_rate, config.data.hop_length
    whole = load_config(name).data
    assert (config.data.mel, config.data.filter_length) == (whole.mel, whole.filter_length)
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", speech_like(1.5, i)[: rate // 2 + 77], rate)
    corpus = scan_corpus(str(tmp_path), config)
    device = jax.devices()[:1]
    state = replicate(init_state(config), device)
    step = parallel_train_step(config, 4, device)
    batch = split(next(training_batches(corpus.training, config)), 1)
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    voice = Voice(config, state.params, tuple(device))
    audio = speech_like(1.5, 5)[: 20 * hop + 33]
    mel = voice.mel(audio)
    assert len(mel) == (20 if config.data.mel.late else 21)
    made = voice.synthesize(mel, sigma=0.1)
    assert made.shape == (len(mel) * hop,) and np.isfinite(made).all() and made.std() > 0
