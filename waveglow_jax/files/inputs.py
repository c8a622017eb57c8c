"""Finds input files by name, folder, glob or list."""

import glob
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from waveglow_jax.errors import UserError
from waveglow_jax.paths import local_path
from waveglow_jax.text import MARK, decode, read_text

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".aifc", ".au", ".caf", ".w64"),
)
# Sound formats that are not read, because libsndfile has no decoder for them.
UNREAD_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".aac", ".ac3", ".eac3", ".dts"),
    *(".webm", ".weba", ".mkv", ".mka", ".avi", ".flv", ".ogv", ".ogm", ".ogx", ".wma", ".wmv"),
    *(".asf", ".amr", ".awb", ".ape", ".wv", ".tta", ".tak", ".shn", ".mpc", ".spx", ".mp2"),
    *(".mp1", ".mpga", ".mpg", ".mpeg", ".ra", ".rm", ".dsf", ".dff", ".sph", ".snd", ".voc"),
    *(".wave", ".bwf", ".rf64", ".qcp", ".gsm", ".mid", ".midi"),
)
CONVERT = "ffmpeg -i IN OUT.wav"
MEL_SUFFIXES = (".npy", ".npz", ".pt", ".safetensors")


@dataclass(frozen=True)
class Input:
    """One input file, and its result's place under an output folder.

    path: the file itself.
    relative: its place under the output folder, with the input's own suffix. A mel that is named
        after its recording, such as `u00.wav.pt`, has the place `u00.pt`.
    rival: another input whose result would have the same place; None if there is none.
    """

    path: Path
    relative: Path
    rival: Path | None = None


def find_inputs(
    inputs: Sequence[str | Path],
    suffixes: Sequence[str],
    with_outputs: bool = True,
    output: str | Path | None = None,
) -> list[Input]:
    """Every file that the inputs name, in order, each file once.

    inputs: each a file; a folder (searched recursively in sorted order, hidden names ignored); a
        glob; a `.txt` list (a path per line, `path|text` allowed, looked up beside the list and
        then in the current folder); or `-` for such a list on stdin. `local_path` interprets all
        of them, and the lines of a list.
    suffixes: the file types wanted, e.g. `AUDIO_SUFFIXES`. Other types are skipped in folders and
        globs, and refused where they are named one by one.
    with_outputs: whether each file yields an output file, so that no two may share a place.
    output: the folder that recordings are written to. It must not lie below a searched folder and
        already hold recordings, which would be results of an earlier run.

    `relative` keeps sub-folders: those below a given folder, those below the fixed part of a glob,
    or those written in a list (absolute paths in a list: those below their common folder).

    Raises UserError if a named file is missing or of another type, if a folder, glob or list
    yields nothing or yields recordings in the output folder, or, with outputs, if two files would
    have the same result (same `relative` except for the suffix).
    """
    wanted = tuple(suffix.lower() for suffix in suffixes)
    found: list[Input] = []
    for text in map(local_path, inputs):
        path = Path(text)
        if text == "-":
            some = _listed("stdin", _stdin(), [Path()], wanted)
        elif os.path.isdir(path):  # unlike pathlib, os.path raises no error for a name too long
            some = [Input(p, p.relative_to(path)) for p in _walk(path, wanted)]
            _check_results(some, path, output)
        elif os.path.isfile(path) and path.suffix.lower() == ".txt":
            some = _listed(text, read_text(path, "list"), [path.parent, Path()], wanted)
        elif os.path.exists(path):
            some = [Input(_of_type(path, wanted), Path(path.name))]
        elif glob.has_magic(text):
            some = _matched(text, wanted)
            _check_results(some, _fixed_part(text), output)
        else:
            raise UserError(f"{text}: no such file or folder; check the path")
        if not some:
            raise UserError(f"{text}: nothing found in it; looked for {' '.join(wanted)}")
        found += some
    if not found:
        raise UserError("no inputs given; name files, folders, globs, a .txt list or -")
    found = [Input(item.path, _place_of(item.relative)) for item in _each_once(found)]
    if with_outputs:
        for item in reversed(with_rivals(found)):
            check_rival(item)
    return found


def find_unread(inputs: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """Files in folders and globs that look like sound and are not read, each with the reason.

    inputs: as for `find_inputs`, which skips these files.
    """
    found: list[Path] = []
    for text in map(local_path, inputs):
        if os.path.isdir(text):
            found += _walk(Path(text), UNREAD_SUFFIXES)
        elif not os.path.exists(text) and glob.has_magic(text):
            found += [item.path for item in _matched(text, UNREAD_SUFFIXES)]
    return [(path, _unread(path)) for path in dict.fromkeys(found)]


def _unread(path: Path) -> str:
    return f"{path.suffix.lower()} is not read here; convert it with: {CONVERT}"


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these types below a folder, sorted; follows links, but never in a cycle."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be searched: {error.strerror}") from error

    files: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith(suffixes)
        ]
    return sorted(files)


