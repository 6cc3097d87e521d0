"""Terminal output of the report."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ltp.errors import printable
from ltp.reporting import text
from ltp.reporting.collect import LeftOut
from ltp.reporting.rows import Group, Row

#: A table with more rows than this shows only the Pareto fronts.
MAX_ROWS = 40
_MAX_NAMES = 5


def comparison(group: Group) -> Table:
    """Build the table of a group."""
    table = Table(
        title=escape(printable(text.title(group.split))), title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    columns = text.columns(group)
    for column in columns:
        table.add_column(
            escape(printable(column.title)),
            justify="right" if column.right else "left",
            no_wrap=column.title != "settings",
        )
    previous = None
    for row, cells in text.lines(group, shown_rows(group)):
        method = row.method if row is not None else "dense"
        if previous not in (None, method):
            table.add_section()
        previous = method
        style = "bold" if row is not None and row is group.cheapest() else None
        table.add_row(*(escape(printable(cell)) for cell in cells), style=style)
    return table


def shown_rows(group: Group) -> Sequence[Row]:
    """Return all rows, or those on a Pareto front and the dense row if there are more than :data:`MAX_ROWS`."""
    if len(group.rows) <= MAX_ROWS:
        return group.rows
    on_fronts = {id(row) for method, variant in group.variants for row in group.front_of(method, variant)}
    return [row for row in group.rows if row.on_front or row is group.dense or id(row) in on_fronts]


def left_out(entries: Iterable[LeftOut], max_names: int = _MAX_NAMES) -> list[str]:
    """Write one line per reason, with the number of folders and the first of them."""
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in entries:
        by_reason.setdefault(entry.why, []).append(entry)
    lines = []
    for why, same in by_reason.items():
        names = [f"{entry.path} ({entry.detail})" if entry.detail else str(entry.path) for entry in same[:max_names]]
        more = [f"and {len(same) - max_names} more"] if len(same) > max_names else []
        lines.append(printable(f"left out, {why}: {len(same)}: {', '.join([*names, *more])}"))
    return lines
