"""Files of the report: all runs as CSV, the tables as Markdown and LaTeX."""

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from ltp.errors import printable
from ltp.reporting import text
from ltp.reporting.collect import LeftOut
from ltp.reporting.rows import Group
from ltp.reporting.table import left_out
from ltp.runs.summary import dead_cell, markdown

#: First columns of the CSV; the others follow in the order of results.json.
_FIRST_COLUMNS = (
    *("task", "model", "method", "stage", "seed", "metric.name", "metric.value", "difference", "relative_flops"),
    *("on_front", "row", "table", "directory"),
)
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "●": r"$\bullet$",
    "✓": r"$\checkmark$",
}


def table_of_runs(groups: Sequence[Group]) -> str:
    """Write the results of every run, one line per run and budget, as CSV; lists are JSON.

    ``row`` is the number of the row in its table; runs that differ only in the seed share it. ``difference`` is that
    of the row. ``table`` is the prefix of the names of figure files.
    """
    records = []
    for group in groups:
        for number, row in enumerate(group.rows, 1):
            for run in row.runs:
                # config is in config.yaml, and each budget has its own line
                content = {name: value for name, value in run.results.items() if name not in ("config", "budgets")}
                content |= {"budget": run.target} if run.target is not None else {}
                records.append(
                    {
                        **_flat(content),
                        "method": run.method,
                        "difference": row.difference.mean if row.difference is not None else None,
                        "on_front": row.on_front,
                        "row": number,
                        "table": group.slug,
                        "directory": str(run.directory),
                    }
                )
    names = dict.fromkeys(_FIRST_COLUMNS) | {name: None for record in records for name in record}
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(dead_cell, names))
    writer.writerows([dead_cell(record.get(name)) for name in names] for record in records)
    return stream.getvalue()


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return flat


def summary_markdown(groups: Sequence[Group], entries: Sequence[LeftOut], pictures: dict[str, list[str]]) -> str:
    """Write the tables with summaries and figures, and the folders left out, as Markdown.

    Args:
        groups: groups of comparable runs, one table each.
        entries: folders and files left out.
        pictures: names of figure files in the same folder, by the slug of their group.
    """
    parts = []
    for group in groups:
        parts += [f"## {markdown(text.title(group.split))}", _markdown_table(group)]
        parts.append("\n".join(f"- {markdown(line)}" for line in summaries(group)))
        parts += [f"![{name}]({name})" for name in pictures.get(group.slug, [])]
    parts.append("\n".join(f"- {line}" for line in text.DEFINITIONS))
    if entries:
        parts.append(
            "\n".join(["## Left out", "", *(f"- {markdown(line)}" for line in left_out(entries, len(entries)))])
        )
    return "\n\n".join(parts) + "\n"


def summaries(group: Group) -> list[str]:
    """Write the summary of a group, one sentence per pruning method."""
    return [text.summary(group, name) for name in group.methods] or [text.summary(group)]


def _markdown_table(group: Group) -> str:
    columns = text.columns(group)
    rule = " | ".join("---:" if column.right else "---" for column in columns)
    lines = [[column.title for column in columns], *(cells for _, cells in text.lines(group, group.rows))]
    head, *body = (f"| {' | '.join(map(markdown, line))} |" for line in lines)
    return "\n".join([head, f"| {rule} |", *body])


def summary_tex(groups: Sequence[Group]) -> str:
    """Write the tables as LaTeX, one float per table."""
    head = r"% needs \usepackage{booktabs} and, for the check mark, \usepackage{amssymb}"
    return "\n\n".join([head, *map(_latex_table, groups)]) + "\n"


def _latex_table(group: Group) -> str:
    columns = text.columns(group)
    alignment = "".join("r" if column.right else "l" for column in columns)

    def line(cells: list[str]) -> str:
        return " & ".join(map(latex, cells)) + r" \\"

    body: list[str] = []
    previous: str | None = None
    for row, cells in text.lines(group, group.rows):
        method = row.method if row is not None else "dense"
        if previous not in (None, method):
            body.append(r"\midrule")
        body.append(line(cells))
        previous = method
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(text.title(group.split))}. {latex(text.summary(group))}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', group.slug)}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            line([column.title for column in columns]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def latex(content: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in printable(content))
