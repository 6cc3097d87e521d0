"""Figures of the report, each as PNG and PDF. They are drawn without pyplot, which has global state."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from ltp.errors import printable
from ltp.pruning import all_methods, is_learned, variants
from ltp.reporting import text
from ltp.reporting.collect import LeftOut
from ltp.reporting.curves import learning_curve
from ltp.reporting.predictions import Outcomes, UnreadableError, find_predictions, read_outcomes
from ltp.reporting.rows import Group, Row

#: Matplotlib's settings of all figures.
STYLE: Any = {  # Any, because Matplotlib types rc settings with a literal of all names
    "font.family": "sans-serif",
    "text.parse_math": False,  # names are no formulas
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # embed TrueType fonts, which publishers require
}
_MAX_CURVES = 5  # of one method: more are hard to distinguish
_MIN_X_RANGE = 0.2  # in relative FLOPs
_WIDTH, _HEIGHT = 3.5, 2.9  # inches: one column of a paper
_SHORT_LABEL = 24  # characters: two labels of a legend fit in a line
_LINE_HEIGHT = 0.15  # inches, of a line of the legend


@dataclass(frozen=True)
class Style:
    """Style of a method; marker and lightness differ, too, for black-and-white prints."""

    color: str
    marker: str
    line: str


#: Styles of methods that declare none, in colours that no other declares.
OTHER_STYLES = (
    Style("#999933", "D", ":"),
    Style("#44AA99", "<", "-"),
    Style("#AA4499", ">", "--"),
    Style("#332288", "d", "-."),
    Style("#DDCC77", "p", ":"),
    Style("#661100", "H", "--"),
)
#: Marker and line of variants; their colour is that of the method, alternately darker and lighter.
_VARIANTS = (("D", "-"), ("v", "--"), ("P", "-."), ("X", ":"), ("p", "-"), ("<", "--"), (">", "-."), ("h", ":"))
#: Styles of the curves of one method, from cheap to costly: darker is costlier.
_SHADES = ("#9ecae1", "#6baed6", "#3182bd", "#08519c", "#08203f")
_SHADE_LINES = ((0, (1, 1)), "-.", "--", (0, (5, 1)), "-")
_SHADE_MARKERS = ("v", "^", "s", "D", "o")


def draw(group: Group) -> tuple[dict[str, bytes], list[LeftOut]]:
    """Draw the figures of a group.

    Returns:
        File contents by file name (``<slug>_tradeoff.png``, …), and the predictions files that cannot be read.
    """
    outcomes, left_out = _outcomes(group)
    with matplotlib.rc_context(STYLE):
        figures: dict[str, Figure] = {}
        if group.methods:
            figures["tradeoff"] = tradeoff(group)
        if any(row.tokens for method in group.methods for row in group.front_of(method)):
            figures["tokens"] = tokens(group)
        if _rows_with_thresholds(group):
            figures["thresholds"] = thresholds(group)
        if any(len(curve) > 1 for curves in _curves(group).values() for _, curve in curves):
            figures["learning"] = learning(group)
        if outcomes:
            figures["lengths"] = kept_lengths(group, outcomes)
            figures["examples"] = trajectories(group, outcomes)
        if any(len(found.layers) for _, found in outcomes.values()):
            figures["labels"] = label_accuracies(group, outcomes)
        files: dict[str, bytes] = {}
        for name, figure in figures.items():
            files |= {f"{group.slug}_{name}.{form}": content for form, content in saved(figure).items()}
        return files, left_out


def saved(figure: Figure) -> dict[str, bytes]:
    """Render a figure as PNG and as PDF."""
    files = {}
    for form in ("png", "pdf"):
        stream = io.BytesIO()
        # no creation date, so that files are reproducible
        figure.savefig(stream, format=form, metadata={"CreationDate": None} if form == "pdf" else None)
        figure.set_layout_engine("none")  # reuse the layout computed for the first format
        files[form] = stream.getvalue()
    return files


def tradeoff(group: Group) -> Figure:
    """Plot metric over relative FLOPs: the curve of each method and variant, and other rows."""
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    if group.dense is not None:
        dense = 100 * group.dense.metric.mean
        axes.axhline(dense, color="black", linewidth=0.9, label=f"dense, {dense:.1f}")
        within = f"within {text.value(group.points)} {'point' if group.points == 1 else 'points'}"
        axes.axhspan(dense - group.points, dense, color="0.92", linewidth=0, zorder=0, label=within)
    others = 0
    metrics = [] if group.dense is None else [100 * group.dense.metric.mean]
    for (method, variant), style in _variant_styles(group):
        curve = group.curve_of(method, variant)
        metrics += [100 * row.metric.mean for row in curve]
        if curve:
            _curve(axes, curve, style, label=text.method_title(method, variant))
        alike = [row for row in group.rows if (row.method, row.variant) == (method, variant)]
        rest = [row for row in alike if row not in curve]
        others += len(rest)
        axes.plot(
            *_points(rest), style.marker, color=style.color, fillstyle="none", markersize=3.5, alpha=0.6, zorder=2
        )
    if others:
        axes.plot([], [], "o", color="0.4", fillstyle="none", markersize=3.5, label="off its curve")
    _set_x_range(axes)
    _clip_low_outliers(axes, group, metrics)
    axes.set(xlabel="relative FLOPs", ylabel=text.metric_title(group.split.metric), title=_title(group))
    _legend_below(figure)
    return figure


def _curve(axes: Axes, rows: Sequence[Row], style: Style, label: str) -> None:
    xs, ys = _points(rows)
    axes.plot(xs, ys, color=style.color, marker=style.marker, linestyle=style.line, zorder=3, label=label)
    axes.errorbar(
        xs,
        ys,
        xerr=[row.relative_flops.deviation or 0 for row in rows],
        yerr=[100 * (row.metric.deviation or 0) for row in rows],
        fmt="none",
        ecolor=style.color,
        elinewidth=0.8,
        alpha=0.5,
        zorder=2,
    )


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row.relative_flops.mean for row in rows], [100 * row.metric.mean for row in rows]


def _set_x_range(axes: Axes) -> None:
    """Set margins and a minimum range of the x axis, so that close points do not look far apart."""
    axes.margins(0.08)
    low, high = axes.get_xlim()
    if high - low < _MIN_X_RANGE:
        middle = (low + high) / 2
        axes.set_xlim(middle - _MIN_X_RANGE / 2, middle + _MIN_X_RANGE / 2)
    axes.locator_params(axis="x", nbins=6)


def _clip_low_outliers(axes: Axes, group: Group, metrics: Sequence[float]) -> None:
    """Clip the y axis above failed runs, which would compress the others, and show the number of rows below."""
    span = max(max(metrics) - min(metrics), 2.0)
    floor = min(metrics) - 0.25 * span
    below = [row for row in group.rows if row.method != "dense" and 100 * row.metric.mean < floor]
    if below:
        axes.set_ylim(bottom=floor)
        note = f"{len(below)} below the axis"
        axes.text(0.01, 0.01, note, transform=axes.transAxes, fontsize=6.5, va="bottom")


def tokens(group: Group) -> Figure:
    """Plot the fraction of tokens alive entering each layer, and after the last, one panel per method."""
    methods = [name for name in group.methods if any(row.tokens for row in group.front_of(name))]
    figure, panels = _panels(len(methods))
    for axes, method in zip(panels, methods, strict=True):
        rows = _sample([row for row in group.front_of(method) if row.tokens])
        for row, style in zip(rows, _shades(len(rows)), strict=True):
            assert row.tokens is not None
            kept = np.array(row.tokens) / row.tokens[0]
            axes.plot(range(1, len(kept) + 1), kept, label=f"{row.relative_flops.mean:.2f}", **style)
        _layers(axes, max(len(row.tokens or ()) for row in rows), after_last=True)
        axes.set(ylim=(0, 1.04), title=text.method_title(method))
        axes.legend(title="relative FLOPs", title_fontsize=7)
    panels[0].set_ylabel("tokens alive / input tokens")
    figure.suptitle(_title(group), fontsize=8)
    return figure


def thresholds(group: Group) -> Figure:
    """Plot learned thresholds over layers, and the initial ones if they are known, one panel per method."""
    rows_by_method = _rows_with_thresholds(group)
    figure = Figure((_WIDTH * max(1, 0.7 * len(rows_by_method)), _HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(rows_by_method), squeeze=False)[0]
    for axes, (method, rows) in zip(panels, rows_by_method.items(), strict=True):
        _draw_thresholds(axes, _sample(rows))
        if len(panels) > 1:
            axes.set_title(text.method_title(method))
            axes.legend(title="relative FLOPs", title_fontsize=7)
    panels[0].set_ylabel("threshold")
    if len(panels) == 1:
        panels[0].set_title(_title(group))
        _legend_below(figure, title="relative FLOPs")
    else:
        figure.suptitle(_title(group), fontsize=8)
    return figure


def _draw_thresholds(axes: Axes, rows: Sequence[Row]) -> None:
    schedules = {tuple(initial): initial for row in rows if (initial := _initial_thresholds(row))}
    for number, initial in enumerate(schedules.values()):
        label = "before learning" if number == 0 else None
        axes.plot(range(1, len(initial) + 1), initial, color="0.45", linestyle=":", linewidth=1, label=label)
    for row, style in zip(rows, _shades(len(rows)), strict=True):
        assert row.thresholds is not None
        if "target_flops" in row.settings:
            origin = f"target {text.value(row.settings['target_flops'])}"
        else:
            origin = f"learned from {_initial_thresholds(row)[-1]:g}"
        variants = [word for word in row.variant if word in ("calibrated", "distilled")]
        label = ", ".join([f"{row.relative_flops.mean:.2f}", origin, *variants])
        axes.plot(range(1, len(row.thresholds) + 1), row.thresholds, label=label, **style)
    _layers(axes, max(len(row.thresholds or ()) for row in rows))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))


def _rows_with_thresholds(group: Group) -> dict[str, list[Row]]:
    """Return the rows of each method that learns, of its front, whose thresholds have a known origin."""
    rows = {method: group.front_of(method) for method in group.methods if is_learned(method)}
    known = {method: [row for row in front if _has_known_origin(row)] for method, front in rows.items()}
    return {method: front for method, front in known.items() if front}


def _has_known_origin(row: Row) -> bool:
    """Whether a row has thresholds, and their initial values or their target is known."""
    return bool(row.thresholds and (_initial_thresholds(row) or "target_flops" in row.settings))


def _initial_thresholds(row: Row) -> list[float]:
    """Compute the thresholds of a row before learning; empty if the results do not contain their schedule."""
    kind = all_methods().get(row.runs[0].results["prune_mode"])
    return [] if kind is None else kind.initial_thresholds(row.settings, len(row.thresholds or ()))


def learning(group: Group) -> Figure:
    """Plot the metric on the validation split over optimiser steps, one panel per method, dense first."""
    curves_by_method = _curves(group)
    figure, panels = _panels(len(curves_by_method))
    for axes, (method, curves) in zip(panels, curves_by_method.items(), strict=True):
        for (row, curve), style in zip(curves, _shades(len(curves)), strict=True):
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, 100 * np.array(values), label=f"{row.relative_flops.mean:.2f}", **style)
        axes.set(xlabel="optimiser step", title=text.method_title(method))
        axes.locator_params(axis="x", nbins=4)
        if method != "dense":
            axes.legend(title="relative FLOPs", title_fontsize=7)
    panels[0].set_ylabel(text.metric_title(group.split.metric))
    figure.suptitle(_title(group), fontsize=8)
    return figure


def _curves(group: Group) -> dict[str, list[tuple[Row, list[tuple[int, float]]]]]:
    """Return the learning curves of the dense row and of each method's front, by method; those that have any."""
    dense = [group.dense] if group.dense is not None else []
    rows = {"dense": dense} | {method: _sample(group.front_of(method)) for method in group.methods}
    curves = {method: [(row, learning_curve(row)) for row in alike] for method, alike in rows.items()}
    known = {method: [(row, curve) for row, curve in alike if curve] for method, alike in curves.items()}
    return {method: alike for method, alike in known.items() if alike}


