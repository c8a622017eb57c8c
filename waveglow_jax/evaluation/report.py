"""The evaluation report: Markdown tables, and one HTML file that opens without a network."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from waveglow_jax.errors import UserError, escaped
from waveglow_jax.evaluation.alignment import align
from waveglow_jax.evaluation.evaluate import read_output
from waveglow_jax.evaluation.metrics import METRICS, Metric
from waveglow_jax.evaluation.results import Evaluation, Row, Summary, summary_dict
from waveglow_jax.evaluation.statistics import Estimate
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.sound import read_audio

_TEMPLATE = Path(__file__).with_name("report_page.html")
# Each table is narrow enough for a page. Likelihood and speed apply to few rows only.
_TABLES = (
    ("Perceptual models", ("pesq_wb", "stoi", "visqol", "mcd", "mcd_dtw")),
    ("Spectrum and pitch", ("log_mel_l1", "mr_stft", "f0_rmse", "vuv_f1", "periodicity_rmse")),
    ("Secondary, likelihood, speed", ("dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "nats", "rtf")),
)
# The spectrograms' range extends this many dB below the recording's loudest point.
_PICTURE_DB = 80.0
FEWEST_FILES = 5
"""With fewer files, the bootstrap's interval is far too short for a verdict."""
_MINUS = "\N{MINUS SIGN}"


def write_reports(
    evaluation: Evaluation, output: str | Path, players: int = 6, audio: bool = True
) -> tuple[Path, ...]:
    """Writes output/report.md, report.html and summary.json; returns their paths.

    players: how many files, spread over the list, are shown with spectrograms and, if `audio` is
    set, with audio players at one level. Raises UserError if a report cannot be written.
    """
    output = Path(output)
    paths = tuple(output / name for name in ("report.md", "report.html", "summary.json"))
    write_text(paths[0], markdown(evaluation))
    write_text(paths[1], html(evaluation, players, audio))
    write_text(paths[2], json.dumps(summary_dict(evaluation), indent=1, ensure_ascii=False) + "\n")
    return paths


# ------------------------------------------------------------------------------ Markdown


def markdown(evaluation: Evaluation) -> str:
    """The tables, an explanation of their columns, and a list of what is missing."""
    lines = [
        "# Evaluation",
        "",
        f"{_recordings(evaluation)}, {evaluation.sampling_rate} Hz. Mean over files and "
        "its bootstrap 95% interval; each output cut to what it shares with its recording and "
        "brought to its level. \N{UPWARDS ARROW}: higher is better, \N{DOWNWARDS ARROW}: lower. "
        f"Speed: on {_cell(evaluation.machine)}.",
        "",
    ]
    for title, keys in _TABLES:
        metrics = _present(evaluation, keys)
        if metrics:
            lines += [f"## {title}", "", *markdown_table(evaluation, metrics), ""]
    lines += [
        f"## Differences to {_cell(evaluation.baseline)}",
        "",
        "File by file; **bold** where the 95% interval leaves out zero, with what that means; of "
        f"fewer than {FEWEST_FILES} files there is no verdict.",
        "",
    ]
    for _, keys in _TABLES:
        metrics = _present(evaluation, keys)
        if any(m.key in s.differences for m in metrics for s in evaluation.summaries):
            lines += [*_difference_table(evaluation, metrics), ""]
    lines += ["## Systems and their alignment", ""]
    lines += ["| system | what it is | files | offset, samples | gain, dB |", "| --- " * 5 + "|"]
    lines += [
        f"| {_cell(s.system)} | {_cell(s.source)} | {s.files} | {_range(s.offsets, 'd')} "
        f"| {_range(s.gains_db, '.1f')} |"
        for s in evaluation.summaries
    ]
    lines += ["", "## What the columns are", ""]
    for metric in METRICS:
        why = evaluation.missing.get(metric.key)
        left = f" **Left out here:** {_cell(why)}." if why else ""
        lines.append(f"- **{_heading(metric)}**: {metric.about} [{metric.citation}]{left}")
    lines += ["", *_left_out_lines(evaluation)]
    return "\n".join(lines).rstrip() + "\n"


def _recordings(evaluation: Evaluation) -> str:
    count = len(evaluation.names)
    return f"{count} recording{'s' * (count != 1)}"


def markdown_summary(evaluation: Evaluation) -> str:
    """Only the tables of means."""
    tables = (_present(evaluation, keys) for _, keys in _TABLES)
    return "\n\n".join("\n".join(markdown_table(evaluation, each)) for each in tables if each)


