"""Release folders: written whole, read back to the bit, and damage reported in one line."""

import errno
import json
import os
import pickle
import shutil
import struct
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from test_vocoder import lively_params, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import main
from waveglow_jax.config import config_to_dict
from waveglow_jax.errors import UserError
from waveglow_jax.weights import release as release_module

WEIGHTS = "model.safetensors"
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def params() -> dict:
    return lively_params(CONFIG)


@pytest.fixture(scope="module")
def sound(params, tmp_path_factory) -> Path:
    """A release folder with nothing wrong; never written to."""
    folder = tmp_path_factory.mktemp("release") / "voice"
    wg.save(folder, CONFIG, params)
    return folder


@pytest.fixture
def release(sound, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "voice"))


def equal(params, others) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), params, others)
    return all(jax.tree.leaves(same))


def message(path: Path) -> str:
    """The message of one line with which loading is refused."""
    with pytest.raises(UserError) as caught:
        wg.load(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def refused(release: Path, *words: str) -> None:
    text = message(release)
    assert str(release / WEIGHTS) in text
    assert all(word in text for word in words), text


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


# ------------------------------------------------------------------------------ round trip


def test_float32_is_read_back_to_the_bit(sound, params):
    voice = wg.load(sound)
    assert voice.config == CONFIG
    assert jax.tree.structure(voice.params) == jax.tree.structure(params)
    assert equal(voice.params, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(voice.params))
    assert equal(wg.load(str(sound)).params, params)


def test_float16_is_half_the_size_and_read_back_rounded_once(params, sound, tmp_path):
    wg.save(tmp_path / "half", CONFIG, params, dtype="float16")
    voice = wg.load(tmp_path / "half")
    rounded = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf).astype(np.float16).astype(np.float32)), params
    )
    assert equal(voice.params, rounded) and not equal(voice.params, params)
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (tmp_path / "half", sound)]
    assert sizes[0] < 0.51 * sizes[1]


def test_names_are_dotted_paths_and_safetensors_reads_them(sound, params):
    tensors = load_file(sound / WEIGHTS)
    assert {"upsample.kernel", "flows.0.conv", "flows.1.wn.in_layer_1.v"} < set(tensors)
    assert len(tensors) == len(jax.tree.leaves(params))
    for name, tensor in tensors.items():
        node = params
        for key in name.split("."):
            node = node[int(key) if key.isdigit() else key]
        assert tensor.dtype == np.float32 and np.array_equal(tensor, node)
    written = json.loads((sound / "config.json").read_text())
    assert written == config_to_dict(CONFIG)
    assert sorted(p.name for p in sound.iterdir()) == ["config.json", WEIGHTS]


def test_saved_twice_is_the_same_file(sound, params, tmp_path):
    wg.save(tmp_path, CONFIG, params)
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / name).read_bytes() == (sound / name).read_bytes()


@pytest.mark.parametrize(("value", "dtype"), [(1e5, "float16"), (np.nan, "float32")])
def test_what_is_not_finite_is_not_saved(release, params, value, dtype):
    before = (release / WEIGHTS).read_bytes()
    bad = jax.tree.map(lambda leaf: leaf, params)
    bad["flows"][1]["conv"] = bad["flows"][1]["conv"].at[2, 3].set(value)
    with (
        warnings.catch_warnings(),
        pytest.raises(UserError, match=rf"flows\.1\.conv is not finite in {dtype}"),
    ):
        warnings.simplefilter("error")  # one line is said, not two
        wg.save(release, CONFIG, bad, dtype=dtype)
    assert (release / WEIGHTS).read_bytes() == before


