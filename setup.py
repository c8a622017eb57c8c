"""For tools that ask for this file; everything it could say stands in pyproject.toml."""

from setuptools import setup

setup()