def kept_lengths(group: Group, outcomes: dict[str, tuple[Row, Outcomes]]) -> Figure:
    """Plot the mean number of tokens kept over the length of each example, one panel per method."""
    figure, panels = _panels(len(outcomes))
    longest = max(found.lengths[:, 0].max() for _, found in outcomes.values())
    for axes, (method, (row, found)) in zip(panels, outcomes.items(), strict=True):
        style, matrix = dict(_styles(group))[method], found.lengths
        axes.plot([0, longest], [0, longest], color="0.5", linewidth=0.8, zorder=1)
        axes.plot(matrix[:, 0], matrix[:, 1:].mean(axis=1), ".", color=style.color, markersize=3, alpha=0.4)
        axes.set(xlabel="input tokens", title=_example_title(row))
    panels[0].set_ylabel("tokens kept, mean over layers")
    figure.suptitle(_title(group), fontsize=8)
    return figure


def trajectories(group: Group, outcomes: dict[str, tuple[Row, Outcomes]]) -> Figure:
    """Plot the tokens alive over layers for a few examples of different lengths, one panel per method."""
    figure, panels = _panels(len(outcomes))
    for axes, (row, found) in zip(panels, outcomes.values(), strict=True):
        matrix = found.lengths
        by_length = np.argsort(matrix[:, 0], kind="stable")
        indices = np.unique(np.linspace(0, len(by_length) - 1, num=_MAX_CURVES).round().astype(int))
        for example, style in zip(matrix[by_length[indices]], _shades(len(indices)), strict=True):
            axes.plot(range(1, len(example) + 1), example, label=f"{example[0]:.0f}", **style)
        _layers(axes, matrix.shape[1], after_last=True)
        axes.set(title=_example_title(row))
        axes.legend(title="input tokens", title_fontsize=7)
    panels[0].set_ylabel("tokens alive")
    figure.suptitle(_title(group), fontsize=8)
    return figure


