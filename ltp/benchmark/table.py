"""A benchmark's report in the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ltp.errors import printable
from ltp.runs.summary import format_tokens


def print_report(report: dict[str, Any]) -> None:
    """Print one table per batch size, the definitions of its columns, and what was left out."""
    console = Console()
    console.width = max(console.width, 130)  # in a narrower terminal lines wrap, which is better than truncated columns
    hardware, tokens = report["hardware"], report["tokens"]
    console.print(
        f"{printable(report['model']['name'])} · {report['lengths']} · {report['sequences']} sequences of "
        f"{tokens['mean']:.1f} tokens ({tokens['min']}–{tokens['max']}), {report['settings']['bench']['order']} order\n"
        f"{hardware['device']}, {hardware['instructions']}, {hardware['threads']} of {hardware['cores']} cores, "
        f"{report['plan']['clock']} time · "
        f"torch {report['versions']['torch']} · relative FLOPs {report['relative_flops']:.3f} "
        f"({format_tokens(report['tokens_per_layer'])})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for size in report["settings"]["bench"]["batch_size"]:
        rows = [row for row in report["results"] if row["batch_size"] == size]
        console.print(comparison(rows, report["metric"]))
    console.print(
        f"Medians of the rounds (min–max). Speed-up: over {report['plan']['baseline']} in the same type (int8: over "
        "float32; training: over masked). FLOPs: dense ÷ pruned. Efficiency: speed-up over the same engine unpruned "
        "÷ FLOPs. Limit: time of the bare matrix products ÷ time. MiB: peak beyond the weights. HF: Hugging Face.",
        highlight=False,
        soft_wrap=True,
    )
    for line in left_out(report["left_out"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def comparison(rows: Sequence[dict[str, Any]], metric: str | None) -> Table:
    """A table of the rows of one batch size.

    Args:
        rows: rows of a report's ``results``; at least one.
        metric: name of their ``score``.
    """
    metric = metric if any(row["score"] is not None for row in rows) else None
    table = Table(title=f"batch size {rows[0]['batch_size']}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("type", no_wrap=True)
    for name in (
        "ms/sequence",
        "seq/s",
        "speed-up",
        "FLOPs",
        "efficiency",
        "limit",
        "MiB",
        *([metric] if metric else ()),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    previous = rows[0]["kind"]
    for row in rows:
        if row["kind"] != previous:
            table.add_section()
            previous = row["kind"]
        table.add_row(
            row["title"],
            row["dtype"],
            _spread(row["milliseconds_per_sequence"], ".3g"),
            f"{row['sequences_per_second']:.1f}",
            _spread(row["speedup"], ".2f"),
            _number(row["flops_ratio"], 2),
            _number(row["efficiency"], 2),
            _number(row["limit"], 2),
            _number(row["peak_memory_mb"], 0),
            *([_number(row["score"], 4)] if metric else ()),
        )
    return table


def left_out(entries: Iterable[dict[str, str]]) -> list[str]:
    """One line for each reason why engines were not measured."""
    reasons: dict[str, dict[str, None]] = {}  # insertion-ordered sets
    for entry in entries:
        reasons.setdefault(entry["why"], {})[entry["engine"]] = None
    return [f"left out: {', '.join(engines)}: {why}" for why, engines in reasons.items()]


def _spread(spread: dict[str, Any] | None, form: str) -> str:
    if spread is None:
        return ""
    median, low, high = (format(spread[key], form) for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
