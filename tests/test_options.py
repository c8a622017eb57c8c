"""All commands have one grammar, and their help names everything."""

import argparse
import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_cli import (
    FRAMES,
    HOP,
    RATE,
    below,
    is_speech_file,
    load_once,  # noqa: F401 - a fixture
    mel_file,
    one_error,
    recording,
    run,  # noqa: F401 - a fixture
    run_binary,  # noqa: F401 - a fixture
    voice,  # noqa: F401 - a fixture
    weights,  # noqa: F401 - a fixture
)
from test_vocoder import some_audio

import waveglow_jax as wg
from waveglow_jax.analysis.precisions import BY_NAME
from waveglow_jax.cli import COMMANDS, _split_overrides, run_single
from waveglow_jax.cli.arguments import convention
from waveglow_jax.cli.laboratory import PRECISIONS
from waveglow_jax.config import Config, config_from_dict, field_facts
from waveglow_jax.conventions import CONVENTIONS
from waveglow_jax.errors import FileWarning, UserError
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.sound import audio_frames, read_audio
from waveglow_jax.text import number_of
from waveglow_jax.weights.release import read_weights

pytestmark = pytest.mark.usefixtures("no_full_scale")

NOTED = pytest.mark.filterwarnings("default::waveglow_jax.errors.FileWarning")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of all commands and sub-commands."""
    found = {}
    for name, (add_arguments, _) in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=name)
        add_arguments(parser)
        found[name] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {part}": each for part, each in action.choices.items()}
    return found


PARSERS = parsers()


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    parts = (argparse._SubParsersAction, argparse._HelpAction)
    return [action for action in parser._actions if not isinstance(action, parts)]


# ------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", PARSERS)
def test_every_option_is_explained_with_its_default(command):
    for action in options(PARSERS[command]):
        name = "/".join(action.option_strings) or action.dest
        assert action.help, name
        told = action.help + " "
        is_number = isinstance(action.default, int | float) and not isinstance(action.default, bool)
        if is_number or isinstance(action.default, str):
            assert "default" in told, f"{command} {name}: {told}"


@pytest.mark.parametrize("command", PARSERS)
def test_the_examples_in_the_help_are_command_lines(command):
    parser = PARSERS[command]
    _, _, examples = parser.format_help().rpartition("\nexample")
    lines = [line.strip() for line in examples.splitlines()[1:]]
    assert lines
    for line in lines:
        assert line.startswith(parser.prog)
        words = shlex.split(line.removeprefix(parser.prog).partition("|")[0])
        plain, _ = _split_overrides(words, parser)
        parser.parse_args(plain)


@pytest.mark.parametrize("command", PARSERS)
def test_each_help_speaks_of_its_own_command(command):
    told = " ".join(PARSERS[command].format_help().split())
    assert " as for " not in told
    for other in {"sweep", "resynthesize", "interpolate"} - {command}:
        assert other not in told
    for action in options(PARSERS[command]):
        if action.type is convention and action.dest != "target":
            assert all(row.key in action.help for row in CONVENTIONS)


@pytest.mark.parametrize("command", PARSERS)
def test_types_have_names_that_people_may_see(command):
    """argparse writes "invalid seconds value: 'abc'"."""
    types = [action.type for action in options(PARSERS[command]) if action.type]
    assert [t.__name__ for t in types if t.__name__.startswith(("_", "not_", "<"))] == []


def test_the_precisions_in_the_help_are_those_of_the_analysis():
    assert tuple(BY_NAME) == PRECISIONS


def test_an_option_of_one_name_is_one_thing():
    """An option has the same letter, or none, in every command."""
    letters: dict[str, set[str]] = {}
    commands: dict[str, list[str]] = {}
    for command, parser in PARSERS.items():
        for action in options(parser):
            for name in action.option_strings:
                if name.startswith("--"):
                    short = "".join(set(action.option_strings) - {name})
                    letters.setdefault(name, set()).add(short)
                    commands.setdefault(name, []).append(command)
    assert {name: short for name, short in letters.items() if len(short) > 1} == {}
    assert letters["--weights"] == {"-w"} and letters["--output"] == {"-o"}
    assert letters["--file"] == {"-f"} and commands["--noise"] == ["likelihood"]
    of_weights = {name for name in PARSERS if "WEIGHTS" in PARSERS[name].format_usage()}
    assert of_weights - {"train"} == set(commands["--weights"])
    # train writes metrics.jsonl, demo is for the ears, and listening-test is its two parts.
    assert set(PARSERS) - {"train", "demo", "listening-test"} == set(commands["--json"])


def test_the_help_of_train_lists_every_field():
    told = PARSERS["train"].format_help()
    for facts in field_facts():
        (line,) = re.findall(rf"--{re.escape(facts.name)} [A-Z].*", told)
        assert facts.kind.upper() in line and facts.default in line and facts.values in line
    assert "--train.batch_size INT  24 (at least 1 and at most 65536)" in told
    assert '--waveglow.conditioning STR  "sample" (sample or group)' in told
    for preset in ("nvidia256", "paper", "tiny", "voice"):
        assert preset in told


def test_the_fields_that_are_told_can_be_set():
    facts = field_facts()
    defaults = {each.name: json.loads(each.default) for each in facts}
    optional = {each.name for each in facts if each.kind == "object"}
    assert optional == {"waveglow.mel_whitening", "train.altered_mels"}
    without = {n: v for n, v in defaults.items() if not n.startswith(tuple(optional))}
    assert len(without) == len(defaults) - 2 - 3 - 6
    assert config_from_dict({}, without) == Config()
    with pytest.raises(UserError, match="'flow' must be 'sample' or 'group'"):
        config_from_dict({}, {"waveglow.conditioning": "flow"})


# ------------------------------------------------------------------------------ -w


def test_weights_by_themselves_or_after_w(run, tmp_path, weights):  # noqa: F811
    told = [run("inspect", *words, "--json") for words in ((weights,), ("-w", weights))]
    assert told[0] == told[1] and told[0][0] == 0
    for words in ((), (weights, "-w", weights)):
        code, _, err = run("inspect", *words)
        assert code == 2 and "WEIGHTS once" in err[-1]
    code, _, err = run("benchmark", weights, "-w", weights)
    assert code == 2 and "WEIGHTS once" in err[-1]
    assert run("invertibility", "-w", weights, "--random", "tiny")[0] == 2


def test_convert_and_export_tell_as_json(run, tmp_path, weights):  # noqa: F811
    a = recording(tmp_path / "a.wav")
    code, out, _ = run("convert", "-w", weights, "-o", tmp_path / "out", "--check", a, "--json")
    (told,) = map(json.loads, out)
    assert code == 0 and told["kind"] == "release folder" and told["nats"] < 100
    assert wg.load_config(tmp_path / "out/config.json") == wg.load_config(f"{weights}/config.json")


def test_prepare_tells_as_json(run, tmp_path):  # noqa: F811
    recording(tmp_path / "in/a.wav", RATE)
    (tmp_path / "in/b.wav").write_bytes(b"")
    code, out, _ = run("prepare", tmp_path / "in", "-o", tmp_path / "out", "--json")
    (told,) = map(json.loads, out)
    assert (code, told["written"], told["kept"]) == (0, 1, 0)
    assert told["seconds"] == pytest.approx(1, abs=0.1)
    ((path, reason),) = told["left_out"]
    assert path.endswith("b.wav") and "empty" in reason


def test_a_listening_test_tells_as_json(run, tmp_path):  # noqa: F811
    systems = []
    for name in "xy":
        recording(tmp_path / name / "a.wav", RATE)
        systems += ["--system", f"{name}={tmp_path / name}"]
    words = "listening-test", "make", "-o", tmp_path / "test", *systems
    code, out, _ = run(*words, "--json")
    (told,) = map(json.loads, out)
    assert code == 0 and told["utterances"] == ["a"] and Path(told["page"]).is_dir()


# ------------------------------------------------------------------------------ -f


def test_one_file_by_its_name(run, tmp_path, weights):  # noqa: F811
    mel, a = mel_file(tmp_path / "m.npy"), recording(tmp_path / "a.wav")
    named = tmp_path / "deep/again.wav"
    code, out, err = run("synthesize", mel, "-w", weights, "-f", named, "--plot")
    assert (code, err) == (0, []) and out[0].startswith(str(named))
    is_speech_file(named)
    assert below(tmp_path / "deep") == ["again.png", "again.wav"]
    assert run("mel", a, "-w", weights, "-f", tmp_path / "of_a.npy")[0] == 0
    assert np.load(tmp_path / "of_a.npy").shape[0] == 80
    assert run("resynthesize", a, "-w", weights, "-f", tmp_path / "back.wav")[0] == 0
    assert soundfile.info(tmp_path / "back.wav").frames == FRAMES * HOP - 1


@pytest.mark.parametrize(("command", "suffix"), [("synthesize", ".wav"), ("mel", ".npy")])
def test_what_f_cannot_be(run, tmp_path, weights, command, suffix):  # noqa: F811
    a, b = recording(tmp_path / "in/a.wav"), recording(tmp_path / "in/b.wav")
    before = below(tmp_path)
    out = tmp_path / f"x{suffix}"
    for words in ((a, b, "-f", out), (a, "-f", tmp_path / "x.mp3"), (a, "-f", out, "-o", tmp_path)):
        code, _, err = run(command, *words, "-w", weights)
        assert code == 2 and "-f/--file" in err[-1]
    assert run(command, a, "-w", weights)[0] == 2
    assert below(tmp_path) == before


def test_f_does_not_overwrite_its_input(run, tmp_path, weights):  # noqa: F811
    a = recording(tmp_path / "a.wav")
    before = a.read_bytes()
    code, _, err = run("synthesize", a, "-w", weights, "-f", a)
    assert code == 1 and a.read_bytes() == before
    one_error(err, a, "overwrite")


# ------------------------------------------------------------------------------ --play


def player(folder: Path, name: str, code: int = 0) -> Path:
    """A player program that records its arguments and the sound it played; the only one on the
    path."""
    folder.mkdir()
    script = folder / name
    script.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" > {folder}/told\n'
        f'for last; do :; done; cp "$last" {folder}/played.wav\n'
        f'echo "no card" >&2; exit {code}\n'
    )
    script.chmod(0o755)
    return folder


@pytest.fixture
def alone(monkeypatch):
    """A folder that is first on the path, and from which alone players are taken."""

    def alone(folder: Path) -> None:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")
        monkeypatch.setattr(
            "waveglow_jax.cli.player.shutil.which",
            lambda name: str(folder / name) if (folder / name).exists() else None,
        )

    return alone


@pytest.mark.parametrize("name", ["ffplay", "aplay", "afplay"])
@pytest.mark.parametrize("kept", [True, False])
def test_play(run, tmp_path, weights, alone, name, kept):  # noqa: F811
    alone(player(tmp_path / "bin", name))
    mel = mel_file(tmp_path / "-m.npy")
    where = ["-f", tmp_path / "out.wav"] if kept else []
    code, out, err = run("synthesize", mel, "-w", weights, "--play", *where)
    assert (code, err, len(out)) == (0, [], 1)
    is_speech_file(tmp_path / "bin/played.wav")
    *_, last = (tmp_path / "bin/told").read_text().splitlines()
    assert Path(last).is_absolute() and Path(last).exists() == kept
    assert out[0].startswith(str(tmp_path / "out.wav") if kept else str(mel))
    if not kept:
        assert below(tmp_path) == [
            "-m.npy",
            *(f"bin/{n}" for n in sorted([name, "played.wav", "told"])),
        ]


@pytest.mark.slow
def test_play_of_a_typical_sample(run, tmp_path, weights, alone):  # noqa: F811
    alone(player(tmp_path / "bin", "aplay"))
    mel = mel_file(tmp_path / "m.npy")
    settings = "-w", weights, "--consistency", "latent", "--json"
    code, out, _ = run("synthesize", mel, *settings, "--play")
    assert code == 0 and json.loads(out[0])["output"] is None
    is_speech_file(tmp_path / "bin/played.wav")


def test_play_without_a_player_or_a_sound_card(run, tmp_path, weights, alone):  # noqa: F811
    mel = mel_file(tmp_path / "m.npy")
    alone(tmp_path / "none")
    code, out, err = run("synthesize", mel, "-w", weights, "--play")
    assert (code, out) == (1, [])
    one_error(err, "--play", "ffplay", "-o")
    alone(player(tmp_path / "bin", "aplay", code=1))
    words = "synthesize", mel, "-w", weights, "-o", tmp_path / "out", "--play"
    code, _, err = run(*words)
    assert code == 1 and below(tmp_path / "out") == ["m.wav"]
    one_error(err, "m.wav", "aplay", "no card")
    for more in (["--plot"], ["--stream"]):
        assert run("synthesize", mel, "-w", weights, "--play", *more)[0] == 2


# ------------------------------------------------------------------------------ other rates


@NOTED
def test_recordings_of_other_rates_are_taken_with_a_note(run, tmp_path, weights):  # noqa: F811
    one = some_audio(RATE)
    soundfile.write(tmp_path / "a.wav", one, 44100)
    soundfile.write(tmp_path / "b.wav", np.stack([one, -one / 2], 1), RATE)
    recording(tmp_path / "c.wav")
    paths = [tmp_path / f"{name}.wav" for name in "abc"]
    code, out, err = run("synthesize", *paths, "-o", tmp_path / "out", "-w", weights)
    assert code == 0 and len(out) == 3
    assert err == [
        f"note: {paths[0]}: 44100 Hz, taken as {RATE} Hz mono",
        f"note: {paths[1]}: {RATE} Hz in 2 channels, taken as {RATE} Hz mono",
    ]
    is_speech_file(tmp_path / "out/a.wav", 1 + RATE // 2 // HOP)
    is_speech_file(tmp_path / "out/b.wav", 1 + RATE // HOP)
    code, _, err = run("mel", paths[0], "-o", tmp_path / "out", "-w", weights)
    assert code == 1
    one_error(err, "44100 Hz", "prepare")


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_conversion_keeps_the_tone_and_the_length(tmp_path, rate):
    time = np.arange(rate + 13) / rate
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1), rate, subtype="FLOAT")
    with pytest.warns(FileWarning, match=f"{rate} Hz in 2 channels"):
        audio = read_audio(tmp_path / "a.wav", RATE, convert=True)
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(audio)) / RATE)
    middle = slice(1000, -1000)
    np.testing.assert_allclose(audio[middle], wanted[middle], rtol=0, atol=2e-3)
    assert audio.dtype == np.float32
    assert 0 <= audio_frames(tmp_path / "a.wav", RATE, convert=True) - len(audio) <= 1
    with pytest.raises(UserError, match="prepare"):
        read_audio(tmp_path / "a.wav", RATE)


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("words", "usage", "meant"),
    [
        ("synthesize a.wav --sigam 0.5", "synthesize", "--sigma"),  # and -o is missing
        ("synthesize a.wav -o out --sigam=0.5", "synthesize", "--sigma"),
        ("synthesize a.wav --outptu out", "synthesize", "--output"),
        ("train voice --dtaa in -o run", "train", "--data"),
        ("train voice --batch_size 8 -o run", "train", "--train.batch_size"),
        ("mel a.wav -o out --train.steps 5", "mel", "mel -h lists"),
        ("listening-test make --sytsem a=b -o out", "listening-test make", "--system"),
        ("demo -o out -q", "demo", "-q"),
    ],
)
def test_an_option_that_is_not_there(run, words, usage, meant):  # noqa: F811
    code, out, err = run(*words.split())
    assert (code, out) == (2, []) and err[0].startswith(f"usage: waveglow-jax {usage} ")
    assert "unrecognized arguments" in err[-1] and meant in err[-1]


def test_names_in_values_and_beginnings_of_names_are_no_typos(run):  # noqa: F811
    code, _, err = run("synthesize", "--stream", "--sig", "0.5", "--", "--sigam.wav")
    assert code == 1 and "--sigam.wav: no such file" in err[-1]


def test_programs_of_one_command_suggest_options_too(capsys):
    for command, word, meant in (("train", "--ouptut", "--output"), ("synthesize", "-x", "-x")):
        with pytest.raises(SystemExit, match="2"):
            run_single(command, ["a", "-o", "out", word])
        _, err = capsys.readouterr()
        assert "CONFIG" in err or "--play" in err
        assert meant in err.splitlines()[-1]


def test_the_nearest_preset_is_suggested(run, tmp_path):  # noqa: F811
    _, _, err = run("train", "voise", "-o", tmp_path)
    assert "did you mean voice?" in one_error(err, "voise", "nvidia256")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("synthesize a.npy -o out --mel-convention hifi", "--mel-convention: hifi is .* hifigan"),
        ("evaluate --reference in -o out --system ours", "--system: 'ours': write NAME=DIR"),
        ("evaluate --reference in -o out --system a=b:sigma=x", "--system: .* 'sigma=x' is no"),
        ("listening-test make -o out --system ours", "--system: 'ours': write NAME=DIR"),
        ("preflight --topology v5x:2", "--topology: v5x:2: give v5e"),
        ("preflight --topology h100:12", "--topology: h100:12: more than 8"),
        ("preflight --batch 0", "--batch: 0 must be at least 1"),
        ("preflight --seconds 0", "--seconds: 0 must be above 0, at most 3600"),
        ("invertibility --precision float8", "--precision: invalid choice: 'float8' .*bfloat16"),
        ("invertibility --seconds 61", "--seconds: 61 must be above 0, at most 60"),
        ("benchmark --seconds abc", "--seconds: invalid seconds value: 'abc'"),
        ("benchmark --task loader", "give --data"),
        ("benchmark x --config tiny", "or else --config"),
        ("benchmark --task train --dtype float16", "--dtype float16: training is"),
        ("benchmark --train.steps 5", "--train.steps sets a field of a config: give --config"),
        ("resynthesize a.wav -o out --scale x", "--scale: invalid number value: 'x'"),
        ("prepare in -o out --rate 0", "--rate: 0 must be at least 1"),
        ("mel in -o out -w", "-w/--weights: expected one argument"),
        ("evaluate --reference in -o out --workers x", "--workers: invalid workers value: 'x'"),
    ],
)
def test_a_value_that_an_option_cannot_have(run, words, said):  # noqa: F811
    code, out, err = run(*words.split())
    assert (code, out) == (2, []) and re.search(said, err[-1]), err[-1]


# ------------------------------------------------------------------------------ two of one output


def two_of_one_name(folder: Path) -> list[Path]:
    """Two recordings of one stem, and another one."""
    return [recording(folder / name, RATE) for name in ("a.flac", "a.wav", "b.wav")]


@pytest.mark.parametrize("command", ["mel", "synthesize"])
def test_two_of_one_output_fail_and_the_others_are_done(run, tmp_path, weights, command):  # noqa: F811
    flac, wav, _ = two_of_one_name(tmp_path / "in")
    out = tmp_path / "out"
    code, _, err = run(command, tmp_path / "in", "-o", out, "-w", weights)
    first, second, last = err
    assert code == 1 and last == "2 of 3 files could not be done"
    assert first.startswith(f"error: {flac}: would have the same output as {wav}; rename one")
    assert second.startswith(f"error: {wav}: would have the same output as {flac}; rename one")
    assert [path.stem for path in out.iterdir()] == ["b"]


def test_prepare_does_the_others_and_keeps_what_it_made(run, tmp_path):  # noqa: F811
    flac, wav, _ = two_of_one_name(tmp_path / "in")
    wav.rename(tmp_path / "other.wav")
    out = tmp_path / "out"
    assert run("prepare", tmp_path / "in", "-o", out)[0] == 0
    (tmp_path / "other.wav").rename(wav)
    code, lines, err = run("prepare", tmp_path / "in", "-o", out)
    assert code == 1
    one_error(err, "2 of the recordings have the output of another")
    assert lines[:2] == [
        f"left out: {flac}: would have the same output as {wav}",
        f"left out: {wav}: would have the same output as {flac}",
    ]
    assert lines[2].startswith("0 written, 1 kept, 2 left out")
    assert {path.name for path in out.glob("*.wav")} == {"a.wav", "b.wav"}


def test_a_stream_has_no_outputs_to_share(run_binary, tmp_path, weights):  # noqa: F811
    two = two_of_one_name(tmp_path / "in")[:2]
    code, samples, _ = run_binary("synthesize", *two, "--stream", "-w", weights)
    assert code == 0 and len(samples) == 2 * 2 * (1 + RATE // HOP) * HOP


# ------------------------------------------------------------------------------ places


@pytest.mark.parametrize("command", ["mel", "synthesize", "resynthesize"])
def test_o_is_no_file(run, tmp_path, command):  # noqa: F811
    a = recording(tmp_path / "a.wav")
    code, out, err = run(command, a, "-o", a)
    assert (code, out, len(err)) == (1, [], 1)
    one_error(err, f"{a}: is a file; -o names a folder (-f names a file)")


def test_the_remedy_fits_the_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file is a file and no folder; choose another folder"):
        write_text(tmp_path / "file/below/a.txt", "text")

    for number, remedy in (
        (errno.EACCES, "Permission denied; choose another place"),
        (errno.EROFS, "Read-only file system; choose another place"),
        (errno.ENOSPC, "No space left on device; free some space or choose another place"),
    ):

        def refuse(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "write_text", refuse)
        with pytest.raises(UserError, match=f"a.txt: cannot be written: {remedy}$"):
            write_text(tmp_path / "a.txt", "text")


# ------------------------------------------------------------------------------ no weights


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"])
def test_a_recording_is_no_weights(tmp_path, suffix):
    path = recording(tmp_path / f"a.{suffix}", RATE)
    with pytest.raises(UserError, match=f"a.{suffix}: is a recording and holds no weights"):
        read_weights(path)


def test_a_mel_is_no_weights(tmp_path):
    with pytest.raises(UserError, match="is a NumPy array, such as a mel, and holds no weights"):
        read_weights(mel_file(tmp_path / "m.npy"))


def test_a_folder_above_weights_names_them(run, tmp_path, weights):  # noqa: F811
    runs = tmp_path / "runs"
    shutil.copytree(weights, runs / "small")
    (runs / "logs").mkdir()
    (runs / "large").mkdir()
    for name in ("config.json", "metrics.jsonl"):  # a run without a checkpoint so far
        (runs / "large" / name).write_text("{}")
    code, _, err = run("inspect", runs)
    assert code == 1
    one_error(err, f"but holds {runs / 'large'}, {runs / 'small'}; name one")
    one_error(run("inspect", runs / "logs")[2], "holds no published checkpoint; check the path")


def test_one_is_no_plural():
    assert [number_of(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2000 steps"]
    assert number_of(2000, "step", ",") == "2,000 steps"


def test_one_correction_in_a_files_line(run, tmp_path, weights):  # noqa: F811
    options = "-w", weights, "-o", tmp_path / "out", "--consistency", 1
    _, lines, _ = run("synthesize", mel_file(tmp_path / "m.npy"), *options)
    assert re.search(r", 1 correction( \(|$)", lines[0])
