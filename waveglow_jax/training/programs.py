"""Keeps a run's compiled programs in RUN/programs, so that a restarted run compiles nothing.

JAX's persistent compilation cache does the work: its key covers the program (hence the config), the
devices and processes, the compiler's options and flags, and the versions of jaxlib and of the
backend. Only the storage is different here, because JAX runs what it finds in its cache, and a
run's folder may come from somebody else. Two things guard it:

- Nobody else may be able to write to the folder (`ownership.not_own`, mode 0700).
- Every file carries a seal: its HMAC under the folder's key. That key is a hash of the random
  content of the file `.key` and of that file's inode number and change time. Whoever packs a run
  up cannot choose these two for the unpacked copy, so a seal holds only where it was made, although
  no secret outside the run's folder is necessary. (The user's own cache folder would need none of
  this, but it ends with a preempted machine, from which often only the run's disk survives.) A run
  on a disk that is attached to another machine keeps its programs; a copied, downloaded or unpacked
  run compiles once.

The first process of a run makes the folder. The others use it if they see it; on CPUs each process
has programs of its own, on GPUs and TPUs they share most. The processes do not send programs to one
another: the network between them carries numbers, but nothing that is executed.
"""

import hashlib
import hmac
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

# Private: JAX has no public way to store its cache's entries differently.
from jax._src import compilation_cache, compiler
from jax._src.compilation_cache_interface import CacheInterface

from waveglow_jax.errors import UserError
from waveglow_jax.files.atomic import replacing
from waveglow_jax.ownership import not_own
from waveglow_jax.training.processes import is_first, wait_for_all
from waveglow_jax.training.watching.monitor import say

FOLDER = "programs"
KEY, KEY_SEAL = ".key", ".seal"
SUFFIX = ".program"
MOST_BYTES = 1 << 30
"""Maximum size of all programs; beyond it, those unused for the longest time are deleted."""
_SEAL = hashlib.sha256().digest_size


