"""One run in several processes, each with its own CPU devices and its own share of the data."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_training import losses, recordings, tiny_config  # noqa: F401

from waveglow_jax.config import config_to_json
from waveglow_jax.errors import UserError
from waveglow_jax.training import loop
from waveglow_jax.training.dataset import scan_corpus, training_batches, validation_batches
from waveglow_jax.training.processes import enough_threads, in_cluster, join

ROOT = Path(__file__).parent.parent


def start(
    config: Path,
    data: Path,
    run: Path,
    processes: int,
    devices: int,
    slurm: bool = False,
    share: bool = False,
) -> list[subprocess.Popen]:
    """Starts train.py in several processes; only the first one writes the run.

    slurm: the processes are named by the environment of Slurm's srun, not by flags. share: all
    processes see the run's folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, ROOT / "train.py", config, "--data", data]
    started = []
    for process in range(processes):
        output = run if process == 0 or share else run.with_name(f"unused{process}")
        many = ["--coordinator", f"localhost:{port}", "--processes", processes]
        many = [*many, "--process", process] if processes > 1 and not slurm else []
        if slurm:
            environment |= {
                **{"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost"},
                **{"SLURM_NTASKS": str(processes), "SLURM_PROCID": str(process)},
                **{"SLURM_LOCALID": str(process), "SLURM_STEP_NUM_NODES": "1"},
            }
        arguments = [str(a) for a in (*command, "--output", output, *many)]
        log = open(run.with_name(f"{run.name}.{process}.log"), "w")  # noqa: SIM115
        started.append(subprocess.Popen(arguments, stdout=log, stderr=log, env=environment))
    return started


def ended(run: Path, started) -> list[int]:
    codes = []
    for process in started:
        try:
            codes.append(process.wait(300))
        except subprocess.TimeoutExpired:
            for each in started:
                each.kill()
            logs = [run.with_name(f"{run.name}.{i}.log").read_text() for i in range(len(started))]
            raise AssertionError("\n".join(logs)) from None
    return codes


@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_one_goes_on(recordings, tmp_path):  # noqa: F811
    """The signal goes to the process that writes nothing; the run equals that of one process."""
    (tmp_path / "config.json").write_text(
        config_to_json(
            tiny_config(steps=10**6, validation_fraction=0.0, iters_per_checkpoint=10**6)
        )
    )
    started = start(tmp_path / "config.json", recordings, tmp_path / "run", 2, 2)
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"loss"') > 4):
        assert all(process.poll() is None for process in started), ended(tmp_path / "run", started)
        time.sleep(0.02)
    started[1].send_signal(signal.SIGTERM)
    assert ended(tmp_path / "run", started) == [143, 143]
    assert not (tmp_path / "unused1").exists()
    log = (tmp_path / "run.0.log").read_text()
    step = int(re.search(r"stopped by a signal to another process at step (\d+), saved", log)[1])
    assert "4 cpu devices in 2 processes" in log and max(losses(tmp_path / "run")) == step
    config = tiny_config(steps=step + 3, validation_fraction=0.0)
    with pytest.raises(UserError, match=r"training files: 4.wav is gone, 5.wav is gone; put"):
        few = tmp_path / "few.txt"
        few.write_text("".join(f"{recordings}/{i}.wav\n" for i in range(4)))
        loop.train(config, str(few), tmp_path / "run")
    assert loop.train(config, str(recordings), tmp_path / "run").stopped_by is None
    assert loop.train(config, str(recordings), tmp_path / "alone").stopped_by is None
    together, alone = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert list(together) == list(alone) == list(range(1, step + 4))
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-3)
    first = range(1, 6)
    np.testing.assert_allclose([together[i] for i in first], [alone[i] for i in first], rtol=1e-5)


@pytest.mark.stress
def test_losses_do_not_depend_on_processes_and_devices(recordings, tmp_path):  # noqa: F811
    config = tiny_config(steps=8)
    (tmp_path / "config.json").write_text(config_to_json(config))
    found = {}
    for processes, devices in ((1, 8), (2, 4), (4, 2)):
        run = tmp_path / f"{processes}x{devices}"
        started = start(tmp_path / "config.json", recordings, run, processes, devices)
        assert ended(run, started) == [0] * processes
        found[run.name] = losses(run)
    for name, curve in found.items():
        differences = [abs(curve[step] - found["1x8"][step]) for step in range(1, 9)]
        print(json.dumps({"processes x devices": name, "largest difference": max(differences)}))
        assert max(differences) < 1e-5


