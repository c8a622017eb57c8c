"""Pictures of mel-spectrograms, one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from waveglow_jax.config import DataConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def literal(text: str) -> str:
    """Escapes a name for use in a figure, where dollar signs would start mathematics."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def mel_figure(mels: Sequence[tuple[str, np.ndarray]], data: DataConfig) -> Figure:
    """A matplotlib Figure of `(title, mel [F, M])` pairs on one time axis and one colour scale."""
    from matplotlib.figure import Figure

    longest = max(mel.shape[0] for _, mel in mels)
    seconds_a_frame = data.hop_length / data.sampling_rate
    width = float(np.clip(longest * seconds_a_frame * 2.5, 8, 40))
    figure = Figure(figsize=(width, 2.6 * len(mels)), layout="constrained")
    axes = figure.subplots(len(mels), 1, sharex=True, squeeze=False)[:, 0]
    top = max(float(mel.max()) for _, mel in mels)
    for axis, (title, mel) in zip(axes, mels, strict=True):
        image = axis.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=data.mel.lowest,
            vmax=top,
            extent=(0, mel.shape[0] * seconds_a_frame, 0, mel.shape[1]),
        )
        axis.set(title=literal(title), ylabel="mel band", xlim=(0, longest * seconds_a_frame))
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label=data.mel.log_named)
    return figure


def figure_pixels(figure: Figure) -> np.ndarray:
    """The figure's pixels `[height, width, 3]`, uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
