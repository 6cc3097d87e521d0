"""The report in the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ltp.reporting import text
from ltp.reporting.collect import LeftOut
from ltp.reporting.rows import Group, Row

#: A table with more rows than this shows the Pareto fronts only.
LONG = 40
_NAMED = 5


def comparison(group: Group) -> Table:
    """A group's rows."""
    table = Table(title=escape(text.title(group.split)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    columns = text.columns(group)
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.title != "settings")
    rows, previous = shown_rows(group), None
    for row in rows:
        if previous not in (None, row.method):
            table.add_section()
        previous = row.method
        style = "bold" if row is group.cheapest() else None
        table.add_row(*(escape(column.cell(row)) for column in columns), style=style)
    return table


def shown_rows(group: Group) -> Sequence[Row]:
    """All rows, or where they are many the dense one, the Pareto fronts and the summary's."""
    if len(group.rows) <= LONG:
        return group.rows
    chosen = {id(row) for method, variant in group.variants for row in group.front_of(method, variant)}
    return [row for row in group.rows if row.on_front or row is group.dense or id(row) in chosen]


def left_out(entries: Iterable[LeftOut], named: int = _NAMED) -> list[str]:
    """A line for each reason, with the number of folders and the first of them."""
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in entries:
        by_reason.setdefault(entry.why, []).append(entry)
    lines = []
    for why, same in by_reason.items():
        names = [_named(entry.path, entry.detail) for entry in same[:named]]
        more = [f"and {len(same) - named} more"] if len(same) > named else []
        lines.append(f"left out, {why}: {len(same)}: {', '.join([*names, *more])}")
    return lines


def _named(path: Path, detail: str) -> str:
    return f"{path} ({detail})" if detail else str(path)