# ------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("failing", [1, 2])
def test_full_disk_leaves_the_old_voice(release, params, monkeypatch, failing):
    """This holds whichever of the two files cannot be put in place."""
    calls, replace = [], os.replace

    def full(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    others = lively_params(CONFIG, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError) as caught:
            wg.save(release, CONFIG, others)
    text = str(caught.value)
    assert "No space left" in text and len(text.splitlines()) == 1 and str(release) in text
    assert len(calls) == failing
    # Each file is whole: the weights are the old ones, or the new ones if they came first.
    assert equal(wg.load(release).params, params if failing == 1 else others)
    assert sorted(p.name for p in release.iterdir()) == ["config.json", WEIGHTS]


def test_failing_write_leaves_the_old_voice(release, params, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(release_module, "save_file", full)
        with pytest.raises(UserError, match="No space left"):
            wg.save(release, CONFIG, lively_params(CONFIG, seed=1))
    assert equal(wg.load(release).params, params)
    assert sorted(p.name for p in release.iterdir()) == ["config.json", WEIGHTS]


def test_whoever_may_read_the_config_may_read_the_weights(release, params):
    wg.save(release, CONFIG, params)
    modes = {path.stat().st_mode for path in release.iterdir()}
    assert len(modes) == 1


def test_a_file_where_the_folder_should_be(tmp_path, params):
    (tmp_path / "voice").write_text("here already")
    with pytest.raises(UserError, match="voice"):
        wg.save(tmp_path / "voice", CONFIG, params)
    assert (tmp_path / "voice").read_text() == "here already"


# ------------------------------------------------------------------------------ damage


def test_cut_short_anywhere(release):
    content = (release / WEIGHTS).read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    ends = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1]
    for end in [*ends, len(content) // 2, len(content) - 4, len(content) - 1]:
        (release / WEIGHTS).write_bytes(content[:end])
        refused(release)


def test_one_byte_too_many(release):
    with (release / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    refused(release)


@pytest.mark.slow
def test_flipped_bits_in_the_header_are_refused_or_harmless(release, params):
    content = (release / WEIGHTS).read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    rng = np.random.default_rng(0)
    told = 0
    places = [*range(8), *rng.integers(8, header, 60)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        (release / WEIGHTS).write_bytes(damaged)
        try:
            loaded = wg.load(release).params
        except UserError as error:
            told += 1
            assert str(release / WEIGHTS) in str(error) and len(str(error).splitlines()) == 1
        else:
            assert equal(loaded, params), f"byte {place}"
    assert told > 0.8 * len(places)


@pytest.mark.parametrize("length", [0, 1, -1, 10**6, 10**12, 2**63, 2**64 - 1])
def test_header_that_lies_about_its_length(release, length):
    content = (release / WEIGHTS).read_bytes()
    true = struct.unpack("<Q", content[:8])[0]
    lie = true + length if abs(length) == 1 else length
    (release / WEIGHTS).write_bytes(struct.pack("<Q", lie) + content[8:])
    refused(release)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{}",
        b'{"flows.0.conv": 3}',
        b'{"flows.0.conv": {}}',
        b'{"flows.0.conv": {"dtype": "F32", "shape": 16, "data_offsets": [0, 4]}}',
        b'{"flows.0.conv": {"dtype": "F32", "shape": [[16], 16], "data_offsets": [0, 4]}}',
        b"\xff\xfe{}",
        b"[" * 200_000,
    ],
    ids=lambda header: header[:40].decode("latin-1"),
)
def test_header_of_another_kind(release, header):
    _, data = header_of(release / WEIGHTS)
    with_header(release / WEIGHTS, header, data)
    refused(release)


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_integers_are_no_weights(release, dtype):
    """They have the same size, so that only the dtype differs."""
    header, data = header_of(release / WEIGHTS)
    header["flows.0.conv"]["dtype"] = dtype
    with_header(release / WEIGHTS, json.dumps(header).encode(), data)
    refused(release, "flows.0.conv")


def test_overlapping_tensors(release):
    header, data = header_of(release / WEIGHTS)
    names = ["flows.0.wn.in_layer_0.v", "flows.0.wn.in_layer_1.v"]
    assert header[names[0]]["shape"] == header[names[1]]["shape"]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
    with_header(release / WEIGHTS, json.dumps(header).encode(), data)
    refused(release)


def change_tensors(release: Path, change) -> None:
    tensors = load_file(release / WEIGHTS)
    change(tensors)
    save_file(tensors, release / WEIGHTS)


def test_missing_tensor(release):
    change_tensors(release, lambda tensors: tensors.pop("flows.1.wn.end.bias"))
    refused(release, "flows.1.wn.end.bias", "missing", "(12,)")


def test_extra_tensor(release):
    change_tensors(release, lambda tensors: tensors.update(extra=np.zeros(3, np.float32)))
    refused(release, "extra", "(3,)")


def test_wrong_shape(release):
    def transpose(tensors):
        tensors["upsample.kernel"] = np.ascontiguousarray(tensors["upsample.kernel"].T)

    change_tensors(release, transpose)
    refused(release, "upsample.kernel", "(80, 80, 32)", "(32, 80, 80)")


def test_weights_of_another_config(release):
    config = json.loads((release / "config.json").read_text())
    config["waveglow_config"]["WN_config"]["n_channels"] = 12
    (release / "config.json").write_text(json.dumps(config))
    refused(release, "config.json")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite(release, value):
    def spoil(tensors):
        tensors["flows.1.wn.start.g"][3] = value

    change_tensors(release, spoil)
    refused(release, "flows.1.wn.start.g", "not finite")


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_taken(release, params, dtype):
    def convert(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)

    change_tensors(release, convert)
    loaded = wg.load(release).params
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    assert equal(loaded, params) == (dtype == np.float64)


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled(release, tmp_path):
    mark = tmp_path / "exploded"
    assert not mark.exists()
    content = pickle.dumps(Bomb(mark))
    for bomb in (content, struct.pack("<Q", len(content)) + content):
        (release / WEIGHTS).write_bytes(bomb)
        refused(release)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists(), "the bomb would not have gone off anyway"


# ------------------------------------------------------------------------------ config, places


def test_missing_config(release):
    (release / "config.json").unlink()
    assert str(release / "config.json") in message(release)


def test_config_that_is_no_json(release):
    (release / "config.json").write_text('{"waveglow_config": {')
    assert str(release / "config.json") in message(release)


def test_config_with_a_typo(release):
    config = json.loads((release / "config.json").read_text())
    config["waveglow_config"]["n_flow"] = config["waveglow_config"].pop("n_flows")
    (release / "config.json").write_text(json.dumps(config))
    text = message(release)
    assert str(release / "config.json") in text
    assert "waveglow_config.n_flow " in text and "waveglow_config.n_flows" in text


def test_config_that_asks_for_the_impossible(release):
    config = json.loads((release / "config.json").read_text())
    config["data_config"]["hop_length"] = 250
    (release / "config.json").write_text(json.dumps(config))
    text = message(release)
    assert str(release / "config.json") in text and "250" in text


def test_missing_weights(release):
    (release / WEIGHTS).unlink()
    text = message(release)
    assert str(release) in text and WEIGHTS in text


def test_no_such_folder(tmp_path):
    text = message(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in text and "no such file" in text


def test_folder_that_is_neither(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    text = message(tmp_path)
    assert str(tmp_path) in text and WEIGHTS in text and "not exist" not in text


def test_the_weights_file_stands_for_its_folder(release, params):
    assert equal(wg.load(release / WEIGHTS).params, params)
    (release / "notes.txt").write_text("no weights at all")
    assert str(release / "notes.txt") in message(release / "notes.txt")


def test_weights_are_not_converted_into_themselves(release, capsys):
    """A run that was converted into its own folder would be read as a release from then on."""
    before = {path: path.read_bytes() for path in release.iterdir()}
    for source, command in (
        (release, ["convert", "--dtype", "float16", "-o", release]),
        (release / "model.safetensors", ["convert", "--dtype", "float16", "-o", release]),
        (release / "model.safetensors", ["export", "-o", release / "model.safetensors"]),
        (
            release / "model.safetensors",
            [
                "convert",
                "--to",
                "torch",
                "-o",
                release / "../" / release.name / "model.safetensors",
            ],
        ),
    ):
        assert main([command[0], str(source), *map(str, command[1:])]) == 1
        assert "would overwrite an input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in release.iterdir()} == before


def test_run_without_a_checkpoint(release):
    (release / WEIGHTS).unlink()
    (release / "checkpoints").mkdir()
    text = message(release)
    assert str(release) in text and "checkpoint" in text
