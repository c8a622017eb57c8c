"""Interprets paths that users write, and finds folders for caches where there is no home."""

import atexit
import logging
import os
import pwd
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

from waveglow_jax.errors import UserError
from waveglow_jax.interrupts import unfinished
from waveglow_jax.ownership import not_own

# pathlib reduces two slashes to one, so one suffices for the known schemes.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<more>/?)")
_COPIED_BY = {
    "gs": "gcloud storage cp -r",
    "s3": "aws s3 cp --recursive",
    "hdfs": "hdfs dfs -get",
    "http": "curl -LO",
    "https": "curl -LO",
    "hf": "hf download",
}

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, Linux's limits

_stand_ins: set[Path] = set()


def local_path(text: str | os.PathLike[str]) -> str:
    """The path on this machine that a user means by `text`.

    `~` and `~user` at the start become a home folder, and a `file://` address becomes its path. Any
    other text is returned unchanged. Raises UserError for an address of another kind (`gs://`,
    `s3://` and the like), for `~` where there is no home, and for a name that no file can have.
    """
    text = os.fspath(text)
    _check_possible(text)
    address = _ADDRESS.match(text)
    if address is not None:
        scheme = address["scheme"].lower()
        if scheme == "file":
            return _of_file_address(text)
        if address["more"] or (scheme in _COPIED_BY and not os.path.lexists(text)):
            how = f" ({_COPIED_BY[scheme]})" if scheme in _COPIED_BY else ""
            raise UserError(
                f"{text}: an address, and only local files are read and written; give a local "
                f"path, and copy{how} before or afterwards, or mount the storage as a folder"
            )
    name, slash, rest = text.partition("/")
    if name == "~":
        folder = home()
        if folder is None:
            raise UserError(f"{text}: there is no home folder that ~ could mean; set HOME")
        return str(folder) + slash + rest
    return os.path.expanduser(text)


def _check_possible(text: str) -> None:
    """Refuses names that no file can have; the system would refuse only each use of them."""
    if "\0" in text:
        raise UserError(f"{text}: no file can have a name with a NUL character; correct the name")
    try:
        path = os.fsencode(text)
    except UnicodeEncodeError:
        raise UserError(
            f"{text}: no file can have a name with half a character; correct the name"
        ) from None
    if len(path) > _LONGEST_PATH or max(map(len, path.split(b"/"))) > _LONGEST_NAME:
        raise UserError(
            f"{text[:60]}...: no file can have so long a name ({_LONGEST_NAME} bytes at most, "
            f"{_LONGEST_PATH} with its folders); check the path"
        )


def check_no_device(path: str | os.PathLike[str]) -> None:
    """Raises UserError if the path is a pipe, a device or a socket; OSError if it does not exist.

    Reading one might never end, and writing would replace it by a file.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: a pipe, device or socket where a file was expected; name a file")


def _of_file_address(text: str) -> str:
    path = text[len("file:") :]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise UserError(
                f"{text}: names the machine {host}; write file:///PATH, or the path by itself"
            )
        path = slash + path
    return local_path(os.fsdecode(unquote_to_bytes(os.fsencode(path))))


def home() -> Path | None:
    """The user's home folder, which need not exist.

    None if neither HOME nor the system's list of users names one.
    """
    named = os.environ.get("HOME")
    if not named:
        try:
            named = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a container's user may have only a number
            return None
    return Path(named) if named else None


def cache_base() -> Path | None:
    """The folder for caches: `$XDG_CACHE_HOME`, or else `~/.cache`.

    None if there is neither, or only a temporary replacement that lasts until this process ends
    (`give_libraries_caches`).
    """
    folder = _user_folder("XDG_CACHE_HOME", ".cache")
    return None if folder in _stand_ins else folder


def _user_folder(variable: str, below_home: str) -> Path | None:
    named, folder = os.environ.get(variable), home()
    if named:
        return Path(named)
    return folder / below_home if folder is not None else None


def give_libraries_caches() -> None:
    """Gives libraries a temporary folder for caches where the user's folders cannot be used.

    librosa, numba and matplotlib fail to import, or print long warnings, where they cannot write to
    the user's folders; and numba, which runs the code in its cache, must not use a folder that
    others can write to. In both cases they, and any other code that reads XDG_CACHE_HOME, get a
    temporary folder, which is deleted when this process ends. Logs a warning if it replaces
    XDG_CACHE_HOME. Child processes use the same folder.
    """
    caches = _user_folder("XDG_CACHE_HOME", ".cache")
    settings = _user_folder("XDG_CONFIG_HOME", ".config")
    settings_needed = "MPLCONFIGDIR" not in os.environ and not _writable(settings)
    unsafe = "" if caches is None else _of_others(caches / "numba")
    caches_needed = bool(unsafe) or not _writable(caches)
    if not (settings_needed or caches_needed):
        return
    temporary = _temporary_folder()
    if temporary is None:  # nothing is writable; the libraries report it themselves
        return
    atexit.register(_remove, temporary, os.getpid())
    unfinished.add(Path(temporary))
    if settings_needed:
        os.environ["MPLCONFIGDIR"] = temporary
    if caches_needed:
        os.environ["XDG_CACHE_HOME"] = temporary
        _stand_ins.add(Path(temporary))
        if caches is not None:  # earlier downloads stay readable
            os.environ.setdefault("HF_HOME", str(caches / "huggingface"))
        where = unsafe or f"{caches} cannot be written"
        where = where if caches is not None else "there is no home folder"
        logging.getLogger(__name__).warning(
            "warning: %s, so caches last for this run only, and programs are compiled anew in the "
            "next; set XDG_CACHE_HOME to a folder that you alone can write to",
            where,
        )


def _of_others(folder: Path) -> str:
    """The reason why others could change the folder; empty if they cannot, or it does not open."""
    try:
        return not_own(folder)
    except OSError:
        return ""


def _temporary_folder() -> str | None:
    """A new temporary folder, on disk or else in memory (/dev/shm); None if neither is writable.

    In some containers only the latter is writable.
    """
    for place in (None, "/dev/shm"):
        with suppress(OSError):
            return tempfile.mkdtemp(prefix="waveglow_jax-", dir=place)
    return None


def _writable(folder: Path | None) -> bool:
    """Whether files can be created in the folder, or in its nearest existing parent."""
    if folder is None:
        return False
    there = next((each for each in (folder, *folder.parents) if os.path.exists(each)), None)
    try:
        # Permissions do not show read-only mounts and folders that never accept new files.
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not a worker that inherited the folder
        shutil.rmtree(folder, ignore_errors=True)
