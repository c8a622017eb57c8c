"""Finds the configs that come with the package, by their names."""

import difflib
import os
from pathlib import Path

from waveglow_jax.errors import UserError
from waveglow_jax.paths import local_path


def presets() -> dict[str, Path]:
    """The files of the presets, by their names."""
    package = Path(__file__).parent
    # A wheel has them inside the package, a checkout has them beside it.
    folders = (package / "configs", package.parent / "configs")
    folder = next((each for each in folders if each.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def config_path(named: str | Path) -> str:
    """The path of the config `named`: that file, or if there is none, the preset of that name.

    Raises UserError for a name that is neither; any other path is returned unchanged.
    """
    path = local_path(named)
    if os.path.isfile(path):
        return path
    known = presets()
    if path in known:
        return str(known[path])
    if not os.path.exists(path) and Path(path).stem in known:
        raise UserError(f"{path}: no such file; give the preset by its name, {Path(path).stem}")
    if path == Path(path).stem and (not os.path.exists(path) or os.path.isdir(path)):
        near = difflib.get_close_matches(path, known, n=1)
        meant = f"did you mean {near[0]}? Or " if near else ""
        names = ", ".join(known)
        raise UserError(
            f"{path}: no config file, and no preset; {meant}name a file, or one of {names}"
        )
    return path
