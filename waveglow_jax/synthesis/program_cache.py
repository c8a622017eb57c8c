"""Compiled programs kept from one run to the next, in the user's cache folder."""

import os
import pwd
import stat
import warnings
from pathlib import Path
from tempfile import TemporaryFile

from waveglow_jax.errors import FileWarning, UserError
from waveglow_jax.paths import cache_base


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/waveglow_jax/programs`, by default under `~/.cache`; None where neither is
    to be had, which a warning has said already."""
    base = cache_base()
    return base / "waveglow_jax" / "programs" if base is not None else None


def keep_programs_if_possible() -> None:
    """`keep_programs` in `cache_folder()`, unless JAX has been given a folder already.

    Warns (FileWarning) where that fails: everything is only slower without.
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
    """Has JAX look for compiled programs in the folder, and put there what it compiles.

    What is in it will be run, so it must belong to this user and nobody else may write to it: it
    is made so. Raises UserError if it is not, cannot be made, or takes no files; or if the system
    has no name for the user, without which JAX cannot bound the folder's size.
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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep compiled programs there ({error.strerror}); set "
            "XDG_CACHE_HOME to a folder that takes files, or give --no-cache"
        ) from None
    others = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    if others or found.st_uid != os.getuid():
        raise UserError(
            f"{folder}: others can write to it, and what is in it would be run; make it your own "
            "(chmod 700), or give --no-cache"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_compilation_cache_max_size", 1 << 30)
    # A process that has compiled something already has settled that there is no cache.
    compilation_cache.reset_cache()