def label_accuracies(group: Group, outcomes: dict[str, tuple[Row, Outcomes]]) -> Figure:
    """Plot the accuracy of labels over the layers that their tokens went through, one panel per method.

    Error bars are standard errors; the area of a point is the share of the labels.
    """
    chosen = {method: (row, found) for method, (row, found) in outcomes.items() if len(found.layers)}
    figure, panels = _panels(len(chosen))
    for axes, (method, (row, found)) in zip(panels, chosen.items(), strict=True):
        color, num_layers = dict(_styles(group))[method].color, found.lengths.shape[1] - 1
        counts = np.bincount(found.layers, minlength=num_layers + 1)
        layers = counts.nonzero()[0]
        counts = counts[layers]
        accuracies = np.array([found.is_right[found.layers == layer].mean() for layer in layers])
        errors = np.sqrt(accuracies * (1 - accuracies) / counts)
        axes.errorbar(layers, 100 * accuracies, yerr=100 * errors, color=color, linewidth=0.8, zorder=2)
        axes.scatter(layers, 100 * accuracies, s=4 + 120 * counts / counts.sum(), color=color, alpha=0.7, zorder=3)
        axes.axhline(100 * found.is_right.mean(), color="0.5", linewidth=0.8, zorder=1)
        axes.set(xlabel="layers of the token", title=_example_title(row))
        axes.set(xlim=(-0.5, num_layers + 0.5), xticks=range(0, num_layers + 1, 1 if num_layers <= 12 else 3))
    panels[0].set_ylabel("labels predicted, %")
    figure.suptitle(_title(group), fontsize=8)
    return figure


