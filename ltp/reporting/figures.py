"""The figures of the field's papers, one file each as PNG and PDF. Drawn without pyplot, which keeps global state."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from ltp.reporting import text
from ltp.reporting.collect import LeftOut
from ltp.reporting.predictions import UnreadableError, find_predictions, read_token_lengths
from ltp.reporting.rows import METHODS, Group, Row

_STYLE: Any = {  # any, because Matplotlib spells out the names of all its settings
    "font.family": "sans-serif",
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
    "pdf.fonttype": 42,  # letters stay letters, which publishers ask for
}
_LINES = 5  # so many curves can be told apart
_NARROW = 0.2  # of relative FLOPs
_WIDTH, _HEIGHT = 3.5, 2.9  # inches: one column of a paper
_SHORT_LABEL = 24  # letters: two labels of a legend fit beside each other
_LINE_HEIGHT = 0.15  # inches, of a legend's line


@dataclass(frozen=True)
class Style:
    """How a method looks: told apart by shape and lightness too, for prints in black and white."""

    color: str
    marker: str
    line: str


_METHOD_STYLES = {
    "learned": Style("#0072B2", "o", "-"),
    "manual": Style("#D55E00", "s", "--"),
    "topk": Style("#009E73", "^", "-."),
}
_OTHERS = (
    Style("#CC79A7", "D", ":"),
    Style("#E69F00", "v", "-"),
    Style("#56B4E9", "P", "--"),
    Style("#000000", "X", "-."),
)
#: Variants of a method keep its colour, darker and lighter in turn.
_VARIANTS = (("D", "-"), ("v", "--"), ("P", "-."), ("X", ":"), ("p", "-"), ("<", "--"), (">", "-."), ("h", ":"))
#: Curves of one method, from the cheapest on: darker is dearer.
_SHADES = ("#9ecae1", "#6baed6", "#3182bd", "#08519c", "#08203f")
_SHADE_LINES = ((0, (1, 1)), "-.", "--", (0, (5, 1)), "-")
_SHADE_MARKERS = ("v", "^", "s", "D", "o")


def draw(group: Group) -> tuple[dict[str, bytes], list[LeftOut]]:
    """A group's figures.

    Returns:
        Contents by file name (``<slug>_tradeoff.png``, …); and the files of predictions that could not be read.
    """
    lengths, left_out = _lengths(group)
    with matplotlib.rc_context(_STYLE):
        figures: dict[str, Figure] = {}
        if group.methods:
            figures["tradeoff"] = tradeoff(group)
        if any(row.tokens for method in group.methods for row in group.front_of(method)):
            figures["tokens"] = tokens(group)
        if any(map(_has_learned, group.front_of("learned"))):
            figures["thresholds"] = thresholds(group)
        if lengths:
            figures["lengths"] = kept_lengths(group, lengths)
            figures["examples"] = trajectories(group, lengths)
        files: dict[str, bytes] = {}
        for name, figure in figures.items():
            files |= {f"{group.slug}_{name}.{form}": content for form, content in _saved(figure).items()}
        return files, left_out


def _saved(figure: Figure) -> dict[str, bytes]:
    """A figure as PNG and as PDF."""
    files = {}
    for form in ("png", "pdf"):
        stream = io.BytesIO()
        # no date: the same runs make the same file
        figure.savefig(stream, format=form, metadata={"CreationDate": None} if form == "pdf" else None)
        figure.set_layout_engine("none")  # what was worked out for the first form holds for the second
        files[form] = stream.getvalue()
    return files


def tradeoff(group: Group) -> Figure:
    """Metric against relative FLOPs: one curve a method and variant through its Pareto front, other rows beside it."""
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    if group.dense is not None:
        dense = 100 * group.dense.metric.mean
        axes.axhline(dense, color="black", linewidth=0.9, label=f"dense, {dense:.1f}")
        within = f"within {text.value(group.points)} {'point' if group.points == 1 else 'points'}"
        axes.axhspan(dense - group.points, dense, color="0.92", linewidth=0, zorder=0, label=within)
    others = 0
    heights = [] if group.dense is None else [100 * group.dense.metric.mean]
    for (method, variant), style in _variant_styles(group):
        front = group.front_of(method, variant)
        heights += [100 * row.metric.mean for row in front]
        if front:
            _curve(axes, front, style, label=text.method_title(method, variant))
        alike = [row for row in group.rows if (row.method, row.variant) == (method, variant)]
        rest = [row for row in alike if row not in front]
        others += len(rest)
        axes.plot(
            *_points(rest), style.marker, color=style.color, fillstyle="none", markersize=3.5, alpha=0.6, zorder=2
        )
    if others:
        axes.plot([], [], "o", color="0.4", fillstyle="none", markersize=3.5, label="off its curve")
    _widen(axes)
    _leave_out_the_lowest(axes, group, heights)
    axes.set(xlabel="relative FLOPs", ylabel=text.metric_title(group.split), title=_title(group))
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


def _widen(axes: Axes) -> None:
    """Room around the points: a few that lie close together must not look far apart."""
    axes.margins(0.08)
    low, high = axes.get_xlim()
    if high - low < _NARROW:
        middle = (low + high) / 2
        axes.set_xlim(middle - _NARROW / 2, middle + _NARROW / 2)
    axes.locator_params(axis="x", nbins=6)


def _leave_out_the_lowest(axes: Axes, group: Group, heights: Sequence[float]) -> None:
    """Let a run that went wrong not press all others together; the axis says how many are below it."""
    span = max(max(heights) - min(heights), 2.0)
    floor = min(heights) - 0.25 * span
    below = [row for row in group.rows if row.method != "dense" and 100 * row.metric.mean < floor]
    if below:
        axes.set_ylim(bottom=floor)
        words = f"{len(below)} below the axis"
        axes.text(0.01, 0.01, words, transform=axes.transAxes, fontsize=6.5, va="bottom")


def tokens(group: Group) -> Figure:
    """The fraction of tokens alive entering each layer, and after the last: a panel a method."""
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
    """Learned thresholds layer by layer, beside the straight lines that they began as where those are known."""
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    rows = _sample([row for row in group.front_of("learned") if _has_learned(row)])
    begun = {row.settings["final_token_threshold"]: before for row in rows if (before := _before(row))}
    for number, before in enumerate(begun.values()):
        label = "before learning" if number == 0 else None
        axes.plot(range(1, len(before) + 1), before, color="0.45", linestyle=":", linewidth=1, label=label)
    for row, style in zip(rows, _shades(len(rows)), strict=True):
        assert row.thresholds is not None
        aim = text.value(row.settings["target_flops"]) if "target_flops" in row.settings else None
        how = f"learned from {row.settings['final_token_threshold']:g}" if aim is None else f"target {aim}"
        words = [word for word in row.variant if word in ("calibrated", "distilled")]
        label = ", ".join([f"{row.relative_flops.mean:.2f}", how, *words])
        axes.plot(range(1, len(row.thresholds) + 1), row.thresholds, label=label, **style)
    _layers(axes, max(len(row.thresholds or ()) for row in rows))
    axes.set(ylabel="threshold", title=_title(group))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    _legend_below(figure, title="relative FLOPs")
    return figure


def _has_learned(row: Row) -> bool:
    """Whether a row's results say from where or to what its thresholds were led."""
    return bool(row.thresholds and (_before(row) or "target_flops" in row.settings))