def markdown_table(evaluation: Evaluation, metrics: Sequence[Metric]) -> list[str]:
    """The lines of a table with one row per system and one column per metric."""
    lines = ["| system | " + " | ".join(map(_heading, metrics)) + " |"]
    lines.append("| --- " * (len(metrics) + 1) + "|")
    for summary in evaluation.summaries:
        cells = [_estimate(summary.means.get(m.key), m.decimals) for m in metrics]
        lines.append(f"| {_cell(summary.system)} | " + " | ".join(cells) + " |")
    return lines


def _difference_table(evaluation: Evaluation, metrics: Sequence[Metric]) -> list[str]:
    lines = ["| system | " + " | ".join(map(_heading, metrics)) + " |"]
    lines.append("| --- " * (len(metrics) + 1) + "|")
    for summary in evaluation.summaries:
        if summary.system == evaluation.baseline:
            continue
        cells = []
        for metric in metrics:
            found = summary.differences.get(metric.key)
            text = _estimate(found, metric.decimals, signed=True)
            word = verdict(found, metric)
            cells.append(f"**{text} {word}**" if word else text)
        lines.append(f"| {_cell(summary.system)} | " + " | ".join(cells) + " |")
    return lines


def verdict(difference: Estimate | None, metric: Metric) -> str:
    """'better' or 'worse' if the interval excludes zero, otherwise ''.

    With fewer than `FEWEST_FILES` files, the verdict is always ''.
    """
    if difference is None or difference.low is None or difference.high is None:
        return ""
    if difference.n < FEWEST_FILES:
        return ""
    if difference.low <= 0 <= difference.high:
        return ""
    return "better" if (difference.mean > 0) == metric.higher_is_better else "worse"


def _left_out_lines(evaluation: Evaluation) -> list[str]:
    if not evaluation.left_out:
        return []
    lines = [f"- {_cell(what)}: {_cell(why)}" for what, why in evaluation.left_out]
    return ["## Left out", "", *lines]


def _present(evaluation: Evaluation, keys: Sequence[str]) -> list[Metric]:
    """The metrics with these keys that at least one system has."""
    there = {key for summary in evaluation.summaries for key in summary.means}
    return [m for m in METRICS if m.key in keys and m.key in there]


def _heading(metric: Metric) -> str:
    arrow = "\N{UPWARDS ARROW}" if metric.higher_is_better else "\N{DOWNWARDS ARROW}"
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.title}{unit} {arrow}"


