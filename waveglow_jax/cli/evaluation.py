"""evaluate and listening-test: rate systems by metrics and by listeners."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from waveglow_jax.cli.arguments import count, examples, given, seed, workers_argument
from waveglow_jax.cli.outcome import fail
from waveglow_jax.cli.progress import files_by_stage
from waveglow_jax.errors import UserError
from waveglow_jax.text import number_of

if TYPE_CHECKING:
    from waveglow_jax.evaluation.systems import System


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Measures how near systems come to recordings: metrics and intervals as Markdown and HTML."""
    parser.add_argument(
        "--reference", type=given, required=True, metavar="DIR", help="the recordings"
    )
    parser.add_argument(
        "--system",
        type=system,
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="a folder of any vocoder's output, files named as the recordings, or weights: "
        "NAME=WEIGHTS:sigma=0.8,denoise=0.01,consistency=32,dtype=bfloat16,seed=1 (every setting "
        "may be left out; consistency may be latent; without WEIGHTS the bundled voice); may be "
        "given again",
    )
    parser.add_argument(
        "-o", "--output", type=given, required=True, metavar="REPORT", help="resumed if there"
    )
    parser.add_argument(
        "--baselines",
        type=baselines,
        default="griffin-lim,noise",
        metavar="LIST",
        help="rows made from the mels without a network, separated by commas (default: "
        "griffin-lim,noise)",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="what the others are compared with, file by file (default: Griffin-Lim, or without it "
        "the first row after the recordings)",
    )
    parser.add_argument(
        "--griffin-lim-iterations",
        type=count,
        default=32,
        metavar="N",
        help="of the row made by Griffin-Lim (default: 32)",
    )
    parser.add_argument(
        "--noise-corrections",
        type=count,
        default=32,
        metavar="N",
        help="of the row that begins as noise (default: 32)",
    )
    parser.add_argument("--files", type=count, metavar="N", help="only the first N (default: all)")
    parser.add_argument(
        "--players", type=int, default=6, metavar="N", help="files shown and heard (default: 6)"
    )
    parser.add_argument("--no-audio", action="store_true", help="a report.html without sound")
    workers_argument(parser)
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    examples(
        parser,
        "--reference recordings -o report --system mine=runs/lj:sigma=0.6 --system theirs=folder",
    )


def baselines(text: str) -> tuple[str, ...]:
    # This import is not at the top, because it imports JAX, which other commands do not need.
    from waveglow_jax.evaluation.baselines import check_baselines

    try:
        return check_baselines(text.split(","))
    except UserError as error:
        reason = str(error).removeprefix("--baselines ")  # argparse adds the option's name
        raise argparse.ArgumentTypeError(reason) from None


def system(text: str) -> "System":
    from waveglow_jax.evaluation.systems import parse_system  # imports JAX too

    try:
        return parse_system(text)
    except UserError as error:
        reason = str(error).removeprefix("--system ")
        if reason == str(error):  # its path is none, which `given` tells in one line too
            sys.exit(fail(reason))
        raise argparse.ArgumentTypeError(reason) from None


def run_evaluate(arguments: argparse.Namespace) -> int:
    from waveglow_jax.evaluation.evaluate import evaluate
    from waveglow_jax.evaluation.report import markdown_summary, write_reports
    from waveglow_jax.evaluation.results import summary_dict

    with files_by_stage() as progress:
        found = evaluate(
            arguments.reference,
            arguments.system,
            arguments.output,
            baselines=arguments.baselines,
            baseline=arguments.baseline,
            griffin_lim_iterations=arguments.griffin_lim_iterations,
            noise_corrections=arguments.noise_corrections,
            files=arguments.files,
            workers=arguments.workers,
            progress=progress,
        )
    paths = write_reports(found, arguments.output, arguments.players, not arguments.no_audio)
    if arguments.json:
        print(json.dumps(summary_dict(found)))
    else:
        print(markdown_summary(found))
        print("written: " + ", ".join(map(str, paths)))
    for why in dict.fromkeys(found.missing.values()):
        keys = ", ".join(key for key, its in found.missing.items() if its == why)
        print(f"left out: {keys}: {why}; install with: pip install -e '.[eval]'", file=sys.stderr)
    for what, why in found.left_out:
        fail(f"{what}: {why}; left out")
    return 1 if found.left_out else 0


def listening_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Makes a listening test as a web page, or scores its results (mean opinion scores)."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="make|score")
    make = parts.add_parser("make", help="a folder that any web host serves, and its key")
    make.add_argument(
        "--system",
        type=named_folder,
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="recordings of one system, the real ones among them; files of one name are one "
        "utterance; given at least twice",
    )
    make.add_argument(
        *("-o", "--output"),
        type=given,
        required=True,
        metavar="TEST",
        help="gets the folder page, for the web host, and key.json, for you alone",
    )
    make.add_argument(
        "--utterances", type=count, default=40, metavar="N", help="drawn from all (default: 40)"
    )
    make.add_argument(
        "--training",
        type=given,
        metavar="DIR_OR_LIST",
        help="leave out what the systems were trained on",
    )
    make.add_argument(
        "--post", default="", metavar="URL", help="where results are sent (default: saved as files)"
    )
    make.add_argument(
        "--title", default="Listening test", help="of the page (default: %(default)s)"
    )
    make.add_argument("--seed", type=seed, default=0, help="of the drawing (default: 0)")
    make.add_argument("--json", action="store_true", help="one JSON object on stdout")
    examples(
        make,
        "--system recordings=heldout --system mine=out -o test --utterances 20",
    )
    score = parts.add_parser("score", help="the card's table, with 95%% confidence intervals")
    score.add_argument("key", type=given, metavar="TEST/key.json", help="the key that make wrote")
    score.add_argument(
        "results", type=given, nargs="+", metavar="RESULT", help="files, or folders of .json"
    )
    score.add_argument("--json", action="store_true", help="one JSON object on stdout")
    examples(score, "test/key.json results")
    examples(parser, "make --system recordings=heldout --system mine=out -o test")


def named_folder(text: str) -> tuple[str, str]:
    name, _, folder = (part.strip() for part in text.partition("="))
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DIR, a folder of recordings")
    return name, given(folder)


def run_listening_test(arguments: argparse.Namespace) -> int:
    return {"make": _listening_test_make, "score": _listening_test_score}[arguments.part](arguments)


def _listening_test_make(arguments: argparse.Namespace) -> int:
    from waveglow_jax.evaluation.listening_test.make import make

    for name, folder in arguments.system:
        if not Path(folder).is_dir():
            raise UserError(f"--system {name}={folder}: no folder; write NAME=DIR")
    made = make(
        arguments.system,
        arguments.output,
        utterances=arguments.utterances,
        training=arguments.training,
        post_url=arguments.post,
        title=arguments.title,
        seed=arguments.seed,
    )
    if arguments.json:
        told = {"page": str(made.page), "key": str(made.key), "notes": made.notes}
        print(json.dumps({**told, "utterances": made.utterances, "systems": made.systems}))
        return 0
    for note in made.notes:
        print(f"note: {note}")
    print(
        f"{number_of(len(made.utterances), 'utterance')} of {len(made.systems)} systems: "
        f"serve {made.page} (index.html), keep {made.key} to yourself"
    )
    return 0


def _listening_test_score(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from waveglow_jax.evaluation.listening_test.score import score, table

    found = score(arguments.key, arguments.results)
    for path, why in found.rejected:
        print(f"rejected: {path}: {why}", file=sys.stderr)
    print(json.dumps(asdict(found)) if arguments.json else table(found))
    return 0
