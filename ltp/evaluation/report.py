"""The report of an evaluation as a table in the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltp.errors import printable
from ltp.runs.summary import format_tokens


def print_report(report: dict[str, Any]) -> None:
    """Print a table, one row per threshold scale and group of examples, and the path of the predictions.

    Where tokens have labels, their accuracy by the layers of the tokens follows.
    """
    console = Console()
    console.print(report_table(report))
    for result in report["results"]:
        if "token_labels" in result:
            print(label_accuracies(result["token_labels"]))
    if report["predictions"] is not None:
        console.print(f"predictions: {report['predictions']}", soft_wrap=True, highlight=False, markup=False)


def label_accuracies(labels: dict[str, Any]) -> str:
    """Return the accuracy of labels by the number of layers that their tokens went through, in one line.

    Args:
        labels: see :func:`ltp.evaluation.scoring.by_layers`.
    """
    cells = [
        f"{layers}: {'–' if accuracy is None else f'{accuracy:.4f}'} of {count}"
        for layers, (count, accuracy) in enumerate(zip(labels["count"], labels["accuracy"], strict=True))
    ]
    return f"labels predicted, by the layers of their tokens: {' · '.join(cells)}"


def report_table(report: dict[str, Any]) -> Table:
    """Build the table of a report."""
    results = report["results"]
    computed = f"{report['execution']} {report['dtype']}"
    title = f"{report['task']}, {report['split']} · {report['model']} · {report['method']} · {computed}"
    table = Table(title=escape(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    is_scaled = [result["threshold_scale"] for result in results] != [1]
    is_grouped = any("by_length" in result for result in results)
    for name, is_shown in (("thresholds", is_scaled), ("input tokens", is_grouped), ("examples", True)):
        if is_shown:
            table.add_column(name, justify="right")
    for name in (*results[0]["metrics"], "rel. FLOPs", "GFLOPs"):
        table.add_column(escape(printable(name)), justify="right")
    table.add_column("tokens per layer", overflow="fold")

    def add_row(result: dict[str, Any], scale: float, tokens: str, **style: Any) -> None:
        metrics = ("–" if value is None else f"{value:.4f}" for value in result["metrics"].values())
        cells = [f"× {scale:g}"] * is_scaled + [tokens] * is_grouped + [str(result["examples"]), *metrics]
        costs = (f"{result['relative_flops']:.3f}", f"{result['gflops']:.4g}")
        table.add_row(*cells, *costs, format_tokens(result["tokens_per_layer"], arrow="→"), **style)

    for result in results:
        scale = result["threshold_scale"]
        for group in result.get("by_length", ()):
            add_row(group, scale, "–".join(map(str, dict.fromkeys(group["input_tokens"]))))
        add_row(result, scale, "all", end_section=is_grouped, style="bold" if is_grouped else None)
    return table
