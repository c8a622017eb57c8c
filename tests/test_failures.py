"""What happens to a run: kills, signals, full disks, damaged files, changed and bad recordings."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from test_training import PROGRESS, RATE, losses, recordings, speech_like, tiny_config  # noqa: F401

from waveglow_jax.errors import UserError
from waveglow_jax.training import loop
from waveglow_jax.training.checkpoints import Checkpoints, NotSavedError
from waveglow_jax.training.dataset import scan_corpus, training_batches
from waveglow_jax.training.feed import Feed
from waveglow_jax.training.fingerprint import check_unchanged, fingerprint
from waveglow_jax.training.lock import locked
from waveglow_jax.training.parallel import Layout
from waveglow_jax.training.step import init_state
from waveglow_jax.training.stopping import Stop, Stopped, signals, still_working
from waveglow_jax.training.watching.monitor import Monitor
from waveglow_jax.weights.manifest import DamagedError, verify, write_manifest
from waveglow_jax.weights.release import read_weights

ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------------------ two on one run


def test_a_run_has_one_writer(tmp_path):
    run = tmp_path / "runs/a"
    with locked(run):
        mine = f"{run}: another train.py is at work there .process {os.getpid()} on .*--output"
        with pytest.raises(UserError, match=mine):
            loop.train(tiny_config(), str(tmp_path), run)
        assert os.listdir(run) == [".lock"]
    assert not run.exists()  # no folder is left
    with locked(run):
        (run / "config.json").write_text("{}")
    assert os.listdir(run) and not locks_held(run)


def locks_held(run: Path) -> bool:
    try:
        with locked(run):
            return False
    except UserError:
        return True


def test_the_lock_ends_with_its_process(tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from waveglow_jax.training.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"process {other.pid} on"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    assert not locks_held(tmp_path)


def test_where_there_are_no_locks_a_line_says_so(tmp_path, monkeypatch, capsys):
    def no_locks(file: int, how: int):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}: its file system has no locks")


# ------------------------------------------------------------------------------ checkpoints


def saved_run(folder: Path, steps=(1, 2, 3)) -> None:
    """A run with checkpoints in which every parameter equals the step."""
    config = tiny_config(keep_checkpoints=9)
    state = init_state(config)
    validation = {1: -1.0, 2: -3.0, 3: -4.0}
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            params = jax.tree.map(lambda leaf, step=step: leaf * 0 + step, state.params)
            saved = state.replace(step=jnp.asarray(step), params=params)
            checkpoints.save(saved, PROGRESS, validation[step])
    (folder / "config.json").write_text(loop.config_to_json(config))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damage_of_any_file_is_detected_and_named(tmp_path, damage):
    saved_run(tmp_path / "run", steps=[3])
    checkpoint = tmp_path / "run/checkpoints/3"
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 15 and verify(checkpoint)
    for path in files:
        copy = tmp_path / "copy"
        shutil.copytree(checkpoint, copy)
        damage(copy / path.relative_to(checkpoint))
        if path.name == "SHA256SUMS" and damage is Path.unlink:
            assert verify(copy) is False  # as in older versions, which wrote no checksums
        elif path.name == "SHA256SUMS":
            with pytest.raises(DamagedError):
                verify(copy)
        else:
            with pytest.raises(DamagedError, match=str(path.relative_to(checkpoint))):
                verify(copy)
        shutil.rmtree(copy)


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path):
    saved_run(tmp_path)
    voice = next((tmp_path / "checkpoints/3/voice/d").iterdir())
    flip(voice)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        params = read_weights(tmp_path).params
    assert any(str(voice) in str(w.message) and "step 2" in str(w.message) for w in told)
    assert (jax.tree.leaves(params)[0] == 2).all()
    with Checkpoints(tmp_path, tiny_config()) as checkpoints:
        assert checkpoints.latest_step == 2
        (line,) = checkpoints.told
        assert str(voice) in line and str(tmp_path / "damaged/3") in line
        state, _ = checkpoints.restore(2)
        # The step is done again, and saved again.
        checkpoints.save(state.replace(step=np.asarray(3)), PROGRESS, -4.0)
    assert verify(tmp_path / "checkpoints/3") and not (tmp_path / "damaged/3/3").exists()
    for folder in (tmp_path / "checkpoints").iterdir():
        cut(next((folder / "voice/d").iterdir()))
    with pytest.raises(UserError, match="no checkpoint is whole"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint is whole.*put back a copy"):
        Checkpoints(tmp_path, tiny_config())


@pytest.mark.slow
def test_checkpoints_of_before_the_checksums_load_with_a_line(tmp_path):
    saved_run(tmp_path)
    for step in (1, 2, 3):
        (tmp_path / f"checkpoints/{step}/SHA256SUMS").unlink()
    assert (jax.tree.leaves(read_weights(tmp_path).params)[0] == 3).all()
    with Checkpoints(tmp_path, tiny_config()) as checkpoints:
        (line,) = checkpoints.told
        assert "3: has no SHA256SUMS" in line
        assert int(checkpoints.restore(3)[0].step) == 3


@pytest.mark.slow
def test_what_a_cut_short_deletion_leaves_is_no_checkpoint(tmp_path):
    saved_run(tmp_path)
    for name in ("SHA256SUMS", "_CHECKPOINT_METADATA", "host/metadata"):
        (tmp_path / "checkpoints/3" / name).unlink()
    assert (jax.tree.leaves(read_weights(tmp_path).params)[0] == 2).all()
    with Checkpoints(tmp_path, tiny_config()) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.told) == (2, [])
    assert not (tmp_path / "checkpoints/3").exists()


@pytest.mark.slow
def test_the_best_is_remembered_by_the_next_start(tmp_path):
    config = tiny_config(keep_checkpoints=1)
    state = init_state(config)
    for step, loss in ((1, -3.0), (2, -2.0), (3, -1.0)):
        with Checkpoints(tmp_path, config) as checkpoints:
            checkpoints.save(state.replace(step=jnp.asarray(step)), PROGRESS, loss)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["1", "3"]


@pytest.mark.slow
def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_bytes(b"abc")
    write_manifest(tmp_path)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{known}  sub/a\n"


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path):
    """Runs as another user if the tests run as the superuser, who may write everywhere."""
    config = tiny_config()
    state = init_state(config)
    folder = tmp_path / "checkpoints"
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(state.replace(step=jnp.asarray(1)), PROGRESS, None)
        me = os.geteuid()
        folder.chmod(0o555)
        try:
            if me == 0:
                for parent in [tmp_path, *tmp_path.parents][:5]:
                    parent.chmod(parent.stat().st_mode | 0o055)
                os.seteuid(65534)
            with pytest.raises(NotSavedError, match=r"step 2 not saved \(.*ermission denied"):
                checkpoints.save(state.replace(step=jnp.asarray(2)), PROGRESS, None)
        finally:
            os.seteuid(me)
            folder.chmod(0o755)
        assert checkpoints.latest_step == 1 and verify(folder / "1")
        checkpoints.save(state.replace(step=jnp.asarray(2)), PROGRESS, None)
        assert int(checkpoints.restore(2)[0].step) == 2


# ------------------------------------------------------------------------------ recordings


def test_changed_recordings_are_named(recordings, tmp_path):  # noqa: F811
    shutil.copytree(recordings, tmp_path / "a")
    config = tiny_config()
    before = json.loads(json.dumps(fingerprint(scan_corpus(str(tmp_path / "a"), config), config)))

    def now(folder, config=config):
        return fingerprint(scan_corpus(str(tmp_path / folder), config), config)

    (tmp_path / "a").rename(tmp_path / "moved")
    check_unchanged(before, now("moved"))
    soundfile.write(tmp_path / "moved/3.wav", speech_like(0.5, 0), RATE)
    with pytest.raises(UserError, match=r"training files: 3.wav had [\d,]+ .* --allow-chan"):
        check_unchanged(before, now("moved"))
    (tmp_path / "moved/5.wav").unlink()
    with pytest.raises(UserError, match=r"validation files: 5.wav is gone"):
        check_unchanged(before, now("moved"))
    with pytest.raises(UserError, match="seed 1234, now 7"):
        check_unchanged(before, now("moved", tiny_config(seed=7)))


def test_another_share_held_out_is_no_lost_recording(recordings):  # noqa: F811
    """Every file is still there: the message is about the split."""

    def at(fraction: float):
        config = tiny_config(validation_fraction=fraction)
        return json.loads(json.dumps(fingerprint(scan_corpus(str(recordings), config), config)))

    for before, now in ((0.34, 0.0), (0.0, 0.34), (0.34, 0.5)):
        with pytest.raises(UserError, match=r"others are held out.*validation_fraction") as told:
            check_unchanged(at(before), at(now))
        assert "gone" not in str(told.value) and "new" not in str(told.value)


def test_a_failed_start_leaves_no_folder(recordings, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        loop.train(tiny_config(), str(tmp_path / "empty"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # the user's own folder stays
    with pytest.raises(UserError):
        loop.train(tiny_config(), str(tmp_path / "empty"), tmp_path / "run")
    assert (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_that_do_not_fit_leave_no_folder(recordings, tmp_path):  # noqa: F811
    """The fault is found only after the folder was made."""
    other = init_state(tiny_config()).params
    other = {name: other[name] for name in list(other)[1:]}
    with pytest.raises(Exception):  # noqa: B017 - whatever it is
        loop.train(tiny_config(), str(recordings), tmp_path / "run", other)
    assert not (tmp_path / "run").exists()


def test_a_broken_recording_changes_nothing_but_its_own_clips(recordings, tmp_path):  # noqa: F811
    shutil.copytree(recordings, tmp_path / "in")
    config = tiny_config()
    corpus = scan_corpus(str(tmp_path / "in"), config)

    def take():
        batches = training_batches(corpus.training, config, first_position=64)
        return [next(batches) for _ in range(8)]

    whole = take()
    broken = 1
    corpus.training[broken].path.write_bytes(b"RIFF" + bytes(40))
    after, again = take(), take()
    replaced = 0
    for a, b, c in zip(whole, after, again, strict=True):
        np.testing.assert_array_equal(b.clips, c.clips)
        bad = b.unreadable == broken
        assert (b.unreadable[~bad] == -1).all() and (a.unreadable == -1).all()
        np.testing.assert_array_equal(a.clips[~bad], b.clips[~bad])
        assert not (a.clips[bad] == b.clips[bad]).all(axis=1).any()
        replaced += bad.sum()
    assert 0 < replaced < 64
    for recording in corpus.training:
        recording.path.unlink()
    with pytest.raises(UserError, match="16 recordings in a row could not be read"):
        take()


@pytest.mark.slow
def test_a_run_goes_on_past_what_breaks(recordings, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A recording that breaks after the start, and a save and figures that the disk refuses."""
    shutil.copytree(recordings, tmp_path / "in")
    config = tiny_config(steps=8, on_save_failure="continue")

    def scan(*arguments):
        corpus = scan_corpus(*arguments)
        corpus.training[0].path.write_bytes(b"")
        return corpus

    save, record = Checkpoints.save, Monitor._record

    def refuse_step_4(self, state, *arguments):
        if int(state.step) == 4:
            raise NotSavedError("step 4 not saved (No space left on device); free some space")
        save(self, state, *arguments)

    def refuse_step_5(self, step, figures):
        if step == 5:
            raise OSError(28, "No space left on device")
        record(self, step, figures)

    monkeypatch.setattr(loop, "scan_corpus", scan)
    monkeypatch.setattr(Checkpoints, "save", refuse_step_4)
    monkeypatch.setattr(Monitor, "_record", refuse_step_5)
    assert loop.train(config, str(tmp_path / "in"), tmp_path / "run").stopped_by is None
    err = capsys.readouterr().err
    assert err.count("0.wav") == 1 and "skipped: " in err
    assert "step 4 not saved (No space left on device); free some space; training goes on" in err
    assert err.count("figures cannot be written (No space left on device); training goes on") == 1
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    counts = [line["unreadable"] for line in lines if "unreadable" in line]
    assert len(counts) == 7 and sum(counts) > 0
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["8"]
    monkeypatch.setattr(Checkpoints, "save", lambda *_: refuse_step_4(None, init_state(config)))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=9))
    with pytest.raises(UserError, match=r"are not those of the run's checkpoint: .* 0.wav"):
        loop.train(config, str(tmp_path / "in"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_killed_worker_is_an_error_in_seconds(recordings, after):  # noqa: F811
    config = tiny_config(num_workers=2)
    corpus = scan_corpus(str(recordings), config)
    with Feed(training_batches(corpus.training, config)) as feed:
        for _ in range(after):
            feed.next(Stop(), 0.0)
        while not (workers := feed._look_for_workers()):
            time.sleep(0.01)
        os.kill(min(workers, key=lambda w: w.pid).pid, signal.SIGKILL)
        with pytest.raises(UserError, match="process that reads recordings was lost"):
            for _ in range(1000):
                feed.next(Stop(), 0.0)


# ------------------------------------------------------------------------------ signals


RELEASED = threading.Event()


def forever(*_):
    if not RELEASED.wait(120):
        raise AssertionError("nobody left this")


@pytest.fixture(autouse=True)
def no_work_goes_on():
    """A later test's `train` would end the whole process, so as not to wait for abandoned work."""
    yield
    RELEASED.set()
    while still_working():
        time.sleep(0.01)
    RELEASED.clear()


def send_soon() -> None:
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()


def test_work_is_left_at_a_signal_and_errors_come_through():
    before = signal.getsignal(signal.SIGTERM)
    with signals() as stop:
        assert stop.during("something", lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            stop.during("something", lambda: 1 / 0)
        send_soon()
        with pytest.raises(Stopped):
            stop.during("something", forever)
        assert still_working() and stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_signal_while_the_data_is_waited_for():
    with signals() as stop, Feed(iter(forever, None)) as feed:
        send_soon()
        with pytest.raises(Stopped):
            feed.next(stop, 0.0)


@pytest.mark.slow
def test_a_signal_in_compilation_data_validation_and_save(recordings, tmp_path, monkeypatch):  # noqa: F811
    """One run is stopped in each of them; in the end it equals an undisturbed run."""
    config = tiny_config(steps=6, ema_decay=0.9)

    def run(name="stopped"):
        return loop.train(config, str(recordings), tmp_path / name).stopped_by

    assert run("whole") is None

    def kept():
        folder = tmp_path / "stopped/checkpoints"
        return sorted(int(p.name) for p in folder.iterdir())

    with monkeypatch.context() as patch:
        patch.setattr(loop, "parallel_train_step", lambda *_: lambda *_: (send_soon(), forever()))
        assert (run(), kept()) == (signal.SIGTERM, [])
    with monkeypatch.context() as patch:
        batches = loop.training_batches

        def stuck_after_two(*arguments):
            good = batches(*arguments)
            yield next(good)
            yield next(good)
            while '"step": 1' not in (tmp_path / "stopped/metrics.jsonl").read_text():
                time.sleep(0.01)
            send_soon()
            forever()

        patch.setattr(loop, "training_batches", stuck_after_two)
        assert (run(), kept()) == (signal.SIGTERM, [2])
    with monkeypatch.context() as patch:
        patch.setattr(
            loop, "parallel_validation_step", lambda *_: lambda *_: (send_soon(), forever())
        )
        assert (run(), kept()) == (signal.SIGTERM, [2, 4])
    with monkeypatch.context() as patch:
        save = Checkpoints.save

        def save_and_signal(*arguments):
            signal.raise_signal(signal.SIGTERM)
            save(*arguments)

        patch.setattr(Checkpoints, "save", save_and_signal)
        assert (run(), kept()) == (signal.SIGTERM, [4, 6])
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    ours, theirs = (read_weights(tmp_path / name).params for name in ("stopped", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ------------------------------------------------------------------------------ kills and moves


@pytest.mark.devices(8)
@pytest.mark.stress
def test_a_run_moves_from_eight_devices_to_four_to_one(recordings, tmp_path, monkeypatch):  # noqa: F811
    config = tiny_config(steps=6, iters_per_checkpoint=2, validation_fraction=0.0)
    assert loop.train(config, str(recordings), tmp_path / "whole").stopped_by is None
    restored = []
    for devices, steps in ((8, 2), (4, 4), (1, 6)):
        layout = Layout(tuple(jax.devices()[:devices]))
        monkeypatch.setattr(Layout, "of_all_processes", lambda layout=layout: layout)
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
        assert loop.train(part, str(recordings), tmp_path / "moved").stopped_by is None
        with Checkpoints(tmp_path / "moved", config) as checkpoints:
            state, progress = checkpoints.restore(steps)
            assert progress.position == steps * 8
            on_all = loop.replicate(state, layout.local)
            jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, on_all), state)
            restored.append(state)
    whole, moved = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert list(moved) == list(whole) == [1, 2, 3, 4, 5, 6]
    assert [moved[step] for step in (1, 2)] == [whole[step] for step in (1, 2)]
    np.testing.assert_allclose(list(moved.values()), list(whole.values()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.stress)])
def test_killed_again_and_again_the_curve_is_the_same(tmp_path, kills):
    command = [sys.executable, ROOT / "benchmarks/stress/chaos.py", "--kills", str(kills)]
    # Without optimisations, to compile quickly: equality to the bit does not depend on them.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [*command, "--work", tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] == kills and figures["inside_a_save"] >= 1
    assert figures["losses_equal"] and figures["parameters_equal"]
