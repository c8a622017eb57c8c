"""Checks who could have put files into a folder, before anything in it is run."""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

# O_PATH opens folders that can be traversed but not listed, as /home often is.
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
_MOST_LINKS = 40


def not_own(folder: str | os.PathLike[str], *, make: bool = False) -> str:
    """The reason why others could change the contents of this path; empty if only root could.

    Every folder along the path, and every symbolic link, must belong to this user or to root, and
    others must not be able to write to it, unless its sticky bit protects files that are not
    theirs, as in /tmp. The path is traversed by descriptors, so that the checked folders are the
    ones in use. With `make`, missing folders are created with mode 0700; without it, a missing
    folder gives an empty reason. Raises OSError.
    """
    steps = list(reversed(Path(folder).absolute().parts[1:]))
    at, where, links = os.open("/", _FOLDER), Path("/"), 0
    try:
        while not (reason := _reason(os.fstat(at), where)) and steps:
            name = steps.pop()
            try:
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
            except FileNotFoundError:
                if not make:
                    return ""
                os.mkdir(name, 0o700, dir_fd=at)
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                at, where = _go(at, name), where / name
                continue
            if reason := _reason(found, where / name):
                return reason
            if (links := links + 1) > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            target = Path(os.readlink(name, dir_fd=at))
            steps += reversed(target.parts)
            if target.is_absolute():
                steps.pop()
                at, where = _go(at, "/"), Path("/")
        return reason
    finally:
        os.close(at)


def _go(at: int, name: str) -> int:
    """Opens a folder's descriptor and closes that of its parent."""
    there = os.open(name, _FOLDER, dir_fd=at)
    os.close(at)
    return there


def _reason(found: os.stat_result, where: Path) -> str:
    if found.st_uid not in (0, os.getuid()):
        return f"{where} belongs to {_user(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode):  # a link's permissions have no meaning
        return ""
    others = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    if others == stat.S_IWGRP and _is_own_group(found.st_gid):
        others = 0
    return f"others can write to {where}" if others and not found.st_mode & stat.S_ISVTX else ""


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"


def _is_own_group(gid: int) -> bool:
    """Whether it is the user's private group, which many systems create under the user's name."""
    try:
        name, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
