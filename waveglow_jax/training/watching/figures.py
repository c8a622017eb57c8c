"""Measures how well the flow fits, from `validation_step`'s sums and from the weights."""

import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.likelihood import loss_constant
from waveglow_jax.flow.waveglow import Params
from waveglow_jax.weights.facts import determinants_and_conditions


def validation_figures(
    sums: Sequence[dict[str, Any]], params: Params, config: Config
) -> dict[str, float | list[float]]:
    """The figures of a validation, from what `validation_step` returned for each of its batches.

    validation_loss (the original's scalar); nats_per_sample (with all constants); z_mean and z_std
    over all of z, and z_mean_by_exit and z_std_by_exit for each group of channels that leave the
    flow together, in z's order (for speech that the flow fits they are 0 and `train_config.sigma`).
    One number per flow: max_log_s (the largest |log_s|), determinants (|det W|), condition_numbers
    (of W).
    """
    total: dict[str, Any] = {
        name: sum(np.asarray(s[name], np.float64) for s in sums)
        for name in ("nats", "weight", "z", "z_squared")
    }
    nats = float(total["nats"] / total["weight"])
    mean, square = (total[name] / total["weight"] for name in ("z", "z_squared"))
    whole, *exits = (
        (float(mean[channels].mean()), float(square[channels].mean()))
        for channels in (slice(None), *config.waveglow.exits())
    )
    determinants, conditions = determinants_and_conditions(params["flows"])
    return {
        "validation_loss": -nats - loss_constant(config.train.sigma),
        "nats_per_sample": nats,
        "z_mean": whole[0],
        "z_std": _deviation(*whole),
        "z_mean_by_exit": [mean for mean, _ in exits],
        "z_std_by_exit": [_deviation(*moments) for moments in exits],
        "max_log_s": np.max([np.asarray(s["max_log_s"]) for s in sums], axis=0).tolist(),
        "determinants": determinants,
        "condition_numbers": conditions,
    }


def _deviation(mean: float, square: float) -> float:
    return float(np.sqrt(np.maximum(square - mean**2, 0.0)))


def peak_memory() -> int:
    """The peak memory in bytes so far: the largest of this process's devices or, if the devices
    do not report it (CPUs do not), that of the process itself."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]:
        return max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