def _before(row: Row) -> list[float]:
    """A learned row's thresholds before they were learned; empty where its results do not say."""
    final, count = row.settings.get("final_token_threshold"), len(row.thresholds or ())
    return [final * layer / count for layer in range(1, count + 1)] if isinstance(final, int | float) else []


def kept_lengths(group: Group, lengths: dict[str, tuple[Row, np.ndarray]]) -> Figure:
    """Each example's mean tokens a layer against its length: a panel a method."""
    figure, panels = _panels(len(lengths))
    top = max(matrix[:, 0].max() for _, matrix in lengths.values())
    for axes, (method, (row, matrix)) in zip(panels, lengths.items(), strict=True):
        style = dict(_styles(group))[method]
        axes.plot([0, top], [0, top], color="0.5", linewidth=0.8, zorder=1)
        axes.plot(matrix[:, 0], matrix[:, 1:].mean(axis=1), ".", color=style.color, markersize=3, alpha=0.4)
        axes.set(xlabel="input tokens", title=_example_title(row))
    panels[0].set_ylabel("tokens kept, mean over layers")
    figure.suptitle(_title(group), fontsize=8)
    return figure


def trajectories(group: Group, lengths: dict[str, tuple[Row, np.ndarray]]) -> Figure:
    """Tokens alive layer by layer in a few examples, from a short one to a long one: a panel a method."""
    figure, panels = _panels(len(lengths))
    for axes, (row, matrix) in zip(panels, lengths.values(), strict=True):
        by_length = np.argsort(matrix[:, 0], kind="stable")
        indices = np.unique(np.linspace(0, len(by_length) - 1, num=_LINES).round().astype(int))
        for example, style in zip(matrix[by_length[indices]], _shades(len(indices)), strict=True):
            axes.plot(range(1, len(example) + 1), example, label=f"{example[0]:.0f}", **style)
        _layers(axes, matrix.shape[1], after_last=True)
        axes.set(title=_example_title(row))
        axes.legend(title="input tokens", title_fontsize=7)
    panels[0].set_ylabel("tokens alive")
    figure.suptitle(_title(group), fontsize=8)
    return figure


