"""Measures the invertibility of the bundled voice or of a random model of the published size.

python benchmarks/assets/report_invertibility.py [voice|nvidia256]

It rewrites docs/measurements/invertibility/MODEL/ and, between the model's two marks, the tables of
docs/measurements/invertibility.md. The voice takes two to three minutes on two cores.
"""

import argparse
import re
from pathlib import Path

from waveglow_jax.cli import main as command
from waveglow_jax.files.atomic import write_text
from waveglow_jax.weights.release import BUNDLED_VOICE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "measurements"
MODELS = {
    "voice": [],
    "nvidia256": [
        str(BUNDLED_VOICE / "recordings" / "ru_0773.wav"),
        *("--random", str(ROOT / "configs" / "nvidia256.json")),
        *("--seconds", "0.1", "--close-samples", "1024"),
    ],
}
REST = "### How the layers stretch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=MODELS, default="voice")
    model = parser.parse_args().model
    folder = DOCS / "invertibility" / model
    if command(["invertibility", *MODELS[model], "-o", str(folder)]):
        raise SystemExit(1)
    page = DOCS / "invertibility.md"
    report = (folder / "report.md").read_text(encoding="utf-8")
    write_text(page, with_tables(page.read_text(encoding="utf-8"), model, report))


def with_tables(page: str, model: str, report: str) -> str:
    """The page with the report's first sections, its picture, and a link to the other sections."""
    begin, end = f"<!-- {model} -->", f"<!-- end of {model} -->"
    first = report.split(REST)[0].split("\n", 2)[2].strip()
    section = (
        f"{begin}\n![Error against depth](invertibility/{model}/depth.png)\n\n{first}\n\n"
        "[How the layers stretch, log-determinants, stress]"
        f"(invertibility/{model}/report.md)\n{end}"
    )
    changed, count = re.subn(f"{begin}.*{end}", lambda _: section, page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the page has {count} places for {model}, 1 expected")
    return changed


if __name__ == "__main__":
    main()
