"""Published checkpoints of every generation become one parameter tree, and go back."""

import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import CHECKPOINTS, DATA, close, expected, golden_config
from safetensors.numpy import save_file
from test_vocoder import lively_params, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import main
from waveglow_jax.errors import UserError
from waveglow_jax.files.torch_file import open_torch, write_torch
from waveglow_jax.weights import nvidia
from waveglow_jax.weights.facts import report
from waveglow_jax.weights.release import read_weights

PLAIN = DATA / "statedict_unfused_zip.pt"
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """The golden state dict as arrays, without its prefix."""
    with open_torch(PLAIN) as file:
        state = file.tree["state_dict"]
        return {name.removeprefix("module."): file.array(t) for name, t in state.items()}


@pytest.fixture(scope="module")
def reference():
    return read_weights(PLAIN)


def equal(params, others, rtol=0.0) -> bool:
    same = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=rtol, atol=0), params, others)
    return all(jax.tree.leaves(same))


def refusal(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    assert all(word in text for word in words), text


# ------------------------------------------------------------------------------ golden numbers


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_golden_numbers_of_every_file(path):
    """Half-precision files give the numbers within the rounding of their weights to 11 bits."""
    tolerance = 2e-3 if "half" in path.stem else 1e-4
    alternating = "alternating" in path.stem
    values = expected("expected_alternating.npz" if alternating else "expected.npz")
    weights = read_weights(path)
    assert weights.config.waveglow.alternating_halves == alternating
    mel = values["mel"].transpose(0, 2, 1)
    noises = [values[f"infer_z{i}"].transpose(0, 2, 1) for i in (2, 1, 0)]
    z = values["infer_sigma"].astype(np.float32) * np.concatenate(noises, axis=-1)
    audio, _ = wg.inverse(weights.params, weights.config, z, mel)
    close(audio, values["infer_audio"], tolerance)
    if not alternating:
        z, log_det = wg.forward(weights.params, weights.config, values["audio"], mel)
        close(z, values["z"].transpose(0, 2, 1), tolerance)
        close(wg.loss(z, log_det), values["loss"], tolerance)


def test_modules_as_torch_1_pickled_them_within_data_parallel(tmp_path):
    """They name their backend by a call without meaning; the module inside is of the oldest
    class."""
    content = (DATA / "module_alternating_legacy.pt").read_bytes()
    training = b"X\x08\x00\x00\x00training"
    backend = b"X\x08\x00\x00\x00_backendctorch.nn.backends.thnn\n_get_thnn_function_backend\n)R"
    content = content.replace(training, backend + training, 1)
    start = content.index(b"(X\x06\x00\x00\x00module")
    end = content.index(b"ubs.", start) + 2
    wrapped = (
        b"ctorch.nn.parallel.data_parallel\nDataParallel\n)\x81}X\x08\x00\x00\x00_modules"
        b"}X\x06\x00\x00\x00module" + content[start:end] + b"ssb"
    )
    (tmp_path / "a.pt").write_bytes(content[:start] + wrapped + content[end:])
    ours = read_weights(tmp_path / "a.pt")
    plain = read_weights(DATA / "module_alternating_legacy.pt")
    assert ours.config.waveglow.alternating_halves and ours.config.data == plain.config.data
    assert equal(ours.params, plain.params)
    # A state that no module has.
    for state in (b"]", b"K\x07"):
        odd = b"\x80\x02}X\x05\x00\x00\x00modelcglow\nWaveGlow\n)\x81" + state + b"bs."
        with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            archive.writestr("archive/data.pkl", odd)
        refusal(tmp_path / "b.pt", "no WaveGlow")


def test_alternating_halves_are_inverted_too():
    weights = read_weights(DATA / "module_alternating_legacy.pt")
    values = expected("expected_alternating.npz")
    mel = values["mel"].transpose(0, 2, 1)
    z, log_det = wg.forward(weights.params, weights.config, values["infer_audio"], mel)
    audio, minus = wg.inverse(weights.params, weights.config, z, mel)
    close(audio, values["infer_audio"], 1e-5)
    close(minus, -log_det, 1e-5)


def test_generations_are_told_apart():
    for name, generation in {
        "module_fused_zip": "cond_layer, res_skip_layers, weight_g and weight_v",
        "module_fused_legacy": "cond_layer, res_skip_layers, weight_g and weight_v",
        "module_generation1_legacy": "cond_layers, res_layers and skip_layers, weight_g and",
        "statedict_parametrized_zip": "cond_layer, res_skip_layers, parametrizations",
        "statedict_unfused_zip": "cond_layers, res_skip_layers, weight_g and weight_v",
    }.items():
        weights = read_weights(DATA / f"{name}.pt")
        assert weights.generation.startswith(generation), name
        assert weights.config.waveglow == golden_config().waveglow, name


# ------------------------------------------------------------------------------ names and forms


@pytest.mark.parametrize("prefix", ["", "module.", "module.1.", "waveglow.", "model.waveglow."])
def test_prefixes(tmp_path, tensors, reference, prefix):
    write_torch(tmp_path / "a.pt", {"state_dict": {prefix + k: v for k, v in tensors.items()}})
    assert equal(read_weights(tmp_path / "a.pt").params, reference.params)


@pytest.mark.parametrize("nested", [False, True])
def test_state_dicts_of_numpy(tmp_path, tensors, reference, nested):
    """State dicts as TPUs and frameworks without PyTorch save them."""
    state = {name: np.asarray(tensor, "<f4") for name, tensor in tensors.items()}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        program = pickle.dumps({"model": {"state_dict": state}} if nested else state, 2)
        archive.writestr("archive/data.pkl", program)
    assert equal(read_weights(tmp_path / "a.pt").params, reference.params)


def test_safetensors_with_the_originals_names(tmp_path, tensors, reference):
    save_file(tensors, tmp_path / "anything")
    weights = read_weights(tmp_path / "anything")
    assert "safetensors" in weights.kind
    assert equal(weights.params, reference.params)


@pytest.mark.parametrize("compression", ["gz", ""])
def test_nemo(tmp_path, tensors, reference, compression):
    """The file is a tar of a config and a state dict that calls WN wavenet and has the mel's
    buffers."""
    renamed = {f"waveglow.{k.replace('WN.', 'wavenet.')}": v for k, v in tensors.items()}
    renamed["audio_to_melspec_precessor.featurizer.window"] = np.ones(1024, np.float32)
    write_torch(tmp_path / "model_weights.ckpt", renamed)
    with tarfile.open(tmp_path / "voice.nemo", f"w:{compression}") as archive:
        archive.add(tmp_path / "model_weights.ckpt", "./model_weights.ckpt")
    weights = read_weights(tmp_path / "voice.nemo")
    assert weights.kind.startswith("NeMo")
    assert equal(weights.params, reference.params)
    assert any("1 other tensors ignored: audio_to_melspec" in note for note in weights.notes)
    content = (tmp_path / "voice.nemo").read_bytes()
    (tmp_path / "cut.nemo").write_bytes(content[: len(content) // 2])
    refusal(tmp_path / "cut.nemo")


def test_nemo_bomb(tmp_path):
    bomb = tarfile.TarInfo("model_weights.ckpt")
    bomb.size = 50_000_000
    with tarfile.open(tmp_path / "bomb.nemo", "w:gz") as archive:
        archive.addfile(bomb, io.BytesIO(bytes(bomb.size)))
    refusal(tmp_path / "bomb.nemo", "50000000", "not unpacked")
    with tarfile.open(tmp_path / "none.nemo", "w") as archive:
        archive.addfile(tarfile.TarInfo("config.yaml"))
    refusal(tmp_path / "none.nemo", "no .nemo")
    # A name of 64 MiB, a position before the beginning, and a member that takes very long to skip.
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 26
    back, far = tarfile.TarInfo("x"), tarfile.TarInfo("x")
    back.size, far.size = -1024, 1 << 33
    for header, word in ((long, "67108864 bytes"), (back, "no .nemo"), (far, "beyond its end")):
        content = header.tobuf(tarfile.GNU_FORMAT) * 2 + bytes(1 << 26)
        with gzip.open(tmp_path / "lie.nemo", "wb", compresslevel=1) as file:
            file.write(content)
        refusal(tmp_path / "lie.nemo", word)


def test_folded_weights(tmp_path, tensors, reference):
    """After remove_weight_norm: kernel = g v / |v|, by a loop over the output channels."""
    folded = {}
    for name, tensor in tensors.items():
        if name.endswith("weight_v"):
            magnitude = tensors[name[:-1] + "g"]
            rows = [g * v / np.linalg.norm(v) for g, v in zip(magnitude, tensor, strict=True)]
            folded[name.removesuffix("_v")] = np.stack(rows).astype(np.float32)
        elif not name.endswith("weight_g"):
            folded[name] = tensor
    write_torch(tmp_path / "a.pt", folded)
    weights = read_weights(tmp_path / "a.pt")
    assert "plain weights" in weights.generation
    values = expected("expected.npz")
    mel = values["mel"].transpose(0, 2, 1)
    z, _ = wg.forward(weights.params, weights.config, values["audio"], mel)
    close(z, values["z"].transpose(0, 2, 1), 1e-4)


def test_stale_weights_are_ignored(tmp_path, tensors, reference):
    stale = {"WN.0.start.weight": np.full((16, 4, 1), 123, np.float32)}
    write_torch(tmp_path / "a.pt", {**tensors, **stale})
    weights = read_weights(tmp_path / "a.pt")
    assert equal(weights.params, reference.params)
    module = read_weights(DATA / "module_fused_zip.pt")
    assert any(note.startswith("48 plain weights") for note in module.notes)


def test_hyper_parameters_from_the_shapes(tmp_path, tensors):
    weights = read_weights(DATA / "module_fused_zip.pt")
    assert weights.config.waveglow == golden_config().waveglow
    assert any("inferred" in note for note in weights.notes)
    assert weights.config.data.hop_length == 256
    # Without early outputs, the config places the first one after the last flow.
    two = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("upsample") or int(name.split(".")[1]) < 2
    }
    write_torch(tmp_path / "two.pt", two)
    glow = read_weights(tmp_path / "two.pt").config.waveglow
    assert glow.n_flows == 2 and glow.channels(1) == 8


def test_training_checkpoints_tell_where_they_are():
    weights = read_weights(DATA / "module_fused_legacy.pt")
    assert weights.training["iteration"] == 4242
    assert weights.training["learning_rate"] == pytest.approx(1e-4)
    assert "optimizer_state_of" in weights.training
    assert read_weights(PLAIN).training == {"epoch": 3}


# ------------------------------------------------------------------------------ refused


def test_what_is_no_waveglow(tmp_path, tensors):
    write_torch(tmp_path / "other.pt", {"generator.conv_pre.weight": np.ones((2, 2), np.float32)})
    refusal(tmp_path / "other.pt", "no WaveGlow", "generator.conv_pre.weight")
    write_torch(tmp_path / "mel.pt", np.ones((80, 5), np.float32))
    refusal(tmp_path / "mel.pt", "holds no weights")
    two = {f"{p}.{k}": v for p in ("student", "teacher") for k, v in tensors.items()}
    write_torch(tmp_path / "two.pt", two)
    refusal(tmp_path / "two.pt", "several models", "student", "teacher")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("WN.3.in_layers.1.bias", None, ("WN.3.in_layers.1.bias", "missing")),
        ("WN.2.start.bias", (5,), ("WN.2.start.bias", "(5,)", "(16,)")),
        ("convinv.1.conv.weight", (8, 4, 1), ("convinv.1.conv.weight", "(8, 4, 1)", "(8, 8, 1)")),
        ("convinv.2.conv.weight", (5, 5, 1), ("no WaveGlow",)),
        ("convinv.0.conv.weight", (8, 8), ("convinv.0.conv.weight", "3 dimensions")),
        ("upsample.weight", (8, 8, 100), ("upsample_kernel 100", "hop_length 256")),
        ("WN.0.in_layers.0.bias", None, ("in_layers",)),
    ],
)
def test_missing_and_misshapen_tensors(tmp_path, tensors, name, change, words):
    changed = dict(tensors)
    del changed[name]
    if change:
        changed[name] = np.ones(change, np.float32)
    write_torch(tmp_path / "a.pt", changed)
    refusal(tmp_path / "a.pt", *words)


