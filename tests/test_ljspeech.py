"""The LJSpeech tutorial and the how-to on fine-tuning, on a small corpus of LJSpeech's layout."""

import io
import json
import os
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from waveglow_jax.cli import main, run_single
from waveglow_jax.evaluation import evaluate as evaluation

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "docs" / "tutorials" / "ljspeech.md",
    ROOT / "docs" / "how-to" / "fine-tuning.md",
)
RECORDINGS = ROOT / "waveglow_jax" / "assets" / "voice" / "recordings"

# All that differs from the pages' own run: configs/paper.json shrunk to SMALL, two steps of
# fine-tuning, the metrics that are quick to compute, and commands in this process instead of new
# ones.
SMALL = {
    "waveglow_config": {
        **{"n_flows": 2, "n_early_every": 1, "upsample_kernel": 512},
        "WN_config": {"n_layers": 1, "n_channels": 8, "n_skip_channels": 4},
    },
    "data_config": {"segment_length": 2048},
    "train_config": {"steps": 2, "batch_size": 8, "synthesis_clips": 0},
}
SHORT = {"--train.steps 20000": "--train.steps 2"}
METRICS = ("mcd", "log_mel_l1")


def write_small_config() -> None:
    config = json.loads((ROOT / "configs" / "paper.json").read_text())
    for section, fields in SMALL.items():
        config[section] |= fields
    Path("configs").mkdir()
    Path("configs/paper.json").write_text(json.dumps(config))


def commands() -> list[str]:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def pack_corpus(path: Path) -> None:
    """14 recordings of 0.7 s, cut from the bundled ones, and their metadata.csv."""
    whole = np.concatenate([soundfile.read(p)[0] for p in sorted(RECORDINGS.glob("*.wav"))])
    files = {}
    for i in range(14):
        sound = io.BytesIO()
        clip = whole[i * 15000 : i * 15000 + 15000 + 100 * i]
        soundfile.write(sound, clip, 22050, format="WAV", subtype="PCM_16")
        files[f"wavs/LJ001-{i + 1:04}.wav"] = sound.getvalue()
    lines = (f"{Path(name).stem}|It is said.|It is said.\n" for name in files)
    files["metadata.csv"] = "".join(lines).encode()
    with tarfile.open(path, "w:bz2") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"LJSpeech-1.1/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def run(command: str) -> int:
    """A command of ours in this process, another one in a shell."""
    for given, short in SHORT.items():
        command = command.replace(given, short)
    match shlex.split(command):
        case ["python", "-m", "waveglow_jax", *rest]:
            return main(rest)
        case ["python", ("train.py" | "synthesize.py") as script, *rest]:
            return run_single(script.removesuffix(".py"), rest)
        case ["python", *_]:
            raise AssertionError(f"unknown: {command}")
    return subprocess.run(["bash", "-c", command], check=False).returncode


@pytest.mark.stress
def test_the_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "OF_SIGNALS", METRICS)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # so that `evaluate` starts no processes
    write_small_config()
    pack_corpus(Path("LJSpeech-1.1.tar.bz2"))
    listed = commands()
    assert len(listed) > 10
    for command in listed:
        assert run(command) == 0, (command, capsys.readouterr().err)
    told, errors = capsys.readouterr()

    held_out = [f"LJ001-{i:04}" for i in range(1, 11)]
    assert [Path(line).stem for line in Path("test_files.txt").read_text().split()] == held_out
    assert [Path(line).stem for line in Path("train_files.txt").read_text().split()] == [
        f"LJ001-{i:04}" for i in range(11, 15)
    ]
    assert errors.count("4 recordings (") == 2 and errors.count("10 (") == 2
    assert "step 2 of 2 (100.0%)" in told and Path("curves.png").stat().st_size > 10_000
    for folder in ("synthesised/LJSpeech-1.1/wavs", "synthesised_from_mels"):
        made = sorted(Path(folder).glob("*.wav"))
        assert [path.stem for path in made] == held_out
        for path in made:
            original = soundfile.info(Path("test_wavs") / path.name)
            assert 0 <= original.frames - soundfile.info(path).frames + 256 < 512
    assert {p.name for p in Path("ljspeech_voice").iterdir()} >= {
        "model.safetensors",
        "config.json",
    }
    summary = json.loads(Path("report/summary.json").read_text())
    assert "ours" in json.dumps(summary) and Path("report/report.html").exists()
    assert Path("finetuned/LJ001-0001.wav").exists()
    lines = [json.loads(x) for x in Path("runs/finetuned/metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines if "loss" in line] == pytest.approx([1e-5] * 2)
