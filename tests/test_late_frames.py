"""Voices whose frames lie half a hop late: T // hop frames, and recordings of any length.

The tests of clips, windows, streams and corrections also cover such frames, beside centred ones.
"""

import re

import numpy as np
import pytest
import soundfile
from test_training import RATE, speech_like
from test_vocoder import HOP, close, lively_params, some_audio, tiny_config

from waveglow_jax.analysis import latent
from waveglow_jax.analysis.signals import signal_of
from waveglow_jax.config import config_from_dict, config_to_dict
from waveglow_jax.conventions import HALF_HOP
from waveglow_jax.errors import UserError
from waveglow_jax.files.mels import write_mel
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.training.dataset import scan_corpus

pytestmark = pytest.mark.usefixtures("no_full_scale")

WHITENING = {"block": 32, "order": 24, "floor": 0.001}
LATE = config_from_dict(
    config_to_dict(tiny_config()),
    {"data.mel.frames": HALF_HOP, "waveglow.mel_whitening": WHITENING},
)
VOICE = Voice(LATE, lively_params(LATE))
AUDIO = some_audio(20 * HOP + 96)


def test_a_recording_with_its_mel_loses_the_samples_without_a_frame():
    mel = VOICE.mel(AUDIO)
    assert len(mel) == 20
    with pytest.warns(UserWarning, match="the last 96 of 5216 samples were left out"):
        z, nats = VOICE.encode(AUDIO, mel)
    with pytest.warns(UserWarning, match="the last 96 of 5216"):
        alone, nats_alone = VOICE.encode(AUDIO)
    whole, nats_whole = VOICE.encode(AUDIO[: 20 * HOP], mel)
    np.testing.assert_array_equal(z, whole)
    np.testing.assert_array_equal(alone, whole)
    assert nats == nats_whole == nats_alone
    close(VOICE.decode(z, mel), AUDIO[: 20 * HOP], 1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        VOICE.encode(AUDIO, mel[:-1])


def test_the_round_trip_of_resynthesize_is_the_whole_recording():
    found = latent.encode(VOICE, AUDIO)
    assert found.mel.shape[0] == 21 and found.n_samples == len(AUDIO)
    close(VOICE.decode(found.z, found.mel)[: found.n_samples], AUDIO, 1e-4)


def test_copy_synthesis_has_the_recordings_shape():
    made = VOICE.resynthesize(AUDIO, sigma=0.5)
    assert made.shape == AUDIO.shape and np.abs(made[-96:]).max() > 0


def test_the_loudest_part_has_a_frame_after_it():
    loud_at_the_end = AUDIO * np.linspace(0.1, 1, len(AUDIO), dtype=np.float32)
    mel = VOICE.mel(loud_at_the_end)
    part = signal_of("a", loud_at_the_end, mel, LATE, 4 * HOP)
    np.testing.assert_array_equal(part.audio, loud_at_the_end[15 * HOP : 19 * HOP])
    np.testing.assert_array_equal(part.mel, mel[15:20])


def test_a_whitening_longer_than_what_precedes_a_clip():
    order = {"block": 32, "order": 400}
    config_from_dict({"waveglow_config": {"mel_whitening": order}})
    with pytest.raises(UserError, match="order 400 must be at most 384"):
        config_from_dict(
            {"waveglow_config": {"mel_whitening": order}, "data_config": {"mel": "hifigan"}}
        )


# ------------------------------------------------------------------------------ given mels


def on_grid(frames: str):
    changes = {"data.mel.frames": frames, "train.validation_fraction": 0.0}
    return config_from_dict(config_to_dict(LATE), changes)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(3):
        t = np.arange(3 * RATE) / RATE
        audio = speech_like(3, i) * (np.sin(2 * np.pi * (0.9 + 0.1 * i) * t) > -0.3)
        soundfile.write(folder / f"{i}.wav", audio, RATE, subtype="FLOAT")
    return folder


def scanned(recordings, folder, made_on: str, taken_on: str, blur: float = 0.0):
    """The corpus of a config of one grid, with mels of another one, without the last frame."""
    voice = Voice(on_grid(made_on), VOICE.params)
    for path in recordings.glob("*.wav"):
        mel = voice.mel(soundfile.read(path, dtype="float32")[0])[: 3 * RATE // HOP]
        noise = np.random.default_rng(0).normal(0, 1, mel.shape).astype(np.float32)
        write_mel(folder / f"{path.stem}.npy", mel + blur * noise)
    return scan_corpus(str(recordings), on_grid(taken_on), str(folder))


@pytest.mark.parametrize("blur", [0.0, 0.5])
@pytest.mark.parametrize("grid", ["centred", HALF_HOP])
def test_a_shifted_grid_is_told_of(recordings, tmp_path, grid, blur):
    other = {"centred": HALF_HOP, HALF_HOP: "centred"}[grid]
    assert scanned(recordings, tmp_path, grid, grid, blur).doubts == ()
    (doubt,) = scanned(recordings, tmp_path, other, grid, blur).doubts
    assert re.match(f"the mels' frames are {other}, those of the config are {grid} ", doubt)


def test_a_frame_too_many_is_refused(recordings, tmp_path):
    frames = 3 * RATE // HOP
    for path in recordings.glob("*.wav"):
        write_mel(tmp_path / f"{path.stem}.npy", np.full((frames + 1, 80), -5.0, np.float32))
    with pytest.raises(UserError, match=f"{frames + 1} frames, .* which are {frames} frames of"):
        scan_corpus(str(recordings), on_grid(HALF_HOP), str(tmp_path))
