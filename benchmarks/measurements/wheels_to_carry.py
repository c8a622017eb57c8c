"""Downloads wheels for a machine that reaches no package index, in parcels of a given size.

    python benchmarks/measurements/wheels_to_carry.py -o WHEELS --there NAME==VERSION...
        [--python 3.12]

Then run this on that machine, in the project's folder:

    python3 -m pip install --no-index --no-deps --target SITE WHEELS/parcel*/*.whl
    PYTHONPATH=SITE:. python3 benchmarks/measurements/accelerator_day.py -o OUT

`--there` names the packages that the machine already has, as `pip list --format=freeze` prints
them. Their versions are fixed, and the missing packages are resolved to match them. The wheels are
for Linux on x86-64.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="WHEELS")
    parser.add_argument("--there", nargs="+", default=[], metavar="NAME[==VERSION]")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--extras", default="test", help="of the project (default: test)")
    parser.add_argument("--mib", type=float, default=64, help="the most of a parcel (default: 64)")
    arguments = parser.parse_args()
    there = {normal(name.split("==")[0]) for name in arguments.there}
    pins = [name for name in arguments.there if "==" in name]
    missing = [
        f"{name}=={version}"
        for name, version in resolved(arguments.python, arguments.extras, pins).items()
        if normal(name) not in there
    ]
    print("missing there:", *missing)
    arguments.output.mkdir(parents=True, exist_ok=True)
    download = ["download", "--quiet", "--no-deps", "--dest", str(arguments.output)]
    pip(arguments.python, *download, *missing)
    parcels(sorted(arguments.output.glob("*.whl")), arguments.mib * 2**20)
    return 0


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pip(python: str, command: str, *arguments: str) -> str:
    """Runs pip for that Python on Linux; returns what it prints."""
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    whole = [sys.executable, "-m", "pip", command, *target, *arguments]
    return subprocess.run(whole, check=True, stdout=subprocess.PIPE, text=True).stdout


def resolved(python: str, extras: str, pins: list[str]) -> dict[str, str]:
    """Name and version of everything that the project needs, resolved together with the pins."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"]]
    for extra in filter(None, extras.split(",")):
        needs += project["optional-dependencies"][extra]
    options = ["--dry-run", "--quiet", "--ignore-installed", "--report=-", "--target=/nowhere"]
    found = json.loads(pip(python, "install", *options, *needs, *pins))
    return {each["metadata"]["name"]: each["metadata"]["version"] for each in found["install"]}


def parcels(wheels: list[Path], most: float) -> None:
    """Moves the wheels into `parcel1`, `parcel2` ... of at most `most` bytes each."""
    number, size = 1, 0.0
    for wheel in wheels:
        bytes_of_wheel = wheel.stat().st_size
        if bytes_of_wheel > most:
            raise SystemExit(f"{wheel.name} alone is larger than a parcel")
        if size + bytes_of_wheel > most:
            number, size = number + 1, 0.0
        folder = wheel.parent / f"parcel{number}"
        folder.mkdir(exist_ok=True)
        wheel.replace(folder / wheel.name)
        size += bytes_of_wheel
        print(f"parcel{number}: {wheel.name}, {bytes_of_wheel / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
