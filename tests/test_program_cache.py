"""Compiled programs are stored for the next run, where nobody else could have put them."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_vocoder import lively_params, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import main
from waveglow_jax.cli.outcome import ready_streams
from waveglow_jax.errors import UserError
from waveglow_jax.files.mels import write_mel
from waveglow_jax.ownership import not_own
from waveglow_jax.synthesis import program_cache

pytestmark = pytest.mark.usefixtures("no_full_scale")

ROOT = Path(__file__).parent.parent
NOBODY = 65534
keep_programs = program_cache.keep_programs  # before any test replaces it
WITHOUT_A_CACHE = {"JAX_COMPILATION_CACHE_DIR": ""}
"""The environment of a user; the tests have given JAX a folder."""


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


@pytest.fixture
def kept(monkeypatch):
    """Restores JAX's settings and the display of warnings after the test."""
    settings = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_compilation_cache_max_size",
    )
    before = {name: getattr(jax.config, name) for name in settings}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("part", ["", "waveglow_jax", "waveglow_jax/programs"])
@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, part, mode):
    """Whoever can write to a folder above it can replace it."""
    folder = tmp_path / "waveglow_jax/programs"
    folder.mkdir(parents=True)
    open_part = tmp_path / part
    if mode == 0o720:
        os.chown(open_part, os.getuid(), 65533)  # a group of others
    open_part.chmod(mode)
    with pytest.raises(UserError, match=f"others can write to {open_part},.*delete it"):
        keep_programs(folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--no-cache"):
        keep_programs(tmp_path / "file" / "programs")


def test_what_was_put_there_while_it_was_open_is_refused(tmp_path):
    """Removing the others' permission to write does not remove the files that they have planted."""
    folder = tmp_path / "programs"
    folder.mkdir(mode=0o755)
    with pytest.raises(UserError, match=r"others can enter it.*delete it"):
        keep_programs(folder)
    folder.chmod(0o700)
    if os.getuid() == 0:
        (folder / "jit_f-00-cache").write_bytes(b"")
        os.chown(folder / "jit_f-00-cache", NOBODY, NOBODY)
        with pytest.raises(UserError, match="delete it"):
            keep_programs(folder)


def test_links_are_followed_and_their_owners_asked(tmp_path):
    (tmp_path / "big").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to("big/../big")
    assert not_own(tmp_path / "cache/a/b", make=True) == ""
    made = [tmp_path / "big/a", tmp_path / "big/a/b"]
    assert [each.stat().st_mode & 0o777 for each in made] == [0o700, 0o700]
    (tmp_path / "to_shared").symlink_to(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    assert not_own(tmp_path / "to_shared/a") == f"others can write to {tmp_path / 'shared'}"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="symbolic links"):
        not_own(tmp_path / "circle/a")
    if os.getuid() == 0:
        os.chown(tmp_path / "cache", NOBODY, NOBODY, follow_symlinks=False)
        assert "cache belongs to" in not_own(tmp_path / "cache/a")


@pytest.mark.skipif(os.getuid() != 0, reason="two users are needed")
def test_another_user_cannot_plant_a_program(kept, monkeypatch):
    """The other user tries to replace our folder by his own in a world-writable folder of
    caches."""
    with tempfile.TemporaryDirectory() as base:  # others can enter it, unlike tmp_path
        shared = Path(base) / "shared"
        shared.mkdir()
        Path(base).chmod(0o755)

        def as_other(command: str) -> bool:
            ids = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            done = subprocess.run(["sh", "-c", command], cwd=shared, capture_output=True, **ids)
            return done.returncode == 0

        plant = "mkdir -p waveglow_jax/programs && touch waveglow_jax/programs/planted"
        swap = f"mv waveglow_jax ours && {plant}"
        folder = shared / "waveglow_jax/programs"

        shared.chmod(0o777)
        with pytest.raises(UserError, match=f"others can write to {shared}"):
            keep_programs(folder)
        assert as_other(plant)
        with pytest.raises(UserError, match="others can write"):
            keep_programs(folder)
        shared.chmod(0o1777)  # the other user's folder was there first
        with pytest.raises(UserError, match="waveglow_jax belongs to the user "):
            keep_programs(folder)
        assert jax.config.jax_compilation_cache_dir != str(folder)
        shutil.rmtree(folder.parent)
        keep_programs(folder)  # the folder is ours, and the sticky bit protects it
        assert not as_other(swap)
        assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.slow
def test_a_damaged_entry_is_deleted(kept, tmp_path, capsys):
    """JAX itself only warns of it at every run, and leaves it there."""
    folder = tmp_path / "programs"
    ready_streams()

    def notes() -> list[str]:
        keep_programs(folder)
        jax.clear_caches()
        assert jax.jit(lambda x: x * 3 + 1)(2.0) == 7
        return capsys.readouterr().err.splitlines()

    assert notes() == []
    (entry,) = folder.glob("jit__lambda*-cache")
    entry.write_bytes(entry.read_bytes()[:50])
    (note,) = notes()
    assert note.startswith(f"note: {folder}: the compiled program jit__lambda") and "anew" in note
    assert notes() == [] and len(entry.read_bytes()) > 50
    entry.with_name(entry.name.replace("-cache", "-atime")).unlink()  # killed in between
    assert notes() == []


def test_a_user_without_a_name_is_told_once(tmp_path, monkeypatch):
    """JAX would warn for every program that it cannot store it."""

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
