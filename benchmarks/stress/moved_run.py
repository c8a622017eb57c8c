"""Moves a run from 8 to 4 to 1 simulated devices, and draws its losses over a run that stayed.

    python benchmarks/stress/moved_run.py --data CORPUS/train [--config configs/voice.json]
        [--work FOLDER]

Every part is `train.py` in a process of its own, which SIGTERM stops when it has done its share of
the steps. The program writes docs/measurements/moved_run.png and prints one JSON line with the
steps after which the run moved, the largest difference of the losses, and a few more figures.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOVES = (8, 4, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", default=str(ROOT / "configs" / "voice.json"))
    parser.add_argument("--steps", type=int, default=40, help="on each number of devices")
    parser.add_argument("--clip", type=int, default=2048, help="samples of a clip")
    parser.add_argument("--work", type=Path, help="folder for the two runs (default: a new one)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "measurements" / "moved_run.png"
    )
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="moved-"))
    work.mkdir(parents=True, exist_ok=True)

    moved_at = []
    for part, devices in enumerate(MOVES, 1):
        last = part == len(MOVES)
        _train(arguments, work / "moved", devices, None if last else part * arguments.steps)
        moved_at.append(max(_losses(work / "moved")))
    _train(arguments, work / "still", MOVES[0], None)
    moved, still = _losses(work / "moved"), _losses(work / "still")
    if moved.keys() != still.keys():
        sys.exit(f"{work}: the two runs do not have the same steps")
    figures = {
        "moved_after_steps": moved_at[:-1],
        "steps": len(still),
        "largest_difference": max(abs(moved[step] - still[step]) for step in still),
        "first_loss": still[1],
        "last_loss": still[len(still)],
        "same_to_the_bit_on_the_same_devices": all(
            moved[step] == still[step] for step in range(1, moved_at[0] + 1)
        ),
    }
    _draw(arguments.output, moved, still, moved_at)
    print(json.dumps(figures))


def _train(arguments: argparse.Namespace, run: Path, devices: int, stop_at: int | None) -> None:
    """Trains on `devices` devices, to the end or until SIGTERM stops it after step `stop_at`."""
    fields = {
        **{"train.steps": len(MOVES) * arguments.steps, "train.batch_size": 8},
        "data.segment_length": arguments.clip,
        **{"train.iters_per_validation": 10**6, "train.synthesis_clips": 0},
        "train.validation_files": "",
        "train.validation_fraction": 0.0,
    }
    command = [sys.executable, ROOT / "train.py", arguments.config, "--data", arguments.data]
    command += ["--output", run]
    for name, value in fields.items():
        command += [f"--{name}", value]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    process = subprocess.Popen(list(map(str, command)), env=environment)
    while stop_at and process.poll() is None and len(_losses(run)) < stop_at:
        time.sleep(0.1)
    if stop_at:
        process.send_signal(signal.SIGTERM)
    code = process.wait()
    if code != (143 if stop_at else 0):
        sys.exit(f"{run}: ended with {code}")


def _losses(run: Path) -> dict[int, float]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return {}
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {line["step"]: line["loss"] for line in map(json.loads, whole) if "loss" in line}


def _draw(
    output: Path, moved: dict[int, float], still: dict[int, float], moved_at: list[int]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = sorted(still)
    above.plot(steps, [still[s] for s in steps], color="0.75", lw=5, label="8 devices throughout")
    colours = ("tab:blue", "tab:orange", "tab:green")
    for devices, first, last, colour in zip(
        MOVES, [1, *(at + 1 for at in moved_at)], moved_at, colours, strict=False
    ):
        part = [s for s in steps if first - 1 <= s <= last]
        label = f"moved: {devices} device{'s' * (devices > 1)}"
        above.plot(part, [moved[s] for s in part], color=colour, lw=1.3, label=label)
        below.semilogy(
            part, [max(abs(moved[s] - still[s]), 1e-9) for s in part], ".", color=colour, ms=4
        )
        if last != max(steps):
            for axes in (above, below):
                axes.axvline(last + 0.5, color="0.5", lw=0.8, ls="--")
    above.set_ylabel("training loss")
    above.margins(y=0.15)
    above.legend(frameon=False, ncols=4, loc="upper center", fontsize=8)
    above.set_title("One run, stopped and moved twice, over one that stayed")
    below.set_ylabel("difference\n(1e-9: none)")
    below.set_ylim(5e-10, 1e-3)
    below.set_xlabel("step")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


if __name__ == "__main__":
    main()
