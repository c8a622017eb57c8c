"""Reports from beginning to end: what they measure, store, leave out, resume and show."""

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import until
from test_metrics import RATE, speech
from test_vocoder import lively_params, tiny_config

import waveglow_jax as wg
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.cli import main
from waveglow_jax.config import Config, DataConfig, SynthesisConfig, WaveGlowConfig
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation import baselines, compared, metrics, systems
from waveglow_jax.evaluation import evaluate as evaluation
from waveglow_jax.evaluation.baselines import NOISE
from waveglow_jax.evaluation.evaluate import evaluate
from waveglow_jax.evaluation.metrics import METRICS
from waveglow_jax.evaluation.report import verdict, write_reports
from waveglow_jax.evaluation.results import Evaluation
from waveglow_jax.evaluation.statistics import Estimate
from waveglow_jax.evaluation.systems import System, parse_system
from waveglow_jax.synthesis.foreign import config_of
from waveglow_jax.synthesis.mels import mel_of_samples

NAMES = ("a", "c", "sub/b")
EVIL = "<img src=x onerror=alert(1)> | _x_ <!--@FACTS-->"


@pytest.fixture(autouse=True)
def without_foreign_models(monkeypatch):
    """As on a machine without the extra: what the models say is test_metrics' business."""
    for package in ("pesq", "pystoi", "visqol", "speechmos", "speechmos.dnsmos"):
        monkeypatch.setitem(sys.modules, package, None)
    metrics._import_fails.cache_clear()
    yield
    metrics._import_fails.cache_clear()


@pytest.fixture
def quick(monkeypatch):
    """Measures only the metrics that need no pitch tracking."""
    monkeypatch.setattr(evaluation, "OF_SIGNALS", ("mcd", "mcd_dtw", "log_mel_l1"))


def write(path: Path, audio: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype="FLOAT" if path.suffix == ".wav" else None)


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    return {name: speech(0.8 + 0.03 * i, seed=i) for i, name in enumerate(NAMES)}


@pytest.fixture
def reference(tmp_path, clips) -> Path:
    for name, audio in clips.items():
        write(tmp_path / "real" / f"{name}.wav", audio)
    return tmp_path / "real"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("weights") / "voice"
    wg.save(folder, tiny_config(), lively_params(tiny_config()))
    return str(folder)


def values(found: Evaluation, system: str, key: str) -> dict[str, float]:
    return {row.name: row.values[key] for row in found.rows if row.system == system}


