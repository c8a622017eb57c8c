"""Kills a training run again and again, mostly inside a save, and checks that its loss curve is
that of an undisturbed run.

    python benchmarks/stress/chaos.py --kills 100 [--seed 0] [--workers 0] [--work FOLDER]
    python benchmarks/stress/chaos.py --kills 20 --signal TERM

Every life is a process of its own that runs the train command and gets SIGKILL. Each life is forked
from one process that has imported everything, so that it starts in a second. The run is real but
tiny: configs/tiny.json on the bundled recordings, with a checkpoint every 4 steps. The program
prints one JSON line of figures. Its exit code is 0 if every loss, validation loss and parameter is
the same to the bit. With SIGTERM instead of SIGKILL, a life ends by itself, and the figures give
the seconds that this took.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "waveglow_jax" / "assets" / "voice" / "recordings"
SAVE_SHARE = 0.75
"""Share of the kills that wait for a save; some of them come too late for it."""
LONGEST_LIFE = 300.0
ENDS = {"KILL": (-signal.SIGKILL,), "TERM": (143, -signal.SIGTERM)}
"""Exit statuses of a life by signal; a life dies of SIGTERM itself only before training begins."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, help="of the run (default: 10 a kill)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read recordings")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--work", type=Path, help="folder for the two runs (default: a new one)")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="chaos-"))
    work.mkdir(parents=True, exist_ok=True)
    steps = arguments.steps or 10 * arguments.kills
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(work / "programs")
    prepare()

    began = time.monotonic()
    calm, wild = work / "calm", work / "wild"
    code = wait(_start(calm, steps, arguments.workers, work))
    if code:
        sys.exit(f"the undisturbed run ended with {code}: see {work}/log.txt")
    life = _seconds_to_first_save(work / "warm", steps, arguments.workers, work)
    kills = [_kill(wild, steps, arguments, life, i) for i in range(arguments.kills)]
    code = wait(_start(wild, steps, arguments.workers, work))
    waits = [kill["seconds"] for kill in kills if kill["killed"]]
    figures = {
        "kills": sum(kill["killed"] for kill in kills),
        "inside_a_save": sum(kill["in_save"] for kill in kills),
        "before_the_first_step": sum(kill["killed"] and not kill["steps"] for kill in kills),
        "signal": arguments.signal,
        "seconds_to_end": [round(q, 2) for q in np.quantile(waits, [0.5, 1])],
        "seed": arguments.seed,
        "steps": steps,
        "last_exit_code": code,
        "seconds": round(time.monotonic() - began),
        **compare(calm, wild),
    }
    print(json.dumps(figures))
    same = figures["losses_equal"] and figures["parameters_equal"]
    return 0 if same and code == 0 and figures["kills"] == arguments.kills else 1


def prepare() -> None:
    """Imports everything but starts nothing, so that forks of this process are safe."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    sys.path.insert(0, str(ROOT))
    import tensorboardX  # noqa: F401

    import waveglow_jax.training.loop  # noqa: F401


def _start(run: Path, steps: int, workers: int, work: Path) -> int:
    return start(run, steps, {"train.num_workers": workers}, work / "log.txt")


def start(run: Path, steps: int, more: dict[str, object], log: Path) -> int:
    """Starts a life of the run, with more fields or flags, and returns its process id."""
    command = [str(ROOT / "configs" / "tiny.json"), "--data", str(RECORDINGS), "--output", str(run)]
    fields = {
        **{"waveglow.n_flows": 2, "waveglow.WN_config.n_layers": 1, "data.segment_length": 2048},
        **{"train.steps": steps, "train.batch_size": 2, "train.epochs": 0, "train.ema_decay": 0.9},
        **{"train.iters_per_checkpoint": 4, "train.iters_per_validation": 4},
        **{"train.validation_fraction": 0.5, "train.validation_clips": 2},
        **{"train.synthesis_clips": 0, "train.keep_checkpoints": 2, **more},
    }
    for name, value in fields.items():
        command += [f"--{name}", str(value)]
    process = os.fork()
    if process:
        return process
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 70
    try:
        from waveglow_jax.cli import run_single

        code = run_single("train", command)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _seconds_to_first_save(run: Path, steps: int, workers: int, work: Path) -> float:
    began = time.monotonic()
    process = _start(run, steps, workers, work)
    while not _in_progress(run) and time.monotonic() - began < LONGEST_LIFE:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    wait(process)
    return time.monotonic() - began


def _kill(
    run: Path, steps: int, arguments: argparse.Namespace, life: float, number: int
) -> dict[str, float]:
    """Starts one life and kills it at a random moment, or shortly after a save has begun."""
    rng = np.random.default_rng([arguments.seed, number])
    before = finished_steps(run)
    process = _start(run, steps, arguments.workers, run.parent)
    began = time.monotonic()
    saves_to_see = int(rng.integers(1, 4)) if rng.random() < SAVE_SHARE else 0
    moment = rng.uniform(0, 0.15) if saves_to_see else rng.uniform(0, 1.3 * life)
    seen: set[str] = set()
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        elapsed = time.monotonic() - began
        seen |= _in_progress(run)
        if (saves_to_see and len(seen) >= saves_to_see) or elapsed > LONGEST_LIFE:
            time.sleep(moment)
        elif saves_to_see or elapsed < moment:
            time.sleep(0.001)
            continue
        in_save, sent = bool(_in_progress(run)), time.monotonic()
        os.kill(process, signal.Signals[f"SIG{arguments.signal}"])
        status = wait(process)
        if arguments.signal == "KILL":  # nothing more can have happened
            in_save = bool(_in_progress(run))
        return {
            "killed": status in ENDS[arguments.signal],
            "in_save": in_save,
            "seconds": time.monotonic() - sent,
            "steps": finished_steps(run) - before,
        }
    return {"killed": False, "in_save": False, "seconds": 0.0, "steps": 0}


def _in_progress(run: Path) -> set[str]:
    """Checkpoints that have been begun but not finished, which have no checksums yet."""
    try:
        folders = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        return set()
    return {
        name.split(".")[0]
        for name in folders
        if not (run / "checkpoints" / name / "SHA256SUMS").exists()
    }


def finished_steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def compare(calm: Path, wild: Path) -> dict[str, object]:
    import jax

    from waveglow_jax.weights.run import load_run_voice

    curves = [_curve(run) for run in (calm, wild)]
    differ = sorted(key for key in curves[0] if curves[1].get(key) != curves[0][key])
    params = [jax.tree.leaves(load_run_voice(run)[1]) for run in (calm, wild)]
    return {
        "losses_equal": curves[0] == curves[1],
        "first_difference": differ[0] if differ else None,
        "parameters_equal": all(map(np.array_equal, *params)),
    }


def _curve(run: Path) -> dict[tuple[int, str], float]:
    """(step, kind) -> loss. Ends the program if a step has two lines of one kind."""
    curve: dict[tuple[int, str], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        for kind in ("loss", "validation_loss"):
            if kind in figures:
                key = (figures["step"], kind)
                if key in curve:
                    raise SystemExit(f"{run}/metrics.jsonl: step {key[0]} has two lines of {kind}")
                curve[key] = figures[kind]
    return curve


if __name__ == "__main__":
    sys.exit(main())