def test_values_that_are_not_finite(tmp_path, tensors):
    holed = tensors["WN.4.end.bias"].copy()
    holed[1] = np.nan
    write_torch(tmp_path / "a.pt", {**tensors, "WN.4.end.bias": holed})
    refusal(tmp_path / "a.pt", "WN.4.end.bias", "not finite")


def test_a_config_that_the_tensors_belie(tmp_path, tensors):
    write_torch(tmp_path / "a.pt", {"state_dict": tensors, "config": {"n_flows": 12}})
    refusal(tmp_path / "a.pt", "n_flows 12", "6")
    said = {"WN_config": {"n_layers": 8, "n_channels": 16, "kernel_size": 3}}
    write_torch(tmp_path / "a.pt", {"state_dict": tensors, "config": said})
    refusal(tmp_path / "a.pt", "n_layers 8", "3")


# ------------------------------------------------------------------------------ loading


@pytest.mark.slow
def test_a_voice_from_any_of_them(tmp_path):
    voice = wg.load(DATA / "module_fused_half_zip.pt")
    mel = np.zeros((3, 8), np.float32)
    assert voice.synthesize(mel).shape == (3 * 256,)
    shutil.copy(PLAIN, tmp_path / "checkpoint_without_a_suffix")
    unnamed = wg.load(tmp_path / "checkpoint_without_a_suffix")
    assert unnamed.config.waveglow == voice.config.waveglow
    shutil.copy(PLAIN, tmp_path / "only.pt")
    assert read_weights(tmp_path).kind.startswith("PyTorch file")  # the only one in the folder
    shutil.copy(PLAIN, tmp_path / "second.pt")
    refusal(tmp_path, "holds 2 published checkpoints")