def _outcomes(group: Group) -> tuple[dict[str, tuple[Row, Outcomes]], list[LeftOut]]:
    """Read the predictions of one row per method: the summary's row, or the cheapest row with predictions."""
    outcomes: dict[str, tuple[Row, Outcomes]] = {}
    left_out = []
    for method in group.methods:
        cheapest = group.cheapest(method)
        for row in [*([cheapest] if cheapest is not None else []), *group.front_of(method)]:
            path = find_predictions(row)
            if path is not None and method not in outcomes:
                try:
                    outcomes[method] = row, read_outcomes(path)
                except UnreadableError as error:
                    entry = LeftOut(path, "predictions that cannot be read", str(error))
                    left_out += [entry] if entry not in left_out else []
    return outcomes, left_out


def _example_title(row: Row) -> str:
    return f"{text.method_title(row.method)}, FLOPs {row.relative_flops.mean:.2f}"


def _styles(group: Group) -> list[tuple[str, Style]]:
    known = variants()
    styles = {
        name: Style(known[name].color, known[name].marker, known[name].line)
        for name in group.methods
        if name in known and known[name].color
    }
    others = [name for name in group.methods if name not in styles]
    styles |= {name: OTHER_STYLES[index % len(OTHER_STYLES)] for index, name in enumerate(others)}
    return [(name, styles[name]) for name in group.methods]


