"""Reports on a training run from its folder alone, whether it is running, killed or done."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from waveglow_jax.config import Config, config_to_dict, load_config
from waveglow_jax.text import number_of
from waveglow_jax.training.watching.history import History, read_history, window_means
from waveglow_jax.weights.facts import suspicious_matrices

RECENT = 100
"""Number of last steps whose mean is reported as the current loss."""

# A trained flow's |log_s| stays below 10 (exp(8) is 3,000). If the standard deviation of z is off
# by more than a fifth, the flow has not fitted the speech.
_WIDE_LOG_S = 8.0
_WIDE_Z = 0.2
_FITTED_AFTER = 1000
_MUCH_WAITING = 0.3
_RISE = 0.05
_MANY_VALIDATIONS = 10


def is_run_folder(path: Path) -> bool:
    """Whether it looks like a training run's folder, even one without a checkpoint so far."""
    told = (path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir()
    return told and (path / "config.json").is_file()


def report_run(run: Path) -> dict[str, Any]:
    """A JSON-ready report: config, progress, speed, losses, validation, checkpoints, sessions,
    and `warnings`, one sentence each. None stands for what the run's files do not contain.

    Raises UserError if config.json or metrics.jsonl cannot be read.
    """
    config = load_config(run / "config.json")
    path = run / "metrics.jsonl"
    history = read_history(path)
    checkpoints, unfinished = _checkpoints(run, history)
    found = {
        "kind": "training run",
        "run": str(run),
        **config_to_dict(config),
        "sessions": list(history.sessions),
        **_progress(config, history),
        "last_written": path.stat().st_mtime,
        "loss": _loss(history),
        **{name: _recent(history, name) for name in ("gradient_norm", "update_norm")},
        **{name: _last(history, name) for name in ("parameter_norm", "learning_rate")},
        "skipped": _last(history, "skipped"),
        "peak_memory": _last(history, "peak_memory"),
        "validation": _validation(history),
        "checkpoints": checkpoints,
        "unfinished_checkpoints": unfinished,
        "non_finite_steps": history.non_finite,
        "unreadable_lines": history.unreadable,
        "last_line_cut": history.cut,
    }
    return {**found, "warnings": _warnings(found, config, history)}


def _progress(config: Config, history: History) -> dict[str, Any]:
    train = config.train
    told = [session.get("total_steps") for session in history.sessions]
    total = told[-1] if told else (None if train.epochs else train.steps)
    samples_per_second = _recent(history, "samples_per_second")
    step_seconds = share = left = None
    if samples_per_second:
        step_seconds = train.batch_size * config.clip_samples / samples_per_second
        left = (total - history.last_step) * step_seconds if total else None
        # A session's first step, which records no speed, waits for the loader to start.
        going = np.isfinite(history.steps["samples_per_second"])
        waits = history.steps["data_wait"][going][-RECENT:]
        waits = waits[np.isfinite(waits)]
        share = float(waits.mean()) / step_seconds if len(waits) else None
    return {
        "step": history.last_step,
        "total_steps": total,
        "samples_per_second": samples_per_second,
        "step_seconds": step_seconds,
        "seconds_left": left,
        "data_wait_share": share,
    }


def _loss(history: History) -> dict[str, Any] | None:
    windows = window_means(history.steps["loss"])
    if not len(windows):
        return None
    first, last, mean, _ = min(windows.tolist(), key=lambda row: row[2])
    steps = history.steps["step"]
    return {
        "last": _last(history, "loss"),
        "recent_mean": _recent(history, "loss"),
        "lowest_mean": mean,
        "lowest_from_step": int(steps[int(first)]),
        "lowest_to_step": int(steps[int(last)]),
    }


def _validation(history: History) -> dict[str, Any] | None:
    told = [v for v in history.validations if isinstance(v.get("validation_loss"), int | float)]
    if not told:
        return None
    best = min(range(len(told)), key=lambda i: told[i]["validation_loss"])
    return {
        "count": len(told),
        "last": told[-1],
        "best": told[best],
        "since_best": len(told) - 1 - best,
    }


def _checkpoints(run: Path, history: History) -> tuple[list[dict[str, Any]], list[str]]:
    """The step, bytes and validation loss of each checkpoint; the names of unfinished saves."""
    losses = {v["step"]: v.get("validation_loss") for v in history.validations}
    whole, unfinished = [], []
    for folder in sorted((run / "checkpoints").glob("*")):
        if folder.name.isdecimal():
            step = int(folder.name)
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            whole.append({"step": step, "bytes": size, "validation_loss": losses.get(step)})
        elif "orbax-checkpoint-tmp" in folder.name:
            unfinished.append(folder.name)
    return sorted(whole, key=lambda each: each["step"]), unfinished


def _last(history: History, name: str) -> float | None:
    told = history.steps[name][np.isfinite(history.steps[name])]
    return float(told[-1]) if len(told) else None


def _recent(history: History, name: str) -> float | None:
    """The mean of the finite values among the last 100 steps."""
    recent = history.steps[name][-RECENT:]
    recent = recent[np.isfinite(recent)]
    return float(recent.mean()) if len(recent) else None


# ------------------------------------------------------------------------------ warnings


def _warnings(found: dict[str, Any], config: Config, history: History) -> list[str]:
    validation = found["validation"]
    warnings = _of_steps(found, history)
    if validation:
        warnings += _of_fit(validation["last"], config)
        since = validation["since_best"]
        if since >= _MANY_VALIDATIONS:
            warnings.append(
                f"the held-out likelihood has not got better for {since} validations: lower the "
                "learning rate (train.plateau_patience does it by itself) or stop"
            )
    every = config.train.iters_per_checkpoint
    if not found["checkpoints"] and found["step"] > every:
        warnings.append(f"no checkpoint, though one was due every {number_of(every, 'step', ',')}")
    if found["unfinished_checkpoints"]:
        warnings.append(
            f"a save is under way or was cut short: {found['unfinished_checkpoints'][0]}; the next "
            "start clears it away"
        )
    return warnings


def _of_steps(found: dict[str, Any], history: History) -> list[str]:
    warnings = []
    if bad := found["non_finite_steps"]:
        bad_steps = history.steps["step"][~np.isfinite(history.steps["loss"])]
        last = f", the last at step {int(bad_steps[-1]):,}" if len(bad_steps) else ""
        warnings.append(
            f"{number_of(bad, 'step', ',')} with a loss or gradient that was not finite{last}, "
            "skipped: lower train.learning_rate or set train.gradient_clip if they go on"
        )
    share = found["data_wait_share"] or 0.0
    if share > _MUCH_WAITING and found["step"] >= RECENT:
        warnings.append(
            f"{share:.0%} of a step goes by waiting for data: raise train.num_workers, or lower "
            "it if there are more workers than cores"
        )
    if found["unreadable_lines"]:
        warnings.append(
            f"damaged in metrics.jsonl: {number_of(found['unreadable_lines'], 'line', ',')}"
        )
    windows = window_means(history.steps["loss"])
    if len(windows) >= 5:
        *_, mean, error = windows[-1]
        *_, low, low_error = windows[np.argmin(windows[:, 2])]
        if mean - low > max(_RISE, 4 * math.hypot(error, low_error)):
            warnings.append(
                f"the loss rises: {mean:.4f} of late, {low:.4f} around step "
                f"{found['loss']['lowest_to_step']:,}: lower the learning rate"
            )
    return warnings


def _of_fit(line: dict[str, Any], config: Config) -> list[str]:
    matrices = _numbers(line, "determinants"), _numbers(line, "condition_numbers")
    warnings = suspicious_matrices(*matrices) if len({*map(len, matrices)}) == 1 else []
    for k, value in enumerate(_numbers(line, "max_log_s")):
        if not value < _WIDE_LOG_S:
            warnings.append(
                f"flow {k}: |log_s| reaches {value:.3g}: a sample is scaled by exp of that"
            )
    deviation = line.get("z_std")
    if isinstance(deviation, float) and line["step"] >= _FITTED_AFTER:
        ratio = deviation / config.train.sigma
        if abs(ratio - 1) > _WIDE_Z:
            warnings.append(
                f"z of held-out speech has standard deviation {deviation:.3g}, not "
                f"{config.train.sigma:g}: the flow does not fit it"
            )
    return warnings


def _numbers(line: dict[str, Any], name: str) -> list[float]:
    """A list of numbers, NaN for those that were not finite; empty if the run has no such list."""
    told = line.get(name)
    if not isinstance(told, list):
        return []
    return [value if isinstance(value, int | float) else math.nan for value in told]


# ------------------------------------------------------------------------------ for a person


def run_as_text(found: dict[str, Any]) -> str:
    """The report on one screen, one subject per line."""
    lines = [
        f"{found['run']}: {found['kind']}",
        *_config_lines(found),
        *_progress_lines(found),
        *_loss_lines(found),
        *_fit_lines(found),
        *_checkpoint_lines(found),
        *(f"warning: {sentence}" for sentence in found["warnings"]),
    ]
    return "\n".join(lines)


def _config_lines(found: dict[str, Any]) -> list[str]:
    glow, train = found["waveglow_config"], found["train_config"]
    wn = glow["WN_config"]
    return [
        f"model: {glow['n_flows']} flows in groups of {glow['n_group']}, WN {wn['n_layers']} x "
        f"{wn['n_channels']}, conditioning by {glow['conditioning']}"
        + (", mel whitening" if glow["mel_whitening"] else ""),
        f"steps of {train['batch_size']} x {found['data_config']['segment_length']:,} samples, "
        f"learning rate {_figure(found['learning_rate'])}, WN in {train['wn_dtype']}",
    ]


def _progress_lines(found: dict[str, Any]) -> list[str]:
    total = found["total_steps"]
    of_total = f" of {total:,} ({found['step'] / total:.1%})" if total else ""
    lines = [
        f"step {found['step']:,}{of_total}, told {_ago(time.time() - found['last_written'])} ago"
        + (", its last line cut off" if found["last_line_cut"] else "")
    ]
    if found["samples_per_second"]:
        left, share = found["seconds_left"], found["data_wait_share"]
        lines.append(
            f"speed: {1 / found['step_seconds']:.3g} steps/s, {found['samples_per_second']:,.0f} "
            "samples/s"
            + (f", waiting for data {share:.1%}" if share is not None else "")
            + (f", {_ago(left)} left" if left else "")
        )
    memory = found["peak_memory"]
    lines.append(
        (f"peak memory {memory / 2**30:.2f} GiB; " if memory else "")
        + f"steps skipped: {int(found['skipped'] or 0):,}"
    )
    sessions = found["sessions"]
    if len(sessions) > 1:
        told = [f"{_devices(s)} from step {s['step']:,}" for s in sessions[-4:]]
        lines.append(f"{len(sessions)} sessions: {'... ' * (len(sessions) > 4)}{', '.join(told)}")
    elif sessions:
        lines.append(f"on {_devices(sessions[0])}")
    return lines


def _devices(session: dict[str, Any]) -> str:
    return f"{session.get('devices', '?')} x {session.get('kind', '?')}"


def _loss_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if loss := found["loss"]:
        lines.append(
            f"loss {_figure(loss['recent_mean'])} (mean of the last {RECENT} steps), lowest "
            f"{loss['lowest_mean']:.4f} (mean of steps {loss['lowest_from_step']:,} to "
            f"{loss['lowest_to_step']:,})"
        )
        lines.append(
            f"norms: gradient {_figure(found['gradient_norm'])}, update "
            f"{_figure(found['update_norm'])}, parameters {_figure(found['parameter_norm'])}"
        )
    if validation := found["validation"]:
        last, best = validation["last"], validation["best"]
        lines.append(
            f"held out: {_figure(last.get('nats_per_sample'))} nats per sample (loss "
            f"{_figure(last['validation_loss'])}) at step {last['step']:,}, best "
            f"{_figure(best.get('nats_per_sample'))} at step {best['step']:,}"
        )
    else:
        lines.append("held out: no validation yet")
    return lines


def _fit_lines(found: dict[str, Any]) -> list[str]:
    last = found["validation"]["last"] if found["validation"] else {}
    if "z_std" not in last:
        return []
    exits = ", ".join(map(_figure, _numbers(last, "z_std_by_exit")))
    lines = [
        f"z: mean {_figure(last.get('z_mean'))}, standard deviation {_figure(last['z_std'])} (of "
        f"each exit {exits})"
    ]
    log_s, determinants, conditions = (
        _numbers(last, name) for name in ("max_log_s", "determinants", "condition_numbers")
    )
    if log_s and determinants and conditions:
        lines.append(
            f"flows: |log_s| up to {max(log_s):.3g} (flow {np.argmax(log_s)}), |det W| down to "
            f"{min(determinants):.3g} (flow {np.argmin(determinants)}), condition numbers up to "
            f"{max(conditions):.3g} (flow {np.argmax(conditions)})"
        )
    return lines


def _checkpoint_lines(found: dict[str, Any]) -> list[str]:
    checkpoints = found["checkpoints"]
    if not checkpoints:
        return ["checkpoints: none yet"]
    validated = [c for c in checkpoints if c["validation_loss"] is not None]
    best = min(validated, key=lambda c: c["validation_loss"], default=None)
    told = [
        f"{c['step']:,} ({c['bytes'] / 2**20:,.1f} MiB{', the best' * (c is best)})"
        for c in checkpoints[-5:]
    ]
    return [f"checkpoints: {'... ' * (len(checkpoints) > 5)}{', '.join(told)}"]


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "?"


def _ago(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
