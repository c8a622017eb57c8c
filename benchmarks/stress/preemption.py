"""Kills one of several processes of a training run again and again, restarts the run each time as a
supervisor (GKE, Slurm, a loop in a shell) does, and checks that only time is lost.

    python benchmarks/stress/preemption.py --processes 4 --kills 6 [--seed 0] [--work FOLDER]

The run is that of chaos.py with one simulated CPU device per process, and its compiled programs in
RUN/programs. SIGKILL and SIGTERM take turns; victim and moment are random. The program prints one
JSON line per kill: the exit codes, the steps lost, and the seconds until the last process ended and
from the start of this life to its first step and to the step of the kill before. The last line has
the figures of the whole run, with the seconds lost for each kill but the last. The exit code is 0
if

- the processes that were left ended by themselves, with a code that a supervisor restarts on,
- metrics.jsonl has each step once, with the losses of an undisturbed run to the bit,
- all checkpoints have their checksums, and the final parameters are the same to the bit.
"""

import argparse
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from chaos import compare, finished_steps, prepare, start, wait

RESTARTED = {os.EX_TEMPFAIL, 128 + signal.SIGTERM}
"""Exit codes on which the manual's supervisors start the run again, beside that of the victim."""
LONGEST_START = 600.0
LONGEST_END = 120.0
"""Seconds after a kill until the processes that are left count as hanging."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--steps", type=int, help="of the run (default: 10 a kill)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the two runs (default: a new one)")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="preemption-"))
    work.mkdir(parents=True, exist_ok=True)
    steps = arguments.steps or 10 * arguments.kills
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    prepare()

    began = time.monotonic()
    calm, wild = work / "calm", work / "wild"
    codes = _ends(_start_all(calm, steps, arguments.processes))
    if any(codes):
        sys.exit(f"the undisturbed run ended with {codes}: see {work}/calm.*.log")
    kills = []
    for number in range(arguments.kills):
        kills.append(_kill(wild, steps, arguments.processes, [arguments.seed, number]))
        print(json.dumps(kills[-1]), flush=True)
    codes = _ends(_start_all(wild, steps, arguments.processes))
    figures = {
        "kills": sum(kill["killed"] for kill in kills),
        "hanging": sum(kill["hanging"] for kill in kills),
        "other_codes": sum(kill["other_codes"] for kill in kills),
        "seconds_to_end": max(kill["seconds_to_end"] for kill in kills),
        "seconds_lost": [
            round(kill["seconds_to_end"] + restart["seconds_to_regain"], 1)
            for kill, restart in itertools.pairwise(kills)
        ],
        "steps_lost": sum(kill["steps_lost"] for kill in kills),
        "last_exit_codes": codes,
        "seconds": round(time.monotonic() - began),
        "checkpoints_whole": _all_whole(wild),
        **compare(calm, wild),
    }
    print(json.dumps(figures))
    same = figures["losses_equal"] and figures["parameters_equal"] and figures["checkpoints_whole"]
    bad = any(codes) or figures["hanging"] or figures["other_codes"]
    return 0 if same and not bad and figures["kills"] == arguments.kills else 1


def _start_all(run: Path, steps: int, processes: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ids = []
    for process in range(processes):
        more = {
            **{"coordinator": f"localhost:{port}", "processes": processes, "process": process},
            **{"train.batch_size": processes, "train.num_workers": 0},
        }
        ids.append(start(run, steps, more, run.with_name(f"{run.name}.{process}.log")))
    return ids


def _ends(ids: list[int]) -> list[int]:
    return [wait(each) for each in ids]


def _kill(run: Path, steps: int, processes: int, seed: list[int]) -> dict[str, object]:
    """Starts all processes, kills one after a random step, and waits for the end of all."""
    rng = np.random.default_rng(seed)
    number = signal.SIGTERM if seed[1] % 2 else signal.SIGKILL
    victim, more_steps = int(rng.integers(processes)), int(rng.integers(1, 8))
    before, began, lives = finished_steps(run), time.monotonic(), _lives(run)
    ids = _start_all(run, steps, processes)
    _until(lambda: _lives(run) > lives)  # the steps after the last checkpoint are removed now
    first_step = finished_steps(run) + 1
    _until(lambda: finished_steps(run) >= first_step)
    started = time.monotonic() - began
    _until(lambda: finished_steps(run) >= before)
    regained = time.monotonic() - began
    _until(lambda: finished_steps(run) >= max(first_step, before) + more_steps)
    os.kill(ids[victim], number)
    sent, codes = time.monotonic(), {}
    while len(codes) < processes and time.monotonic() - sent < LONGEST_END:
        for process, each in enumerate(ids):
            if process not in codes and (status := os.waitpid(each, os.WNOHANG))[0]:
                codes[process] = os.waitstatus_to_exitcode(status[1])
        time.sleep(0.01)
    seconds = time.monotonic() - sent
    for process, each in enumerate(ids):
        if process not in codes:
            os.kill(each, signal.SIGKILL)
            wait(each)
    rest = [code for process, code in codes.items() if process != victim]
    return {
        "signal": number.name,
        "victim": victim,
        "killed": codes.get(victim) in (-number, 128 + signal.SIGTERM),
        "codes": [codes.get(process) for process in range(processes)],
        "hanging": processes - len(codes),
        "other_codes": sum(code not in RESTARTED for code in rest),
        "seconds_to_first_step": round(started, 1),
        "seconds_to_regain": round(regained, 1),
        "seconds_to_end": round(seconds, 1),
        "steps_lost": finished_steps(run) - _saved(run),
    }


def _until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > LONGEST_START:
            sys.exit(f"nothing happened for {LONGEST_START:.0f} seconds")
        time.sleep(0.005)


def _lives(run: Path) -> int:
    """How often the first process has begun to train."""
    log = run.with_name(f"{run.name}.0.log")
    return log.read_text().count("; compiling") if log.exists() else 0


def _saved(run: Path) -> int:
    """The step of the latest complete checkpoint; 0 without one."""
    return max((int(p.parent.name) for p in run.glob("checkpoints/[0-9]*/SHA256SUMS")), default=0)


def _all_whole(run: Path) -> bool:
    from waveglow_jax.weights.manifest import verify

    folders = list((run / "checkpoints").iterdir())
    return bool(folders) and all(verify(folder) for folder in folders)


if __name__ == "__main__":
    sys.exit(main())