@pytest.mark.slow
def test_folders_weights_and_what_is_always_there(reference, tmp_path, clips, weights):
    other = tmp_path / "other"
    write(other / "a.flac", 0.5 * np.concatenate([np.zeros(100), clips["a"]])[: len(clips["a"])])
    write(other / "sub/b.wav", clips["sub/b"][::2], RATE // 2)  # of another rate
    (other / "c.wav").write_bytes(b"no sound")
    write(reference / "bad.wav", np.zeros(RATE))
    flow = System("flow", weights, sigma=0.7, seed=3, consistency=2)
    chosen, iterations = [System(EVIL, str(other)), flow], {"griffin_lim_iterations": 2}
    found = evaluate(reference, chosen, tmp_path / "out", noise_corrections=8, **iterations)

    assert found.names == NAMES
    rows = ["Recordings", "Griffin-Lim", "Noise + 8 corrections", EVIL, "flow"]
    assert [s.system for s in found.summaries] == rows and found.baseline == "Griffin-Lim"
    assert [s.files for s in found.summaries] == [3, 3, 3, 2, 3]
    # The source of each row.
    assert [s.source for s in found.summaries] == [
        *("real", "2 iterations", "white noise up to 8000 Hz, corrected towards the mel"),
        *("other", "voice sigma=0.7 consistency=2 seed=3"),
    ]
    assert {Path(path).name for path, _ in found.left_out} == {"bad.wav", "c.wav"}
    assert all(key in found.missing for key in ("pesq_wb", "stoi", "visqol", "dnsmos_sig"))

    # The recordings against themselves are perfect; nothing else is.
    assert set(values(found, "Recordings", "mcd").values()) == {0.0}
    for row in rows[1:3]:
        assert min(values(found, row, "mcd").values()) > 0.1
        assert all(0 < rtf < 100 for rtf in values(found, row, "rtf").values())
    # The corrected noise has nearly their mel; before the corrections the difference was 3.7.
    assert max(values(found, rows[2], "log_mel_l1").values()) < 0.5
    # A file that is only late and soft is measured as equal.
    (late,) = [row for row in found.rows if row.system == EVIL and row.name == "a"]
    assert (late.offset, late.length_difference, late.resampled_from) == (100, 0, 0)
    assert late.gain_db == pytest.approx(6.02, abs=0.05)
    assert late.values["log_mel_l1"] < 0.05 and late.values["f0_rmse"] < 5
    (halved,) = [row for row in found.rows if row.system == EVIL and row.name == "sub/b"]
    assert halved.resampled_from == RATE // 2

    # The weights' audio is what the voice gives with those settings, its likelihood the voice's.
    voice = wg.load(weights)
    mel = voice.mel(clips["a"].astype(np.float32))
    made, _ = soundfile.read(found.audio["flow"]["a"], dtype="float32")
    expected = np.clip(voice.synthesize(mel, sigma=0.7, seed=3, consistency=2), -1, 1)
    np.testing.assert_allclose(made, expected, atol=1 / 32000)
    frames = len(clips["a"]) // 256
    audio = clips["a"].astype(np.float32)[None, : frames * 256]  # noise_std is 0 here
    _, nats = voice.encode(audio, mel[None, : frames + 1])
    assert values(found, "flow", "nats")["a"] == pytest.approx(float(nats[0]), rel=1e-5)
    assert all(0 < rtf < 100 for rtf in values(found, "flow", "rtf").values())
    assert "rtf" not in found.summaries[0].means and "nats" not in found.summaries[1].means

    # Differences are file by file, over the files that both have.
    mine, baseline = values(found, EVIL, "mcd"), values(found, "Griffin-Lim", "mcd")
    difference = found.summaries[3].differences["mcd"]
    assert difference.n == 2
    assert difference.mean == pytest.approx(np.mean([mine[n] - baseline[n] for n in mine]))
    assert found.summaries[1].differences == {}

    check_reports(found, tmp_path / "out")


def check_reports(found: Evaluation, output: Path) -> None:
    markdown, html, summary = (p.read_text() for p in write_reports(found, output, players=2))
    rows = [json.loads(line) for line in (output / "files.jsonl").read_text().splitlines()]
    assert len(rows) == len(found.rows) and rows[0]["values"].keys() <= {m.key for m in METRICS}
    assert json.loads(summary)["summaries"][1]["means"]["mcd"]["n"] == 3
    # Names are escaped, whatever they look like.
    assert "<img src=x" not in html and "&lt;img src=x onerror" in html
    assert r"\<img src=x onerror=alert(1)\> \| \_x\_" in markdown
    assert "<!--@SUMMARY" not in html and html.count("&lt;!--@FACTS--&gt;") > 3
    # The page embeds everything.
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(addresses) == 2 * 2 * 5 and all(a.startswith("data:") for a in addresses)
    assert "http://" not in html and "https://" not in html
    without = write_reports(found, output, players=2, audio=False)[1].read_text()
    assert "<audio" not in without and "data:audio" not in without and "data:image/png" in without
    # The pictures have axes; with three files there is no bold verdict; the folder is named.
    assert html.count("11,025 Hz</span>") == html.count('class="picture"') == 2 * 5
    assert re.search(r"<span>0 s</span><span>[\d.]+ s</span><span>[\d.]+ s</span>", html)
    assert not re.search(r"\*\*.* (better|worse)\*\*", markdown) and 'class="word"' not in html
    assert "3 recordings from the folder " in html
    for text in (markdown, html):
        assert "pesq cannot be imported" in text and "c.wav" in text
        assert str(output.parent) not in text.split("eft out")[0]


@pytest.mark.slow
def test_resumes_where_it_stopped(reference, tmp_path, clips, weights, monkeypatch, quick):
    other = tmp_path / "other"
    for name, audio in clips.items():
        write(other / f"{name}.wav", audio)
    arguments = (reference, [System("other", str(other)), System("flow", weights)], tmp_path / "o")
    measured, synthesized, corrected = [], [], []
    measure_file, griffin_lim = evaluation.measure_file, baselines.griffin_lim
    noise_corrected = baselines.noise_corrected

    def stop_after_four(*job):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(job)
        return measure_file(*job)

    monkeypatch.setattr(evaluation, "measure_file", stop_after_four)
    monkeypatch.setattr(
        baselines, "griffin_lim", lambda *a: synthesized.append(a) or griffin_lim(*a)
    )
    monkeypatch.setattr(
        baselines, "noise_corrected", lambda *a: corrected.append(a) or noise_corrected(*a)
    )
    iterations = {"griffin_lim_iterations": 1, "noise_corrections": 1}
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, **iterations)
    # Twice each, the second time by the clock.
    assert (len(synthesized), len(corrected)) == (6, 6)
    # The end of the record is cut off, as after a crash.
    record = tmp_path / "o/measured.jsonl"
    record.write_text(record.read_text()[:-9])
    measured_before = [job[:2] for job in measured]
    measured.clear()
    monkeypatch.setattr(
        evaluation, "measure_file", lambda *job: measured.append(job) or measure_file(*job)
    )
    first = evaluate(*arguments, **iterations)
    assert (len(synthesized), len(corrected)) == (6, 6)
    assert len(measured) == 15 - 3 and not {j[:2] for j in measured} & set(measured_before[:3])
    measured.clear()
    again = evaluate(*arguments, **iterations)
    assert measured == [] and again == first

    # After one recording and one output change, only what depends on them is done again.
    write(reference / "a.wav", 0.9 * clips["a"])
    write(other / "c.wav", 0.5 * clips["c"])
    os.utime(other / "c.wav", ns=(1, 1))
    evaluate(*arguments, **iterations)
    assert (len(synthesized), len(corrected)) == (8, 8)
    assert len(measured) == 5 + 1  # every system's a, and one c
    # Another number of iterations gets another folder.
    evaluate(*arguments, griffin_lim_iterations=2, noise_corrections=2)
    assert (len(synthesized), len(corrected)) == (14, 14)