def _number(value: float, decimals: int, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.replace("-", _MINUS)


def _estimate(found: Estimate | None, decimals: int, signed: bool = False) -> str:
    if found is None:
        return ""
    mean = _number(found.mean, decimals, signed)
    if found.low is None or found.high is None:
        return mean
    low, high = (_number(each, decimals, signed) for each in (found.low, found.high))
    return f"{mean} [{low}, {high}]"


def _range(pair: tuple[float, float], form: str) -> str:
    low, high = (f"{each:{form}}".replace("-", _MINUS) for each in pair)
    return low if low == high else f"{low} to {high}"


def _cell(text: str) -> str:
    """A name escaped for a table, so that nothing in it is taken for Markdown or HTML."""
    text = escaped(" ".join(text.split()))
    for character in "\\`*_[]<>|":
        text = text.replace(character, "\\" + character)
    return text


# ------------------------------------------------------------------------------ HTML


def html(evaluation: Evaluation, players: int, audio: bool) -> str:
    """The whole page with embedded pictures and sound. Names are escaped, so none is markup."""
    page = _TEMPLATE.read_text(encoding="utf-8")
    metrics = _present(evaluation, [metric.key for metric in METRICS])
    iterations = evaluation.griffin_lim_iterations
    griffin_lim = "" if iterations is None else f"Griffin-Lim with {iterations} iterations. "
    facts = (
        f"{_recordings(evaluation)} from the folder {evaluation.reference}, "
        f"{evaluation.sampling_rate} Hz. {griffin_lim}Speed measured on {evaluation.machine}."
    )
    parts = {
        "FACTS": escape(facts),
        "SUMMARY": _summary_html(evaluation, metrics),
        "BASELINE": escape(evaluation.baseline),
        "DIFFERENCES": _differences_html(evaluation, metrics),
        "SYSTEMS": _systems_html(evaluation.summaries),
        "SAMPLES": "\n".join(_samples_html(evaluation, players, audio)),
        "FILES": _files_html(evaluation.rows, metrics),
        "CHOICES": "".join(
            f"<option>{escape(summary.system)}</option>" for summary in evaluation.summaries
        ),
        "COLUMNS": "".join(_column_html(metric, evaluation.missing) for metric in METRICS),
        "LEFT_OUT": _left_out_html(evaluation),
    }
    # One pass over the template ensures that nothing in a name is taken for a marker.
    pieces = page.split("<!--@")
    done = [pieces[0]]
    for piece in pieces[1:]:
        marker, _, rest = piece.partition("-->")
        done += [parts[marker], rest]
    return "".join(done)


def _header_html(metrics: Sequence[Metric], first: Sequence[str], last: Sequence[str] = ()) -> str:
    cells = [f'<th scope="col"><button type="button">{name}</button></th>' for name in first]
    for metric in metrics:
        better = "higher" if metric.higher_is_better else "lower"
        arrow = "\N{UPWARDS ARROW}" if metric.higher_is_better else "\N{DOWNWARDS ARROW}"
        cells.append(
            f'<th scope="col" class="number"><button type="button" title="{escape(metric.about)}">'
            f'{escape(metric.title)} <span aria-hidden="true">{arrow}</span>'
            f'<span class="spoken">, {better} is better</span>'
            f"<small>{escape(metric.unit) or '&nbsp;'}</small></button></th>"
        )
    for name in last:
        button = f'<button type="button">{name}<small>&nbsp;</small></button>'
        cells.append(f'<th scope="col" class="number">{button}</th>')
    return "<thead><tr>" + "".join(cells) + "</tr></thead>"


def _summary_html(evaluation: Evaluation, metrics: Sequence[Metric]) -> str:
    rows = []
    for summary in evaluation.summaries:
        cells = [_estimate_html(summary.means.get(m.key), m.decimals) for m in metrics]
        rows.append(f'<tr><th scope="row">{escape(summary.system)}</th>{"".join(cells)}</tr>')
    return _header_html(metrics, ["System"]) + "<tbody>" + "\n".join(rows) + "</tbody>"


def _differences_html(evaluation: Evaluation, metrics: Sequence[Metric]) -> str:
    metrics = [m for m in metrics if any(m.key in s.differences for s in evaluation.summaries)]
    rows = []
    for summary in evaluation.summaries:
        if summary.system == evaluation.baseline:
            continue
        cells = []
        for metric in metrics:
            found = summary.differences.get(metric.key)
            cells.append(_estimate_html(found, metric.decimals, True, verdict(found, metric)))
        rows.append(f'<tr><th scope="row">{escape(summary.system)}</th>{"".join(cells)}</tr>')
    return _header_html(metrics, ["System"]) + "<tbody>" + "\n".join(rows) + "</tbody>"


def _estimate_html(
    found: Estimate | None, decimals: int, signed: bool = False, word: str = ""
) -> str:
    if found is None:
        return '<td class="number none">\N{EN DASH}</td>'
    mean, *interval = _estimate(found, decimals, signed).split(" ", 1)
    small = f"<small>{interval[0]}</small>" if interval else ""
    told = f'<small class="word">{word}</small>' if word else ""
    return f'<td class="number {word}" data-value="{found.mean:.9g}">{mean}{small}{told}</td>'


def _systems_html(summaries: Sequence[Summary]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(s.system)}</th><td>{escape(s.source)}</td>'
        f'<td class="number">{s.files}</td><td class="number">{_range(s.offsets, "d")}</td>'
        f'<td class="number">{_range(s.gains_db, ".1f")}</td></tr>'
        for s in summaries
    ]
    return "\n".join(rows)