@contextmanager
def programs_kept(run: Path) -> Iterator[None]:
    """Within the block, JAX looks for compiled programs in the run's folder and stores them there.

    Nothing changes if JAX has a cache folder already, or if its cache is switched off
    (`JAX_ENABLE_COMPILATION_CACHE=false`). Prints one line if the folder cannot be used, and one if
    its programs were made elsewhere, which deletes them.
    """
    folder = run / FOLDER
    used = jax.config.jax_enable_compilation_cache and not jax.config.jax_compilation_cache_dir
    if used and is_first() and (reason := _prepare(folder)):
        say(f"{folder}: {reason}; this run does not keep compiled programs: each start compiles")
        used = False
    wait_for_all("programs")  # the others store nothing before the folder is ready
    if not used:
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(folder.absolute()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        # XLA would keep its autotuning beside the programs, in files without a seal.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    files, write = compilation_cache.get_file_cache, compiler._cache_write
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.get_file_cache = lambda path: (SealedPrograms(Path(path)), path)
        compiler._cache_write = _write_from_any_process  # type: ignore[assignment]
        # If this process has already compiled something, JAX has decided that there is no cache.
        compilation_cache.reset_cache()
        yield
    finally:
        compilation_cache.get_file_cache, compiler._cache_write = files, write
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _write_from_any_process(
    key: str, seconds: float, module: str, backend: Any, executable: Any, *_: Any
) -> None:
    """JAX's own `_cache_write` without its limit to the first process, whose entries the others
    cannot use on CPUs."""
    compilation_cache.put_executable_and_time(key, module, executable, backend, int(seconds))


class SealedPrograms(CacheInterface):
    """JAX's cache interface over a folder of sealed files."""

    def __init__(self, folder: Path):
        self._path, self._full = folder, False

    def get(self, key: str) -> bytes | None:
        """The stored program, or None. Deletes a program whose seal does not hold."""
        path = self._path / f"{key}{SUFFIX}"
        folder_key = _key(self._path)
        if folder_key is None or not os.path.lexists(path):
            return None
        _, content = _read_own(path) or (None, b"")
        if hmac.compare_digest(_seal(folder_key, key, content[_SEAL:]), content[:_SEAL]):
            with suppress(OSError):
                os.utime(path)  # used now
            return content[_SEAL:]
        with suppress(OSError):
            path.unlink(missing_ok=True)
        say(f"{path}: damaged, or not made in this folder; it is deleted and compiled anew")
        return None

    def put(self, key: str, value: bytes) -> None:
        """Stores a program and deletes the longest unused ones where there are too many."""
        path, folder_key = self._path / f"{key}{SUFFIX}", _key(self._path)
        if folder_key is None or (not is_first() and path.exists()):
            return  # another process of the run has stored it
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(_seal(folder_key, key, value) + value)
            self._delete_old()
        except (UserError, OSError) as error:
            if not self._full:
                say(f"{error}; training goes on, and the next start compiles that program anew")
            self._full = True

    def _delete_old(self) -> None:
        files = [(path.stat().st_mtime_ns, path) for path in self._path.glob(f"*{SUFFIX}")]
        size = 0
        for _, path in sorted(files, reverse=True):
            size += path.stat().st_size
            if size > MOST_BYTES:
                path.unlink(missing_ok=True)


def _prepare(folder: Path) -> str:
    """Makes the folder ready for use; returns the reason if that is impossible, otherwise ""."""
    try:
        if reason := not_own(folder.parent):
            return f"{reason}, and programs in it would be run"
        if os.path.lexists(folder):
            if _key(folder) is not None:
                for unfinished in folder.glob(f".*{SUFFIX}"):
                    unfinished.unlink(missing_ok=True)
                return ""
            say(
                f"{folder}: these compiled programs were not made in this folder (a copied run?); "
                "they are deleted without being run, and compiled anew"
            )
            _delete(folder)
        folder.mkdir(mode=0o700)
        _make_key(folder / KEY)
        if (key := _key_of_file(folder / KEY)) is None:
            _delete(folder)
            return "its file system cannot tell a copied file from the original"
        (folder / KEY_SEAL).write_bytes(_seal(key, "", b""))
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return ""


def _delete(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink()


def _make_key(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as stream:
        stream.write(secrets.token_bytes(32))
    # Whoever packs a run up chooses the time of modification, but not the change time, except on
    # file systems that have only the former: there the two are equal (see `_key_of_file`).
    os.utime(path, (0, 0))


def _key(folder: Path) -> bytes | None:
    """The key of this folder's seals; None if others could have written to the folder, or if its
    key was not made in this folder."""
    try:
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or not _is_private(status) or not_own(folder):
            return None
    except OSError:
        return None
    key, seal = _key_of_file(folder / KEY), _read_own(folder / KEY_SEAL)
    if key is None or seal is None or not hmac.compare_digest(_seal(key, "", b""), seal[1]):
        return None
    return key


def _key_of_file(path: Path) -> bytes | None:
    """A hash of the file's content, inode number and change time; None if others could know it."""
    if (read := _read_own(path)) is None:
        return None
    found, content = read
    if not _is_private(found) or found.st_nlink != 1 or found.st_ctime_ns == found.st_mtime_ns:
        return None
    return hashlib.sha256(content + f"{found.st_ino} {found.st_ctime_ns}".encode()).digest()


def _is_private(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _read_own(path: Path) -> tuple[os.stat_result, bytes] | None:
    """Status and content of a regular file of this user; None for anything else."""
    try:
        # O_NONBLOCK: to open a pipe would otherwise wait for its writer.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(file, "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
                return None
            return found, stream.read()
    except OSError:
        return None


def _seal(folder_key: bytes, name: str, program: bytes) -> bytes:
    return hmac.digest(folder_key, name.encode() + b"\0" + program, "sha256")
