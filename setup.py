"""Puts `configs/` into the wheel; everything else that this file could say is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """The package with the presets in it, which lie beside it in a checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # which finds them where they are
            self.copy_tree("configs", str(Path(self.build_lib) / "waveglow_jax" / "configs"))


setup(cmdclass={"build_py": BuildWithConfigs})