def _files_html(rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    lines = []
    for row in rows:
        cells = []
        for metric in metrics:
            if metric.key in row.values:
                value = row.values[metric.key]
                shown = _number(value, metric.decimals)
                cells.append(f'<td class="number" data-value="{value:.9g}">{shown}</td>')
            else:
                why = row.reasons.get(metric.key, "")
                cells.append(f'<td class="number none" title="{escape(why)}">\N{EN DASH}</td>')
        cells.append(f'<td class="number" data-value="{row.offset}">{row.offset}</td>')
        gain = _number(row.gain_db, 1)
        cells.append(f'<td class="number" data-value="{row.gain_db:.9g}">{gain}</td>')
        lines.append(
            f'<tr data-system="{escape(row.system)}"><th scope="row">{escape(row.name)}</th>'
            f"<td>{escape(row.system)}</td>{''.join(cells)}</tr>"
        )
    header = _header_html(metrics, ["File", "System"], ["offset, samples", "gain, dB"])
    return header + "<tbody>" + "\n".join(lines) + "</tbody>"


def _column_html(metric: Metric, missing: dict[str, str]) -> str:
    why = missing.get(metric.key)
    left = f" <strong>Left out here: {escape(why)}.</strong>" if why else ""
    better = "Higher" if metric.higher_is_better else "Lower"
    return (
        f"<dt>{escape(metric.title)}</dt><dd>{escape(metric.about)} {better} is better. "
        f"<cite>{escape(metric.citation)}</cite>{left}</dd>"
    )


def _left_out_html(evaluation: Evaluation) -> str:
    if not evaluation.left_out:
        return "<p>Nothing.</p>"
    items = [f"<li>{escape(what)}: {escape(why)}</li>" for what, why in evaluation.left_out]
    return "<ul>" + "".join(items) + "</ul>"


# ------------------------------------------------------------------------------ sound and pictures


def _samples_html(evaluation: Evaluation, players: int, audio: bool) -> Iterator[str]:
    """Pictures and players of every system, side by side, for some files spread over the list."""
    rate = evaluation.sampling_rate
    everywhere = [
        n for n in evaluation.names if all(n in files for files in evaluation.audio.values())
    ]
    count = max(0, min(players, len(everywhere)))
    places = np.linspace(0, len(everywhere) - 1, count).round().astype(int)
    for place in places:
        name = everywhere[place]
        truth = read_audio(next(iter(evaluation.audio.values()))[name], rate)
        top = float(_magnitudes(truth).max())
        figures = []
        for system, files in evaluation.audio.items():
            try:
                shown = _levelled(truth, files[name], rate)
            except (UserError, ValueError):
                continue  # it is listed in left_out
            title = escape(f"{system}, {name}")
            player = (
                f'<audio controls preload="none" aria-label="{title}" src="{_flac(shown, rate)}">'
                "</audio>"
                if audio
                else ""
            )
            figures.append(
                f"<figure><figcaption>{escape(system)}</figcaption>"
                f"{_picture_html(title, shown, top, rate)}{player}</figure>"
            )
        heading = f"{escape(name)} <small>{len(truth) / rate:.1f} s</small>"
        yield f'<section class="sample"><h3>{heading}</h3><div>{"".join(figures)}</div></section>'


def _picture_html(title: str, samples: np.ndarray, top: float, rate: int) -> str:
    """The spectrogram with its axes: frequency in hertz upwards, seconds to the right."""
    seconds = len(samples) / rate
    hertz, time = (
        "".join(f"<span>{each}</span>" for each in labels)
        for labels in (
            (f"{rate / 2:,.0f} Hz", f"{rate / 4:,.0f} Hz", "0 Hz"),
            ("0 s", f"{seconds / 2:.1f} s", f"{seconds:.1f} s"),
        )
    )
    return (
        f'<div class="picture"><div class="hertz" aria-hidden="true">{hertz}</div>'
        f'<img alt="Spectrogram of {title}, 0 to {rate / 2:,.0f} Hz, {seconds:.1f} s" '
        f'src="{_spectrogram(samples, top)}">'
        f'<div class="seconds" aria-hidden="true">{time}</div></div>'
    )


def _levelled(truth: np.ndarray, path: Path, rate: int) -> np.ndarray:
    samples, _ = read_output(path, rate)
    return np.clip(align(truth, samples, rate).output, -1, 1)


def _flac(samples: np.ndarray, rate: int) -> str:
    """A data URI of the samples as FLAC, 16 bits."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(content.getvalue()).decode()


def _magnitudes(samples: np.ndarray) -> np.ndarray:
    """`[T] -> [256, frames]`: the larger of every two of 512 bins, from low to high."""
    import librosa

    found = np.abs(librosa.stft(np.asarray(samples, np.float32), n_fft=1024, hop_length=256))
    return found[:512].reshape(256, 2, -1).max(axis=1)


def _spectrogram(samples: np.ndarray, top: float) -> str:
    """A PNG as a data URI: from 0 Hz to half the rate, with a range of 80 dB below `top`."""
    from matplotlib import colormaps
    from PIL import Image

    decibels = 20 * np.log10(np.maximum(_magnitudes(samples) / top, 1e-9))
    shade = np.clip(1 + decibels / _PICTURE_DB, 0, 1)
    image = Image.fromarray(np.rint(shade[::-1] * 63).astype(np.uint8), mode="L").convert("P")
    palette = (colormaps["magma"](np.arange(64) / 63)[:, :3] * 255).astype(np.uint8)
    image.putpalette(palette.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
