"""A cache of compiled programs in the user's cache folder, for later runs."""

import os
import pwd
import re
import stat
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from waveglow_jax.errors import FileWarning, UserError
from waveglow_jax.ownership import not_own
from waveglow_jax.paths import cache_base

# The text of JAX's warning, and the suffixes of an entry's two files.
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']*)'")
_ENTRY, _LAST_USE = "-cache", "-atime"


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/waveglow_jax/programs`, by default under `~/.cache`; None where neither
    is available, which a warning has already reported."""
    base = cache_base()
    return base / "waveglow_jax" / "programs" if base is not None else None


def keep_programs_if_possible() -> None:
    """`keep_programs` in `cache_folder()`, unless JAX has been given a folder already.

    Warns (FileWarning) where that fails: without the cache everything works, only slower.
    """
    import jax

    folder = cache_folder()
    if folder is None or jax.config.jax_compilation_cache_dir:
        return
    try:
        keep_programs(folder)
    except UserError as error:
        warnings.warn(str(error), FileWarning, stacklevel=3)


def keep_programs(folder: Path) -> None:
    """Makes JAX look for compiled programs in the folder, and store there what it compiles.

    JAX runs what it finds there, so nobody else may be able to write to the folder, or to replace
    it by way of the folders above it; a new folder is created with such permissions. Damaged
    entries are deleted when JAX finds them. Raises UserError if others could have put something
    there, if the folder cannot be created or written to, or if the system has no name for the user,
    without which JAX cannot limit the folder's size.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        raise UserError(
            f"compiled programs are not kept: the system knows no user {os.getuid()}, whom JAX "
            "asks it for; add one to /etc/passwd, or give --no-cache"
        ) from None
    try:
        if reason := not_own(folder, make=True):
            raise UserError(
                f"{folder}: {reason}, and what is in it would be run; delete it, and set "
                "XDG_CACHE_HOME to a folder that is yours alone, or give --no-cache"
            )
        with TemporaryFile(dir=folder):
            pass
        if _holds_others_files(folder):
            raise UserError(
                f"{folder}: others can enter it or have put files there, and what is in it would "
                "be run; delete it, the next run makes it anew, or give --no-cache"
            )
        _delete_unfinished(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep compiled programs there ({error.strerror}); set "
            "XDG_CACHE_HOME to a folder that takes files, or give --no-cache"
        ) from None
    _delete_what_is_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_compilation_cache_max_size", 1 << 30)
    # If this process has already compiled something, JAX has decided that there is no cache.
    compilation_cache.reset_cache()


def _holds_others_files(folder: Path) -> bool:
    """Whether others can enter the folder, or own a file in it from a time when they could."""
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return True
    with os.scandir(folder) as entries:
        return any(entry.stat(follow_symlinks=False).st_uid != os.getuid() for entry in entries)


def _delete_unfinished(folder: Path) -> None:
    """Deletes entries that have no file with their time of last use.

    Killed processes leave such entries, and JAX 0.10 fails on each of them whenever it stores a
    program.
    """
    for entry in folder.glob(f"*{_ENTRY}"):
        if not entry.with_name(entry.name.removesuffix(_ENTRY) + _LAST_USE).exists():
            entry.unlink(missing_ok=True)


def _delete_what_is_damaged(folder: Path) -> None:
    """Deletes each entry that JAX cannot read: JAX itself only warns, and never deletes it."""
    otherwise = warnings.showwarning
    if isinstance(otherwise, partial) and otherwise.func is _show:
        otherwise = otherwise.args[1]
    warnings.showwarning = partial(_show, folder, otherwise)


def _show(
    folder: Path, otherwise: Callable[..., None], message: Any, category: type, *rest: Any
) -> None:
    damaged = _DAMAGED.match(str(message))
    if not damaged:
        otherwise(message, category, *rest)
        return
    # JAX does not report which of the programs of that name is damaged, so all of them go.
    for entry in folder.glob("*"):
        if re.fullmatch(rf"{re.escape(damaged[1])}-[0-9a-f]+({_ENTRY}|{_LAST_USE})", entry.name):
            entry.unlink(missing_ok=True)
    note = f"{folder}: the compiled program {damaged[1]} is damaged; it is deleted and made anew"
    otherwise(FileWarning(note), FileWarning, *rest)
