"""Reading audio and mel files with suspicion, writing them whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from golden import CASES

from waveglow_jax.errors import UserError
from waveglow_jax.files import inputs, mels, wav
from waveglow_jax.files.atomic import replacing
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, MEL_SUFFIXES, find_inputs
from waveglow_jax.files.mels import read_mel, write_mel
from waveglow_jax.files.sound import audio_frames, read_audio, read_clip
from waveglow_jax.files.torch_file import write_torch
from waveglow_jax.files.wav import to_int16, write_wav

RATE = 22050


@pytest.fixture
def voice() -> np.ndarray:
    return (0.3 * np.sin(np.arange(5000) * 0.05)).astype(np.float32)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def refused(*words: str):
    """Expects a UserError of one line that contains all the words."""

    class Check:
        def __enter__(self):
            self.raises = pytest.raises(UserError)
            self.info = self.raises.__enter__()

        def __exit__(self, *exc):
            result = self.raises.__exit__(*exc)
            message = str(self.info.value)
            assert "\n" not in message
            assert all(message.count(str(word)) == 1 for word in words if isinstance(word, Path))
            for word in words:
                assert str(word) in message, message
            return result

    return Check()


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# ------------------------------------------------------------------------------ finding


def test_folder_is_searched_sorted_and_without_hidden_names(tmp_path):
    touch(
        *(tmp_path / n for n in ("b.wav", "a/2.FLAC", "a/1.wav", "a/.x.wav", ".h/3.wav", "n.txt"))
    )
    found = find_inputs([str(tmp_path)], AUDIO_SUFFIXES)
    assert [i.relative.as_posix() for i in found] == ["a/1.wav", "a/2.FLAC", "b.wav"]
    assert all(i.path == tmp_path / i.relative for i in found)


def test_linked_folders_are_followed_but_not_in_a_circle(tmp_path):
    touch(tmp_path / "real/1.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "in")
    found = find_inputs([tmp_path / "in"], AUDIO_SUFFIXES)
    assert [i.relative.as_posix() for i in found] == ["link/1.wav"]
    assert len(inputs._walk(tmp_path / "in", AUDIO_SUFFIXES)) == 1


def test_file_glob_and_order_of_inputs(tmp_path):
    touch(*(tmp_path / n for n in ("z.wav", "s/a/1.wav", "s/b/2.wav", "s/b/2.json")))
    found = find_inputs([str(tmp_path / "z.wav"), str(tmp_path / "s/*/*")], AUDIO_SUFFIXES)
    assert [i.relative.as_posix() for i in found] == ["z.wav", "a/1.wav", "b/2.wav"]
    deep = find_inputs([str(tmp_path / "s" / "**" / "*.wav")], AUDIO_SUFFIXES)
    assert [i.relative.as_posix() for i in deep] == ["a/1.wav", "b/2.wav"]


def test_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    touch(tmp_path / "a[1].wav")
    assert len(find_inputs([str(tmp_path / "a[1].wav")], AUDIO_SUFFIXES)) == 1


def test_list_file(tmp_path, monkeypatch):
    touch(tmp_path / "lists/near.wav", tmp_path / "here/wavs/far.wav")
    listing = tmp_path / "lists/train_files.txt"
    listing.write_text("near.wav|some | text\n\n  \nwavs/far.wav\n")
    monkeypatch.chdir(tmp_path / "here")
    found = find_inputs([str(listing)], AUDIO_SUFFIXES)
    assert [i.relative.as_posix() for i in found] == ["near.wav", "wavs/far.wav"]
    assert found[0].path == tmp_path / "lists/near.wav"
    assert found[1].path.resolve() == tmp_path / "here/wavs/far.wav"


def test_list_of_absolute_paths_keeps_what_differs(tmp_path):
    one, two = tmp_path / "spk1/1.wav", tmp_path / "spk2/1.wav"
    touch(one, two)
    listing = tmp_path / "l.txt"
    listing.write_text(f"{one}\n{two}\n")
    found = find_inputs([listing], AUDIO_SUFFIXES)
    assert [i.relative.as_posix() for i in found] == ["spk1/1.wav", "spk2/1.wav"]


def test_list_cannot_lead_out_of_the_output(tmp_path):
    touch(tmp_path / "a.wav")
    (tmp_path / "sub/x").mkdir(parents=True)
    (tmp_path / "sub/l.txt").write_text("../a.wav\nx/../../a.wav")
    (found,) = find_inputs([tmp_path / "sub/l.txt"], AUDIO_SUFFIXES)
    assert found.relative == Path("a.wav")


def test_list_on_stdin(tmp_path, monkeypatch):
    touch(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("a.wav\n"))
    assert [i.relative.as_posix() for i in find_inputs(["-"], AUDIO_SUFFIXES)] == ["a.wav"]


def test_a_file_named_twice_is_found_once(tmp_path):
    touch(tmp_path / "a.wav")
    assert len(find_inputs([tmp_path, tmp_path / "a.wav"], AUDIO_SUFFIXES)) == 1


def test_what_cannot_be_found_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "a.wav", tmp_path / "a.flac", tmp_path / "b/a.wav", tmp_path / "n.npy")
    (tmp_path / "bad.txt").write_text("a.wav\nmissing.wav\n")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    for given, words in [
        (["missing.wav"], ["missing.wav", "no such"]),
        (["missing*.wav"], ["missing*.wav", "matches nothing"]),
        ([tmp_path / "empty"], ["empty", "nothing found"]),
        ([tmp_path / "*.npy"], ["*.npy", "nothing found"]),
        ([tmp_path / "n.npy"], ["n.npy", "type"]),
        ([tmp_path / "bad.txt"], ["bad.txt", "line 2", "missing.wav"]),
        ([tmp_path / "blank.txt"], ["blank.txt", "nothing found"]),
        ([tmp_path / "binary.txt"], ["binary.txt", "list"]),
        ([tmp_path], ["a.wav", "a.flac", "same output"]),
        ([tmp_path / "a.wav", tmp_path / "b/a.wav"], [tmp_path / "a.wav", tmp_path / "b/a.wav"]),
        ([], ["no inputs"]),
    ]:
        with refused(*words):
            find_inputs([str(g) for g in given], AUDIO_SUFFIXES)


# ------------------------------------------------------------------------------ audio in


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.ogg"])
def test_read_audio(tmp_path, voice, name):
    soundfile.write(tmp_path / name, voice, RATE)
    samples = read_audio(tmp_path / name, RATE)
    assert samples.dtype == np.float32 and samples.shape == voice.shape
    tolerance = 0.05 if name.endswith("ogg") else 1 / 32768
    np.testing.assert_allclose(samples, voice, atol=tolerance)
    assert audio_frames(tmp_path / name, RATE) == len(voice)


def test_read_clip_equals_the_slice(tmp_path, voice):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, voice, RATE)
        whole = read_audio(tmp_path / name, RATE)
        np.testing.assert_array_equal(read_clip(tmp_path / name, 1234, 4321), whole[1234:4321])
        np.testing.assert_array_equal(read_clip(tmp_path / name, 0, 5000), whole)
        for start, stop in [(4000, 5001), (-1, 10), (6000, 6001), (10, 10)]:
            with refused(name, f"{start} to {stop}", "5000"):
                read_clip(tmp_path / name, start, stop)


@pytest.mark.parametrize("read", [read_audio, audio_frames])
def test_audio_of_another_form_is_refused(tmp_path, voice, read):
    path = tmp_path / "a.wav"
    soundfile.write(path, voice, 16000)
    with refused(path, "16000", "22050", "prepare"):
        read(path, RATE)
    soundfile.write(path, np.stack([voice, voice], 1), RATE)
    with refused(path, "2 channels", "prepare"):
        read(path, RATE)
    soundfile.write(path, voice[:0], RATE)
    with refused(path, "no samples"):
        read(path, RATE)
    path.write_bytes(b"")
    with refused(path, "empty"):
        read(path, RATE)
    path.write_bytes(b"this is not audio at all, is it?" * 10)
    with refused(path, "not readable as audio"):
        read(path, RATE)
    with refused("missing.wav", "no such file"):
        read(tmp_path / "missing.wav", RATE)
    with refused(tmp_path, "folder"):
        read(tmp_path, RATE)


def test_decoder_that_stops_early_is_noticed(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 60000).astype(np.float32)
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise, RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with refused(path, "cut short", "of 60000 samples"):
        read_audio(path, RATE)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_cut_short_is_refused(tmp_path, name, share):
    # Noise, so that FLAC cannot make a few bytes of it.
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20000).astype(np.float32)
    path = tmp_path / name
    soundfile.write(path, noise, RATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for read in (read_audio, audio_frames):
        with refused(path):
            read(path, RATE)
    with refused(path):
        read_clip(path, 19000, 20000)


@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
def test_cut_short_by_one_sample_with_chunks_before_the_sound(tmp_path, voice, order):
    path = tmp_path / "a.wav"
    soundfile.write(path, voice, RATE, endian=order)
    content = path.read_bytes()
    at = content.index(b"data")
    odd = b"LIST" + struct.pack("<I" if order == "LITTLE" else ">I", 5) + b"abcde\0"
    path.write_bytes(content[:at] + odd + content[at:])
    assert audio_frames(path, RATE) == len(voice)
    path.write_bytes((content[:at] + odd + content[at:])[:-2])
    with refused(path, "cut short", "9998 of 10000"):
        audio_frames(path, RATE)


def test_cut_short_rf64(tmp_path, voice):
    path = tmp_path / "a.wav"
    soundfile.write(path, voice, RATE, format="RF64")
    assert audio_frames(path, RATE) == len(voice)
    path.write_bytes(path.read_bytes()[:-100])
    with refused(path, "cut short"):
        audio_frames(path, RATE)


def test_wav_written_to_a_pipe_has_no_length_and_is_read(tmp_path, voice):
    path = tmp_path / "a.wav"
    write_wav(path, voice, RATE)
    content = bytearray(path.read_bytes())
    content[40:44] = content[4:8] = b"\xff" * 4
    path.write_bytes(content)
    assert len(read_audio(path, RATE)) == len(voice)


def test_silent_and_impossible_samples_are_refused(tmp_path, voice):
    path = tmp_path / "a.wav"
    for value, words in [
        (np.nan, ["not finite"]),
        (np.inf, ["not finite"]),
        (8000.0, ["8000", "full scale"]),
    ]:
        bad = voice.copy()
        bad[1000] = value
        soundfile.write(path, bad, RATE, subtype="FLOAT")
        with refused(path, *words):
            read_audio(path, RATE)
        with refused(path, *words):
            read_clip(path, 900, 1100)
        assert len(read_clip(path, 2000, 2100)) == 100
    soundfile.write(path, np.full(100, 9e-6), RATE, subtype="FLOAT")
    with refused(path, "silent"):
        read_audio(path, RATE)
    soundfile.write(path, np.full(100, 1.1e-5), RATE, subtype="FLOAT")
    assert len(read_audio(path, RATE)) == 100


def test_a_little_beyond_full_scale_is_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 1.2, -1.2]), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", RATE), np.float32([0.5, 1, -1]))


# ------------------------------------------------------------------------------ audio out


def test_int16_is_rounded_then_clipped_as_one_at_a_time():
    rng = np.random.default_rng(1)
    edges = [-1.5, -1.0, -0.99999, 0.0, 0.5 / 32768, 1.5 / 32768, -0.5 / 32768, 0.99997, 0.999985]
    samples = np.float32([*edges, 1.0, 1.5, *rng.uniform(-1.1, 1.1, 2000)])
    expected = []
    for sample in samples:
        value = round(float(sample) * 32768)  # Python rounds halves to even, as rint does
        expected.append(max(-32768, min(32767, value)))
    assert to_int16(samples).tolist() == expected


def test_write_wav_is_a_plain_16_bit_wav(tmp_path, voice):
    path = tmp_path / "new/folder/a.wav"
    write_wav(path, voice, RATE)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
    samples, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(samples, to_int16(voice))
    assert path.stat().st_size == 44 + 2 * len(voice)
    assert only(path.parent) == ["a.wav"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_write_wav_refuses_what_is_not_sound(tmp_path, voice):
    voice[7] = np.nan
    with refused("a.wav", "finite"):
        write_wav(tmp_path / "a.wav", voice, RATE)
    for bad in (voice[None], np.arange(5)):
        with pytest.raises(ValueError, match="samples must be"):
            write_wav(tmp_path / "a.wav", bad, RATE)
    assert only(tmp_path) == []


@pytest.mark.parametrize("write", ["wav", "mel"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, voice, write):
    path = tmp_path / ("a.wav" if write == "wav" else "a.npy")
    path.write_bytes(b"old")
    real_open = open

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(name, mode="r", *args, **kwargs):
        return Full(name, "w") if "w" in mode else real_open(name, mode, *args, **kwargs)

    monkeypatch.setattr(wav if write == "wav" else mels, "open", full, raising=False)
    with refused(path, "No space left"):
        if write == "wav":
            write_wav(path, voice, RATE)
        else:
            write_mel(path, np.zeros((3, 80), np.float32))
    assert only(tmp_path) == [path.name] and path.read_bytes() == b"old"


def test_replacing(tmp_path):
    path = tmp_path / "plot.png"
    with replacing(path) as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and only(tmp_path) == ["plot.png"]
    (tmp_path / "file").write_text("")
    with refused(tmp_path / "file/a.wav"), replacing(tmp_path / "file/a.wav"):
        pass
    (tmp_path / "dir.png").mkdir()
    with refused("dir.png"), replacing(tmp_path / "dir.png") as temporary:
        temporary.write_text("x")
    assert only(tmp_path) == ["dir.png", "file", "plot.png"]


# ------------------------------------------------------------------------------ mels


@pytest.fixture
def mel() -> np.ndarray:
    """[F, M] with every value different, of a shape where no two sizes agree."""
    return np.random.default_rng(2).normal(size=(17, 80)).astype(np.float32)


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, array)
    else:
        from safetensors.numpy import save_file

        save_file({"anything": np.ascontiguousarray(array)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_read_mel_of_every_shape_and_precision(tmp_path, mel, suffix):
    path = tmp_path / f"a{suffix}"
    for stored in (mel.T, mel.T[None], mel, np.asfortranarray(mel.T)):
        got = read_mel(save(path, stored), 80)
        assert got.dtype == np.float32 and got.flags.c_contiguous
        np.testing.assert_array_equal(got, mel)
    for dtype in (np.float16, np.float64):
        got = read_mel(save(path, mel.T.astype(dtype)), 80)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, mel.astype(dtype).astype(np.float32))


def test_a_square_mel_is_taken_as_bins_by_frames(tmp_path):
    square = np.random.default_rng(3).normal(size=(80, 80)).astype(np.float32)
    np.testing.assert_array_equal(read_mel(save(tmp_path / "a.npy", square), 80), square.T)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_mels_that_cannot_be_right_are_refused(tmp_path, mel, suffix):
    path = tmp_path / f"a{suffix}"
    bad = mel.T.copy()
    bad[3, 3] = np.nan
    for stored, words in [
        (mel.T[:64], ["64", "80"]),
        (mel.T[:, :0], ["empty"]),
        (bad, ["not finite"]),
        (np.full((80, 3), 1e300), ["not finite"]),
        (np.zeros((80, 3), np.int16), ["floating point"]),
        (np.zeros((2, 80, 3), np.float32), ["2 x 80 x 3"]),
        (np.zeros(80, np.float32), ["80"]),
    ]:
        with refused(path, *words):
            read_mel(save(path, stored), 80)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.01, 0.5, 0.99])
def test_mel_files_cut_short_are_refused(tmp_path, mel, suffix, share):
    path = save(tmp_path / f"a{suffix}", mel.T)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with refused(path):
        read_mel(path, 80)


def test_what_unpacks_to_far_more_than_a_mel_is_refused(tmp_path):
    """The size that the header states suffices: nothing is unpacked."""
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (80, 300_000)}
    np.lib.format.write_array_header_1_0(header, shape)
    packing = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(tmp_path / "a.npz", "w", **packing) as archive:
        archive.writestr("mel.npy", header.getvalue() + bytes(80 * 300_000 * 4))
    with refused("a.npz", "unpacks to 96000128 bytes"):
        read_mel(tmp_path / "a.npz", 80)


def test_bfloat16_mels(tmp_path):
    values = np.linspace(-11, 2, 160, dtype=np.float32).reshape(80, 2)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [80, 2], "data_offsets": [0, 320]}
    header = json.dumps({"mel": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + upper)
    np.testing.assert_allclose(read_mel(path, 80), values.T, rtol=2**-7)


def test_a_single_number_is_no_mel(tmp_path):
    with refused("a.npy", "a single number", "80 x frames"):
        read_mel(save(tmp_path / "a.npy", np.float32(1)), 80)


def test_mel_with_bytes_too_many_is_refused(tmp_path, mel):
    path = save(tmp_path / "a.npy", mel.T)
    path.write_bytes(path.read_bytes() + b"1234")
    with refused(path, "4 bytes too many"):
        read_mel(path, 80)


def test_nothing_is_unpickled(tmp_path):
    fired = tmp_path / "fired"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (fired,))

    objects = np.empty((80, 3), object)
    objects[:] = [[Trap()] * 3] * 80
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", mel=objects)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap()))
    for name, word in [("a.npy", "unpickled"), ("b.npz", "unpickled"), ("c.npy", "NumPy")]:
        with refused(name, word):
            read_mel(tmp_path / name, 80)
    assert not fired.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, monkeypatch, suffix):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (80, 10**12)}
    )
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        path.write_bytes(head.getvalue() + b"\0" * 320)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mel.npy", head.getvalue() + b"\0" * 320)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("read"))
    with refused(path, "cut short", "320 of"):
        read_mel(path, 80)


def test_damaged_npz_is_refused(tmp_path, mel):
    path = tmp_path / "a.npz"
    np.savez(path, mel=mel.T)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with refused(path, "damaged"):
        read_mel(path, 80)


def test_the_array_called_mel_is_chosen(tmp_path, mel):
    from safetensors.numpy import save_file

    np.savez(tmp_path / "a.npz", other=np.zeros(3), mel=mel.T)
    save_file(
        {"mel": np.ascontiguousarray(mel.T), "other": np.zeros(3)}, tmp_path / "a.safetensors"
    )
    write_torch(tmp_path / "a.pt", {"mel": mel.T, "other": np.zeros(3, np.float32)})
    for name in ("a.npz", "a.safetensors", "a.pt"):
        np.testing.assert_array_equal(read_mel(tmp_path / name, 80), mel)
    write_torch(tmp_path / "b.pt", {"x": mel.T, "y": mel.T})
    write_torch(tmp_path / "alone.pt", mel.T[None])
    np.testing.assert_array_equal(read_mel(tmp_path / "alone.pt", 80), mel)
    with refused("b.pt", "2 arrays", "mel"):
        read_mel(tmp_path / "b.pt", 80)
    write_torch(tmp_path / "c.pt", {"mel": np.zeros((100, 7), np.float32)})
    with refused("c.pt", "100 mel bins"):
        read_mel(tmp_path / "c.pt", 80)
    np.savez(tmp_path / "b.npz", x=mel.T, y=mel.T)
    with refused("b.npz", "2 arrays", "mel"):
        read_mel(tmp_path / "b.npz", 80)


def torch_file(path: Path, tree: object) -> Path:
    """A file as torch.save writes values that are not tensors: inside its pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(tree, 2))
    return path


