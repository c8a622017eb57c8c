"""From recordings of any kind to a corpus: what is converted, left out, and not done twice."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile

from waveglow_jax.audio import prepare as module
from waveglow_jax.audio.prepare import prepare
from waveglow_jax.errors import UserError
from waveglow_jax.files.sound import audio_frames, read_audio

RATE = 22050


def sine(rate: int, seconds: float = 1.0, hertz: float = 440.0, peak: float = 0.3) -> np.ndarray:
    return peak * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def record(path: Path, samples: np.ndarray, rate: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_rate_is_changed_and_the_tone_is_kept(tmp_path, rate):
    record(tmp_path / "in/a.flac", sine(rate, 1.5), rate)
    report = prepare([tmp_path / "in"], tmp_path / "out")
    samples = read_audio(tmp_path / "out/a.wav", RATE)
    assert abs(len(samples) - 1.5 * RATE) <= 1
    assert report.seconds == len(samples) / RATE
    # Away from the ends the result is the same tone, sample by sample.
    expected = sine(RATE, 1.5)[: len(samples)]
    np.testing.assert_allclose(samples[2000:-2000], expected[2000:-2000], atol=1e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_out(tmp_path):
    high = sine(44100, 1.0, 15000) + sine(44100, 1.0, 440, peak=0.1)
    record(tmp_path / "in/a.flac", high, 44100)
    prepare([tmp_path / "in"], tmp_path / "out")
    samples = read_audio(tmp_path / "out/a.wav", RATE)
    expected = sine(RATE, peak=0.1)
    np.testing.assert_allclose(samples[2000:-2000], expected[2000:-2000], atol=1e-3)


def test_channels_are_averaged(tmp_path):
    left, right = sine(RATE, hertz=300), sine(RATE, hertz=1000, peak=0.1)
    record(tmp_path / "in/a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    prepare([tmp_path / "in"], tmp_path / "out")
    samples = read_audio(tmp_path / "out/a.wav", RATE)
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1.01 / 32768)


def test_folders_are_kept_and_types_become_wav(tmp_path):
    for name in ("x/1.flac", "y/1.ogg", "2.aiff"):
        record(tmp_path / "in" / name, sine(RATE), RATE)
    report = prepare([tmp_path / "in"], tmp_path / "out", workers=3)
    assert (report.written, report.kept, report.left_out) == (3, 0, ())
    expected = ["2.wav", "left_out.txt", "prepare.json", "x/1.wav", "y/1.wav"]
    assert below(tmp_path / "out") == expected
    assert soundfile.info(tmp_path / "out/2.wav").subtype == "PCM_16"


def test_what_is_left_out_and_why(tmp_path):
    tone = sine(RATE)
    bad = tone.copy()
    bad[5] = np.inf
    clipped = np.clip(tone * 5, -1, 1)
    opposed = np.stack([tone, -tone], 1)
    cut = record(tmp_path / "in/cut.wav", tone, RATE)
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "in/text.mp3").write_text("not a recording")
    for name, samples, kind in [
        ("bad", bad, "FLOAT"),
        ("clipped", clipped, "PCM_16"),
        ("good", tone, "PCM_16"),
        ("opposed", opposed, "PCM_16"),
        ("short", tone[: RATE // 2 - 1], "PCM_16"),
        ("silent", tone * 0, "PCM_16"),
        ("whisper", sine(RATE, peak=0.00097), "PCM_16"),
        ("soft", sine(RATE, peak=0.00103), "FLOAT"),
    ]:
        record(tmp_path / "in" / f"{name}.wav", samples, RATE, subtype=kind)
    report = prepare([tmp_path / "in"], tmp_path / "out")
    assert report.written == 2
    reasons = {Path(path).stem: reason for path, reason in report.left_out}
    for name, start in {
        "bad": "holds samples that are not finite",
        "clipped": "clipped: ",
        "cut": "cut short",
        "opposed": "silent",
        "short": "too short: 0.50 s, at least 0.5 s",
        "silent": "silent",
        "whisper": "silent",
        "text": "not readable as audio",
    }.items():
        assert reasons.pop(name).startswith(start)
    assert not reasons
    lines = (tmp_path / "out/left_out.txt").read_text().splitlines()
    assert [tuple(line.split("\t")) for line in lines] == list(report.left_out)
    assert sorted(lines) == lines
    assert below(tmp_path / "out") == ["good.wav", "left_out.txt", "prepare.json", "soft.wav"]


def test_clipping_counts_runs_of_three_as_one_at_a_time():
    rng = np.random.default_rng(0)
    samples = rng.choice([0.5, 1.0, -1.0], size=(400, 2), p=[0.5, 0.3, 0.2]).astype(np.float32)
    worst = 0.0
    for channel in samples.T:
        count, run = 0, 0
        for value in [*channel, 0.0]:
            if abs(value) == 1:
                run += 1
            else:
                count, run = count + (run if run >= 3 else 0), 0
        worst = max(worst, count / len(channel))
    assert 0 < worst < 1
    assert module._clipped_share(samples) == pytest.approx(worst)


def test_a_peak_at_full_scale_is_not_clipping(tmp_path):
    samples = sine(RATE)
    samples[100::200] = 1.0
    record(tmp_path / "in/a.wav", samples, RATE)
    assert prepare([tmp_path / "in"], tmp_path / "out").left_out == ()


def test_level_counts_the_active_parts_only(tmp_path):
    tone = sine(RATE, 1.0, peak=0.05)
    pause = 1e-4 * np.random.default_rng(0).normal(size=3 * RATE)
    record(tmp_path / "in/a.wav", np.concatenate([pause, tone, pause]), RATE)
    prepare([tmp_path / "in"], tmp_path / "out", level_dbfs=-22)
    samples = read_audio(tmp_path / "out/a.wav", RATE)[3 * RATE + 500 : 4 * RATE - 500]
    level = 20 * np.log10(np.sqrt(np.mean(samples**2)))
    assert level == pytest.approx(-22, abs=0.1)


def test_peak_limits_the_level(tmp_path):
    samples = sine(RATE, peak=0.01)
    samples[RATE // 2] = 0.5
    record(tmp_path / "in/a.wav", samples, RATE)
    prepare([tmp_path / "in"], tmp_path / "out", level_dbfs=-10)
    peak = np.abs(read_audio(tmp_path / "out/a.wav", RATE)).max()
    assert peak == pytest.approx(0.95, abs=1e-4)


def test_level_of_a_click_in_the_last_part_of_a_frame(tmp_path):
    samples = np.zeros(RATE)  # 50 frames of 441 and nothing over; one more sample lies beyond them
    record(tmp_path / "in/a.wav", np.append(samples, 0.5), RATE)
    prepare([tmp_path / "in"], tmp_path / "out", level_dbfs=-22)
    samples = read_audio(tmp_path / "out/a.wav", RATE)
    assert np.abs(samples).max() == pytest.approx(0.95, abs=1e-4)


def test_second_run_converts_only_what_is_new_or_changed(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        record(tmp_path / f"in/{name}.wav", sine(16000), 16000)
    assert prepare([tmp_path / "in"], tmp_path / "out").written == 3
    before = {name: (tmp_path / f"out/{name}.wav").stat().st_mtime_ns for name in "abc"}
    manifest = (tmp_path / "out/prepare.json").read_bytes()

    again = prepare([tmp_path / "in"], tmp_path / "out")
    assert (again.written, again.kept) == (0, 3) and again.seconds == pytest.approx(3, abs=1e-3)
    assert (tmp_path / "out/prepare.json").read_bytes() == manifest

    record(tmp_path / "in/b.wav", sine(16000, 2.0), 16000)
    record(tmp_path / "in/d.wav", sine(16000), 16000)
    (tmp_path / "out/c.wav").write_bytes(b"damaged")
    converted = []
    real = module.read_samples
    monkeypatch.setattr(
        module, "read_samples", lambda path: (converted.append(path.name), real(path))[1]
    )
    third = prepare([tmp_path / "in"], tmp_path / "out")
    assert (third.written, third.kept) == (3, 1) and sorted(converted) == [
        "b.wav",
        "c.wav",
        "d.wav",
    ]
    assert (tmp_path / "out/a.wav").stat().st_mtime_ns == before["a"]
    assert audio_frames(tmp_path / "out/b.wav", RATE) == 2 * RATE
    assert audio_frames(tmp_path / "out/c.wav", RATE) == RATE


def test_a_source_of_the_same_size_but_another_time_is_converted_again(tmp_path):
    path = record(tmp_path / "in/a.wav", sine(RATE), RATE)
    prepare([tmp_path / "in"], tmp_path / "out")
    record(path, sine(RATE, hertz=880), RATE)
    os.utime(path, ns=(1, 1))
    assert prepare([tmp_path / "in"], tmp_path / "out").written == 1
    samples = read_audio(tmp_path / "out/a.wav", RATE)
    np.testing.assert_allclose(samples, sine(RATE, hertz=880), atol=2 / 32768)


def test_a_source_that_can_no_longer_be_used_takes_its_output_along(tmp_path):
    path = record(tmp_path / "in/a.wav", sine(RATE), RATE)
    record(tmp_path / "in/b.wav", sine(RATE), RATE)
    prepare([tmp_path / "in"], tmp_path / "out")
    record(path, np.zeros(RATE), RATE)
    report = prepare([tmp_path / "in"], tmp_path / "out")
    assert (report.kept, report.left_out) == (1, ((str(path), "silent"),))
    assert below(tmp_path / "out") == ["b.wav", "left_out.txt", "prepare.json"]


def test_other_settings_are_refused(tmp_path):
    record(tmp_path / "in/a.wav", sine(RATE), RATE)
    prepare([tmp_path / "in"], tmp_path / "out", level_dbfs=-22)
    before = (tmp_path / "out/a.wav").read_bytes()
    with pytest.raises(
        UserError, match=r"prepare.json: .*level_dbfs -22 then and None now.*choose"
    ):
        prepare([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(UserError, match="sampling_rate 22050 then and 16000 now"):
        prepare([tmp_path / "in"], tmp_path / "out", sampling_rate=16000, level_dbfs=-22)
    assert (tmp_path / "out/a.wav").read_bytes() == before
    assert prepare([tmp_path / "in"], tmp_path / "out", level_dbfs=-22.0).kept == 1


@pytest.mark.parametrize(
    "content", ["", "[]", '{"settings": 1, "files": {}}', '{"files": {"a": 1}}']
)
def test_a_manifest_of_something_else_is_refused(tmp_path, content):
    record(tmp_path / "in/a.wav", sine(RATE), RATE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/prepare.json").write_text(content)
    with pytest.raises(UserError, match=r"prepare\.json"):
        prepare([tmp_path / "in"], tmp_path / "out")
    assert below(tmp_path / "out") == ["prepare.json"]


def test_sources_are_never_written_over(tmp_path):
    path = record(tmp_path / "in/a.wav", sine(16000), 16000)
    before = path.read_bytes()
    for output in (tmp_path / "in", tmp_path):
        with pytest.raises(UserError, match="inside the output folder"):
            prepare([tmp_path / "in"], output)
    assert path.read_bytes() == before and below(tmp_path) == ["in/a.wav"]


def test_another_source_of_the_same_name_is_refused(tmp_path):
    for name in ("one", "two"):
        record(tmp_path / name / "a.wav", sine(RATE), RATE)
    prepare([tmp_path / "one"], tmp_path / "out")
    with pytest.raises(UserError, match=r"two/a\.wav: .*one/a\.wav"):
        prepare([tmp_path / "two"], tmp_path / "out")
    # A moved but unchanged file counts as the same source.
    (tmp_path / "one").rename(tmp_path / "moved")
    assert prepare([tmp_path / "moved"], tmp_path / "out").kept == 1


def test_a_failing_write_is_an_error_and_what_was_done_stays_done(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        record(tmp_path / f"in/{name}.wav", sine(RATE), RATE)
    real = module.write_wav

    def failing(path, *rest):
        if path.name == "b.wav":
            raise UserError(f"{path}: cannot be written: No space left on device")
        real(path, *rest)

    monkeypatch.setattr(module, "write_wav", failing)
    with pytest.raises(UserError, match="No space left"):
        prepare([tmp_path / "in"], tmp_path / "out", workers=1)
    noted = json.loads((tmp_path / "out/prepare.json").read_text())["files"]
    assert "a.wav" in noted and "b.wav" not in noted
    monkeypatch.setattr(module, "write_wav", real)
    report = prepare([tmp_path / "in"], tmp_path / "out")
    assert report.kept >= 1 and report.written + report.kept == 3


def test_progress_is_told_after_each_file(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / f"in/{name}.wav", sine(RATE), RATE)
    told = []
    prepare([tmp_path / "in"], tmp_path / "out", progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]


def test_no_inputs(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        prepare([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_audio_files_are_handled_without_jax():
    for name in ("files.mels", "files.sound", "files.wav", "audio.prepare"):
        text = Path(import_module(f"waveglow_jax.{name}").__file__).read_text()
        assert "import jax" not in text and "from jax" not in text
