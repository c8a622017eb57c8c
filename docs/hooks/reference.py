"""Pages of the manual that the package itself writes: the commands' help, the config's fields with
their defaults and bounds, and the bundled voice's card.

A hook of MkDocs (`mkdocs.yml` names it). It imports the package, so the manual is built in an
environment in which the package is installed.
"""

import io
import os
from contextlib import redirect_stdout

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from waveglow_jax.cli import COMMANDS, main
from waveglow_jax.config import field_facts
from waveglow_jax.weights.release import BUNDLED_VOICE

SUBCOMMANDS = {"listening-test": ("make", "score")}
WIDTH = "80"
CORES = 2
"""A help text names the machine's number of cores as a default; the manual's is that of a fixed
machine, so that every build gives the same pages."""

SECTIONS = {
    "waveglow": "The flow, section `waveglow_config` of the file.",
    "data": "The audio and its mel, section `data_config` of the file.",
    "train": "The training run, section `train_config` of the file.",
    "synthesis": "The voice's own settings for synthesis, section `synthesis_config` of the file.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the picture of the bundled voice to the manual's files."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/config.md": config_page(),
        "reference/voice-card.md": voice_card(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    picture = str(BUNDLED_VOICE / "held_out.png")
    files.append(File.generated(config, "assets/held_out.png", abs_src_path=picture))
    return files


def commands_page() -> str:
    """The help of every command, as the command prints it."""
    lines = [
        "# Commands",
        "",
        "`waveglow-jax COMMAND` and `python -m waveglow_jax COMMAND` are the same. In a checkout,",
        "`python train.py` and `python synthesize.py` are the commands `train` and `synthesize`.",
        "This page is written by the program itself when the manual is built.",
        "",
    ]
    for command in COMMANDS:
        lines += [f"## {command}", "", *_block(_help(command))]
        for word in SUBCOMMANDS.get(command, ()):
            lines += [f"### {command} {word}", "", *_block(_help(command, word))]
    return "\n".join(lines)


def _block(text: str) -> list[str]:
    return ["```text", text.rstrip(), "```", ""]


def _help(*words: str) -> str:
    """What `waveglow-jax WORDS -h` prints, with lines of one width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            main([*words, "-h"])
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    cores = f"as many as there are cores, {os.cpu_count() or 1})"
    return printed.getvalue().replace(cores, f"as many as there are cores, {CORES})")


def config_page() -> str:
    """A table per section: each field with its type, its default and the values it may have."""
    lines = [
        "# Config fields",
        "",
        "A config is a JSON file with four sections, or a preset by its name. Any field can be set",
        "on the command line of `train`, `preflight` and `benchmark` by the name in the first",
        "column: `--train.batch_size 48`. The default holds where neither the file nor the command",
        "line sets the field. An unknown field or an impossible value is refused with its name and",
        "its bounds. This page is written by the program itself when the manual is built.",
        "",
    ]
    for section, about in SECTIONS.items():
        lines += [f"## {section}", "", about, ""]
        lines += ["| field | type | default | values |", "| --- | --- | --- | --- |"]
        for field in field_facts():
            if field.name.startswith(f"{section}."):
                values = field.values or "any"
                lines.append(f"| `{field.name}` | {field.kind} | `{field.default}` | {values} |")
        lines.append("")
    return "\n".join(lines)


def voice_card() -> str:
    """The card that lies beside the bundled voice's weights, with its links as the manual has
    them."""
    card = (BUNDLED_VOICE / "README.md").read_text(encoding="utf-8")
    card = card.replace("../../../docs/", "../")
    return card.replace("(held_out.png)", "(../assets/held_out.png)")
