"""Training on an acoustic model's mels: which mel a recording gets, and which of its frames."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from golden import CASES
from safetensors.numpy import save_file
from test_training import RATE, speech_like, tiny_config

from waveglow_jax.audio.mel import log_mel, log_mel_of_padded
from waveglow_jax.config import load_config
from waveglow_jax.errors import UserError
from waveglow_jax.files.mels import write_mel
from waveglow_jax.training.dataset import (
    Recording,
    read_example,
    scan_corpus,
    training_batches,
    validation_batches,
)
from waveglow_jax.training.parallel import parallel_validation_step, split
from waveglow_jax.training.step import init_state

CONFIGS = Path(__file__).parent.parent / "configs"
LENGTHS = {"a/0.wav": 9000, "a/1.wav": 256 * 40, "b/0.wav": 12345, "b/2.wav": 1500, "3.wav": 8191}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Recordings in sub-folders, and beside them their own mels."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, (name, length) in enumerate(LENGTHS.items()):
        path = folder / "wavs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(1, i)[:length], RATE, subtype="FLOAT")
        write_mel((folder / "mels" / name).with_suffix(".npy"), own_mel(path))
    return folder


def own_mel(path) -> np.ndarray:
    audio, _ = soundfile.read(path, dtype="float32")
    return np.asarray(log_mel(jnp.asarray(audio), tiny_config()))


def scan(corpus, mels="mels", **train):
    config = tiny_config(**{"validation_fraction": 0.0, **train})
    return scan_corpus(str(corpus / "wavs"), config, str(corpus / mels))


def mel_of(folder, name):
    return (folder / name).with_suffix(".npy")


@pytest.fixture
def copy(corpus, tmp_path):
    """A copy of the mels that a test may damage."""
    for name in LENGTHS:
        write_mel(mel_of(tmp_path, name), own_mel(corpus / "wavs" / name))
    return tmp_path


# ------------------------------------------------------------------------------ which


@pytest.mark.slow
def test_each_recording_gets_the_mel_of_its_relative_name(corpus):
    found = scan(corpus)
    assert len(found.training) == 5 and not found.left_out and not found.doubts
    for recording in found.training:
        relative = recording.path.relative_to(corpus / "wavs").with_suffix(".npy")
        assert recording.mel == corpus / "mels" / relative
    assert all(r.mel is None for r in scan_corpus(str(corpus / "wavs"), tiny_config()).training)


@pytest.mark.slow
def test_a_list_finds_mels_by_the_end_of_its_paths(corpus, tmp_path):
    listed = tmp_path / "files.txt"
    listed.write_text("".join(f"{corpus}/wavs/a/{i}.wav\n" for i in (0, 1)))
    for i in (0, 1):
        write_mel(tmp_path / "flat" / f"{i}.npy", own_mel(corpus / "wavs" / "a" / f"{i}.wav"))
    config = tiny_config(validation_fraction=0.0)
    found = scan_corpus(str(listed), config, str(tmp_path / "flat"))
    assert [r.mel.name for r in found.training] == ["0.npy", "1.npy"]
    # Flat mels for recordings in folders: 0.npy would be that of a/0.wav and of b/0.wav.
    found = scan_corpus(str(corpus / "wavs"), config, str(tmp_path / "flat"))
    assert any("would be the mel of" in line and "b/0.wav" in line for line in found.left_out)


def one_recording(folder, name="x.wav"):
    path = folder / "wavs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(1, 0), RATE, subtype="FLOAT" if name[-1] == "v" else None)
    return path


@pytest.mark.parametrize(
    ("recording", "mel"),
    [
        ("x.wav", "x.wav.npy"),  # the original's mel2samp.py
        ("x.wav", "mel_x.npy"),  # NeMo
        ("x.wav", "mel-x.npy"),  # Tacotron 2 in TensorFlow
        ("x.wav", "LJSpeech-mel-x.npy"),  # FastSpeech 2
        ("x.wav", "x-norm-feats.npy"),  # TensorFlowTTS
        ("x.wav", "x-raw-feats.npy"),
        ("x.wav", "x-feats.npy"),  # ParallelWaveGAN
        ("x.wav", "x_mel.npy"),
        ("x.wav", "x.mel.npy"),
        ("x.wav", "mel_x.wav.npy"),
        ("x.wav", "x.flac.npy"),  # before `prepare`
        ("x.wav", "mel_x.flac.npy"),
        ("x.flac", "x.flac.npy"),
        ("a/x.wav", "a/mel_x.npy"),
        ("a/x.wav", "x-feats.npy"),
        ("mel_x.wav", "mel_x.npy"),
        ("x-feats.wav", "x-feats-feats.npy"),
    ],
)
def test_names_that_programs_give_to_mels(tmp_path, recording, mel):
    path = one_recording(tmp_path, recording)
    write_mel(tmp_path / "mels" / mel, own_mel(path))
    (found,) = scan(tmp_path).training
    assert found.mel == tmp_path / "mels" / mel


def test_a_mel_that_is_named_as_its_recording_comes_first(tmp_path):
    path = one_recording(tmp_path)
    for name in ("x.npy", "mel_x.npy", "x-feats.npy", "deep/x.npy"):
        write_mel(tmp_path / "mels" / name, own_mel(path))
    (found,) = scan(tmp_path).training
    assert found.mel == tmp_path / "mels/x.npy"


@pytest.mark.parametrize("names", [("mel_x.npy", "x-feats.npy"), ("x.npy", "x.wav.npy")])
def test_two_mels_for_one_recording_are_told_of(tmp_path, names):
    path = one_recording(tmp_path)
    for name in names:
        write_mel(tmp_path / "mels" / name, own_mel(path))
    with pytest.raises(UserError, match=f"x.wav: .*{names[0]} and .*{names[1]}.*keep one"):
        scan(tmp_path)


def test_mels_of_two_formats_are_no_conflict_of_outputs(tmp_path):
    one, two = one_recording(tmp_path, "x.wav"), one_recording(tmp_path, "x.flac")
    for path in (one, two):
        write_mel(tmp_path / "mels" / f"{path.name}.npy", own_mel(path))
    assert [r.mel.name for r in scan(tmp_path).training] == ["x.flac.npy", "x.wav.npy"]


def test_without_a_mel_of_its_name_one_that_is_there_is_named(tmp_path):
    path = one_recording(tmp_path)
    write_mel(tmp_path / "mels/sub/other_0001.npy", own_mel(path))
    with pytest.raises(UserError, match=r"x\.wav: no mel in .* x\.npy .*other_0001\.npy"):
        scan(tmp_path)


@pytest.mark.parametrize("mels", ["nv", "mel_"])
def test_mels_of_the_original_and_of_nemo(mels):
    folder = CASES / "10-mel-names"
    config = load_config(CONFIGS / "voice.json", {"train.validation_fraction": 0.0})
    corpus = scan_corpus(str(folder / "wav"), config, str(folder / mels))
    (found,) = corpus.training
    assert found.n_samples == 44100
    assert found.mel.name == {"nv": "u00.wav.pt", "mel_": "mel_u00.npy"}[mels]
    assert not corpus.doubts  # they are the recording's own


@pytest.mark.slow
def test_recordings_without_a_readable_mel_are_left_out_by_name(corpus, copy):
    mel_of(copy, "a/0.wav").unlink()
    mel_of(copy, "b/2.wav").write_bytes(b"\x93NUMPY cut")
    spoilt = own_mel(corpus / "wavs" / "3.wav").copy()
    spoilt[3, 3] = np.nan
    np.save(copy / "3.npy", spoilt.T)
    found = scan(corpus, copy)
    assert [r.path.name for r in found.training] == ["1.wav", "0.wav"]
    named = [line.partition(": ")[0] for line in found.left_out]  # the file with the fault
    for name in ("a/0.wav", "b/2", "3.npy"):
        assert sum(name in path for path in named) == 1, (name, found.left_out)
    for name in ("a/1.wav", "b/0.wav"):
        mel_of(copy, name).unlink()
    with pytest.raises(
        UserError, match=r"no usable recording.*5 left out, the first: .*3.npy: holds values"
    ):
        scan(corpus, copy)


@pytest.mark.parametrize("frames", [35, 38])
def test_a_mel_of_another_length_is_refused_with_both_numbers(corpus, copy, frames):
    """a/0.wav has 9000 samples: 36 frames, or 35 without the last, are its own."""
    own = own_mel(corpus / "wavs" / "a/0.wav")
    assert len(own) == 36
    write_mel(mel_of(copy, "a/0.wav"), np.pad(own, ((0, 9), (0, 0)))[:frames])
    if frames == 35:
        assert len(scan(corpus, copy).training) == 5
        return
    with pytest.raises(UserError, match=r"a/0.npy: 38 frames.*9000 samples.*36 frames.*or 35"):
        scan(corpus, copy)


def test_mels_in_every_format_and_with_another_number_of_bins(corpus, copy):
    for name, path in ((n, mel_of(copy, n)) for n in ("a/0.wav", "a/1.wav")):
        path.unlink()
        mel = own_mel(corpus / "wavs" / name)
        if name == "a/0.wav":
            np.savez(path.with_suffix(".npz"), mel=mel.T)
        else:
            save_file({"mel": np.ascontiguousarray(mel.T)[None]}, path.with_suffix(".safetensors"))
    assert len(scan(corpus, copy).training) == 5
    np.save(copy / "3.npy", np.zeros((7, 32), np.float32))
    (line,) = scan(corpus, copy).left_out
    assert "3.npy" in line and "the model takes 8" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda mel: np.roll(mel, 3, axis=0), "come 3 frames late"),
        (lambda mel: np.roll(mel, -2, axis=0), "come 2 frames early"),
        (lambda mel: mel * 8.686, r"lie -[0-9.]+ beside"),
        (lambda mel: np.random.default_rng(0).normal(size=mel.shape) - 5, "hardly follow"),
        (lambda mel: mel + np.random.default_rng(0).normal(0, 0.5, mel.shape), None),
    ],
)
def test_mels_that_look_wrong_are_told_of(tmp_path, change, says):
    for i in range(6):
        # Words and pauses, so that the loudness varies.
        t = np.arange(3 * RATE) / RATE
        audio = speech_like(3, i) * (np.sin(2 * np.pi * (0.9 + 0.1 * i) * t) > -0.3)
        (tmp_path / "wavs").mkdir(exist_ok=True)
        path = tmp_path / "wavs" / f"{i}.wav"
        soundfile.write(path, audio, RATE, subtype="FLOAT")
        write_mel(tmp_path / "mels" / f"{i}.npy", change(own_mel(path)))
    doubts = scan(tmp_path).doubts
    if says is None:
        assert doubts == ()
    else:
        assert len(doubts) == 1 and re.search(says, doubts[0]), doubts


# ------------------------------------------------------------------------------ which frames


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("without_last", [False, True])
def test_a_clips_frames_are_those_of_its_place(corpus, copy, name, without_last):
    path, n_samples = corpus / "wavs" / name, LENGTHS[name]
    config = tiny_config()
    own = own_mel(path)
    write_mel(mel_of(copy, name), own[: len(own) - without_last])
    recording = Recording(path, n_samples, mel_of(copy, name))
    last = max(0, n_samples - 2048) // 256
    for frame in {0, last // 2, last}:
        example = read_example(recording, frame, config)
        computed = np.asarray(log_mel_of_padded(jnp.asarray(example["clips"]), config))
        there = len(own) - without_last - frame  # frames of the file from here on
        assert example["mel"].shape == computed.shape
        if n_samples >= 2048:
            np.testing.assert_allclose(example["mel"][:there], computed[:there], atol=2e-4)
        for f in range(there, min(len(own) - frame, len(computed))):
            np.testing.assert_array_equal(example["mel"][f], own[-2])
        for f in range(len(own) - frame, len(computed)):
            np.testing.assert_allclose(example["mel"][f], np.log(1e-5), rtol=1e-6)


@pytest.mark.slow
def test_training_and_validation_take_the_given_mels(corpus):
    """The recordings' own mels, read from files, give the likelihood of mels that the step
    computes."""
    config = tiny_config(batch_size=4, validation_clips=4, noise_std=0.0)
    with_mels = scan(corpus).training
    without = scan_corpus(str(corpus / "wavs"), tiny_config(validation_fraction=0.0)).training
    given = next(training_batches(with_mels, config))
    plain = next(training_batches(without, config))
    assert given.mel.shape == (4, config.clip_frames, 8) and plain.mel is None
    np.testing.assert_array_equal(given.clips, plain.clips)
    long = [r for r in with_mels if r.n_samples >= 2048]
    (batch,) = validation_batches(tuple(long), config, 4)
    step = parallel_validation_step(config, jax.devices()[:1])
    params = init_state(config).params
    own = batch._replace(mel=None)
    by_itself = float(step(params, split(own, 1))["nats"])
    assert float(step(params, split(batch, 1))["nats"]) == pytest.approx(by_itself, rel=1e-4)
    louder = batch._replace(mel=batch.mel + 1)
    assert float(step(params, split(louder, 1))["nats"]) != pytest.approx(by_itself, rel=1e-2)