@pytest.mark.parametrize("name", ["numpy", "dict_numpy", "tuple"])
def test_mels_that_torch_saved_in_other_things(name):
    expected = np.load(CASES / "10-mel-names/mel_/mel_u00.npy")
    assert expected.shape == (80, 173)
    got = read_mel(CASES / f"15-torch-of-numpy/{name}.pt", 80)
    np.testing.assert_array_equal(got, expected.T)


def test_the_one_array_that_can_be_a_mel_is_found(tmp_path, mel):
    path = tmp_path / "a.pt"
    lengths, text = np.array([17], "<i8"), np.array(["a"])
    for tree in (
        [mel.T],
        (mel.T, 22050),
        {"out": {"mels": [mel.T[None]], "lengths": lengths}},
        [lengths, {"text": text, "gate": np.zeros((1, 17), np.float32), "x": mel}],
        {"mel": mel.T, "mel_postnet": mel.T + 1},
        [{"mel": mel.T}, mel.T + 1, (mel.T + 2,)],
        {"a": mel.astype(">f8"), "b": None},
    ):
        np.testing.assert_array_equal(read_mel(torch_file(path, tree), 80), mel)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([np.zeros((80, 3), "f4"), np.zeros((80, 4), "f4")], ["[0] of 80 x 3 float32", "2 arrays"]),
        ({"mel": [1.0, 2.0], "rate": 3}, ["no tensor or array", "a dict", "torch.as_tensor"]),
        ([[1.0] * 3] * 80, ["no tensor or array", "a list"]),
        ("text", ["no tensor or array", "a text"]),
        ({"mel": np.zeros((80, 3), "i4")}, ["int32", "floating point"]),
        ({"mel": np.zeros((80, 3), complex)}, ["c16", "floating point"]),
        ([np.zeros((80, 3, 2), "f4")], ["80 x 3 x 2"]),
        ([np.zeros((9, 9), "f4")] * 9, ["9 arrays", "[3] of 9 x 9 float32 ...", "'mel'"]),
        ([np.zeros((80, 3), "i4"), np.zeros(3, "f4")], ["2 arrays"]),
    ],
)
def test_what_a_torch_file_holds_instead_of_a_mel_is_named(tmp_path, tree, words):
    with refused(tmp_path / "a.pt", *words):
        read_mel(torch_file(tmp_path / "a.pt", tree), 80)


