"""A finished run's results: in the terminal, in a few words, and as those of one of its budgets."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: What ``results.json`` says of one budget, beside what it says of the training.
_OF_A_BUDGET = (
    *("metric", "metrics", "relative_flops", "gflops", "gflops_per_layer", "tokens_per_layer", "thresholds"),
    "measured_speedup",
)


def print_results(results: dict[str, Any], directory: Path) -> None:
    """Print a run's metrics, cost and tokens per layer, and where it lives."""
    console = Console()
    hyper = results["hyperparameters"]
    title = f"{results['task']} · {results['model']} · {results['method']}, {results['stage']} · lr {hyper['lr']:g}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in results["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    budgets = results.get("budgets") or []
    target = budgets[-1]["budget"] if budgets else hyper.get("target_flops")
    several = ", the largest and the one in use" if len(budgets) > 1 else ""
    aim = f" (target {target:g}{several})" if target is not None else ""
    table.add_row("relative FLOPs", f"{results['relative_flops']:.3f}{aim}")
    for one in budgets if several else ():
        metric = f"{one['metric']['name']} {one['metric']['value']:.4f}"
        table.add_row(f"budget {one['budget']:g}", f"{metric}, relative FLOPs {one['relative_flops']:.3f}")
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
    console.print(f"run directory: {directory}", soft_wrap=True, highlight=False)


def describe(run: dict[str, Any], budget: float | None = None) -> str:
    """A run's method and what sets its cost, in words.

    Args:
        run: a ``results.json``.
        budget: which of its several budgets is meant, if one is.
    """
    method, hyper = run["method"], run["hyperparameters"]
    words = ["top-k" if method == "topk" else method]
    if method == "learned":
        words.append(run["stage"])
    if several := hyper.get("budgets"):
        all_of_them = "/".join(f"{one:g}" for one in sorted(several))
        words.append(f"budgets {all_of_them}" if budget is None else f"budget {budget:g} of {all_of_them}")
    elif hyper.get("target_flops") is not None:
        words.append(f"target {hyper['target_flops']:g}")
    elif hyper.get("target_latency_ms") is not None:
        words.append(f"{hyper['target_latency_ms']:g} ms")
    elif method == "manual":
        words.append(f"{hyper['final_token_threshold']:g}")
    elif method not in ("dense", "learned"):
        words.append(f"rate {hyper['token_keep_rate']:g}")
    if hyper.get("distill_mode") is not None:
        words.append("distilled")
    if run.get("calibrated"):
        words.append("calibrated")
    return ", ".join(words)


def at_budget(results: dict[str, Any], budget: float) -> dict[str, Any]:
    """A run's results as if the model had only this budget.

    Args:
        results: a ``results.json``.
        budget: one of the budgets there, in relative FLOPs; the last is the one that the rest of the results is about.

    Returns:
        The results with what was measured at the budget; what was not measured at it is left out.
    """
    budgets = results.get("budgets") or []
    found: dict[str, Any] = next((one for one in budgets if one["budget"] == budget), {})
    rest = results
    if not budgets or budgets[-1]["budget"] != budget:
        rest = {name: value for name, value in results.items() if name not in _OF_A_BUDGET}
    hyper = {**(results.get("hyperparameters") or {}), "target_flops": budget}
    return {**rest, **found, "budget": budget, "hyperparameters": hyper}


def format_tokens(tokens: list[float], arrow: str = " → ") -> str:
    """Mean tokens alive entering each layer, and after the last: ``21.8 → 14.0 → 3.1``."""
    return arrow.join(f"{count:.1f}" for count in tokens)
