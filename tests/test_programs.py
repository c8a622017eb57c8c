"""A restarted run compiles nothing, and runs no program that was not made in its own folder."""

import os
import shutil
import subprocess
import tarfile
from collections import Counter

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_processes import ended, start
from test_training import losses, recordings, tiny_config  # noqa: F401

from waveglow_jax.config import config_to_json
from waveglow_jax.training import loop, programs
from waveglow_jax.training.programs import KEY, KEY_SEAL, SUFFIX, SealedPrograms

REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def no_cache_folder():
    """JAX without a cache folder, as users have it; the tests have given it one."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def events():
    """How often JAX has reported each of its events since the last `clear`."""
    counts: Counter[str] = Counter()

    def count(name: str, **_: object) -> None:
        counts[name] += 1

    jax.monitoring.register_event_listener(count)
    yield counts
    jax.monitoring.unregister_event_listener(count)


def as_after_a_restart(events) -> None:
    jax.clear_caches()
    events.clear()


@pytest.mark.slow
def test_a_restart_compiles_nothing(recordings, tmp_path, no_cache_folder, events, capsys):  # noqa: F811
    """This covers the step, the validation and everything else; a copied run compiles all anew."""
    config = tiny_config(steps=8)
    loop.train(tiny_config(steps=4), str(recordings), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    as_after_a_restart(events)
    loop.train(config, str(recordings), tmp_path / "run")
    assert events[HIT] == events[REQUEST] > 0
    assert jax.config.jax_compilation_cache_dir is None
    capsys.readouterr()
    as_after_a_restart(events)
    loop.train(config, str(recordings), tmp_path / "copy")
    assert events[HIT] == 0 < events[REQUEST]
    said = capsys.readouterr().err
    assert said.count("were not made in this folder (a copied run?)") == 1
    jax.clear_caches()
    loop.train(config, str(recordings), tmp_path / "calm")
    assert losses(tmp_path / "run") == losses(tmp_path / "copy") == losses(tmp_path / "calm")
    assert list(losses(tmp_path / "run")) == list(range(1, 9))


@pytest.mark.slow
def test_no_process_compiles_at_a_restart(recordings, tmp_path, monkeypatch):  # noqa: F811
    """The processes share a folder; each finds the programs of its own devices there."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    monkeypatch.setenv("JAX_EXPLAIN_CACHE_MISSES", "1")
    config, run = tmp_path / "config.json", tmp_path / "run"
    found = []
    for steps in (2, 4):
        config.write_text(config_to_json(tiny_config(steps=steps, validation_fraction=0.0)))
        started = start(config, recordings, run, 2, 1, share=True)
        assert ended(run, started) == [0, 0]
        logs = [run.with_name(f"run.{process}.log").read_text() for process in range(2)]
        found.append(
            [
                (log.count("PERSISTENT COMPILATION CACHE MISS"), log.count("cache hit"))
                for log in logs
            ]
        )
    assert all(misses and not hits for misses, hits in found[0])
    assert all(hits and not misses for misses, hits in found[1])
    assert sorted(losses(run)) == [1, 2, 3, 4]


@pytest.fixture
def folder(tmp_path):
    """A run's folder of programs that is ready for use."""
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run" / programs.FOLDER
    assert programs._prepare(folder) == ""
    SealedPrograms(folder).put("f", b"program")
    return folder


def test_a_program_is_found_where_it_was_made(folder, tmp_path):
    assert SealedPrograms(folder).get("f") == b"program"
    assert SealedPrograms(folder).get("g") is None
    assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "run").rename(tmp_path / "elsewhere")  # the same files
    moved = tmp_path / "elsewhere" / programs.FOLDER
    assert programs._prepare(moved) == "" and SealedPrograms(moved).get("f") == b"program"


@pytest.mark.parametrize("how", ["copied", "unpacked"])
def test_a_stranger_s_run_brings_no_programs(folder, tmp_path, capsys, how):
    """A copied run's files belong to whoever unpacks it, with their original permissions."""
    copy = tmp_path / "copy"
    if how == "copied":
        subprocess.run(["cp", "-a", folder.parent, copy], check=True)
    else:
        with tarfile.open(tmp_path / "run.tar", "w") as tar:
            tar.add(folder.parent, "copy")
        with tarfile.open(tmp_path / "run.tar") as tar:
            tar.extractall(tmp_path, filter="fully_trusted")
    copied = copy / programs.FOLDER
    assert (copied / KEY).read_bytes() == (folder / KEY).read_bytes()
    assert SealedPrograms(copied).get("f") is None  # before the first process looks
    SealedPrograms(copied).put("g", b"program")
    assert not (copied / f"g{SUFFIX}").exists()
    assert programs._prepare(copied) == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{copied}: ") and "not made in this folder (a copied run?)" in line
    assert SealedPrograms(copied).get("f") is None
    assert sorted(path.name for path in copied.iterdir()) == [KEY, KEY_SEAL]


