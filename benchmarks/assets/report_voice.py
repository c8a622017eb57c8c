"""Writes the bundled voice's report in docs/measurements/voice/ and the table of voice.md.

python benchmarks/assets/report_voice.py CORPUS/heldout [--work out/voice_report] [--files N]

It needs `pip install -e '.[dev,eval]'` and Chromium, which takes the picture of the page. It stores
measurements under --work and does not repeat them. The report has pictures but no sound. For sound,
run `python -m waveglow_jax evaluate` with the arguments at the top of voice/report.md.
"""

import argparse
import os
import re
import shlex
import shutil
from pathlib import Path

from waveglow_jax.cli.progress import files_by_stage
from waveglow_jax.evaluation.evaluate import evaluate
from waveglow_jax.evaluation.metrics import METRICS
from waveglow_jax.evaluation.report import markdown, markdown_table, write_reports
from waveglow_jax.evaluation.results import Evaluation
from waveglow_jax.evaluation.systems import parse_system
from waveglow_jax.files.atomic import replacing, write_text

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "measurements" / "voice"
SYSTEMS = (
    "ours=:",
    "ours, bare=:consistency=0",
    "ours, 96 corrections=:consistency=96",
    "ours, latent=:consistency=latent",
)
PAGE_COLUMNS = (
    "pesq_wb",
    "stoi",
    "visqol",
    "mcd",
    "mr_stft",
    "vuv_f1",
    "periodicity_rmse",
    "dnsmos_ovrl",
)
BEGIN, END = "<!-- report of the bundled voice -->", "<!-- end of the report -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "voice_report")
    parser.add_argument(
        "--docs", type=Path, default=DOCS, help="(default: docs/measurements/voice)"
    )
    parser.add_argument("--page", type=Path, default=DOCS.with_suffix(".md"))
    parser.add_argument("--weights", default="", help="(default: the bundled voice)")
    parser.add_argument("--files", type=int, help="only the first so many")
    arguments = parser.parse_args()
    written = [text.replace("=:", f"={arguments.weights}:") for text in SYSTEMS]
    with files_by_stage() as progress:
        found = evaluate(
            arguments.heldout,
            [parse_system(text) for text in written],
            arguments.work,
            files=arguments.files,
            workers=os.cpu_count() or 1,
            progress=progress,
        )
    if found.left_out or found.missing:
        raise SystemExit(f"not whole, nothing published: {found.left_out} {found.missing}")
    write_reports(found, arguments.work, players=1, audio=False)
    for name in ("report.html", "summary.json", "files.jsonl"):
        with replacing(arguments.docs / name) as temporary:
            shutil.copyfile(arguments.work / name, temporary)
    write_text(arguments.docs / "report.md", with_command(markdown(found)))
    take_picture(arguments.docs / "report.html", arguments.docs / "report.png")
    page = arguments.page.read_text(encoding="utf-8")
    relative = Path(os.path.relpath(arguments.docs, arguments.page.parent)).as_posix()
    write_text(arguments.page, with_section(page, found, relative))


def with_command(text: str) -> str:
    """The report, with the command that creates it inserted below its title."""
    command = "python -m waveglow_jax evaluate --reference CORPUS/heldout -o REPORT"
    lines = [command, *(f"    --system {shlex.quote(each)}" for each in SYSTEMS)]
    block = "```\n" + " \\\n".join(lines) + "\n```"
    title, rest = text.split("\n", 1)
    return f"{title}: the bundled voice\n\n{block}\n{rest}"


def with_section(page: str, found: Evaluation, docs: str) -> str:
    """The page with the table and the picture inserted between its two marks."""
    metrics = [metric for metric in METRICS if metric.key in PAGE_COLUMNS]
    lines = [
        *markdown_table(found, metrics),
        "",
        f"Means over {len(found.names)} recordings that it never saw, with 95% intervals. "
        f"[Every metric, difference and file]({docs}/report.md).",
        "",
        f"![The report as a page: tables and spectrograms]({docs}/report.png)",
    ]
    section = f"{BEGIN}\n" + "\n".join(lines) + f"\n{END}"
    changed, count = re.subn(f"{BEGIN}.*{END}", lambda _: section, page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the page has {count} places for the report, 1 expected")
    return changed


def take_picture(page: Path, picture: Path) -> None:
    """Takes a picture from the page's title to the end of the first file's spectrograms."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1440, "height": 1000})
        view.goto(page.resolve().as_uri())
        first = view.locator(".sample").first.bounding_box()
        clip = {"x": 0, "y": 0, "width": 1440, "height": first["y"] + first["height"] + 16}
        with replacing(picture) as temporary:
            view.screenshot(path=temporary, full_page=True, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
