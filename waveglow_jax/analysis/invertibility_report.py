"""The invertibility report: Markdown tables, JSON, and one figure of error against depth."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waveglow_jax.analysis.differences import Error
from waveglow_jax.analysis.invertibility import Blame, Report
from waveglow_jax.analysis.layers import KINDS, WHITENING
from waveglow_jax.analysis.lipschitz import LayerShape
from waveglow_jax.analysis.precisions import BY_NAME
from waveglow_jax.audio.picture import literal
from waveglow_jax.files.atomic import replacing, write_text
from waveglow_jax.text import finite_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NONE, _TO = "\N{EN DASH}", "\N{RIGHTWARDS ARROW}"
_BOUNDED = "float32"


def write_reports(report: Report, output: str | Path) -> tuple[Path, ...]:
    """Writes output/report.md, report.json and depth.png; returns their paths.

    Raises UserError if one cannot be written.
    """
    output = Path(output)
    paths = tuple(output / name for name in ("report.md", "report.json", "depth.png"))
    picture = f"![Error against depth]({paths[2].name})\n"
    write_text(paths[0], f"# Invertibility: {report.model}\n\n{markdown(report)}\n{picture}")
    write_text(paths[1], json.dumps(as_json(report), indent=1) + "\n")
    figure = depth_figure(report)
    with replacing(paths[2]) as temporary:
        figure.savefig(temporary, dpi=110)
    return paths


def as_json(report: Report) -> dict[str, Any]:
    """The report as a JSON object, in which null stands for every value that is not finite."""
    return finite_json(dataclasses.asdict(report))


def markdown(report: Report) -> str:
    """Every table, each with an explanation of its columns."""
    sections = (_round_trips, _blame, _shapes, _log_dets, _stress)
    lines = [line for section in sections for line in [*section(report), ""]]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return _NONE
    return f"{value:.{digits}e}" if math.isfinite(value) else "overflow"


def _plain(value: float | None, digits: int = 1) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _snr(error: Error) -> str:
    if error.max is None:
        return "overflow"
    return "exact" if error.rms == 0 else _plain(error.snr_db)


def _error(error: Error) -> list[str]:
    if error.max is None:
        return ["overflow", _NONE, _NONE, _NONE]
    return [_number(error.max), _number(error.rms), _snr(error), _plain(error.bits_lost)]


# ------------------------------------------------------------------------------ sections


def _round_trips(report: Report) -> list[str]:
    rows = []
    for trip in report.round_trips:
        forward = _NONE if trip.precision == "float64" else _snr(trip.forward)
        audio, latent = _error(trip.audio), _error(trip.latent)
        rows.append([trip.signal, trip.precision, *audio, *latent, forward])
    back = ["max", "RMS", "SNR, dB", "bits lost"]
    head = ["signal", "precision", *back, *back, "z against float64, dB"]
    return [
        "### Round trips",
        "",
        f"{report.seconds:.2f} s of each signal. The first four columns are of audio {_TO} z {_TO} "
        f"audio, the next four of z {_TO} audio {_TO} z for standard normal z. Bits lost: of the "
        "significand of the flow's stream. The last column is accuracy, not invertibility: how "
        "far z is from float64's.",
        "",
        *_table(head, rows),
        "",
        *(f"- **{name}**: {BY_NAME[name].about}." for name in _precisions(report)),
    ]


def _precisions(report: Report) -> list[str]:
    return list(dict.fromkeys(trip.precision for trip in report.round_trips))


def dominant(blame: Blame) -> str:
    """The layer that adds most to the audio's error."""
    return max(blame.layers, key=lambda each: each.share).layer


def _blame(report: Report) -> list[str]:
    lines = ["### The guilty layer", ""]
    for blame in report.blamed:
        by_kind = {
            kind: sum(each.share for each in blame.layers if each.kind == kind) for kind in KINDS
        }
        shares = ", ".join(f"{kind} {_percent(share)}" for kind, share in by_kind.items() if share)
        lines += [
            f"- **{blame.precision}**: dominated by **{dominant(blame)}**. Of the squared error: "
            f"{shares}. The audio's RMS error is {blame.rms:.1e}; the layers' parts add up to it "
            f"within {_percent(blame.unexplained)}.",
        ]
    lines += [
        "",
        f"{report.close_samples:,} samples. Relative to the RMS of the layer's state: *forward*, "
        "its own error against float64 from the same input; *alone*, through the layer and its "
        "inverse; *injected*, what it adds on the way back to the error that reaches it. "
        "*Share*: of the squared error of the audio, each addition carried there exactly.",
        "",
    ]
    head = ["layer"]
    for blame in report.blamed:
        head += [f"{blame.precision}: forward", "alone", "injected", "share"]
    rows = []
    for each in zip(*(blame.layers for blame in report.blamed), strict=True):
        row = [each[0].layer]
        for one in each:
            row += [_number(one.forward), _number(one.there_and_back), _number(one.injected)]
            row += [_percent(one.share)]
        rows.append(row)
    return lines + _table(head, rows)


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return _NONE
    return f"{100 * share:.2f}%" if share >= 1e-4 else f"{100 * share:.0e}%"


