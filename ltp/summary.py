"""What a finished run shows in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


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
    table.add_row("relative FLOPs", f"{results['relative_flops']:.3f}")
    table.add_row("GFLOPs an example", f"{results['gflops']:.4g} of {results['dense_gflops']:.4g} dense")
    if "measured_speedup" in results:
        measured = results["measured_speedup"]
        median = measured["speedup"]["median"]
        table.add_row("measured speed-up", f"{median:.2f}× over its dense form, batch {measured['batch_size']}")
    table.add_row("tokens per layer", tokens_text(results["tokens_per_layer"]))
    if results["thresholds"] is not None:
        table.add_row("thresholds", "  ".join(f"{value:.4f}" for value in results["thresholds"]))
    table.add_row("time", f"{results['duration_seconds']:.0f} s on {results['device']}")
    console.print(table)
    console.print(f"run directory: {directory}", soft_wrap=True, highlight=False)


def describe(run: dict[str, Any]) -> str:
    """A run's method and what sets its cost, in words."""
    hyper = run["hyperparameters"]
    if run["method"] == "dense":
        return "dense"
    if run["method"] == "manual":
        return f"manual, {hyper['final_token_threshold']:g}"
    if run["method"] == "learned":
        return f"learned, {run['stage']}"
    return f"{'top-k' if run['method'] == 'topk' else run['method']}, rate {hyper['token_keep_rate']:g}"


def tokens_text(tokens: list[float], arrow: str = " → ") -> str:
    """Mean tokens alive entering each layer, and after the last: ``21.8 → 14.0 → 3.1``."""
    return arrow.join(f"{count:.1f}" for count in tokens)
