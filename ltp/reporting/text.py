"""Text of table cells, titles and summaries, shared by the terminal, Markdown and LaTeX."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ltp.pruning import is_learned, label_of, short_names
from ltp.reporting.rows import Group, Row, Split, Spread

_SHORT = {
    "target_flops": "target",
    "budgets": "of budgets",
    "distill_mode": "distill",
    "parent": "from",
}

DEFINITIONS = (
    "Metrics are those of the validation split, times 100; difference: to the run's own dense parent, in points.",
    "Relative FLOPs: of the dense cost of the same examples without padding, counted, not timed; "
    "embeddings, pooler and head left out.",
    "Speed-up: measured over the same weights without pruning, both packed, on the run's own machine.",
    "Runs that differ in the seed only are one row: mean ± sample standard deviation over n runs.",
    "Target: a run's FLOPs budget, in relative FLOPs; calibrated: reached without training. A run with several "
    "budgets has a row for each of them: the same weights, other thresholds.",
    "● on the Pareto front of all rows of the table (no other row is as cheap and better, or as good and cheaper). "
    "✓ the cheapest row near dense. A soft stage whose hard stage is finished has neither mark.",
)


@dataclass(frozen=True)
class Column:
    """A column of the summary tables.

    Attributes:
        title: header of the column.
        cell: function from a row to the text of its cell.
        right: whether the column is aligned to the right.
        majority: cell of the row of the larger class.
    """

    title: str
    cell: Callable[[Row], str]
    right: bool = True
    majority: str = ""


def columns(group: Group) -> list[Column]:
    """Return the columns of a group's table; empty ones are left out."""
    rows = group.rows
    cheapest = group.cheapest()
    others = dict.fromkeys(name for row in rows for name in row.other_metrics)
    all_columns = [
        Column("", lambda row: ("●" if row.on_front else "") + ("✓" if row is cheapest else ""), right=False),
        Column("method", method, right=False, majority="the larger class, always"),
        Column("settings", settings, right=False),
        Column("n", number_of_runs),
        _metric_column(group, group.split.metric, lambda row: row.metric),
        *(_metric_column(group, name, _other_metric(name)) for name in others),
        Column("difference", lambda row: spread(row.difference, 2, times=100, sign="+")),
        Column("relative FLOPs", lambda row: spread(row.relative_flops, 3)),
        Column("speed-up", lambda row: spread(row.speedup, 2, unit="×")),
    ]
    optional = ("settings", "difference", "speed-up")
    return [column for column in all_columns if column.title not in optional or any(map(column.cell, rows))]


def _metric_column(group: Group, name: str, metric: Callable[[Row], Spread | None]) -> Column:
    majority = group.majority.get(name)
    cell = "" if majority is None else spread(Spread(majority), 2, times=100)
    return Column(metric_title(name), lambda row: spread(metric(row), 2, times=100), majority=cell)


def _other_metric(name: str) -> Callable[[Row], Spread | None]:
    return lambda row: row.other_metrics.get(name)


def lines(group: Group, rows: Sequence[Row]) -> list[tuple[Row | None, list[str]]]:
    """Return the rows of a group's table with their cells; first that of the larger class, None, if it is known."""
    all_columns = columns(group)
    table: list[tuple[Row | None, list[str]]] = [(row, [column.cell(row) for column in all_columns]) for row in rows]
    if group.split.metric in group.majority:
        table.insert(0, (None, [column.majority for column in all_columns]))
    return table


def number_of_runs(row: Row) -> str:
    """Return the number of runs of a row, with the number of seeds if several runs have the same seed."""
    seeds = {run.seed for run in row.runs}
    return str(len(row.runs)) + ("" if len(seeds) == len(row.runs) else f" ({len(seeds)} seeds)")


def title(split: Split) -> str:
    """Write the title of a group: what its runs have in common."""
    parts = [split.task, split.model]
    if split.max_length is not None:
        parts.append(f"max_length {split.max_length}")
    if split.examples is not None:
        parts.append(f"{split.examples} validation examples")
    if split.tokens is not None:
        parts.append(f"{split.tokens:.1f} tokens an example")
    if split.dense_gflops is not None:
        parts.append(f"dense {split.dense_gflops:.3g} GFLOPs")
    return " · ".join(parts)


def metric_title(name: str) -> str:
    """Return name and scale of a metric."""
    return f"{name}, %" if name in ("accuracy", "f1") else f"{name} × 100"


def method(row: Row) -> str:
    """Return the method of a row, with the stage if the method has several."""
    name = method_title(row.method)
    return f"{name}, {row.stage}" if is_learned(row.method) else name


def method_title(name: str, variant: Sequence[str] = ()) -> str:
    """Return the displayed name of a method and its variant."""
    return ", ".join([label_of(name), *variant])


def settings(row: Row) -> str:
    """Write the settings that distinguish a row from the other rows of its method."""
    return ", ".join(_setting(name, row.settings[name]) for name in row.shown_settings)


def _setting(name: str, content: Any) -> str:
    if name.rpartition(" ")[2] == "calibrated":
        return name if content is True else f"{name} from {value(content)}"
    if name == "target_latency_ms":
        return f"latency {value(content)} ms"
    return f"{_short(name)} {value(content)}"


def _short(name: str) -> str:
    stage, _, last = name.rpartition(" ")
    return f"{stage} {_SHORT.get(last) or short_names().get(last, last)}".strip()


def value(content: Any) -> str:
    """Format the value of a setting, short but exact."""
    if isinstance(content, float):
        short = f"{content:g}"
        return short if float(short) == content else repr(content)
    if isinstance(content, list):
        return "/".join(map(value, content))
    if isinstance(content, dict):
        return ", ".join(f"{_short(name).removeprefix('of ')} {value(item)}" for name, item in content.items())
    return str(content)


def spread(numbers: Spread | None, digits: int, times: float = 1, sign: str = "", unit: str = "") -> str:
    """Format mean and deviation, such as ``78.19 ± 0.30``; an empty string for None."""
    if numbers is None:
        return ""
    # + 0 converts a rounded -0.0 to 0.0
    text = f"{round(times * numbers.mean, digits) + 0:{sign}.{digits}f}{unit}".replace("-", "−")
    return text if numbers.deviation is None else f"{text} ± {times * numbers.deviation:.{digits}f}"


def summary(group: Group, method_name: str | None = None) -> str:
    """Write the summary of a group in one sentence: the cheapest row near dense."""
    criterion = f"within {value(group.points)} {'point' if group.points == 1 else 'points'} of dense"
    if group.dense is None:
        return "No dense run here to compare with."
    criterion += f" ({spread(group.dense.metric, 2, times=100)})"
    row = group.cheapest(method_name)
    if row is None:
        return f"No {'pruned run' if method_name is None else method_title(method_name) + ' run'} {criterion}."
    name = ", ".join(part for part in (method(row), settings(row)) if part)
    assert row.difference is not None
    return (
        f"Cheapest {criterion}: {name}: {spread(row.metric, 2, times=100)} "
        f"({spread(row.difference, 2, times=100, sign='+')}) at {spread(row.relative_flops, 3)} of the FLOPs."
    )
