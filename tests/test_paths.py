"""Paths as people write them, and caches where there is no home."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from golden import CASES

import waveglow_jax as wg
from waveglow_jax import paths
from waveglow_jax.errors import UserError
from waveglow_jax.paths import cache_base, give_libraries_caches, home, local_path

ROOT = Path(__file__).parent.parent
VARIABLES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME")


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """An environment with only what a test sets; it is restored after the test."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.setattr(paths, "_stand_ins", set())
    return kept


@pytest.fixture
def nobody(monkeypatch):
    """A user whom the system does not know."""

    def unknown(uid: int):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_paths_on_this_machine(environment):
    environment["HOME"] = "/home/me"
    for text, path in [
        ("a/b.wav", "a/b.wav"),
        ("-", "-"),
        ("", ""),
        ("~", "/home/me"),
        ("~/r", "/home/me/r"),
        ("a~/r", "a~/r"),
        ("./~/r", "./~/r"),
        ("~no-such-user/r", "~no-such-user/r"),
        ("file:///a/b", "/a/b"),
        ("FILE:///a/b%20c", "/a/b c"),
        ("file://localhost/a", "/a"),
        ("file:/a", "/a"),
        ("file:///caf%E9.wav", "/caf\udce9.wav"),
        ("file:///a?b#c", "/a?b#c"),
        ("C:/a", "C:/a"),
        ("OWNER/NAME@v1", "OWNER/NAME@v1"),
        ("12:30/a.wav", "12:30/a.wav"),
        (Path("a/b"), "a/b"),
    ]:
        assert local_path(text) == path, text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("gs://b/r", "gcloud storage cp"),
        ("file://server/a", "server"),
        ("file://a", "file:///PATH"),
        ("a\0b", "NUL"),
        ("file:///a%00b", "NUL"),
    ],
)
def test_what_is_no_path(text, word):
    with pytest.raises(UserError, match=word) as caught:
        local_path(text)
    assert "\n" not in str(caught.value)


def test_an_existing_folder_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gs:").mkdir()
    assert local_path("gs:/") == "gs:/"
    with pytest.raises(UserError, match="address"):
        local_path("gs://")


def test_home_without_the_variable(environment, nobody, monkeypatch):
    for value in (None, ""):
        environment.update({} if value is None else {"HOME": value})
        assert home() is None and cache_base() is None
        with pytest.raises(UserError, match="no home"):
            local_path("~/r")
    monkeypatch.undo()
    monkeypatch.delenv("HOME")
    assert home() == Path(pwd.getpwuid(os.getuid()).pw_dir)


def test_doors_of_the_package_take_such_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.json").write_text((ROOT / "configs/tiny.json").read_text())
    assert wg.load_config("~/c.json") == wg.load_config(f"file://{tmp_path}/c.json")
    for door in (wg.load, wg.load_config, lambda path: wg.save(path, None, {})):
        with pytest.raises(UserError, match="aws s3 cp"):
            door("s3://bucket/voice")


# ------------------------------------------------------------------------------ caches


def test_libraries_get_folders_where_there_is_no_home(environment, nobody, caplog):
    give_libraries_caches()
    folder = Path(environment["XDG_CACHE_HOME"])
    assert folder.is_dir() and environment["MPLCONFIGDIR"] == str(folder)
    assert cache_base() is None  # nothing permanent is stored there
    give_libraries_caches()
    (record,) = caplog.records
    assert "no home folder" in record.message and "XDG_CACHE_HOME" in record.message
    paths._remove(str(folder), os.getpid() + 1)  # a worker's end
    assert folder.exists()
    paths._remove(str(folder), os.getpid())
    assert not folder.exists()


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_libraries_get_folders_where_none_can_be_made(environment, tmp_path, caplog, variable):
    """Nobody, not even the superuser, can create files in /proc."""
    environment.update({"HOME": str(tmp_path), variable: "/proc/me"})
    give_libraries_caches()
    assert len(caplog.records) == 1 and "/proc/me" in caplog.records[0].message
    assert cache_base() is None and Path(environment["XDG_CACHE_HOME"]).is_dir()
    assert environment["HF_HOME"].startswith("/proc/me")


def test_libraries_keep_their_folders_where_there_is_a_home(environment, tmp_path, caplog):
    environment["HOME"] = str(tmp_path)
    before = dict(environment)
    give_libraries_caches()
    assert environment == before and not caplog.records and not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["", "numba"])
def test_libraries_get_folders_where_others_can_write(environment, tmp_path, caplog, part):
    """numba runs what it finds in its cache, which another user could have put there."""
    environment.update({"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "shared")})
    (tmp_path / "shared/numba").mkdir(parents=True)
    (tmp_path / "shared" / part).chmod(0o777)
    give_libraries_caches()
    (record,) = caplog.records
    assert f"others can write to {tmp_path / 'shared' / part}" in record.message
    assert Path(environment["XDG_CACHE_HOME"]).stat().st_mode & 0o077 == 0
    assert cache_base() is None


@pytest.mark.slow
def test_commands_work_for_a_user_without_home_and_name(tmp_path):
    """Without a replacement for its cache folder, librosa could not be imported."""
    program = (
        "import pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from waveglow_jax.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    recording = CASES / "10-mel-names/wav/u00.wav"
    done = subprocess.run(
        [sys.executable, "-c", program, "mel", str(recording), "-o", str(tmp_path)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in VARIABLES},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "u00.npy").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: there is no home folder")
