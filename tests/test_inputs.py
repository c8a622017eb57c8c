"""Which files a person means: lists as they are in the wild, addresses, home folders, one stem."""

import io
import sys
from pathlib import Path

import pytest
import soundfile
from golden import CASES
from test_training import RATE, speech_like, tiny_config

from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.made import read_records
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, MEL_SUFFIXES, find_inputs
from waveglow_jax.training.dataset import scan_corpus

BOTH = ["u00.wav", "u01.wav"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two recordings, of which only the names matter."""
    for name in BOTH:
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(folder: Path, content: bytes) -> list[str]:
    (folder / "list.txt").write_bytes(content)
    return [i.relative.as_posix() for i in find_inputs([folder / "list.txt"], AUDIO_SUFFIXES)]


def refusal(*inputs, suffixes=AUDIO_SUFFIXES) -> str:
    with pytest.raises(UserError) as caught:
        find_inputs(inputs, suffixes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ results


def found(*inputs, output=None, suffixes=AUDIO_SUFFIXES) -> list[str]:
    return [i.relative.as_posix() for i in find_inputs(inputs, suffixes, output=output)]


def test_results_of_an_earlier_run_are_no_inputs(folder, monkeypatch):
    """Otherwise `synthesize . -o out` would make out/out the second time."""
    (folder / "out/sub").mkdir(parents=True)
    (folder / "out/u03.npy").write_bytes(b"x")
    assert found(folder, output=folder / "out") == BOTH
    (folder / "out/sub/u01.wav").write_bytes(b"x")
    (folder / "link").symlink_to(folder / "out")
    monkeypatch.chdir(folder)
    for searched in (".", str(folder), "**", "*", str(folder / "**")):
        for output in ("out", folder / "out", "link"):
            with pytest.raises(UserError, match="lies inside the output folder"):
                found(searched, output=output)
    assert len(found(folder)) == 3
    # Files that are named are taken, and so is a folder that is not the output folder.
    assert found("out/sub/u01.wav", output="out") == ["u01.wav"]
    assert found("out/sub", output="out") == ["u01.wav"]
    assert found("u00.wav", "out/u03.npy", output=folder, suffixes=(".wav", ".npy"))


# ------------------------------------------------------------------------------ lists


@pytest.mark.parametrize("name", ["nel", "u2028", "utf16"])
def test_lists_of_people(folder, name):
    assert listed(folder, (CASES / f"11-lists/{name}.txt").read_bytes()) == BOTH


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x1d", "\x1e"])
def test_what_ends_a_line_and_what_is_text(folder, end, inside):
    text = f"u00.wav|one{inside}two{end}u01.wav|three{end}"
    assert listed(folder, text.encode()) == BOTH


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_encodings_that_say_what_they_are(folder, encoding):
    mark = "\ufeff" if encoding.endswith("e") else ""
    assert listed(folder, f"{mark}u00.wav|é\r\nu01.wav\r\n".encode(encoding)) == BOTH


def test_lists_that_were_joined_have_marks_inside(folder):
    assert listed(folder, b"\xef\xbb\xbfu00.wav\n\xef\xbb\xbfu01.wav\n") == BOTH
    assert listed(folder, b"\xef\xbb\xbf\xef\xbb\xbfu00.wav\n") == BOTH[:1]


@pytest.mark.parametrize(
    "content",
    [
        (CASES / "11-lists/latin1.txt").read_bytes(),
        "u00.wav\n".encode("utf-16-le"),  # without a mark
        "u00.wav|文\n".encode("gbk"),
        b"\xff\xfeu",
    ],
)
def test_other_encodings_are_refused_with_the_remedy(folder, content):
    (folder / "list.txt").write_bytes(content)
    text = refusal(folder / "list.txt")
    assert text.startswith(str(folder / "list.txt")) and "as UTF-8" in text


def test_a_list_on_stdin_is_decoded_like_a_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    content = "\ufeffu00.wav|a\u2028b\r\nu01.wav\r\n".encode("utf-16-le")
    # As under LC_ALL=C.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    assert [i.relative.name for i in find_inputs(["-"], AUDIO_SUFFIXES)] == BOTH
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xe9.wav"), encoding="ascii"))
    assert "as UTF-8" in refusal("-")
    monkeypatch.setattr(sys, "stdin", None)
    assert "no stdin" in refusal("-")


def test_relative_and_absolute_names_of_one_file_count_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = ["u00.wav", f"{folder}/u00.wav", "./u00.wav", f"file://{folder}/u00.wav", "u01.wav"]
    assert listed(folder, "\n".join(names).encode()) == BOTH
    assert len(find_inputs([".", folder, folder / "u01.wav"], AUDIO_SUFFIXES)) == 2


def test_a_line_too_long_for_a_name_is_no_file(folder):
    (folder / "list.txt").write_text("x" * 5000 + "\n")
    assert "no file can have so long a name" in refusal(folder / "list.txt")
    assert "no file can have so long a name" in refusal("y" * 5000)


def test_records_hold_names_with_any_letter(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"name": "a\u2028b"}\n{"name": "c"}\n', encoding="utf-8")
    found = [record["name"] for record in read_records(tmp_path / "a.jsonl")]
    assert found == ["a\u2028b", "c"]


# ------------------------------------------------------------------------------ addresses, home


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("gs://bucket/a.wav", "gcloud storage cp"),
        ("GS://bucket/*.wav", "gcloud storage cp"),
        ("s3://bucket/a.wav", "aws s3 cp"),
        ("hdfs://host/a.wav", "hdfs dfs -get"),
        ("https://host/a.wav", "curl"),
        ("abfss://host/a.wav", "mount"),
        (Path("gs://bucket/a.wav"), "gcloud storage cp"),
    ],
)
def test_addresses_are_refused_and_the_remedy_named(folder, address, remedy):
    text = refusal(address)
    assert text.startswith(f"{address}: ") and remedy in text
    (folder / "list.txt").write_text(f"u00.wav\n{address}\n")
    assert f"line 2: {address}: " in refusal(folder / "list.txt")


def test_home_and_file_addresses_in_lists_and_as_inputs(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "lists").mkdir()
    listing = folder / "lists/list.txt"
    listing.write_text("~/u00.wav|text\nfile://localhost/" + f"{folder}/u01.wav\n".lstrip("/"))
    assert [i.path.name for i in find_inputs(["~/lists/list.txt"], AUDIO_SUFFIXES)] == BOTH
    assert [i.path.name for i in find_inputs(["~/u0*.wav"], AUDIO_SUFFIXES)] == BOTH
    assert [i.path for i in find_inputs([f"file://{folder}"], AUDIO_SUFFIXES)] == [
        folder / name for name in BOTH
    ]


# ------------------------------------------------------------------------------ one stem


def test_without_outputs_two_files_of_one_stem_are_no_conflict(folder):
    (folder / "u00.mp3").write_bytes(b"x")
    assert "same output" in refusal(folder)
    found = find_inputs([folder], AUDIO_SUFFIXES, with_outputs=False)
    assert [i.path.name for i in found] == ["u00.mp3", *BOTH]


@pytest.mark.slow
def test_training_takes_two_recordings_of_one_stem(tmp_path):
    (tmp_path / "u00.mp3").write_bytes((CASES / "13-same-stem/u00.mp3").read_bytes())
    soundfile.write(tmp_path / "u00.wav", speech_like(1, 0), RATE)
    config = tiny_config(validation_fraction=0.0)
    corpus = scan_corpus(str(tmp_path), config)
    assert [r.path.name for r in corpus.training] == ["u00.mp3", "u00.wav"]
    assert not corpus.left_out


def test_mels_that_are_named_after_recordings_become_recordings_of_that_name(tmp_path):
    for name in ("u00.wav.pt", "b.flac.npy", "mel_c.npy", "x.y.npz"):
        (tmp_path / name).write_bytes(b"x")
    places = [i.relative.name for i in find_inputs([tmp_path], MEL_SUFFIXES)]
    assert places == ["b.npy", "mel_c.npy", "u00.pt", "x.y.npz"]
    (tmp_path / "u00.npy").write_bytes(b"x")
    assert "same output" in refusal(tmp_path, suffixes=MEL_SUFFIXES)