def _variant_styles(group: Group) -> list[tuple[tuple[str, tuple[str, ...]], Style]]:
    styles, variant_styles = dict(_styles(group)), []
    others = [pair for pair in group.variants if pair[1]]
    for method, variant in group.variants:
        style = styles[method]
        if variant:
            number = others.index((method, variant))
            marker, line = _VARIANTS[number % len(_VARIANTS)]
            style = Style(_mixed(style.color, "white" if number % 2 else "black"), marker, line)
        variant_styles.append(((method, variant), style))
    return variant_styles


def _mixed(color: str, other: str) -> str:
    return to_hex(tuple(0.6 * np.array(to_rgb(color)) + 0.4 * np.array(to_rgb(other))))


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure((max(_WIDTH, 2.3 * count), 2.6), layout="constrained")
    return figure, figure.subplots(1, count, sharey=True, squeeze=False)[0]


def _sample(rows: Sequence[Row]) -> list[Row]:
    """Return at most :data:`_MAX_CURVES` rows, evenly spaced from the first to the last."""
    indices = np.unique(np.linspace(0, len(rows) - 1, num=min(_MAX_CURVES, len(rows))).round().astype(int))
    return [rows[index] for index in indices]


def _shades(count: int) -> Iterator[dict[str, Any]]:
    for index in range(_MAX_CURVES - count, _MAX_CURVES):
        yield {
            "color": _SHADES[index],
            "linestyle": _SHADE_LINES[index],
            "marker": _SHADE_MARKERS[index],
            "markersize": 3,
        }


def _layers(axes: Axes, count: int, *, after_last: bool = False) -> None:
    """Label the x axis with layers, and with ``out`` after the last layer."""
    layers = count - after_last
    step = 1 if layers <= 12 else 3
    ticks = list(range(1, layers + 1, step))
    axes.set_xticks([*ticks, count] if after_last else ticks, [*map(str, ticks), "out"] if after_last else None)
    axes.set_xlabel("entering layer" if after_last else "layer")


def _legend_below(figure: Figure, title: str | None = None) -> None:
    """Add a legend below the axes, where it covers no line."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    columns = 2 if max(map(len, labels), default=0) <= _SHORT_LABEL else 1
    if columns == 1:
        figure.set_figheight(figure.get_figheight() + _LINE_HEIGHT * len(labels) / 2)
    figure.legend(loc="outside lower center", ncols=columns, title=title, title_fontsize=7)


def _title(group: Group) -> str:
    return printable(f"{group.split.task} · {group.split.model}")