@pytest.mark.slow
def test_processes_give_the_same(reference, tmp_path, quick):
    rows = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        iterations = {"griffin_lim_iterations": 1, "noise_corrections": 1}
        found = evaluate(reference, [], output, workers=workers, **iterations)
        rows.append([(r.system, r.name, r.values["mcd"]) for r in found.rows])
    assert rows[0] == rows[1] and len(rows[0]) == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ours=w", System("ours", "w")),
        ("ours 0.8=w:sigma=0.8,denoise=0.01", System("ours 0.8", "w", 0.8, 0.01)),
        ("x=:sigma=1,dtype=bfloat16,seed=7", System("x", None, 1.0, None, "bfloat16", 7)),
        ("x=", System("x", None)),
        ("x=a:b/c:", System("x", "a:b/c")),
        ("x=a:b/c", System("x", "a:b/c")),
        ("x=owner/name@main:sigma=0", System("x", "owner/name@main", 0.0)),
        ("x=:consistency=0", System("x", None, consistency=0)),
        ("x=w:consistency=10000,sigma=1", System("x", "w", 1.0, consistency=10000)),
        ("x=:consistency=latent", System("x", None, consistency="latent")),
        ("Noise=w", System("Noise", "w")),
    ],
)
def test_systems_as_they_are_written(text, expected):
    assert parse_system(text) == expected


@pytest.mark.parametrize(
    "text",
    ["folder", "=folder", "Griffin-Lim=x", "Recordings=x", "x=w:sigma=-1", "x=w:sigma=nan",
     "x=w:sgima=1", "x=w:seed=1.5", "x=w:dtype=float8", "x=w:sigma=1,denoise",
     "x=w:consistency=-1", "x=w:consistency=10001", "x=w:consistency=1.5",
     "x=w:consistency=Latent", f"{NOISE.format(7)}=x"],
)  # fmt: skip
def test_systems_that_cannot_be(text):
    with pytest.raises(UserError, match="--system"):
        parse_system(text)


