"""The listening test: its page, which raters count, and whether its intervals are right."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import until
from scipy.stats import norm
from test_vocoder import some_audio

from waveglow_jax.cli import main
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.listening_test.make import PAGE, make
from waveglow_jax.evaluation.listening_test.score import (
    Ratings,
    krippendorff_alpha,
    mean_opinion_scores,
    rater_correlations,
    score,
)
from waveglow_jax.files.sound import read_audio

RATE = 16000
NAMES = ("Recordings", "<b>Vocoder</b> & co")


def recordings(folder: Path, names: str, gain: float, seed: int) -> Path:
    folder.mkdir(parents=True)
    for place, name in enumerate(names):
        audio = gain * some_audio(RATE * 3 // 5 + place, seed)
        soundfile.write(folder / f"{name}.wav", audio, RATE)
    return folder


@pytest.fixture
def folders(tmp_path) -> list[tuple[str, Path]]:
    return [
        (NAMES[0], recordings(tmp_path / "real", "abcdef", 1.0, 1)),
        (NAMES[1], recordings(tmp_path / "made", "abcdeg", 0.1, 2)),
    ]


def shown(html: str) -> dict:
    before, _, rest = html.partition('<script type="application/json" id="test">')
    assert before and rest
    return json.loads(rest.partition("</script>")[0])


# ------------------------------------------------------------------------------ make


def test_make(folders, tmp_path):
    made = make(folders, tmp_path / "test", utterances=4, title="</script><i>A & B", seed=3)
    assert made.systems == NAMES and len(made.utterances) == 4
    assert set(made.utterances) < set("abcde")  # what both systems have
    key = json.loads(made.key.read_text())
    html = (made.page / "index.html").read_text()
    test = shown(html)
    assert "<!--@" not in html and "<i>A" not in html.replace(json.dumps(test), "")
    assert test["title"] == "</script><i>A & B"
    assert key["test"] == test["id"] and key["ratings_each"] == 4

    versions = [file for clip in test["clips"] for file in clip["versions"]]
    assert sorted(versions) == sorted(key["clips"]) and len(set(versions)) == 8
    for clip in test["clips"]:
        facts = [key["clips"][file] for file in clip["versions"]]
        assert [fact["system"] for fact in facts] == list(NAMES)
        assert len({fact["utterance"] for fact in facts}) == 1
    # No served file reveals a clip's system, and no file is missing.
    served = sorted(path.name for path in (made.page / "audio").iterdir())
    wanted = [*versions, *(check["file"] for check in test["check"]), test["volume"]]
    assert served == sorted(wanted)
    assert not any(name in html for name in ("Recordings", "Vocoder"))
    # All clips have one level, whatever level the recordings had.
    for file in [*versions, test["volume"]]:
        samples = read_audio(made.page / "audio" / file, RATE)
        assert 20 * np.log10(np.sqrt(np.mean(samples**2))) == pytest.approx(-26, abs=0.05)


def test_pips_can_be_counted(folders, tmp_path):
    """The bursts are as many as the key says, between real pauses, and far softer than the
    speech."""
    made = make(folders, tmp_path / "test")
    key = json.loads(made.key.read_text())
    assert len(key["check"]) == 4
    for file, answer in key["check"].items():
        samples = np.abs(read_audio(made.page / "audio" / file, RATE))
        loud = np.convolve(samples, np.ones(400) / 400, mode="same") > 2e-4
        assert np.sum(np.diff(loud.astype(int)) == 1) == answer
        assert 20 * np.log10(samples.max()) == pytest.approx(-47, abs=1)  # the peak of -50 RMS


def test_a_peak_lowers_the_whole_utterance(tmp_path):
    spiky = 0.001 * np.ones(RATE)
    spiky[RATE // 2] = 1.0
    for name, audio in (("one", spiky), ("two", some_audio(RATE))):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", audio, RATE)
    made = make([("1", tmp_path / "one"), ("2", tmp_path / "two")], tmp_path / "test")
    levels, peaks = [], []
    for file in json.loads(made.key.read_text())["clips"]:
        samples = read_audio(made.page / "audio" / file, RATE)
        levels.append(np.sqrt(np.mean(samples**2)))
        peaks.append(np.abs(samples).max())
    assert max(peaks) == pytest.approx(0.95, abs=0.001)
    assert levels[0] == pytest.approx(levels[1], rel=0.01)


def test_utterances_are_disjoint_from_training(folders, tmp_path):
    """Utterances are recognised by name, and by content under another name."""
    training = recordings(tmp_path / "training", "ax", 1.0, 9)
    content = (folders[0][1] / "b.wav").read_bytes()
    (training / "other.wav").write_bytes(content)
    made = make(folders, tmp_path / "test", training=training)
    assert made.utterances == ("c", "d", "e")
    assert any("2 utterances left out" in note for note in made.notes)
    with pytest.raises(UserError, match="every utterance"):
        make(folders, tmp_path / "again", training=folders[0][1])
    assert not (tmp_path / "again").exists()


def test_make_refuses(folders, tmp_path):
    with pytest.raises(UserError, match="at least two"):
        make(folders[:1], tmp_path / "test")
    with pytest.raises(UserError, match="two systems of that name"):
        make([folders[0], folders[0]], tmp_path / "test")
    with pytest.raises(UserError, match="javascript"):
        make(folders, tmp_path / "test", post_url="javascript:alert(1)")
    with pytest.raises(UserError, match="choose another -o"):
        make(folders, folders[1][1])
    other = recordings(tmp_path / "other", "xyz", 1.0, 1)
    with pytest.raises(UserError, match="in common"):
        make([folders[0], ("other", other)], tmp_path / "test")
    soundfile.write(other / "a.wav", some_audio(8000), 8000)
    with pytest.raises(UserError, match="8000, 16000"):
        make([folders[0], ("other", other)], tmp_path / "test")
    assert not (tmp_path / "test").exists()
    make(folders, tmp_path / "test")
    with pytest.raises(UserError, match="a test already"):
        make(folders, tmp_path / "test")


# ------------------------------------------------------------------------------ score


@pytest.fixture
def made(folders, tmp_path):
    return make(folders, tmp_path / "test", utterances=4)


def result(made, rater: str, system_scores: dict[str, int], **changes) -> dict:
    """The result of a rater who hears the systems in turn and gives each system the same score."""
    key = json.loads(made.key.read_text())
    ratings = {}
    for place, utterance in enumerate(made.utterances):
        system = made.systems[place % 2]
        (file,) = (
            f for f, c in key["clips"].items() if c == dict(system=system, utterance=utterance)
        )
        ratings[file] = system_scores[system]
    return {
        "test": key["test"],
        "rater": rater,
        "check": key["check"],
        "ratings": ratings,
    } | changes


def test_score_rejects_who_does_not_count(made, tmp_path, capsys):
    good = {NAMES[0]: 5, NAMES[1]: 2}
    first = result(made, "one", good)
    one_wrong = dict(first["check"], **{next(iter(first["check"])): 0})
    two_wrong = dict(one_wrong, **{list(first["check"])[1]: True})
    clip = next(iter(first["ratings"]))
    results = {
        "a": first,
        "b": result(made, "two", {NAMES[0]: 4, NAMES[1]: 2}, check=one_wrong),
        "c": result(made, "three", good, check=two_wrong),
        "d": result(made, "four", good, test="other"),
        "e": result(made, "one", good),
        "f": result(made, "five", good, ratings=dict(first["ratings"], **{clip: 6})),
        "g": result(made, "six", good, ratings=dict(first["ratings"], gone=3)),
        "h": result(made, "seven", good, ratings={clip: 5}),
        "i": ["not", "a", "result"],
        "j": result(made, "eight", good, ratings=dict(first["ratings"], **{clip: True})),
    }
    folder = tmp_path / "results"
    folder.mkdir()
    for name, content in results.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "k.json").write_text("{")
    assert main(["listening-test", "score", str(made.key), str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert list(scores["raters"]) == ["one", "two"]
    assert scores["mos"][NAMES[0]]["mean"] == 4.5 and scores["mos"][NAMES[1]]["mean"] == 2
    assert scores["mos"][NAMES[0]]["n"] == 4
    reasons = {Path(path).stem: why for path, why in scores["rejected"]}
    words = {
        "c": "hearing check failed, 2 of 4",
        "d": "another test",
        "e": "counted already",
        "f": "1 to 5",
        "g": "not of the test",
        "h": "stopped early, 1 of 4",
        "i": "no result",
        "j": "1 to 5",
        "k": "JSON",
    }
    assert reasons.keys() == words.keys()
    assert all(words[name] in reasons[name] for name in words)
    assert len(err.splitlines()) == 9

    assert main(["listening-test", "score", str(made.key), str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| Model | Mean Opinion Score (MOS) |")
    assert lines[2].startswith("| Recordings | 4.500 \N{PLUS-MINUS SIGN} ")
    assert lines[3].startswith(r"| \<b\>Vocoder\</b\> & co | 2.000 ")
    assert "2 raters counted, 9 results rejected" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["score", "KEY", "gone.json"], 1, "gone.json"),
        (["score", "gone", "KEY"], 1, "gone"),
        (["score", "KEY", "KEY"], 1, "none of the 1 results counts"),
        (["make", "--system", "a=gone", "-o", "x"], 1, "NAME=DIR"),
        (["make", "-o", "x"], 2, "--system"),
        ([], 2, "make|score"),
    ],
)
def test_commands_fail_in_one_line(made, capsys, arguments, code, word):
    arguments = [str(made.key) if a == "KEY" else a for a in arguments]
    try:
        found = main(["listening-test", *arguments])
    except SystemExit as stopped:
        found = stopped.code
    err = capsys.readouterr().err
    assert found == code and word in err.splitlines()[-1] and "Traceback" not in err


# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section E: four observers, twelve
# units, missing data; interval alpha 0.849.
OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def test_agreement_is_krippendorffs():
    pairs = [(int(s), u) for row in OBSERVERS for u, s in enumerate(row) if s != "."]
    scores, units = map(np.array, zip(*pairs, strict=True))
    assert krippendorff_alpha(scores, units) == pytest.approx(0.849, abs=5e-4)


def test_agreement_of_none_and_of_all():
    units = np.array([0, 0, 1, 1])
    assert krippendorff_alpha(np.array([1, 1, 5, 5]), units) == 1
    assert krippendorff_alpha(np.array([3, 3, 3, 3]), units) is None
    assert krippendorff_alpha(np.array([1, 2, 3, 4]), np.arange(4)) is None
    rng = np.random.default_rng(0)
    random = krippendorff_alpha(rng.integers(1, 6, 4000), np.repeat(np.arange(1000), 4))
    assert abs(random) < 0.05


SYSTEM_MEANS = (2.4, 3.4, 3.9, 4.3)
RATER_SD, UTTERANCE_SD, RATING_SD = 0.4, 0.3, 0.7


def true_mean(mean: float) -> float:
    """The mean of a normal opinion after rounding to a whole number from 1 to 5."""
    spread = np.sqrt(RATER_SD**2 + UTTERANCE_SD**2 + RATING_SD**2)
    return 1 + np.sum(norm.sf(np.array([1.5, 2.5, 3.5, 4.5]), mean, spread))


def simulated(rng: np.random.Generator, raters: int, utterances: int) -> Ratings:
    """Simulated ratings. Raters differ in strictness, and utterances in difficulty for each system;
    every rater hears each utterance once, by evenly dealt systems, as on the page."""
    count = len(SYSTEM_MEANS)
    strictness = rng.normal(0, RATER_SD, raters)
    hardness = rng.normal(0, UTTERANCE_SD, (utterances, count))
    parts = []
    for rater in range(raters):
        systems = rng.permutation(np.resize(rng.permutation(count), utterances))
        opinion = np.array(SYSTEM_MEANS)[systems] + strictness[rater]
        opinion += hardness[np.arange(utterances), systems] + rng.normal(0, RATING_SD, utterances)
        scores = np.clip(np.rint(opinion), 1, 5)
        parts.append((scores, systems, np.full(utterances, rater), np.arange(utterances)))
    scores, *names = map(np.concatenate, zip(*parts, strict=True))
    return Ratings(scores, *(each.astype(str) for each in names))


@pytest.mark.parametrize(("raters", "utterances", "slack"), [(30, 40, 1.5), (12, 20, 1.8)])
def test_intervals_hold_the_true_means_in_95_of_100_simulations(raters, utterances, slack):
    rng = np.random.default_rng(0)
    truths = [true_mean(mean) for mean in SYSTEM_MEANS]
    hits = np.zeros(len(truths))
    halves, errors = [], []
    for _ in range(100):
        found = mean_opinion_scores(simulated(rng, raters, utterances), ["0", "1", "2", "3"])
        estimates = list(found.values())
        hits += [e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)]
        halves.append([e.high - e.mean for e in estimates])
        errors.append([e.mean - truth for e, truth in zip(estimates, truths, strict=True)])
    assert hits.min() >= 95
    # Nor are they far too wide, compared with 1.96 times the actual error.
    assert np.all(np.mean(halves, axis=0) < slack * 1.96 * np.std(errors, axis=0))


def test_a_rater_who_answers_upside_down_is_seen():
    rng = np.random.default_rng(0)
    ratings = simulated(rng, 10, 40)
    odd = ratings.raters == "3"
    turned = Ratings(
        np.where(odd, 6 - ratings.scores, ratings.scores),
        ratings.systems,
        ratings.raters,
        ratings.utterances,
    )
    found = rater_correlations(turned)
    assert found["3"] < -0.5
    assert min(value for rater, value in found.items() if rater != "3") > 0.5


# ------------------------------------------------------------------------------ in a browser


class _Host(SimpleHTTPRequestHandler):
    """Serves the page and takes results, as a small web host would."""

    results: list[bytes] = []  # noqa: RUF012 - of the one server there is

    def do_POST(self):
        self.results.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def host(tmp_path):
    _Host.results.clear()
    folder = tmp_path / "test" / PAGE
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Host, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 667}
SCORES = {NAMES[0]: 5, NAMES[1]: 2}


def opened(browser, address: str, viewport: dict[str, int]):
    page = browser.new_context(viewport=viewport, has_touch=viewport is PHONE).new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    # Clips of seconds in tenths of a second; "ended" is still the browser's own.
    page.evaluate("sound.defaultPlaybackRate = 12")
    return page


def answer_each(page, key: dict, kind: str, press: bool, wrong: bool = False) -> list[str]:
    """Answers clip after clip as the key says, until the screen changes; returns the clips'
    names."""
    heard = []
    answers = key["check"]
    if kind == "rating":
        answers = {file: SCORES[clip["system"]] for file, clip in key["clips"].items()}
    while page.evaluate("state.stage") == kind:
        clip = page.evaluate("current().file")
        given = answers[clip] if not wrong else 2 + (answers[clip] - 1) % 5  # one more, or 2
        assert page.locator("#next").is_disabled()
        if press:
            page.keyboard.press(str(given))  # too early: nothing is chosen
            assert page.locator(":checked").count() == 0
            page.keyboard.press("p")
        else:
            page.locator("#play").click()
        until(page, "heard")
        if press:
            page.keyboard.press(str(given))
            page.keyboard.press("Enter")
        else:
            page.locator(f'.option:has([value="{given}"])').click()
            page.locator("#next").click()
        heard.append(clip)
        asked = "document.getElementById('question').hidden || current().file !== clip"
        until(page, f"clip => {asked}", clip)
    return heard


def fits(page) -> bool:
    """Whether the page fits the width of the screen."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_in_a_browser(folders, tmp_path, host, browser, capsys):
    """Raters go from the first page to the scored table: one by touch on a phone from the file
    system, one by keys on a desktop that posts the results, and one who hears nothing."""
    made = make(folders, tmp_path / "test", utterances=4, post_url=f"{host}/results")
    key = json.loads(made.key.read_text())
    results = tmp_path / "results"
    results.mkdir()

    phone = opened(browser, (made.page / "index.html").as_uri(), PHONE)
    assert fits(phone)
    phone.locator("#volume").click()
    phone.locator("#start").click()
    assert answer_each(phone, key, "check", press=False) == list(key["check"])
    phone.locator("#rate").click()
    assert fits(phone)
    heard = answer_each(phone, key, "rating", press=False)
    # Every utterance comes once, and the systems are dealt evenly.
    assert sorted(key["clips"][clip]["utterance"] for clip in heard) == sorted(made.utterances)
    assert sorted(key["clips"][clip]["system"] for clip in heard) == sorted(2 * NAMES)
    with phone.expect_download() as download:
        phone.locator("#download").click()
    download.value.save_as(results / "phone.json")
    assert phone.faults == []

    desk = opened(browser, host, DESKTOP)
    desk.keyboard.press("Tab")
    desk.keyboard.press("Tab")
    desk.keyboard.press("Enter")
    answer_each(desk, key, "check", press=True)
    desk.keyboard.press("Tab")
    desk.keyboard.press("Enter")
    first = desk.evaluate("current().file")
    desk.once("dialog", lambda dialog: dialog.accept())
    desk.reload()  # in the middle: it goes on where it was
    assert desk.evaluate("[state.stage, current().file]") == ["rating", first]
    desk.evaluate("sound.defaultPlaybackRate = 12")
    answer_each(desk, key, "rating", press=True)
    until(desk, "document.getElementById('sent').textContent.includes('arrived')")
    posted = [json.loads(each) for each in _Host.results]
    (own,) = (each for each in posted if each["rater"] == desk.evaluate("state.rater"))
    (results / "desk.json").write_text(json.dumps(own))
    assert own == json.loads(desk.locator("#text").input_value())
    again = desk.context.new_page()
    again.goto(host)
    assert again.locator("#over").is_visible() and not again.locator("#welcome").is_visible()
    assert desk.faults == []

    deaf = opened(browser, host, DESKTOP)
    deaf.locator("#start").click()
    answer_each(deaf, key, "check", press=False, wrong=True)
    deaf.locator("#again").click()
    answer_each(deaf, key, "check", press=False, wrong=True)
    assert deaf.locator("#failed").is_visible()

    scores = score(made.key, [results])
    assert scores.rejected == () and len(scores.raters) == 2
    assert {name: (e.mean, e.n) for name, e in scores.mos.items()} == {
        NAMES[0]: (5, 4),
        NAMES[1]: (2, 4),
    }
    assert main(["listening-test", "score", str(made.key), str(results)]) == 0
    assert "| Recordings | 5.000 \N{PLUS-MINUS SIGN} 0.0000 | 4 |" in capsys.readouterr().out
