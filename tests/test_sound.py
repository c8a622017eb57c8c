"""Recordings as they are in the wild: read whole or refused in one line, the rest still done."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from waveglow_jax.audio.prepare import LEFT_OUT, prepare
from waveglow_jax.cli import main
from waveglow_jax.config import Config
from waveglow_jax.errors import FileWarning, UserError
from waveglow_jax.files import sound
from waveglow_jax.files.inputs import find_unread
from waveglow_jax.files.sound import audio_frames, read_audio, read_clip, read_samples
from waveglow_jax.training import dataset

CASES = Path(__file__).parent / "data" / "cases"
RATE = 22050


def some_sound(samples: int = 15000, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (0.3 * np.sin(np.arange(samples) * 0.05) + 0.05 * noise).astype(np.float32)


def encoded(format: str, subtype: str, samples: int = 15000, rate: int = RATE) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, some_sound(samples), rate, format=format, subtype=subtype)
    return content.getvalue()


# ------------------------------------------------------------------------------ whole


@pytest.mark.parametrize(
    ("name", "samples", "rate"),
    [
        ("01-flac-unknown-length/flac_total0.flac", 33075, 22050),
        ("03-wav-stream-lengths/len_arecord_80000000.wav", 33075, 22050),
        ("03-wav-stream-lengths/len_sox_pipe_7ffff000.wav", 33075, 22050),
        ("03-wav-stream-lengths/len_zero.wav", 33075, 22050),
        ("04-mp3-vbr-without-xing/mp3_noxing.mp3", 34560, 22050),
        ("04-mp3-vbr-without-xing/vbr_loudfirst.mp3", 101376, 22050),
        ("04-mp3-vbr-without-xing/ogg_chain.ogg", 66150, 22050),
        ("06-unseekable-codecs/au_g721.au", 33120, 22050),
        ("06-unseekable-codecs/wav_GSM610.wav", 33280, 22050),
        ("16-mp3-noise/u00.mp3", 44100, 22050),
    ],
)
def test_every_sample_is_read(name, samples, rate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, own_rate = read_samples(CASES / name)
        assert (whole.shape, own_rate) == ((samples, 1), rate)
        assert audio_frames(CASES / name, rate) == samples
        np.testing.assert_array_equal(read_audio(CASES / name, rate), whole[:, 0])
        for start, stop in ((0, 100), (samples // 2, samples // 2 + 9000), (samples - 1, samples)):
            clip = read_clip(CASES / name, start, stop)
            np.testing.assert_allclose(clip, whole[start:stop, 0], atol=1e-6)
        with pytest.raises(UserError, match="asked for"):
            read_clip(CASES / name, samples - 10, samples + 1)


def test_flac_of_unknown_length_holds_what_the_recording_holds(tmp_path):
    folder = CASES / "01-flac-unknown-length"
    expected = read_audio(folder / "ok.wav", RATE)
    np.testing.assert_array_equal(read_audio(folder / "flac_total0.flac", RATE), expected)
    content = bytearray((folder / "flac_total0.flac").read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    (tmp_path / "a.flac").write_bytes(content)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", RATE), expected)


def with_length(content: bytes, format: str, length: int) -> bytes:
    """The file with another length (modulo the field's size) of its sound."""
    at = content.find({"AIFF": b"SSND"}.get(format, b"data"))
    places = {"WAV": ("<I", at + 4), "AIFF": (">I", at + 4), "AU": (">I", 8)}
    places |= {"CAF": (">q", at + 4), "W64": ("<Q", at + 16)}
    places["RF64"] = ("<Q", content.find(b"ds64") + 16)
    form, place = places[format]
    changed = bytearray(content)
    size = struct.calcsize(form)
    struct.pack_into(form.upper(), changed, place, length % 2 ** (8 * size))
    return bytes(changed)


LENGTHS = (0, 0x7FFF0000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0x80000024, 0xFFFFFF00)
LENGTHS += (0xFFFFFFFF - 36, 0xFFFFFFFF)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "CAF", "RF64"])
@pytest.mark.filterwarnings("ignore::waveglow_jax.errors.FileWarning")
def test_lengths_that_were_never_filled_in_mean_to_the_end(tmp_path, format, length):
    if format == "CAF" and length == 0xFFFFFFFF:
        length = -1
    path = tmp_path / f"a.{'wav' if format == 'RF64' else format.lower()}"
    content = encoded(format, "PCM_16")
    path.write_bytes(with_length(content, format, length))
    found = read_audio(path, RATE)
    path.write_bytes(content)
    # The chunk's own few bytes before the sound may be taken for sound or not at all.
    np.testing.assert_array_equal(found, read_audio(path, RATE))


