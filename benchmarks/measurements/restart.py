"""Measures the time from the restart of a training run to its first step, with and without the
compiled programs of RUN/programs.

    python benchmarks/measurements/restart.py [--config voice] [--devices 8] [--work FOLDER]

The run is `train.py` on the bundled recordings and simulated CPU devices. It is killed by SIGKILL
after its first checkpoint, and then restarted twice from that checkpoint: without a cache of
programs, as in older versions, and with RUN/programs. Each restart is killed after its first
step. The program prints a row of a table per life: seconds of wall time and of CPU from the start
of the process to the first step, the programs compiled and those read from the folder.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "waveglow_jax" / "assets" / "voice" / "recordings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="voice")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--clip", type=int, default=2048, help="samples of a clip")
    parser.add_argument("--work", type=Path, help="folder for the run (default: a new one)")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="restart-"))
    work.mkdir(parents=True, exist_ok=True)
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(
        f"{arguments.config}, {arguments.devices} CPU devices, clips of {arguments.clip} samples; "
        f"{processor[1] if processor else '?'}, {os.cpu_count()} cores\n\n"
        "| life | wall, s | CPU, s | compiled | read |\n| --- | --- | --- | --- | --- |",
        flush=True,
    )
    for life, cache in (("first start", True), ("restart, no cache", False), ("restart", True)):
        seconds, cpu, log = _live(arguments, work, cache)
        miss = "PERSISTENT COMPILATION CACHE MISS"  # without a cache JAX logs each compilation
        compiled = len(re.findall(miss if cache else "Finished XLA compilation", log))
        read = log.count("compilation cache hit")
        print(f"| {life} | {seconds:.0f} | {cpu:.0f} | {compiled} | {read} |", flush=True)
    size = sum(path.stat().st_size for path in (work / "run" / "programs").iterdir())
    print(f"\nRUN/programs: {size / 2**20:.1f} MiB")


def _live(arguments: argparse.Namespace, work: Path, cache: bool) -> tuple[float, float, str]:
    """One life of the run: wall and CPU seconds to its first step, and its log."""
    run, log = work / "run", work / "log.txt"
    fields = {
        **{"train.steps": 1000, "train.epochs": 0, "train.batch_size": arguments.devices},
        **{"data.segment_length": arguments.clip, "train.iters_per_checkpoint": 2},
        **{"train.validation_files": "", "train.validation_fraction": 0.0},
    }
    command = [sys.executable, ROOT / "train.py", arguments.config, "--data", RECORDINGS]
    command += ["--output", run]
    for name, value in fields.items():
        command += [f"--{name}", value]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"},
        **{"JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1", "JAX_EXPLAIN_CACHE_MISSES": "1"},
        "JAX_ENABLE_COMPILATION_CACHE": str(cache).lower(),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={arguments.devices}",
    }
    saved = _saved(run)
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=file, stderr=file
        )
    seconds = 0.0
    while not (seconds and _saved(run)):
        if process.poll() is not None:
            sys.exit(f"{log}: ended with {process.returncode}")
        # Once it trains, it has removed what an earlier life recorded after its checkpoint.
        if not seconds and "; compiling" in log.read_text() and _has_step(run, saved + 1):
            seconds = time.monotonic() - began
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    return seconds, usage.ru_utime + usage.ru_stime, log.read_text()


def _saved(run: Path) -> int:
    """The step of the latest complete checkpoint; 0 without one."""
    return max((int(p.parent.name) for p in run.glob("checkpoints/[0-9]*/SHA256SUMS")), default=0)


def _has_step(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


if __name__ == "__main__":
    main()