def test_hub_names(tmp_path, monkeypatch):
    """The models come from a cache as the hub's library lays it out, without a network."""
    pytest.importorskip("huggingface_hub")
    import huggingface_hub

    model = tmp_path / "models--somebody--voice"
    wg.save(model / "snapshots" / COMMIT, tiny_config(), lively_params(tiny_config()))
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, revision=None, **kwargs: _cached(tmp_path, repo, revision, **kwargs),
    )
    assert wg.load("somebody/voice").config == tiny_config()
    assert wg.load(f"somebody/voice@{COMMIT}").config == tiny_config()
    for gone in ("somebody/other", "somebody/voice@v2"):
        with pytest.raises(UserError, match=rf"^{gone}: no such file or folder, and .*cache"):
            wg.load(gone)


def _cached(cache: Path, repo: str, revision: str | None, **kwargs):
    from huggingface_hub._snapshot_download import snapshot_download

    return snapshot_download(
        repo, revision=revision, cache_dir=cache, local_files_only=True, **kwargs
    )


def test_hub_library_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"^some/voice: no such file.*waveglow-jax\[hub\]"):
        wg.load("some/voice")


# ------------------------------------------------------------------------------ the way back


def test_written_for_the_original_and_read_back(tmp_path):
    """Names, shapes and layout are those of a file that the original wrote."""
    weights = read_weights(DATA / "module_fused_zip.pt")
    nvidia.write_original(tmp_path / "a.pt", weights.config, weights.params)
    again = read_weights(tmp_path / "a.pt")
    assert equal(again.params, weights.params)
    assert again.config.waveglow == weights.config.waveglow
    with open_torch(tmp_path / "a.pt") as ours, open_torch(
        DATA / "statedict_parametrized_zip.pt"
    ) as theirs:  # fmt: skip
        names = {"original0": "weight_g", "original1": "weight_v"}
        wanted = {}
        for name, tensor in theirs.tree["state_dict"].items():
            for theirs_ending, ending in names.items():
                name = name.replace(f"parametrizations.weight.{theirs_ending}", ending)
            wanted[name] = theirs.array(tensor)
        state = ours.tree["state_dict"]
        assert state.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(ours.array(state[name]), array)