@pytest.mark.stress
def test_a_run_moves_between_numbers_of_processes(recordings, tmp_path):  # noqa: F811
    """On 8 devices, 4, 1, then 2 processes of 4, the curve is that of a run that never moved."""
    layouts, run = ((1, 8), (1, 4), (1, 1), (2, 4)), tmp_path / "moved"
    for part, (processes, devices) in enumerate(layouts, 1):
        config = tmp_path / f"{part}.json"
        config.write_text(config_to_json(tiny_config(steps=2 * part)))
        started = start(config, recordings, run, processes, devices)
        assert ended(run, started) == [0] * processes
    assert loop.train(tiny_config(steps=8), str(recordings), tmp_path / "still").stopped_by is None
    moved, still = losses(run), losses(tmp_path / "still")
    assert list(moved) == list(still)
    np.testing.assert_allclose(list(moved.values()), list(still.values()), atol=1e-5)


@pytest.mark.stress
def test_a_killed_process_ends_the_others_of_a_slurm_job(recordings, tmp_path):  # noqa: F811
    (tmp_path / "config.json").write_text(config_to_json(tiny_config(steps=10**6)))
    run = tmp_path / "run"
    started = start(tmp_path / "config.json", recordings, run, 2, 1, slurm=True)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"loss"') > 4):
        time.sleep(0.02)
    started[1].kill()
    assert ended(run, started) == [os.EX_TEMPFAIL, -signal.SIGKILL]
    assert "another process of the run was lost" in (tmp_path / "run.0.log").read_text()


@pytest.mark.stress
def test_a_preempted_run_loses_only_time(tmp_path):
    """A SIGKILL to the first process and a SIGTERM to another; a supervisor restarts all four."""
    command = [sys.executable, ROOT / "benchmarks/stress/preemption.py", "--kills", "2"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [*command, "--seed", "30", "--work", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, _, figures = map(json.loads, done.stdout.splitlines())
    assert first["victim"] == 0 and figures["kills"] == 2 and figures["losses_equal"]


def test_an_abort_of_xla_is_explained():
    """The abort comes in a thread that Python does not know, while the main thread works."""
    program = """if True:
        import ctypes, threading, time
        from waveglow_jax.training.processes import aborts_explained
        abort = ctypes.CDLL(None).abort
        {}:
            threading.Thread(target=abort).start()
            while time.sleep(0.01) is None:
                pass
    """
    found = []
    for block in ("with aborts_explained()", "if True"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(block)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        found.append((done.returncode, done.stderr))
    (code, said), (without, _) = found
    assert code == os.EX_TEMPFAIL and without == -signal.SIGABRT
    (line,) = said.splitlines()
    assert "process 0" in line and "another process of the run was lost" in line


def test_each_process_reads_its_rows_only(recordings, tmp_path, monkeypatch):  # noqa: F811
    from waveglow_jax.training import dataset

    config = tiny_config(validation_clips=5)
    corpus = scan_corpus(str(recordings), config)
    whole = next(training_batches(corpus.training, config))
    held_out = validation_batches(corpus.validation, config, 8)
    read = []
    real = dataset.read_context_clip

    def counted(*arguments):
        if threading.current_thread() is threading.main_thread():  # not the loader's, reading ahead
            read.append(arguments)
        return real(*arguments)

    shares = (range(0, 2), range(2, 6), range(6, 8))
    for rows in shares:
        batch = next(training_batches(corpus.training, config, rows=rows))
        for name in ("clips", "index"):
            part = getattr(whole, name)[rows.start : rows.stop]
            np.testing.assert_array_equal(getattr(batch, name), part)
    monkeypatch.setattr(dataset, "read_context_clip", counted)
    for rows in shares:
        read.clear()
        (batch,) = validation_batches(corpus.validation, config, 8, rows)
        assert len(read) == len(rows)
        for name in ("clips", "index", "weight"):
            part = getattr(held_out[0], name)[rows.start : rows.stop]
            np.testing.assert_array_equal(getattr(batch, name), part)


def test_where_other_processes_are_looked_for():
    slurm = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "16"}
    mpi = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
    kubernetes = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    tpu = {"TPU_WORKER_HOSTNAMES": "a,b"}
    assert all(in_cluster(environment) for environment in (slurm, mpi, kubernetes, tpu))
    alone = [{}, {**slurm, "SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "16"}]
    alone += [{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}]
    alone += [{**tpu, "JAX_PLATFORMS": "cpu"}]
    assert not any(in_cluster(environment) for environment in alone)


def test_half_of_the_flags_is_refused():
    with pytest.raises(UserError, match="give all three"):
        join("localhost:1234", None, 0)


def test_more_cpu_devices_than_cores_get_threads_enough(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for devices, threads in ((4, None), (8, "16")):
        environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --other"}
        enough_threads(environment)
        assert environment.get("NPROC") == threads
    kept = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "3"}
    enough_threads(kept)
    assert kept["NPROC"] == "3"
