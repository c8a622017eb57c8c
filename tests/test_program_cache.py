"""Compiled programs are kept for the next run, where nobody else can have put them."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_vocoder import lively_params, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.audio.files import write_mel
from waveglow_jax.cli import main
from waveglow_jax.errors import UserError
from waveglow_jax.synthesis import program_cache

ROOT = Path(__file__).parent.parent
keep_programs = program_cache.keep_programs  # before any test replaces it
WITHOUT_A_CACHE = {"JAX_COMPILATION_CACHE_DIR": ""}
"""As a user has it; the tests have given JAX a folder."""


@pytest.mark.slow
def test_programs_are_kept_unless_told_otherwise(tmp_path):
    wg.save(tmp_path / "voice", tiny_config(), lively_params(tiny_config()))
    write_mel(tmp_path / "a.npy", some_mel(3))
    command = [sys.executable, "synthesize.py", tmp_path / "a.npy", "-w", tmp_path / "voice"]
    sounds = []
    for number, extra in enumerate((["--no-cache"], [], [])):
        done = subprocess.run(
            [*map(str, command), "-o", str(tmp_path / f"out{number}"), *extra],
            cwd=ROOT,
            env={**os.environ, **WITHOUT_A_CACHE, "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
        sounds.append((tmp_path / f"out{number}/a.wav").read_bytes())
        folder = tmp_path / "cache/waveglow_jax/programs"
        assert folder.exists() == (number > 0)
    assert sounds[0] == sounds[1] == sounds[2]
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UserError, match="others can write"):
        keep_programs(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--no-cache"):
        keep_programs(tmp_path / "file" / "programs")


def test_a_user_without_a_name_is_told_once(tmp_path, monkeypatch):
    """JAX would say of every program that it cannot keep it."""

    def unknown(uid: int):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=f"no user {os.getuid()}"):
        keep_programs(tmp_path / "programs")


@pytest.mark.filterwarnings("default::waveglow_jax.errors.FileWarning")
@pytest.mark.parametrize("mode", [0o500, 0o777])
def test_a_folder_that_cannot_be_used_stops_nothing(tmp_path, monkeypatch, capsys, mode):
    folder = tmp_path / "cache/waveglow_jax/programs"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    if mode == 0o500:  # which does not keep the superuser out
        monkeypatch.setattr(program_cache, "TemporaryFile", lambda dir: os.open(dir / "no/file", 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(program_cache, "keep_programs", keep_programs)
    wg.save(tmp_path / "voice", tiny_config(), lively_params(tiny_config()))
    write_mel(tmp_path / "a.npy", some_mel(3))
    command = ["synthesize", tmp_path / "a.npy", "-w", tmp_path / "voice", "-o", tmp_path / "out"]
    of_the_tests = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert main([str(each) for each in command]) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", of_the_tests)
    assert (tmp_path / "out/a.wav").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {folder}: ") and "--no-cache" in line


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert program_cache.cache_folder() == tmp_path / "waveglow_jax/programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert program_cache.cache_folder() == tmp_path / ".cache/waveglow_jax/programs"
