"""Measures and checks the loader of a run on many hosts, with one loader process per host.

    python benchmarks/measurements/loader_hosts.py DATA [--hosts 32] [--chips 8] [--clips 16]
        [--config nvidia256] [--recordings N] [--at-once 2]

Every process does what a host does before its first step and in its first steps: it imports the
training code, looks for the recordings, makes the corpus's fingerprint, and reads its rows of
the validation batches and of the first training batches. Then it walks through two epochs (or two
steps, if these are more) without decoding, and tells which recording each of its clips comes from.
The program checks over all hosts that no position of the run's order of clips is missing or read
twice, and that each epoch has every recording as often as clips fit into it. It prints one JSON
line; the exit code is 1 if the check fails. Seconds are of the CPU, except for those named wall.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
MEASURED_BATCHES = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data")
    parser.add_argument("--config", default="nvidia256")
    parser.add_argument("--hosts", type=int, default=32)
    parser.add_argument("--chips", type=int, default=8, help="per host")
    parser.add_argument("--clips", type=int, default=16, help="per chip and step")
    parser.add_argument("--recordings", type=int, help="take only the first ones")
    parser.add_argument("--at-once", type=int, default=2, help="processes at the same time")
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.host is not None:
        print(json.dumps(one_host(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.at_once) as pool:
        data = _first_recordings(arguments, Path(folder))
        found = list(pool.map(lambda host: _process(arguments, data, host), range(arguments.hosts)))
    faults = faults_of([host["read"] for host in found], found[0]["fits"])
    print(json.dumps({"faults": faults, **_figures(arguments, found)}))
    return 1 if faults else 0


def _first_recordings(arguments: argparse.Namespace, folder: Path) -> str:
    if arguments.recordings is None:
        return arguments.data
    from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs

    some = find_inputs([arguments.data], AUDIO_SUFFIXES, with_outputs=False)
    listed = folder / "some.txt"
    paths = [str(found.path.resolve()) for found in some[: arguments.recordings]]
    listed.write_text("\n".join(paths) + "\n")
    return str(listed)


def _process(arguments: argparse.Namespace, data: str, host: int) -> dict[str, Any]:
    command = [sys.executable, __file__, data, "--host", str(host)]
    for name in ("config", "hosts", "chips", "clips"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"host {host}: {done.stderr}")
    return json.loads(done.stdout)


def one_host(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one host's process, and what it reads."""
    began, seconds = time.monotonic(), {}

    def passed(name: str) -> None:
        seconds[name] = time.process_time() - sum(seconds.values())

    from waveglow_jax.config import load_config
    from waveglow_jax.training import dataset, loop
    from waveglow_jax.training.fingerprint import fingerprint

    passed("import")
    batch = arguments.hosts * arguments.chips * arguments.clips
    config = load_config(arguments.config, {"train.batch_size": batch})
    corpus = dataset.scan_corpus(arguments.data, config)
    passed("look for recordings")
    json.dumps(fingerprint(corpus, config))
    passed("fingerprint")
    rows = rows_of(arguments.host, arguments.hosts, arguments.chips, batch)
    held_out = dataset.validation_batches(corpus.validation, config, batch, rows)
    passed("validation batches")
    batches = dataset.training_batches(corpus.training, config, rows=rows)
    with loop.Feed(batches) as feed:
        feed.next(loop.Stop(), 0.0)
        wall = time.monotonic() - began
        passed("first batch")
        for _ in range(MEASURED_BATCHES):
            feed.next(loop.Stop(), 0.0)
        passed("more batches")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    recordings = corpus.training
    n_clips = dataset.clips_per_epoch(recordings, config)
    steps = max(2, -(-2 * n_clips // batch))
    return {
        "seconds": seconds,
        "wall_to_first_batch": wall,
        "memory": memory,
        "validation_batches": len(held_out),
        "fits": fits(recordings, config),
        "read": read_by(recordings, config, rows, steps),
    }


def rows_of(host: int, hosts: int, chips: int, batch: int) -> range:
    """The rows that a host reads, from the layout of a training run on that number of hosts."""
    import jax

    from waveglow_jax.training.parallel import Layout

    devices = [
        SimpleNamespace(process_index=i // chips, id=i) for i in range(hosts * chips)
    ]  # stands for jax.Device
    with mock.patch.object(jax, "process_index", return_value=host):
        return Layout(tuple(devices)).rows(batch)  # type: ignore[arg-type]


def fits(recordings: Any, config: Any) -> list[int]:
    """How often each recording occurs in an epoch, computed apart from the loader."""
    segment = config.data.segment_length
    return [max(1, round(recording.n_samples / segment)) for recording in recordings]


def read_by(recordings: Any, config: Any, rows: range, steps: int) -> list[tuple[int, int]]:
    """(position in the run's order, number of the recording) of every clip that the rows get."""
    import numpy as np

    from waveglow_jax.training import dataset

    numbers = {recording.path: n for n, recording in enumerate(recordings)}

    def named(recording: Any, _frame: int, _config: Any) -> dict[str, Any]:
        return {"clips": np.asarray(numbers[recording.path])}

    with mock.patch.object(dataset, "read_example", named):
        batches = dataset.training_batches(recordings, config, rows=rows)
        some = [next(batches) for _ in range(steps)]
    return [
        (step * config.train.batch_size + int(row), int(number))
        for step, batch in enumerate(some)
        for row, number in zip(batch.index, batch.clips, strict=True)
    ]


def faults_of(reads: list[list[tuple[int, int]]], fits: list[int]) -> list[str]:
    """The faults in what the hosts have read together; none if every clip is read once."""
    both = sorted(clip for read in reads for clip in read)
    positions = [position for position, _ in both]
    if positions != list(range(len(both))):
        repeated = len(positions) - len(set(positions))
        missing = max(positions) + 1 - len(set(positions))
        return [f"{repeated} positions are read twice, {missing} are missing"]
    n_clips, wanted = sum(fits), {n: times for n, times in enumerate(fits)}
    return [
        f"epoch {epoch}: not every recording occurs as often as clips fit into it"
        for epoch in range(len(both) // n_clips)
        if Counter(n for _, n in both[epoch * n_clips : (epoch + 1) * n_clips]) != wanted
    ]


def _figures(arguments: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    clips = arguments.chips * arguments.clips
    seconds = {
        name: round(sum(host["seconds"][name] for host in found) / len(found), 3)
        for name in found[0]["seconds"]
    }
    a_clip = seconds.pop("more batches") / MEASURED_BATCHES / clips
    n_clips = sum(found[0]["fits"])
    recordings = [len({number for _, number in host["read"]}) for host in found]
    return {
        "hosts": len(found),
        "recordings": len(found[0]["fits"]),
        "clips_per_epoch": n_clips,
        "steps_per_epoch": round(n_clips / clips / len(found), 2),
        "clips_per_host_and_step": clips,
        "recordings_per_host_in_two_epochs": [min(recordings), max(recordings)],
        "seconds": seconds,
        "seconds_to_first_batch": round(sum(seconds.values()), 3),
        "wall_seconds_to_first_batch": [
            round(pick(host["wall_to_first_batch"] for host in found), 1) for pick in (min, max)
        ],
        "milliseconds_per_clip": round(1e3 * a_clip, 3),
        "memory_mib": [pick(host["memory"] for host in found) >> 20 for pick in (min, max)],
    }


if __name__ == "__main__":
    sys.exit(main())
