"""The package's floors: a package imports only from itself and from lower floors, even lazily."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import waveglow_jax

PACKAGE = Path(waveglow_jax.__file__).parent
MOST_LINES = 450

# The floors from the lowest up. Each has groups of modules and sub-packages; a group
# imports nothing from another group on its own floor.
FLOORS: list[dict[str, set[str]]] = [
    {"ground": {"errors", "interrupts", "jaxprs", "ownership", "paths", "text", "trees"}},
    {
        "config": {
            "config",
            "config_data",
            "config_fields",
            "config_grid",
            "config_names",
            "config_train",
            "conventions",
            "presets",
        },
        "files": {"files"},
    },
    {"audio": {"audio"}},
    {"flow": {"flow"}},
    {"weights": {"weights"}},
    {"synthesis": {"synthesis"}, "training": {"training"}, "doctor": {"doctor"}},
    {"analysis": {"analysis"}, "performance": {"performance"}},
    {"evaluation": {"evaluation"}},
    {"commands": {"__init__", "__main__", "cli"}},
]
PLACES = {
    member: (floor, group)
    for floor, groups in enumerate(FLOORS)
    for group, members in groups.items()
    for member in members
}
LONGER: dict[str, str] = {
    "synthesis/vocoder.py": "the class that people use, each method with its contract",
}
"""Files of more than `MOST_LINES` lines, each with the reason."""

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def place_of(module: str) -> tuple[int, str]:
    """The floor and the group of a module, given its path in the package."""
    return PLACES[module.removesuffix(".py").split("/")[0]]


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the imported member for each import of this package, in functions too."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "waveglow_jax":
                member = rest.split(".")[0]
                yield node.lineno, member if member in PLACES else "__init__"


def climbing(module: str, source: str) -> list[str]:
    """A module's forbidden imports: from a higher floor, or from another group of its own floor."""
    floor, group = place_of(module)
    return [
        f"{module}:{line}: {group} (floor {floor + 1}) imports {member} (floor {above + 1})"
        for line, member in imported(source)
        for above, other in [PLACES[member]]
        if other != group and above >= floor
    ]


@pytest.mark.parametrize("module", MODULES)
def test_no_group_imports_from_above(module):
    assert climbing(module, (PACKAGE / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("training/step.py", "from waveglow_jax.synthesis.vocoder import load"),
        ("files/mels.py", "def f():\n    from waveglow_jax.audio import mel"),
        ("config.py", "import waveglow_jax.files.atomic"),
        ("synthesis/vocoder.py", "import waveglow_jax as wg"),
        ("flow/waveglow.py", "from waveglow_jax import Config"),
    ],
)
def test_an_import_from_above_is_seen(module, source):
    (said,) = climbing(module, source)
    assert said.startswith(f"{module}:")


def test_an_import_from_below_or_beside_is_allowed():
    source = "from waveglow_jax.flow.waveglow import init\nfrom waveglow_jax.training import loop"
    assert climbing("training/step.py", source) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_too_long(module):
    lines = len((PACKAGE / module).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES or module in LONGER


def test_every_exception_is_needed():
    for module in LONGER:
        text = (PACKAGE / module).read_text(encoding="utf-8")
        assert len(text.splitlines()) > MOST_LINES, f"{module}: take it off the list"