def _check_results(found: list[Input], searched: Path, output: str | Path | None) -> None:
    """Refuses inputs that an earlier run has written into the output folder."""
    if output is None or not lies_in(output, searched) or lies_in(searched, output):
        return
    for item in found:
        if item.path.suffix.lower() == ".wav" and lies_in(item.path, output):
            raise UserError(
                f"{item.path}: lies inside the output folder {output}; choose an output folder "
                "outside of the inputs"
            )


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether the path, which need not exist, is the folder or lies below it."""
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([inner, outer]) == outer


def check_outside(output: str | Path, folder: str | Path | None) -> None:
    """Raises UserError if `output` lies in the folder, so that its recordings would join those."""
    if folder is not None and lies_in(output, folder):
        raise UserError(
            f"{output}: recordings that are made would lie among those of {folder}, and the next "
            "run would take them for inputs; choose another -o"
        )


def _fixed_part(pattern: str) -> Path:
    """The folder above the first part of a glob that holds a wildcard."""
    parts = Path(pattern).parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])


def _matched(pattern: str, suffixes: tuple[str, ...]) -> list[Input]:
    parts, base = Path(pattern).parts, _fixed_part(pattern)
    paths = sorted(map(Path, glob.glob(pattern, recursive=True)))
    found = []
    for path in paths:
        if path.is_dir() and parts[-1] != "**":
            found += [Input(p, p.relative_to(base)) for p in _walk(path, suffixes)]
        elif path.is_file() and path.suffix.lower() in suffixes:
            found.append(Input(path, path.relative_to(base)))
    if not paths:
        raise UserError(f"{pattern}: matches nothing; check the pattern")
    return found


def _stdin() -> str:
    if sys.stdin is None:  # the parent process has closed it
        raise UserError("-: there is no stdin to read a list from; give the list as a file")
    if not hasattr(sys.stdin, "buffer"):  # a notebook replaces it by a text stream
        return sys.stdin.read()
    return decode(sys.stdin.buffer.read(), "stdin", "list")


def _listed(name: str, text: str, folders: list[Path], suffixes: tuple[str, ...]) -> list[Input]:
    found: list[Input] = []
    elsewhere: list[Path] = []
    # Lines end as in Python's readlines and not as in splitlines: a sentence may hold U+2028.
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        written = line.lstrip(MARK).split("|", 1)[0].strip()
        if not written:
            continue
        try:
            written = local_path(written)
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error}") from None
        path = next((f / written for f in folders if os.path.isfile(f / written)), None)
        if path is None:
            raise UserError(f"{name}, line {number}: no such file: {written}; correct the list")
        _of_type(path, suffixes)
        # normpath turns a/../b into b; a path that still begins with .. would leave the output.
        below = Path(os.path.normpath(written))
        if below.is_absolute() or below.parts[0] == "..":
            below = Path(os.path.abspath(path))
            elsewhere.append(below.parent)
        found.append(Input(path, below))
    if elsewhere:
        common = os.path.commonpath(elsewhere)
        found = [
            Input(
                i.path, i.relative.relative_to(common) if i.relative.is_absolute() else i.relative
            )
            for i in found
        ]
    return found


def _of_type(path: Path, suffixes: tuple[str, ...]) -> Path:
    if path.suffix.lower() in UNREAD_SUFFIXES:
        raise UserError(f"{path}: {_unread(path)}")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: not a type read here; expected one of {' '.join(suffixes)}")
    return path


def _each_once(found: list[Input]) -> list[Input]:
    files: dict[str, Input] = {}
    for item in found:
        files.setdefault(os.path.realpath(item.path), item)
    return list(files.values())


def _place_of(relative: Path) -> Path:
    """Drops a recording's suffix from a mel's name, so that the sound has the original name."""
    inner = Path(relative.stem)
    if relative.suffix.lower() in MEL_SUFFIXES and inner.suffix.lower() in AUDIO_SUFFIXES:
        return relative.with_name(inner.stem + relative.suffix)
    return relative


def with_rivals(found: Sequence[Input]) -> list[Input]:
    """The same inputs, each with its rival."""
    sharing: dict[Path, list[Path]] = {}
    for item in found:
        sharing.setdefault(item.relative.with_suffix(""), []).append(item.path)

    def rival(item: Input) -> Path | None:
        others = sharing[item.relative.with_suffix("")]
        return next((path for path in others if path != item.path), None)

    return [replace(item, rival=rival(item)) for item in found]


def check_rival(item: Input) -> None:
    """Raises UserError if another input would have the same result."""
    if item.rival is not None:
        raise UserError(
            f"{item.path}: would have the same output as {item.rival}; rename one, or give the "
            "folder above both so that their folders are kept"
        )
