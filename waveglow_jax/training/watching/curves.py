"""One figure of a run's curves: loss, held-out loss, gradient norm, learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from waveglow_jax.audio.picture import literal
from waveglow_jax.training.watching.history import History, window_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 1500


def run_figure(history: History, title: str) -> Figure:
    """The matplotlib Figure of a run; dotted lines mark where it was resumed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(11, 9), layout="constrained")
    loss, gradient, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.4, 1))
    steps = history.steps["step"]
    _raw_and_smooth(loss, steps, history.steps["loss"], "training")
    told = [v for v in history.validations if isinstance(v.get("validation_loss"), int | float)]
    if told:
        at, held_out = zip(*((v["step"], v["validation_loss"]) for v in told), strict=True)
        loss.plot(at, held_out, "o-", color="tab:orange", markersize=3, label="held out")
        best = int(np.argmin(held_out))
        loss.plot(at[best], held_out[best], "*", color="tab:red", markersize=12, label="best")
    loss.set(title=literal(title), ylabel="loss")
    loss.set_ylim(_limits(history.steps["loss"], [v["validation_loss"] for v in told]))
    _raw_and_smooth(gradient, steps, history.steps["gradient_norm"], "")
    gradient.set(ylabel="gradient norm\nbefore clipping")
    if np.any(history.steps["gradient_norm"] > 0):
        gradient.set_yscale("log")
        gradient.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        gradient.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        gradient.yaxis.set_minor_formatter(NullFormatter())
    rate.plot(*_thinned(steps, history.steps["learning_rate"]), color="tab:green")
    rate.set(ylabel="learning rate", xlabel="step")
    rate.ticklabel_format(axis="y", scilimits=(-3, 3))
    rate.set_ylim(bottom=0)
    for axis in (loss, gradient, rate):
        axis.grid(alpha=0.3)
        for i, session in enumerate(history.sessions[1:]):
            label = None if i else "resumed"
            axis.axvline(session["step"], color="grey", linestyle=":", linewidth=1, label=label)
    if loss.get_legend_handles_labels()[0]:
        loss.legend(loc="upper right")
    return figure


def _raw_and_smooth(axis: Axes, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    axis.plot(
        *_thinned(steps, values),
        color="tab:blue",
        alpha=0.3,
        linewidth=0.7,
        label=f"{label}, each step" if label else None,
    )
    windows = window_means(values, count=200)
    if len(windows) > 1:
        middle = steps[((windows[:, 0] + windows[:, 1]) / 2).astype(int)]
        smooth = f"{label}, mean of stretches" if label else None
        axis.plot(middle, windows[:, 2], color="tab:blue", linewidth=1.8, label=smooth)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest point of each of 1,500 equal stretches."""
    if len(values) <= 2 * _POINTS:
        return steps, values
    kept = set()
    for part in np.array_split(np.arange(len(values)), _POINTS):
        finite = part[np.isfinite(values[part])]
        if len(finite):
            kept |= {finite[np.argmin(values[finite])], finite[np.argmax(values[finite])]}
    chosen = np.array(sorted(kept), int)
    return steps[chosen], values[chosen]


def _limits(training: np.ndarray, held_out: list[float]) -> tuple[float | None, float | None]:
    """The loss axis from the lowest loss to the 99.5 % quantile, leaving out the start (2 %)."""
    finite = training[np.isfinite(training)]
    settled = np.concatenate([finite[len(finite) // 50 :], held_out])
    if not len(settled):
        return None, None
    low, high = settled.min(), np.quantile(settled, 0.995)
    margin = max(0.05 * (high - low), 1e-3)
    return float(low - margin), float(high + margin)