def test_what_is_written_speaks_in_pytorch(tmp_path):
    """With the file, a model of PyTorch's own convolutions gives the original's numbers."""
    torch = pytest.importorskip("torch")
    from waveglow_jax.performance.torch_waveglow import TorchWaveGlow

    weights = read_weights(DATA / "module_generation1_legacy.pt")
    nvidia.write_original(tmp_path / "a.pt", weights.config, weights.params)
    state = torch.load(tmp_path / "a.pt", weights_only=True)["state_dict"]
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("weight_v"):
            norm = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            name, tensor = name[:-2], tensor * state[name[:-1] + "g"] / norm
        name = name.replace("WN.", "wns.").replace("cond_layer", "cond")
        name = name.replace("res_skip_layers", "res_skip")
        if name.startswith("convinv"):
            name, tensor = f"convs.{name.split('.')[1]}", tensor[:, :, 0]
        if not name.endswith("weight_g"):
            renamed[name] = tensor
    model = TorchWaveGlow(weights.config)
    model.load_state_dict(renamed)
    values = expected("expected.npz")
    with torch.no_grad():
        z, _ = model(torch.from_numpy(values["audio"]), torch.from_numpy(values["mel"]))
    close(z.numpy(), values["z"].transpose(0, 2, 1), 1e-5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"conditioning": "group"}, "conditioning"),
        ({"alternating_halves": True}, "alternating_halves"),
        ({"WN_config": {"n_layers": 2, "n_channels": 8, "n_skip_channels": 4}}, "n_skip_channels"),
    ],
)
def test_what_the_original_cannot_load_is_not_written(tmp_path, changes, word):
    config = wg.config.config_from_dict({"waveglow_config": changes})
    with pytest.raises(UserError, match=word):
        nvidia.write_original(tmp_path / "a.pt", config, {})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ commands


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_convert_there_and_back(tmp_path, capsys, reference):
    code, out, _ = run(capsys, "convert", PLAIN, "-o", tmp_path / "release")
    assert code == 0 and "PyTorch file" in out
    assert equal(read_weights(tmp_path / "release").params, reference.params)
    target = tmp_path / "back.pt"
    code, _, _ = run(capsys, "convert", tmp_path / "release", "-o", target, "--to", "torch")
    assert code == 0
    assert equal(read_weights(target).params, reference.params)
    code, _, _ = run(capsys, "convert", PLAIN, "-o", tmp_path / "half", "--dtype", "float16")
    assert code == 0
    size = (tmp_path / "half/model.safetensors").stat().st_size
    assert size < 0.55 * (tmp_path / "release/model.safetensors").stat().st_size