def _shapes(report: Report) -> list[str]:
    rows = [_shape_row(shape) for shape in report.shapes]
    forward = math.prod(shape.forward for shape in report.shapes)
    inverse = math.prod(shape.inverse for shape in report.shapes)
    rows.append(["product of all", f"{forward:.3g}", f"{inverse:.3g}", *[_NONE] * 4])
    whole = (report.whole_forward, report.whole_inverse)
    rows.append(["**the whole flow**", *(f"**{value:.3g}**" for value in whole), *[_NONE] * 4])
    head = ["layer", "K forward", "K inverse", "condition", "abs det W", "W W^-1 - I", "log_s"]
    return [
        "### How the layers stretch",
        "",
        "K: Lipschitz constants at this recording, local; of a 1x1 convolution from its singular "
        "values, of the others by power iteration, which comes from below. W W^-1 - I: its largest "
        "entry with W^-1 in float32. log_s: its range over the recording.",
        "",
        *_table(head, rows),
    ]


def _shape_row(shape: LayerShape) -> list[str]:
    det = _NONE if shape.log_abs_det is None else f"{math.exp(shape.log_abs_det):.3g}"
    log_s = _NONE if shape.log_s_min is None else f"{shape.log_s_min:.2f} to {shape.log_s_max:.2f}"
    stretch = [f"{value:.3g}" for value in (shape.forward, shape.inverse, shape.condition)]
    return [shape.layer, *stretch, det, _number(shape.inverse_residue), log_s]


def _log_dets(report: Report) -> list[str]:
    kinds = [kind for kind in KINDS if any(kind in errors for errors in report.log_dets.values())]
    residues = {trip.precision: trip.log_det_residue for trip in report.round_trips[::-1]}
    rows = [
        [
            name,
            *(_number(errors[kind]) for kind in kinds),
            _number(errors["all"]),
            _number(residues[name]),
        ]
        for name, errors in report.log_dets.items()
    ]
    checked = report.jacobian
    off = abs(checked.log_det - checked.autodiff)
    return [
        "### Log-determinants",
        "",
        "Nats per sample off float64's, from the same audio; the last column is what the "
        "log-determinants of both ways, which should cancel, leave.",
        "",
        *_table(["precision", *kinds, "all", "forward + inverse"], rows),
        "",
        f"Against the determinant of autodiff's Jacobian, {checked.samples} samples in float64: "
        f"{checked.log_det:.9f} and {checked.autodiff:.9f} nats, {off:.0e} apart.",
    ]


def _stress(report: Report) -> list[str]:
    names = list(dict.fromkeys((each.name, each.way) for each in report.stress))
    precisions = list(dict.fromkeys(each.precision for each in report.stress))
    found = {(each.name, each.precision): each.error for each in report.stress}
    ways = {"audio": "audio, z, audio", "latent": "z, audio, z"}
    rows = [
        [name, ways[way]]
        + [
            cell
            for precision in precisions
            for cell in (_number(found[name, precision].max), _snr(found[name, precision]))
        ]
        for name, way in names
    ]
    head = ["", "way"]
    for precision in precisions:
        head += [f"{precision}: max", "SNR, dB"]
    about = (
        f"{report.close_samples:,} samples. Noise is z; the others stand in the place of "
        "the recording, or the recording itself where the mel or a weight is another."
    )
    return ["### Under stress", "", about, "", *_table(head, rows)]


# ------------------------------------------------------------------------------ the figure


def depth_figure(report: Report) -> Figure:
    """A matplotlib Figure: relative error of the states on the way to z and on the way back."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = (
        f"audio {_TO} z: off the float64 state",
        f"z {_TO} audio: off the state on the way there",
    )
    colours = [f"C{k}" for k in range(10)]
    for axis, title, way in zip(axes, titles, ("forward", "back"), strict=True):
        for depth, colour in zip(report.depths, colours, strict=False):
            errors = [_drawn(value) for value in getattr(depth, way)]
            axis.plot(errors, color=colour, marker=".", lw=1.4, label=depth.precision)
            if depth.precision == _BOUNDED:
                bound = [_drawn(value) for value in getattr(depth, f"{way}_bound")]
                label = f"bound, {depth.precision}"
                axis.plot(bound, color=colour, ls=":", lw=1.2, label=label)
        axis.set(title=title, yscale="log", xlabel="state after this flow")
        ticks, labels = _ticks(report)
        axis.set_xticks(ticks, labels, fontsize=8)
        axis.grid(alpha=0.25)
    axes[1].invert_xaxis()
    axes[0].set_ylabel("RMS error / RMS of the state")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(
        f"{literal(report.model)}: error against depth, {report.close_samples:,} samples"
    )
    return figure


def _drawn(value: float) -> float:
    """The value, or NaN for zeros and overflows, which a logarithmic axis cannot show."""
    return value if 0 < value < 1e12 else math.nan


def _ticks(report: Report) -> tuple[list[int], list[str]]:
    """Tick positions and labels: the state after each flow, labelled with the flow's number."""
    whitened = report.shapes[0].kind == WHITENING
    flows = (len(report.shapes) - whitened) // 2
    ticks, labels = [0], ["audio"]
    for flow in range(flows):
        ticks.append(int(whitened) + 2 * (flow + 1))
        labels.append("z" if flow == flows - 1 else str(flow))
    if whitened:
        ticks.insert(1, 1)
        labels.insert(1, "\nwhite")
    return ticks, labels
