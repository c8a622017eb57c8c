"""The manual: the blocks of its tutorials and how-tos run, its commands have no unknown options,
and its links lead somewhere.

A block that cannot run here has above it a comment `<!-- not run: REASON -->`. A page's blocks run
one after the other in one folder, which has the files that the pages assume to be there.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_every_command import published_shape

import waveglow_jax as wg
from waveglow_jax.cli import COMMANDS, main
from waveglow_jax.weights.release import BUNDLED_VOICE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the manual is not in an sdist", allow_module_level=True)

GUIDES = sorted([*DOCS.glob("tutorials/*.md"), *DOCS.glob("how-to/*.md"), DOCS / "index.md"])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LANGUAGES = ("sh", "python", "text", "json")
RUN = ("sh", "python")
SHORT = {"--train.steps 4000": "--train.steps 2 --train.synthesis_clips 0"}
"""Replacements in commands that would otherwise train for minutes."""
RATE = 22050
GENERATED = ("commands.md", "config.md", "voice-card.md", "held_out.png")
"""What docs/hooks writes when the manual is built."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `not_run` is its reason not to run, or empty."""

    language: str
    text: str
    not_run: str


def blocks_of(page: Path) -> list[Block]:
    found = re.findall(
        r"^(?:<!-- not run: (.*?) -->\n)?```(.*)\n((?:.*\n)*?)```$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [Block(language, text, reason) for reason, language, text in found]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in RUN and not block.not_run]


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_every_block_says_what_it_is(page):
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert len(blocks) * 2 == len(re.findall("^```", text, re.MULTILINE))
    assert text.count("<!--") == sum(bool(block.not_run) for block in blocks)
    for block in blocks:
        assert block.language in LANGUAGES, block.text


def options_of(command: str) -> set[str]:
    """The options that a command's help names, those of its sub-commands among them."""
    printed = io.StringIO()
    words = [[command], *([command, word] for word in ("make", "score") if "test" in command)]
    for each in words:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            main([*each, "-h"])
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.-]*", printed.getvalue()))


def command_lines(page: Path) -> list[tuple[str, list[str]]]:
    """Every line of a page's shell blocks that runs one of our commands: its name and words."""
    found = []
    for block in blocks_of(page):
        if block.language != "sh":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start, word in enumerate(words[:-1]):
                script = Path(word).name
                if script == "waveglow-jax" or words[start - 1 : start + 1] == [
                    "-m",
                    "waveglow_jax",
                ]:
                    found.append((words[start + 1], words[start + 2 :]))
                elif script in ("train.py", "synthesize.py"):
                    found.append((script.removesuffix(".py"), words[start + 1 :]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_is_known(page):
    for command, words in command_lines(page):
        assert command in COMMANDS, command
        known = options_of(command) | (options_of("train") if "--config" in words else set())
        for word in words:
            word = word.lstrip("[").split("=")[0].rstrip("]")
            if word in ("|", ">"):
                break
            if re.match("--?[a-z]", word):
                assert word in known or word.startswith("--train."), (command, word)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link and not link.endswith(GENERATED):
            assert (page.parent / link).exists(), link


def test_every_page_that_the_code_names_is_there():
    sources = [*ROOT.glob("*.md"), *ROOT.glob("configs/*.json")]
    for folder in ("waveglow_jax", "tests", "benchmarks", "docs"):
        sources += (ROOT / folder).rglob("*.py")
    for source in sources:
        for page in re.findall(r"\bdocs/[\w/-]+\.\w+", source.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), (name(source), page)


# --- running the blocks


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """The files that the pages assume: recordings, mels and weights, all of them small."""
    folder = tmp_path_factory.mktemp("things")
    paths = sorted((BUNDLED_VOICE / "recordings").glob("*.wav"))
    audios = [soundfile.read(path, dtype="float32")[0] for path in paths]
    for kind in ("recordings", "heldout", "mels"):
        (folder / kind).mkdir()
    for i in range(4):
        clip = audios[i % 2][RATE * (i + 1) // 2 :][: RATE * 3 // 2]
        soundfile.write(folder / "recordings" / f"r{i}.wav", clip, RATE)
    for i in range(2):
        soundfile.write(folder / "heldout" / f"h{i}.wav", audios[i][RATE : RATE * 5 // 2], RATE)
    soundfile.write(folder / "recording.wav", audios[0][RATE : RATE * 2], RATE)
    mel = wg.load().mel(audios[0][RATE : RATE * 2]).T
    for path in ("mel.npy", "mels/a.npy"):
        np.save(folder / path, mel)
    published = str(published_shape(folder / "published"))
    assert main(["convert", published, "-o", str(folder / "waveglow.pt"), "--to", "torch"]) == 0
    return folder


def environment(home: Path) -> dict[str, str]:
    """An environment in which `waveglow-jax` and `python` are those of this test."""
    programs = home / "programs"
    programs.mkdir()
    for program, module in (("waveglow-jax", " -m waveglow_jax"), ("python", "")):
        script = programs / program
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        script.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(home / "cache"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in GUIDES if runnable(page)], ids=name)
def test_the_blocks_run(page, things, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(things, work)
    if page.stem == "exports":
        shutil.copytree(BUNDLED_VOICE, work / "release")
    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    surroundings = environment(tmp_path)
    for block in runnable(page):
        text = block.text
        for long, short in SHORT.items():
            text = text.replace(long, short)
        command = [*programs[block.language], text]
        done = subprocess.run(
            command, cwd=work, env=surroundings, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_readmes_python_runs_as_it_stands(things, tmp_path):
    (block,) = [each for each in blocks_of(ROOT / "README.md") if each.language == "python"]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", block.text],
        cwd=things,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