def test_convert_alternating_halves(tmp_path, capsys):
    code, _, _ = run(
        capsys, "convert", PLAIN, "-o", tmp_path / "release", "--alternating-halves"
    )  # fmt: skip
    assert code == 0
    assert read_weights(tmp_path / "release").config.waveglow.alternating_halves
    code, _, err = run(
        capsys, "convert", tmp_path / "release", "-o", tmp_path / "a.pt", "--to", "torch"
    )
    assert code == 1 and "alternating_halves" in err
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.slow
def test_convert_check_tells_the_likelihood(tmp_path, capsys, reference):
    import soundfile

    audio = 0.1 * np.random.default_rng(0).normal(size=6000)
    soundfile.write(tmp_path / "a.wav", audio, 22050, subtype="PCM_16")
    code, out, _ = run(
        capsys, "convert", PLAIN, "-o", tmp_path / "r", "--check", tmp_path / "a.wav"
    )
    assert code == 0
    told = float(out.split("nats per sample")[0].split()[-1])
    written, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    written = written[None, : 23 * 256]
    mel = wg.log_mel(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], reference.config)
    z, log_det = wg.forward(reference.params, reference.config, written, mel[None, :24])
    nats = float(log_det[0]) - 0.5 * float(np.sum(np.square(z))) - 0.5 * np.log(2 * np.pi) * z.size
    assert told == pytest.approx(nats / z.size, abs=1e-3)


def test_inspect(tmp_path, capsys, tensors):
    code, out, _ = run(capsys, "inspect", DATA / "module_fused_half_zip.pt")
    assert code == 0
    for words in ("glow.WaveGlow", "cond_layer", "6 flows", "half precision", "|det W|", "stale"):
        assert words in out, words
    code, out, _ = run(capsys, "inspect", DATA / "module_fused_legacy.pt", "--json")
    found = json.loads(out)
    assert found["training"]["iteration"] == 4242
    weights = read_weights(PLAIN)
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    for k, determinant in enumerate(found["determinants"]):
        matrix = tensors[f"convinv.{k}.conv.weight"][:, :, 0].astype(np.float64)
        assert determinant == pytest.approx(abs(np.prod(np.linalg.eigvals(matrix))), rel=1e-6)
    assert not found["suspicious"]


def test_inspect_names_what_looks_wrong(tmp_path, tensors):
    odd = dict(tensors)
    odd["convinv.1.conv.weight"] = odd["convinv.1.conv.weight"] * 100
    crooked = odd["convinv.3.conv.weight"].copy()
    crooked[0] = crooked[1] * (1 + 1e-6)
    odd["convinv.3.conv.weight"] = crooked
    odd["WN.4.end.weight"] = np.zeros_like(odd["WN.4.end.weight"])
    write_torch(tmp_path / "a.pt", odd)
    told = report(read_weights(tmp_path / "a.pt"))["suspicious"]
    for words in ("flow 1: |det W|", "flow 3: W's condition number", "flow 4: WN's last layer"):
        assert any(sentence.startswith(words) for sentence in told), (words, told)


def test_inspect_of_a_singular_w_is_json(tmp_path, tensors, capsys):
    write_torch(tmp_path / "a.pt", {**tensors, "convinv.1.conv.weight": np.ones((8, 8, 1), "f4")})
    code, out, _ = run(capsys, "inspect", tmp_path / "a.pt", "--json")
    assert code == 0
    conditions = json.loads(out, parse_constant=pytest.fail)["condition_numbers"]
    assert conditions[1] > 1e12


def test_bad_weights_on_the_command_line(tmp_path, capsys):
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 cut")
    for command in (
        ("inspect", tmp_path / "bad.pt"),
        ("convert", tmp_path / "bad.pt", "-o", tmp_path / "out"),
        ("inspect", tmp_path / "gone.pt"),
    ):
        code, out, err = run(capsys, *command)
        assert code == 1 and not out
        assert err.startswith("error: ") and len(err.splitlines()) == 1 and str(command[1]) in err
    assert not (tmp_path / "out").exists()