@pytest.mark.parametrize("more", [8, 12, 24, 36, 44])
def test_lengths_that_count_the_header_are_read_with_a_note(tmp_path, more):
    path = tmp_path / "a.wav"
    path.write_bytes(with_length(encoded("WAV", "PCM_16"), "WAV", 30000 + more))
    with pytest.warns(FileWarning, match=f"a.wav: its header promises {more} bytes more"):
        assert len(read_audio(path, RATE)) == 15000


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "CAF", "RF64"])
def test_a_plain_file_that_is_cut_is_refused(tmp_path, format):
    path = tmp_path / f"a.{'wav' if format == 'RF64' else format.lower()}"
    path.write_bytes(encoded(format, "PCM_16")[:-10000])
    for read in (read_audio, audio_frames):
        with pytest.raises(UserError, match="cut short"):
            read(path, RATE)


@pytest.mark.parametrize("format", ["AU", "W64", "CAF"])
def test_a_cut_file_whose_length_was_never_filled_in_is_noted(tmp_path, format):
    """Nothing in the file tells where it should end."""
    path, length = tmp_path / f"a.{format.lower()}", -1 if format == "CAF" else 0
    path.write_bytes(with_length(encoded(format, "PCM_16"), format, length)[:-10000])
    for read in (read_audio, audio_frames):
        with pytest.warns(FileWarning, match=r"a\.\w+: .*so that it may be cut short"):
            read(path, RATE)


@pytest.mark.parametrize("format", ["WAV", "AU", "W64", "CAF", "RF64"])
def test_a_long_file_of_which_little_is_there_is_noted(tmp_path, format):
    path = tmp_path / f"a.{'wav' if format == 'RF64' else format.lower()}"
    path.write_bytes(with_length(encoded(format, "PCM_16"), format, 300_000_000))
    with pytest.warns(FileWarning, match=r"a\.\w+: its header promises 299,?9"):
        assert len(read_audio(path, RATE)) == 15000