def test_what_a_difference_means():
    up = next(m for m in METRICS if m.key == "stoi")
    down = next(m for m in METRICS if m.key == "mcd")
    assert verdict(Estimate(0.2, 0.1, 0.3, 9), up) == "better"
    assert verdict(Estimate(0.2, 0.1, 0.3, 9), down) == "worse"
    assert verdict(Estimate(-0.2, -0.3, -0.1, 9), down) == "better"
    assert verdict(Estimate(0.2, -0.1, 0.3, 9), up) == ""
    assert verdict(Estimate(0.0, 0.0, 0.0, 9), up) == ""
    assert verdict(Estimate(0.2, None, None, 1), up) == verdict(None, up) == ""
    # The bootstrap's interval of so few files is far too narrow.
    assert verdict(Estimate(0.2, 0.1, 0.3, 4), up) == "" != verdict(Estimate(0.2, 0.1, 0.3, 5), up)


class Silent:
    """A voice that records the settings with which it is called."""

    config = replace(tiny_config(), synthesis=SynthesisConfig(0.75, 5))
    params = {"weight": np.zeros(3)}  # noqa: RUF012

    def __init__(self):
        self.asked = []

    def mel(self, audio):
        return np.zeros((1 + len(audio) // 256, 80), np.float32)

    def synthesize(self, mel, **options):
        self.asked.append(options)
        return np.zeros(len(mel) * 256, np.float32)

    def encode(self, audio, mel):
        return np.zeros(1), np.full(1, 2.5)


@pytest.mark.parametrize(
    ("system", "options"),
    [
        (
            System("x", None),
            {"sigma": 0.75, "consistency": 5, "seed": 0, "dtype": "float32"},
        ),
        (
            System("x", None, 0.8, 0.01, "bfloat16", 7, "latent"),
            {
                **{"sigma": 0.8, "consistency": "latent", "seed": 7, "dtype": "bfloat16"},
                "denoise": 0.01,
            },
        ),
        (
            System("x", None, denoise=0.0, consistency=0),
            {"sigma": 0.75, "consistency": 0, "seed": 0, "dtype": "float32", "denoise": 0.0},
        ),
    ],
)
def test_a_voice_is_asked_for_what_was_written(reference, tmp_path, system, options):
    """The denoiser is called only where the system names it."""
    voice, references = Silent(), systems.files_by_name(reference)
    made = systems.make_with_weights(system, voice, references, tmp_path, lambda done, total: None)
    assert voice.asked == [options] * 6  # twice each, the second time by the clock
    assert made.nats == dict.fromkeys(NAMES, 2.5) and set(made.seconds) == set(NAMES)
    systems.make_with_weights(system, voice, references, tmp_path, lambda done, total: None)
    assert len(voice.asked) == 6
    # Another setting gets another folder.
    folders = {made.files["a"].parent}
    for count, change in enumerate(({"sigma": 0.1}, {"consistency": 9}), 2):
        other = replace(system, **change)
        again = systems.make_with_weights(other, voice, references, tmp_path, lambda *_: None)
        folders.add(again.files["a"].parent)
        assert len(voice.asked) == 6 * count and len(folders) == count
    # The voice's own setting gives the same folder whether it is written or not.
    if system.sigma is None:
        own = replace(system, sigma=0.75)
        again = systems.make_with_weights(own, voice, references, tmp_path, lambda *_: None)
        assert len(voice.asked) == 18 and again.files == made.files


def test_what_a_voice_cannot_take_is_named(reference, tmp_path):
    class Refusing(Silent):
        def synthesize(self, mel, **options):
            raise ValueError("a mel of 5000 frames is too long")

    references = systems.files_by_name(reference)
    with pytest.raises(UserError, match=r"--system x: .*a\.wav: a mel of 5000 frames"):
        systems.make_with_weights(
            System("x", None), Refusing(), references, tmp_path, lambda *_: None
        )


@pytest.mark.parametrize(
    ("system", "settings"),
    [
        (System("x", None), "sigma=0.75 consistency=5"),
        (
            System("x", None, 0.8, 0.01, "bfloat16", 7, "latent"),
            "sigma=0.8 denoise=0.01 consistency=latent dtype=bfloat16 seed=7",
        ),
    ],
)
def test_a_report_says_which_settings_made_a_row(system, settings):
    assert compared.described(system, Silent()) == f"bundled voice {settings}"


# ------------------------------------------------------------------------------ baselines


@pytest.mark.slow
def test_noise_is_corrected_as_a_whole(clips):
    rate = 24000  # not the default
    mel = metrics.log_mel_by_librosa(clips["a"], rate)
    frames = len(mel)
    samples = baselines.noise_corrected(mel, rate, 3)
    assert samples.shape == (frames * 256,) and samples.dtype == np.float32
    # The same noise, corrected at its own length, with nothing above 8,000 Hz.
    noise = 0.01 * np.random.default_rng(0).standard_normal(frames * 256).astype(np.float32)
    data, synthesis = DataConfig(sampling_rate=rate), SynthesisConfig(bandwidth=8000.0)
    config = Config(WaveGlowConfig(), data, synthesis=synthesis)
    alone = consistent(noise, mel.astype(np.float32), config, 3)
    np.testing.assert_allclose(samples, alone, atol=1e-5)
    np.testing.assert_allclose(baselines.noise_corrected(mel, rate, 0), noise, rtol=1e-6)
    assert abs(samples - baselines.noise_corrected(mel, rate, 3, seed=1)).max() > 0.01


def test_seconds_are_those_of_a_second_run(reference, tmp_path, monkeypatch):
    """Only the first files are timed, in this process and not in the workers."""
    monkeypatch.setattr(baselines, "TIMED_FILES", 2)
    lengths, mapped = [], []

    def slow_at_first(mel, rate, iterations):
        time.sleep(0 if len(mel) in lengths else 0.3)
        lengths.append(len(mel))
        return np.full(len(mel) * 256, iterations / 10)

    class Workers:
        def map(self, function, jobs):
            mapped.append(jobs)
            return map(function, jobs)

    references = systems.files_by_name(reference)
    for in_workers in (False, True):
        lengths.clear()
        baseline = baselines.Baseline("slow", "", str(in_workers), 3, slow_at_first, in_workers)
        made = baselines.make_baseline(
            *(baseline, references, RATE, tmp_path, Workers(), lambda done, total: None)
        )
        assert len(lengths) == 5 and len(mapped) == in_workers
        assert list(made.seconds) == list(NAMES[:2]) and max(made.seconds.values()) < 0.2
        samples, rate = soundfile.read(made.files["sub/b"])
        assert rate == RATE and abs(samples - 0.3).max() < 1e-4


@pytest.mark.slow
def test_which_baselines_and_what_is_compared_with_which(reference, tmp_path, clips, quick):
    other = tmp_path / "other"
    write(other / "a.wav", clips["a"])
    chosen, few = [System("other", str(other))], {"griffin_lim_iterations": 1, "files": 1}
    few["noise_corrections"] = 1
    found = evaluate(reference, chosen, tmp_path / "out", baselines=["noise"], **few)
    noise = NOISE.format(1)
    assert [s.system for s in found.summaries] == ["Recordings", noise, "other"]
    assert found.baseline == noise
    assert (found.griffin_lim_iterations, found.noise_corrections) == (None, 1)
    markdown, html, summary = (p.read_text() for p in write_reports(found, tmp_path / "out"))
    assert "Griffin-Lim" not in markdown + html and json.loads(summary)["noise_corrections"] == 1
    assert not list((tmp_path / "out/audio").glob("Griffin*"))

    found = evaluate(reference, chosen, tmp_path / "out", baselines=["griffin-lim"], **few)
    assert [s.system for s in found.summaries] == ["Recordings", "Griffin-Lim", "other"]
    assert (found.griffin_lim_iterations, found.noise_corrections) == (1, None)
    assert "Griffin-Lim with 1 iterations" in write_reports(found, tmp_path / "out")[1].read_text()
    # In any order, Griffin-Lim is what the others are compared with unless another is named.
    both = ["noise", "griffin-lim", "noise"]
    found = evaluate(reference, chosen, tmp_path / "out", baselines=both, **few)
    rows = [noise, "Griffin-Lim"]
    assert [s.system for s in found.summaries] == ["Recordings", *rows, "other"]
    assert found.baseline == "Griffin-Lim"
    for names in ([], ["noise", "world"]):
        with pytest.raises(UserError, match=r"--baselines .*griffin-lim, noise"):
            evaluate(reference, chosen, tmp_path / "out", baselines=names, **few)
    with pytest.raises(UserError, match="two systems"):
        evaluate(reference, [System(noise, str(other))], tmp_path / "out", **few)


@pytest.mark.parametrize("key", ["vocos-24khz", "wavernn"])
def test_noise_takes_the_voices_own_mel(tmp_path, key):
    """The voice's mel has another rate, hop, number of bands and unit of its values."""
    config = config_of(key)
    data = config.data
    (noise,) = baselines.baselines_of(["noise"], 1, 4, config)
    assert config.convention.name in noise.about and f"{data.mel_fmax:g} Hz" in noise.about
    audio = 0.1 * np.random.default_rng(0).standard_normal(12000)
    write(tmp_path / "a.wav", audio, data.sampling_rate)
    made = baselines.make_baseline(
        noise,
        {"a": tmp_path / "a.wav"},
        data.sampling_rate,
        tmp_path,
        None,
        lambda done, total: None,
    )
    samples, rate = soundfile.read(made.files["a"], dtype="float32")
    assert rate == data.sampling_rate
    assert len(samples) == (1 + len(audio) // data.hop_length) * data.hop_length
    true, said = (mel_of_samples(np.float32(each), config) for each in (audio, samples))
    off = np.abs(true - said[: len(true)]).mean() / data.mel.slope
    assert off < 0.4, "of noise that is corrected towards no mel: more than 1"


def test_noise_towards_the_metrics_mel_is_what_it_was():
    own = baselines.mel_config(16000)
    for config in (None, own, replace(own, synthesis=SynthesisConfig(bandwidth=7000.0))):
        (noise,) = baselines.baselines_of(["noise"], 1, 4, config)
        assert noise.config is None and noise.synthesize is baselines.noise_corrected
        assert noise.about == "white noise up to 8000 Hz, corrected towards the mel"


# ------------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_command(reference, tmp_path, clips, capsys, quick):
    other = tmp_path / "other"
    write(other / "a.wav", clips["a"])
    arguments = ["evaluate", "--reference", reference, "--system", f"o={other}", "-o",
                 tmp_path / "out", "--griffin-lim-iterations", 1, "--noise-corrections", 2,
                 "--workers", 1]  # fmt: skip
    code = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    # Two of o's files are missing: they are reported and left out, and the rest is done.
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "o: sub/b: no such file" in errors[1]
    # There is one line per missing package, with what to install.
    lines = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 4 and all("[eval]" in line for line in lines)
    assert "| o | 0.00 | 0.00 |" in out and "report.html" in out
    assert "| Griffin-Lim |" in out and "| Noise + 2 corrections |" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file()) == [
        *("files.jsonl", "measured.jsonl", "report.html", "report.md", "summary.json")
    ]
    code = main([*map(str, arguments), "--json", "--baselines", "noise"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["baseline"] == "Noise + 2 corrections"
    assert (summary["griffin_lim_iterations"], summary["noise_corrections"]) == (None, 2)
    shutil.rmtree(other)
    write(other / "sub/b.wav", clips["sub/b"])
    code = main([*map(str, arguments), "--json", "--files", "1"])
    assert code == 1 and "no file in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        (["--reference", "gone"], 1, "gone"),
        (["--system", "x=gone"], 1, "gone"),
        (["--system", "x=REAL", "--system", "x=REAL"], 1, "two systems"),
        (["--system", "x=REAL:sigma=0.8"], 1, "holds recordings"),
        (["--system", "x=REAL:consistency=0"], 1, "denoise, consistency, dtype"),
        (["--baseline", "nobody"], 1, "nobody"),
        (["--baselines", "noise", "--baseline", "Griffin-Lim"], 1, "--baseline Griffin-Lim"),
        (["--baselines", ""], 2, "--baselines: '': write one or more of griffin-lim, noise"),
        (["--baselines", "noise,"], 2, "--baselines: ''"),
        (["--baselines", "griffin-lim,world"], 2, "--baselines: 'world'"),
        (["--noise-corrections", "0"], 2, "--noise-corrections"),
        (["--workers", "0"], 2, "--workers"),
        (["--files", "none"], 2, "--files"),
    ],
)
def test_command_fails_in_one_line(reference, tmp_path, capsys, more, code, word):
    more = [text.replace("REAL", str(reference)) for text in more]
    arguments = ["evaluate", "--reference", str(reference), "-o", str(tmp_path / "out"), *more]
    try:
        found = main(arguments)
    except SystemExit as stopped:
        found = stopped.code
    err = capsys.readouterr().err
    assert found == code and word in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reference_is", "output", "system_is"),
    [
        ("real", "real", None),
        ("real", "real/report", None),
        ("report/audio", "report", None),
        ("real", "theirs/report", "theirs"),
    ],
)
def test_a_report_is_not_written_among_recordings(
    tmp_path, reference, reference_is, output, system_is
):
    """Else the next run counts the Griffin-Lim of this one among the recordings."""
    for folder in {reference_is, system_is} - {None, "real"}:
        shutil.copytree(reference, tmp_path / folder)
    systems = [System("theirs", str(tmp_path / system_is))] if system_is else []
    with pytest.raises(UserError, match="choose another -o"):
        evaluate(tmp_path / reference_is, systems, tmp_path / output, files=1)


@pytest.mark.slow
def test_report_in_a_browser(reference, tmp_path, browser, quick):
    iterations = {"griffin_lim_iterations": 1, "noise_corrections": 1}
    found = evaluate(reference, [], tmp_path / "out", **iterations)
    path = write_reports(found, tmp_path / "out", players=1)[1]
    page = browser.new_context(viewport={"width": 375, "height": 667}, offline=True).new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(each => each.naturalHeight === 256)")
    page.evaluate("document.querySelector('audio').play()")
    until(page, "document.querySelector('audio').currentTime > 0.05")

    table = page.locator("#every-file")
    mcd = table.locator("thead button", has_text="MCD").first

    def column() -> list[float]:
        place = [m.key for m in METRICS if m.key in found.rows[0].values].index("mcd") + 2
        cells = table.locator(f"tbody tr:visible > :nth-child({place + 1})")
        return [float(text) for text in cells.all_text_contents()]

    unsorted = column()
    assert len(unsorted) == 9
    mcd.click()
    assert column() == sorted(unsorted)
    mcd.press("Enter")
    assert column() == sorted(unsorted, reverse=True)
    page.locator("#system").select_option("Recordings")
    assert column() == [0, 0, 0]
    assert faults == []


def test_griffin_lim_starts_from_the_same_phases_with_every_librosa():
    """After no iteration at all it is the inverse transform of the magnitudes with these phases."""
    import librosa

    mel = np.random.default_rng(0).normal(-4, 1, (9, 80)).astype(np.float32)
    filters = librosa.filters.mel(sr=RATE, **metrics.MEL)
    magnitudes = librosa.util.nnls(filters, np.exp(mel.T))
    phases = 2 * np.pi * np.random.RandomState(0).random_sample(magnitudes.shape)
    expected = librosa.istft(
        magnitudes * np.exp(1j * phases), hop_length=metrics.MEL_HOP, n_fft=metrics.MEL["n_fft"]
    )
    ours = baselines.griffin_lim(mel, RATE, 0)
    np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())


def test_a_measuring_process_that_dies_ends_in_one_line():
    with pytest.raises(UserError, match="lack of memory"), evaluation._processes(2) as executor:
        executor.submit(os._exit, 9).result()