def _lengths(group: Group) -> tuple[dict[str, tuple[Row, np.ndarray]], list[LeftOut]]:
    """Tokens alive in each example, of one row a method: the summary's, or the cheapest that has predictions."""
    found: dict[str, tuple[Row, np.ndarray]] = {}
    left_out = []
    for method in group.methods:
        chosen = group.cheapest(method)
        for row in [*([chosen] if chosen is not None else []), *group.front_of(method)]:
            path = find_predictions(row)
            if path is not None and method not in found:
                try:
                    found[method] = row, read_token_lengths(path)
                except UnreadableError as error:
                    entry = LeftOut(path, "predictions that cannot be read", str(error))
                    left_out += [entry] if entry not in left_out else []
    return found, left_out


def _example_title(row: Row) -> str:
    return f"{text.method_title(row.method)}, FLOPs {row.relative_flops.mean:.2f}"


def _styles(group: Group) -> list[tuple[str, Style]]:
    others = [name for name in group.methods if name not in METHODS]
    own = {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(others)}
    return [(name, (_METHOD_STYLES | own)[name]) for name in group.methods]


def _variant_styles(group: Group) -> list[tuple[tuple[str, tuple[str, ...]], Style]]:
    styles, found = dict(_styles(group)), []
    others = [pair for pair in group.variants if pair[1]]
    for method, variant in group.variants:
        style = styles[method]
        if variant:
            number = others.index((method, variant))
            marker, line = _VARIANTS[number % len(_VARIANTS)]
            style = Style(_mixed(style.color, "white" if number % 2 else "black"), marker, line)
        found.append(((method, variant), style))
    return found


def _mixed(color: str, other: str) -> str:
    red, green, blue = (0.6 * own + 0.4 * added for own, added in zip(to_rgb(color), to_rgb(other), strict=True))
    return to_hex((red, green, blue))


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure((max(_WIDTH, 2.3 * count), 2.6), layout="constrained")
    return figure, figure.subplots(1, count, sharey=True, squeeze=False)[0]


def _sample(rows: Sequence[Row]) -> list[Row]:
    """Some of the rows, from the first to the last, as many as can be told apart."""
    indices = np.unique(np.linspace(0, len(rows) - 1, num=min(_LINES, len(rows))).round().astype(int))
    return [rows[place] for place in indices]


def _shades(count: int) -> Iterator[dict[str, Any]]:
    for place in range(_LINES - count, _LINES):
        yield {
            "color": _SHADES[place],
            "linestyle": _SHADE_LINES[place],
            "marker": _SHADE_MARKERS[place],
            "markersize": 3,
        }


def _layers(axes: Axes, count: int, *, after_last: bool = False) -> None:
    """Layers along the x axis, and ``out`` for what is alive after the last."""
    layers = count - after_last
    step = 1 if layers <= 12 else 3
    ticks = list(range(1, layers + 1, step))
    axes.set_xticks([*ticks, count] if after_last else ticks, [*map(str, ticks), "out"] if after_last else None)
    axes.set_xlabel("entering layer" if after_last else "layer")


def _legend_below(figure: Figure, title: str | None = None) -> None:
    """What the lines mean, where it hides none of them."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    columns = 2 if max(map(len, labels), default=0) <= _SHORT_LABEL else 1
    if columns == 1:
        figure.set_figheight(figure.get_figheight() + _LINE_HEIGHT * len(labels) / 2)
    figure.legend(loc="outside lower center", ncols=columns, title=title, title_fontsize=7)


def _title(group: Group) -> str:
    return f"{group.split.task} · {group.split.model}"