def test_a_stranger_s_program_among_one_s_own_is_not_run(folder, tmp_path, capsys):
    other = tmp_path / "other" / programs.FOLDER
    other.parent.mkdir()
    assert programs._prepare(other) == ""
    SealedPrograms(other).put("g", b"planted")
    shutil.copy(other / f"g{SUFFIX}", folder)
    shutil.copy(folder / f"f{SUFFIX}", folder / f"h{SUFFIX}")  # under another program's name
    (folder / f"i{SUFFIX}").symlink_to(folder / f"f{SUFFIX}")
    os.mkfifo(folder / f"k{SUFFIX}")
    capsys.readouterr()
    for planted in "ghik":
        assert SealedPrograms(folder).get(planted) is None
        assert not os.path.lexists(folder / f"{planted}{SUFFIX}")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(str(folder)) and "deleted and compiled anew" in line
    assert SealedPrograms(folder).get("f") == b"program"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b""])
def test_a_damaged_program_is_deleted_and_stored_anew(folder, capsys, damage):
    path = folder / f"f{SUFFIX}"
    path.write_bytes(damage(path.read_bytes()))
    assert SealedPrograms(folder).get("f") is None and not path.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: damaged")
    SealedPrograms(folder).put("f", b"program")
    assert SealedPrograms(folder).get("f") == b"program"


@pytest.mark.parametrize("part", ["run", "run/programs"])
def test_a_folder_that_others_can_write_to_is_not_used(folder, tmp_path, capsys, part):
    (tmp_path / part).chmod(0o777)
    assert SealedPrograms(folder).get("f") is None
    SealedPrograms(folder).put("g", b"program")
    assert not (folder / f"g{SUFFIX}").exists()
    if part == "run":  # the user must decide what to do
        assert programs._prepare(folder).startswith(f"others can write to {tmp_path / part}")
        assert (folder / f"f{SUFFIX}").exists()
    else:  # whatever others have put there is deleted
        assert programs._prepare(folder) == ""
        assert "deleted without being run" in capsys.readouterr().err
        assert not (folder / f"f{SUFFIX}").exists()


@pytest.mark.parametrize("how", ["hard link", "symbolic link", "pipe", "readable by others"])
def test_a_key_that_others_could_know_is_no_key(folder, tmp_path, how):
    """The key's content, inode and change time must not be those of a file that others can read."""
    key = folder / KEY
    if how == "hard link":
        os.link(key, tmp_path / "known")
    elif how == "symbolic link":
        key.rename(tmp_path / "known")
        key.symlink_to(tmp_path / "known")
    elif how == "pipe":
        key.unlink()
        os.mkfifo(key)
    else:
        key.chmod(0o644)
    assert programs._key_of_file(key) is None and SealedPrograms(folder).get("f") is None


def test_a_file_system_without_change_times_is_refused(tmp_path, monkeypatch):
    """There the change time equals the time of modification, which a copy may choose."""
    monkeypatch.setattr(os, "utime", lambda *_: None)
    folder = tmp_path / programs.FOLDER
    assert "cannot tell a copied file" in programs._prepare(folder)
    assert not folder.exists()


def test_the_longest_unused_programs_go_first(folder, monkeypatch):
    kept = SealedPrograms(folder)
    for age, name in enumerate("edcb"):
        kept.put(name, bytes(100))
        os.utime(folder / f"{name}{SUFFIX}", (age, age))
    assert kept.get("e") == bytes(100)  # used now
    monkeypatch.setattr(programs, "MOST_BYTES", 3 * (100 + programs._SEAL))
    kept.put("a", bytes(100))
    assert kept.get("a") and kept.get("e") and not kept.get("d") and not kept.get("c")


def test_a_full_disk_is_told_once_and_stops_nothing(folder, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    kept = SealedPrograms(folder)
    kept.put("g", b"program")
    kept.put("h", b"program")
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and "training goes on" in line
    assert sorted(path.name for path in folder.iterdir()) == [KEY, KEY_SEAL, f"f{SUFFIX}"]
