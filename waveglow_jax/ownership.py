"""Who could have put something into a folder: asked before anything in it is run."""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

# O_PATH opens folders that can be passed through and not listed, as /home often is.
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
_MOST_LINKS = 40


def not_own(folder: str | os.PathLike[str], *, make: bool = False) -> str:
    """Why somebody else could change what lies at this path; empty if nobody but root can.

    Every folder on the way, and every symbolic link, must belong to this user or to root, and
    others must not be able to write to it; they may where its sticky bit keeps their hands off
    what is not theirs, as in /tmp. The way is gone by descriptors, so that what is looked at is
    what is there. What does not exist is made with mode 0700 if `make`, and is nobody's otherwise.
    Raises OSError.
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
    """The descriptor of a folder in the place of that of the one it lies in."""
    there = os.open(name, _FOLDER, dir_fd=at)
    os.close(at)
    return there


def _reason(found: os.stat_result, where: Path) -> str:
    if found.st_uid not in (0, os.getuid()):
        return f"{where} belongs to {_user(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode):  # whose permissions mean nothing
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
    """Whether it is the group of the user's name that many systems make for nobody else."""
    try:
        name, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
