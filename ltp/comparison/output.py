"""The leaderboard's files: a table as Markdown and CSV, and a figure."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ltp.comparison.standings import STANDARD_ERRORS, Row
from ltp.pruning import variants
from ltp.reporting.figures import OTHER_STYLES, STYLE, Style, saved

_HEADER = ("method", "target", "relative FLOPs", "metric", "n", "behind the best", "speed-up", "training")


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row, as text."""
    behind = "–"
    if row.target is not None:
        behind = "best" if row.behind is None else f"{100 * row.behind:.1f} ± {100 * (row.behind_error or 0):.1f}"
        behind += " *" if row.is_behind else ""
    low, high = row.speedup_range
    return (
        row.label,
        "–" if row.target is None else f"{row.target:g}",
        f"{row.relative_flops:.3f}",
        f"{100 * row.metric:.1f} ± {100 * row.error:.1f}",
        str(row.seeds),
        behind,
        f"{row.speedup:.2f} ({low:.2f}–{high:.2f})",
        f"{row.training_seconds:.0f} s",
    )


def notes(metric: str, hardware: str, batch_size: int) -> list[str]:
    """Return what the columns mean, a line each."""
    return [
        f"Metric: {metric} on the validation split, times 100, mean over n seeds ± standard error over the examples "
        "(bootstrap) and the seeds.",
        "Relative FLOPs: counted, of the dense encoder's on the same examples without padding; rows of a target were "
        "brought to it.",
        f"Behind the best: of the same target, in points ± standard error of the difference on the same examples; * "
        f"exceeds {STANDARD_ERRORS:g} standard errors. Rows without * may be as good.",
        f"Speed-up: time of the deployed dense model ÷ the row's, side by side, batch {batch_size} in random order, "
        f"median (range) of the rounds, on {hardware}.",
        "Training: seconds of the row's own stages, without the dense parent that all start from.",
    ]


def markdown(title: str, rows: Sequence[Row], lines: Sequence[str], command: str) -> str:
    """Return the table as Markdown."""
    table = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * len(_HEADER)]
    table += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    listed = "\n".join(f"- {line}" for line in lines)
    return f"# {title}\n\n" + "\n".join(table) + f"\n\n{listed}\n\n```\n{command}\n```\n"


def csv_table(rows: Sequence[Row]) -> str:
    """Return all values of the rows as CSV."""
    stream = io.StringIO()
    names = ("name", "target", "relative_flops", "metric", "error", "seeds", "behind", "behind_error")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*names, "speedup", "speedup_low", "speedup_high", "training_seconds"))
    for row in rows:
        values: list[Any] = [getattr(row, name) for name in names]
        writer.writerow([*values, row.speedup, *row.speedup_range, row.training_seconds])
    return stream.getvalue()


def figure(title: str, rows: Sequence[Row], metric: str) -> dict[str, bytes]:
    """Draw the metric, with error bars, over relative FLOPs; at one budget a line for each row.

    Returns:
        ``png`` and ``pdf``.
    """
    several_budgets = len({row.target for row in rows} - {None}) > 1
    with matplotlib.rc_context(STYLE):
        picture = Figure((6.0, 4.0) if several_budgets else (6.0, 0.9 + 0.22 * len(rows)), layout="constrained")
        axes = picture.subplots()
        axes.set(title=title)
        if several_budgets:
            _draw_curves(axes, rows, metric)
            picture.legend(loc="outside right upper")
        else:
            _draw_lines(axes, rows, metric)
        return saved(picture)


def _draw_curves(axes: Any, rows: Sequence[Row], metric: str) -> None:
    """Draw a curve for each method, and points for rows without a budget."""
    names = list(dict.fromkeys(row.name for row in rows))
    for name in names:
        own = sorted((row for row in rows if row.name == name), key=lambda row: row.relative_flops)
        style = _style(name, names)
        several_depths = len(own) > 1 and own[0].target is None
        axes.errorbar(
            [row.relative_flops for row in own],
            [100 * row.metric for row in own],
            yerr=[100 * row.error for row in own],
            label=f"dense, {name}" if several_depths else own[0].label,
            color=style.color,
            marker=style.marker,
            linestyle=style.line if own[0].target is not None else "",
            elinewidth=0.6,
            capsize=1.5,
        )
    axes.set(xlabel="relative FLOPs", ylabel=f"{metric} × 100")


def _draw_lines(axes: Any, rows: Sequence[Row], metric: str) -> None:
    """Draw each row in a line of its own, the best on top, named with its relative FLOPs."""
    names = list(dict.fromkeys(row.name for row in rows))
    ordered = sorted(rows, key=lambda row: row.metric)
    for place, row in enumerate(ordered):
        style = _style(row.name, names)
        axes.errorbar(
            100 * row.metric,
            place,
            xerr=100 * row.error,
            color=style.color,
            marker=style.marker,
            elinewidth=0.6,
            capsize=1.5,
        )
    axes.set(xlabel=f"{metric} × 100")
    axes.set_yticks(range(len(ordered)), [f"{row.label}, {row.relative_flops:.2f}" for row in ordered])


#: Styles of what is compared with the methods.
_BASELINES = {
    "dense": Style("#000000", "*", ""),
    "int8": Style("#777777", "D", ""),
    "fewer layers": Style("#777777", "s", ""),
}


def _style(name: str, names: Sequence[str]) -> Style:
    if name in _BASELINES:
        return _BASELINES[name]
    known = variants()

    def has_style(other: str) -> bool:
        return other in _BASELINES or (other in known and bool(known[other].color))

    if has_style(name):
        return Style(known[name].color, known[name].marker, known[name].line)
    others = [other for other in names if not has_style(other)]
    return OTHER_STYLES[others.index(name) % len(OTHER_STYLES)]