def test_other_mel_files_are_refused(tmp_path):
    touch(tmp_path / "a.pt", tmp_path / "a.mel")
    (tmp_path / "d.npy").mkdir()
    with refused("a.pt", "PyTorch"):
        read_mel(tmp_path / "a.pt", 80)
    with refused("a.mel", ".npy"):
        read_mel(tmp_path / "a.mel", 80)
    with refused("d.npy", "folder"):
        read_mel(tmp_path / "d.npy", 80)
    for suffix in MEL_SUFFIXES:
        with refused("missing", "no such file"):
            read_mel(tmp_path / f"missing{suffix}", 80)


def test_write_mel_round_trip(tmp_path, mel):
    path = tmp_path / "deep/a.npy"
    write_mel(path, mel)
    stored = np.load(path, allow_pickle=False)
    assert stored.shape == (80, 17) and stored.dtype == np.float32
    np.testing.assert_array_equal(read_mel(path, 80), mel)
    assert only(path.parent) == ["a.npy"]
    mel[0, 0] = np.inf
    with refused("b.npy", "finite"):
        write_mel(tmp_path / "b.npy", mel)
    with pytest.raises(ValueError, match="npy"):
        write_mel(tmp_path / "b.npz", np.zeros((3, 80)))
    assert only(tmp_path) == ["a.npy", "deep"]
