"""Summaries of a run's results: terminal table, short description, and the view of a single budget."""

import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltp.errors import printable
from ltp.pruning import is_learned, short_names, variants
from ltp.runs.checkpoints import Checkpoint

#: Keys of ``results.json`` that describe one budget rather than the training.
_BUDGET_KEYS = (
    *("metric", "metrics", "relative_flops", "gflops", "gflops_per_layer", "tokens_per_layer", "thresholds"),
    "measured_speedup",
)


def markdown(content: str) -> str:
    """Escape text for Markdown: markup, links, HTML and formulas; names in files are not trusted."""
    return re.sub(r"([|*_`<>\\\[\]$~&]|^[#+=-])", r"\\\1", printable(content))


def dead_cell(value: Any) -> Any:
    """Return a value for CSV that a spreadsheet does not take for a formula."""
    is_live = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if is_live else value


def print_results(results: dict[str, Any], directory: Path) -> None:
    """Print a run's metrics, cost, tokens per layer and directory."""
    console = Console()
    hyper = results["hyperparameters"]
    title = f"{results['task']} · {results['model']} · {results['method']}, {results['stage']} · lr {hyper['lr']:g}"
    table = Table(title=escape(printable(title)), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name in results["metrics"]:
        table.add_row(name, _metric_text(name, results))
    budgets = results.get("budgets") or []
    target = budgets[-1]["budget"] if budgets else hyper.get("target_flops")
    several = ", the largest and the one in use" if len(budgets) > 1 else ""
    aim = f" (target {target:g}{several})" if target is not None else ""
    table.add_row("relative FLOPs", f"{results['relative_flops']:.3f}{aim}")
    for entry in budgets if several else ():
        name = entry["metric"]["name"]
        metric = f"{name} {_metric_text(name, {'metrics': {name: entry['metric']['value']}})}"
        table.add_row(f"budget {entry['budget']:g}", f"{metric}, relative FLOPs {entry['relative_flops']:.3f}")
    table.add_row("GFLOPs an example", f"{results['gflops']:.4g} of {results['dense_gflops']:.4g} dense")
    if "measured_speedup" in results:
        measured = results["measured_speedup"]
        median = measured["speedup"]["median"]
        table.add_row("measured speed-up", f"{median:.2f}× over its dense form, batch {measured['batch_size']}")
    table.add_row("tokens per layer", format_tokens(results["tokens_per_layer"]))
    if results["thresholds"] is not None:
        table.add_row("thresholds", "  ".join(f"{value:.4f}" for value in results["thresholds"]))
    if hyper.get("distill_mode") is not None:
        teacher = "the dense parent" if hyper.get("distill_teacher") in (None, "auto") else hyper["distill_teacher"]
        table.add_row("distilled", f"{hyper['distill_mode']}, from {escape(teacher)}")
    table.add_row("time", f"{results['duration_seconds']:.0f} s on {results['device']}")
    console.print(table)
    console.print(f"run directory: {printable(str(directory))}", soft_wrap=True, highlight=False, markup=False)


def _metric_text(name: str, results: dict[str, Any]) -> str:
    """Return a metric's value, or a dash and the reason why it has none."""
    value = results["metrics"][name]
    if value is not None:
        return f"{value:.4f}"
    reason = (results.get("undefined") or {}).get(name)
    return "–" if reason is None else f"– ({reason})"


def describe_method(run: dict[str, Any], budget: float | None = None) -> str:
    """Describe a run's method and the setting that determines its cost.

    Args:
        run: content of a ``results.json``.
        budget: one of its budgets; None describes all of them.
    """
    method, hyper = str(run["method"]), run["hyperparameters"]
    found = variants().get(method)
    shown = () if found is None else found.shown
    words = [method if found is None or found.adjective else found.label]
    if is_learned(method):
        words.append(str(run["stage"]))
    if isinstance(several := hyper.get("budgets"), list) and several:
        values = "/".join(map(_short, sorted(several)))
        words.append(f"budgets {values}" if budget is None else f"budget {budget:g} of {values}")
    elif hyper.get("target_flops") is not None:
        words.append(f"target {_short(hyper['target_flops'])}")
    elif hyper.get("target_latency_ms") is not None:
        words.append(f"{_short(hyper['target_latency_ms'])} ms")
    else:
        names = short_names()
        for name in shown:  # the name of a variant says what its value is
            words.append(f"{'' if found and found.adjective else names[name]} {_short(hyper.get(name))}".strip())
    if hyper.get("distill_mode") is not None:
        words.append("distilled")
    if run.get("calibrated"):
        words.append("calibrated")
    return ", ".join(words)


def describe_checkpoint(checkpoint: Checkpoint, budget: float | None = None) -> str:
    """Describe a checkpoint in a title: task, model and method of a run, else its name."""
    results = checkpoint.results
    if results is None or "method" not in results:
        return checkpoint.name if budget is None else f"{checkpoint.name} · budget {budget:g}"
    return f"{results['task']} · {results['model']} · {describe_method(results, budget)}"


def _short(value: Any) -> str:
    """Format a number from a file; ``?`` for what is none."""
    try:
        return f"{value:g}"
    except (TypeError, ValueError, OverflowError):
        return "?"


def at_budget(results: dict[str, Any], budget: float) -> dict[str, Any]:
    """Return a run's results as if the model had only this budget.

    Args:
        results: content of a ``results.json``.
        budget: one of its budgets, in relative FLOPs. The other keys of the results refer to the last budget.

    Returns:
        The results measured at the budget, without measurements at other budgets.
    """
    budgets = results.get("budgets") or []
    measured: dict[str, Any] = next((entry for entry in budgets if entry["budget"] == budget), {})
    common = results
    if not budgets or budgets[-1]["budget"] != budget:
        common = {name: value for name, value in results.items() if name not in _BUDGET_KEYS}
    hyper = {**(results.get("hyperparameters") or {}), "target_flops": budget}
    return {**common, **measured, "budget": budget, "hyperparameters": hyper}


def format_tokens(tokens: list[float], arrow: str = " → ") -> str:
    """Format the mean tokens kept at each layer's input and after the last layer: ``21.8 → 14.0 → 3.1``."""
    return arrow.join(f"{count:.1f}" for count in tokens)