def test_a_wav_without_sound_is_empty_whatever_lies_behind(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("WAV", "PCM_16", 0) + b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(UserError, match="holds no samples"):
        read_audio(path, RATE)


def test_an_odd_chunk_without_a_pad_byte_is_named(tmp_path):
    content, path = encoded("WAV", "PCM_16"), tmp_path / "a.wav"
    at = content.index(b"data")
    path.write_bytes(content[:at] + b"LIST" + struct.pack("<I", 5) + b"abcde" + content[at:])
    with pytest.raises(UserError, match=r"a.wav: its chunk 'LIST' has an odd length and no pad"):
        read_audio(path, RATE)


# ------------------------------------------------------------------------------ packed


def test_joined_mp3s_are_read_to_the_end(tmp_path):
    first, second = ((CASES / f"16-mp3-noise/u0{i}.mp3").read_bytes() for i in range(2))
    alone = read_audio(CASES / "16-mp3-noise/u00.mp3", RATE)
    tag = b"ID3\x04\0\0" + bytes([0, 0, 0x1F, 0x7F]) + bytes(0x1F << 7 | 0x7F)
    for between in (b"", tag, b"TAG" + bytes(125)):
        (tmp_path / "a.mp3").write_bytes(tag + first + between + second)
        joined = read_audio(tmp_path / "a.mp3", RATE)
        assert 88200 <= len(joined) <= 88200 + 6 * 576
        assert audio_frames(tmp_path / "a.mp3", RATE) == len(joined)
        # Without the encoder's delay (576) and the decoder's (529), which the header tells.
        np.testing.assert_allclose(joined[1105:][: 44100 - 1152], alone[:-1152], atol=1e-4)


def test_a_cut_mp3_is_refused_before_it_is_trained_on(tmp_path):
    content = (CASES / "16-mp3-noise/u00.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[: len(content) // 2])
    for read in (read_audio, audio_frames):
        with pytest.raises(UserError, match=r"cut short, .* of 44100 samples"):
            read(tmp_path / "a.mp3", RATE)


@pytest.mark.parametrize("name", ["05-ogg-seek/a.ogg", "16-mp3-noise/u00.mp3"])
def test_clips_are_those_of_the_whole(name):
    whole = read_audio(CASES / name, RATE)
    draw = np.random.default_rng(0)
    starts = [*draw.integers(0, len(whole) - 8192, 60), len(whole) - 8192]
    for start in [96927, *starts] if "ogg" in name else starts:
        clip = read_clip(CASES / name, start, start + 8192)
        np.testing.assert_allclose(clip, whole[start : start + 8192], atol=1e-6)


def test_cut_ogg_is_refused_or_noted(tmp_path):
    cut = CASES / "07-ogg-cut/ogg_long_cut60.ogg"
    for read in (read_audio, audio_frames):
        with pytest.raises(UserError, match="cut short in the middle of a page"):
            read(cut, RATE)
    with pytest.warns(FileWarning, match="no mark at its end, so that it may be cut short"):
        assert len(read_samples(CASES / "07-ogg-cut/opus_noeos.opus")[0]) == 46728
    content = cut.read_bytes()
    (tmp_path / "a.ogg").write_bytes(content[: content.rindex(b"OggS")])
    with pytest.warns(FileWarning, match="no mark at its end"):
        assert len(read_audio(tmp_path / "a.ogg", RATE)) > 40000


def test_libmpg123_is_not_heard_and_others_are(tmp_path, capfd):
    content = bytearray((CASES / "16-mp3-noise/u00.mp3").read_bytes())
    for at in range(3000, 9000, 500):
        content[at : at + 40] = b"\x55" * 40
    (tmp_path / "a.mp3").write_bytes(content)
    soundfile.read(tmp_path / "a.mp3")
    with soundfile.SoundFile(CASES / "16-mp3-noise/u00.mp3") as file:
        file.seek(9000)
        file.read(1000)
    heard = capfd.readouterr().err
    assert "libmpg123" in heard and "Note: Illegal" in heard
    read_samples(CASES / "16-mp3-noise/u00.mp3")
    read_clip(CASES / "16-mp3-noise/u00.mp3", 20000, 21000)
    with sound._opened(tmp_path / "a.mp3") as opened:
        sound._decode(opened, 0, None)
        os.write(2, b"step 7\n")
    assert capfd.readouterr().err == "step 7\n"
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


# ------------------------------------------------------------------------------ training


def test_codecs_that_cannot_seek_are_trained_on(tmp_path):
    config = Config()
    shutil.copy(CASES / "06-unseekable-codecs/wav_GSM610.wav", tmp_path)
    shutil.copy(CASES / "06-unseekable-codecs/au_g721.au", tmp_path)
    (tmp_path / "talk.m4a").write_bytes(b"x")
    found = dataset._usable(str(tmp_path), config, None)
    assert [r.n_samples for r in found[0]] == [33120, 33280]
    assert len(found[1]) == 1 and "talk.m4a: .m4a is not read here" in found[1][0]
    for recording in found[0]:
        whole = read_audio(recording.path, RATE)
        clip = dataset.read_context_clip(recording, 30, config)
        start = 30 * config.data.hop_length - config.data.filter_length // 2
        np.testing.assert_array_equal(clip, whole[start : start + len(clip)])


def test_what_makes_training_slow_is_said_before_it(monkeypatch):
    config = Config()
    monkeypatch.setattr(dataset, "SLOW_SECONDS", 1)
    recordings = [
        dataset.Recording(CASES / "01-flac-unknown-length/ok.wav", 33075),
        dataset.Recording(CASES / "16-mp3-noise/u00.mp3", 44100),
    ]
    (line,) = dataset._slow(recordings, config)
    assert line.startswith("1 recordings of over 1 s (the first:") and "u00.mp3" in line
    assert "prepare" in line


# ------------------------------------------------------------------------------ the others


def folder_of_five(folder: Path, fifth: str, content: bytes) -> Path:
    folder.mkdir(parents=True)
    for i in range(4):
        soundfile.write(folder / f"good{i}.wav", some_sound(12000, i), RATE)
    (folder / fifth).write_bytes(content)
    return folder / fifth


def test_what_is_not_read_is_left_out_by_name(tmp_path):
    folder_of_five(tmp_path / "in", "a.M4A", b"x")
    for name in ("b.webm", "sub/good0.amr", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    report = prepare([tmp_path / "in"], tmp_path / "out")
    assert report.written == 4 and len(report.left_out) == 3
    left_out = (tmp_path / "out" / LEFT_OUT).read_text()
    for name, suffix in (("a.M4A", ".m4a"), ("b.webm", ".webm"), ("good0.amr", ".amr")):
        assert f"{name}\t{suffix} is not read here; convert it with: ffmpeg -i" in left_out
    assert len(find_unread([tmp_path / "in" / "*.webm"])) == 1
    with pytest.raises(UserError, match=r"a.M4A: .m4a is not read here; convert it with: ffmpeg"):
        prepare([tmp_path / "in/a.M4A"], tmp_path / "out")


ERRORS = (ValueError("a\nb"), MemoryError(), OSError(5, "Input/output error"), KeyError("x"))
ERRORS += (RuntimeError("c"), OverflowError("d"), soundfile.LibsndfileError(39), TypeError("e"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["__init__", "read"])
def test_whatever_a_library_raises_the_others_are_done(tmp_path, monkeypatch, error, where):
    folder_of_five(tmp_path / "in", "bad.wav", encoded("WAV", "PCM_16"))
    real = getattr(soundfile.SoundFile, where)

    def raising(self, *arguments, **options):
        name = arguments[0] if where == "__init__" else self.name
        if os.fsencode(name).endswith(b"bad.wav"):
            raise error
        return real(self, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, where, raising)
    if where == "__init__":  # its __del__ would miss what was never opened
        monkeypatch.setattr(soundfile.SoundFile, "__del__", lambda self: None)
    report = prepare([tmp_path / "in"], tmp_path / "out")
    assert report.written == 4
    ((path, reason),) = report.left_out
    assert path.endswith("bad.wav") and reason and "\n" not in reason


def odd_name(folder: Path) -> Path:
    path = folder / os.fsdecode(b"caf\xe9.wav")
    try:
        path.write_bytes(encoded("WAV", "PCM_16"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return path


def test_names_that_are_not_utf8_are_read_and_written(tmp_path):
    (tmp_path / "in").mkdir()
    path = odd_name(tmp_path / "in")
    assert len(read_audio(path, RATE)) == audio_frames(path, RATE) == 15000
    assert len(read_clip(path, 5, 10)) == 5
    assert prepare([tmp_path / "in"], tmp_path / "out").written == 1
    assert (tmp_path / "out" / path.name).is_file()
    assert prepare([tmp_path / "in"], tmp_path / "out").kept == 1
    path.write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"caf\\xe9.wav: not readable"):
        read_audio(path, RATE)
    report = prepare([tmp_path / "in"], tmp_path / "out")
    assert report.left_out[0][1].startswith("not readable as audio")
    assert "caf\\udce9.wav\tnot readable" in (tmp_path / "out" / LEFT_OUT).read_text()


@pytest.mark.slow
def test_names_that_are_not_utf8_are_printed_to_a_strict_stdout(tmp_path):
    (tmp_path / "in").mkdir()
    path = odd_name(tmp_path / "in")
    soundfile.write(tmp_path / "in/good.wav", some_sound(), RATE)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "JAX_PLATFORMS": "cpu"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "waveglow_jax", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    made = run("mel", str(tmp_path / "in"), "-o", str(tmp_path / "mel"))
    assert made.returncode == 0 and made.stderr == "", made.stderr
    assert len(made.stdout.splitlines()) == 2 and "caf\\udce9.npy" in made.stdout
    spoken = run("synthesize", str(tmp_path / "mel"), "-o", str(tmp_path / "out"))
    assert spoken.returncode == 0, spoken.stderr
    assert (tmp_path / "out" / path.name).is_file()
    path.write_bytes(b"no sound")
    left = run("prepare", str(tmp_path / "in"), "-o", str(tmp_path / "p"))
    assert left.returncode == 0 and "caf\\udce9.wav: not readable as audio" in left.stdout


@pytest.mark.slow
def test_a_note_is_one_line_on_stderr(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    shutil.copy(CASES / "03-wav-stream-lengths/len_plus8.wav", tmp_path / "a.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["mel", str(tmp_path / "a.wav"), "-o", str(tmp_path / "o"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["frames"] == 1 + 33075 // 256
    assert err.startswith("note: ") and err.count("\n") == 1 and "a.wav: its header" in err


# ------------------------------------------------------------------------------ damage

FORMATS = [
    *[("wav", "WAV", "PCM_16"), ("wav", "WAV", "FLOAT"), ("flac", "FLAC", "PCM_16")],
    *[("ogg", "OGG", "VORBIS"), ("mp3", "MP3", "MPEG_LAYER_III"), ("aiff", "AIFF", "PCM_16")],
    *[("au", "AU", "PCM_16"), ("caf", "CAF", "PCM_16"), ("w64", "W64", "PCM_16")],
    *[("wav", "WAV", "GSM610"), ("opus", "OGG", "OPUS"), ("wav", "WAV", "MS_ADPCM")],
]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, removed, put in, or the rest cut off; the header more than the rest."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 30))):
        at = draw.randrange(min(len(changed), draw.choice((120, len(changed)))))
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            del changed[at : at + draw.randrange(1, 400)]
        elif kind == 2:
            changed[at:at] = draw.randbytes(draw.randrange(1, 200))
        elif kind == 3:
            length = draw.choice((0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, draw.randrange(2**32)))
            changed[at : at + 4] = struct.pack(draw.choice("<>") + "I", length)
        elif kind == 4 and len(changed) > 20:
            del changed[draw.randrange(10, len(changed)) :]
        else:
            changed[at : at + draw.randrange(64)] = bytes(draw.randrange(64))
        changed = changed or bytearray(b"x")
    return bytes(changed)


def try_mutants(folder: Path, numbers: range) -> None:
    rates = {"OPUS": 24000}
    good = {form: encoded(*form[1:], rate=rates.get(form[2], RATE)) for form in FORMATS}
    folder_of_five(folder / "in", "x", b"")
    (folder / "in/x").unlink()
    refused = 0
    for number in numbers:
        form = FORMATS[number % len(FORMATS)]
        bad = folder / "in" / f"bad.{form[0]}"
        bad.write_bytes(damaged(good[form], random.Random(number)))
        begun = time.monotonic()
        tracemalloc.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = prepare([folder / "in"], folder / "out", workers=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.monotonic() - begun < 10, number
        assert peak < (100 << 20) + 1000 * bad.stat().st_size, (number, peak)
        assert len(report.left_out) + report.written + report.kept == 5, number
        for path, reason in report.left_out:
            assert path == str(bad) and reason and "\n" not in reason, number
        refused += len(report.left_out)
        bad.unlink()
        shutil.rmtree(folder / "out")
    assert 0 < refused < len(numbers)


@pytest.mark.slow
def test_damage_to_one_file_leaves_the_others(tmp_path):
    try_mutants(tmp_path, range(100))


@pytest.mark.stress
def test_much_damage_to_one_file_leaves_the_others(tmp_path):
    try_mutants(tmp_path, range(2000))


def test_the_remedy_names_the_rate_that_is_expected(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(4000, 0.1), 22050)
    with pytest.raises(UserError, match=r"24000 expected; .* prepare IN -o OUT --rate 24000$"):
        read_audio(tmp_path / "a.wav", 24000)
    soundfile.write(tmp_path / "a.wav", np.full(4000, 0.1), 24000)
    with pytest.raises(UserError, match=r"22050 expected; .* prepare IN -o OUT$"):
        read_audio(tmp_path / "a.wav", 22050)
