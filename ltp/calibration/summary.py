"""Print the results of a calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltp.errors import printable

if TYPE_CHECKING:
    from rich.table import Table


def print_summary(results: dict[str, Any], directory: Path) -> None:
    """Print cost and metric before and after the calibration, and the new run directory."""
    from rich.console import Console

    console = Console()
    calibrated = results["calibrated"]
    title = (
        f"{results['task']} · {results['model']} · {results['method']}, {results['stage']} · {_goal_text(calibrated)}"
    )
    console.print(printable(title), soft_wrap=True, highlight=False, markup=False, style="italic")
    console.print(summary_table(results))
    lines = [
        f"sample: {calibrated['examples']} training examples; validation: {results['validation_examples']} examples",
        f"run directory: {directory}",
    ]
    if "target_latency_ms" in calibrated:
        served = f"batches of {calibrated['batch_size']}, {calibrated['execution']} {calibrated['dtype']}"
        threads = f", {calibrated['threads']} threads" if "threads" in calibrated else ""
        span = f"{calibrated['dense_ms']:.3g} ms without pruning, {calibrated['lowest_ms']:.3g} ms with the hardest"
        lines.insert(1, f"milliseconds: median, {served}, on {calibrated['processor']}{threads}; {span}")
    if "rates" in calibrated:
        rates = ", ".join(f"{rate:.2f}" for rate in calibrated["rates"])
        lines.insert(
            1,
            f"keep rates {rates}, the best of {calibrated['configurations']}: divergence from the unpruned model "
            f"{calibrated['divergence']:.3g}, before {calibrated['divergence_before']:.3g}",
        )
    for line in lines:
        console.print(printable(line), soft_wrap=True, highlight=False, markup=False)


def print_record(record: dict[str, Any], directory: Path) -> None:
    """Print what a calibration on texts reached, and the new directory."""
    print(f"relative FLOPs   {record['relative_flops']:.3f} on {record['texts']} texts")
    if record["agreement"] is not None:
        print(f"agreement        {record['agreement']:.3f} with the predictions of the unpruned model")
    print(f"model directory: {directory}")


def summary_table(results: dict[str, Any]) -> "Table":
    """Build the table: one column before the calibration, and one per budget after it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    calibrated, before = results["calibrated"], results["calibrated"]["before"]
    has_budgets = "budgets" in calibrated
    after = results["budgets"] if has_budgets else [results]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("before", *(f"budget {result['budget']:g}" if has_budgets else "after" for result in after)):
        table.add_column(name, justify="right")

    def add_row(name: str, digits: str, *values: float | None) -> None:
        table.add_row(Text(printable(name)), *("–" if value is None else format(value, digits) for value in values))

    if "target_latency_ms" in calibrated:
        add_row("milliseconds a batch", ".3g", before["latency_ms"], calibrated["reached"])
    if calibrated.get("agreement") is not None:
        agreements = calibrated["agreement"]
        add_row("agreement with dense, sample", ".3f", 1.0, *(agreements if has_budgets else [agreements]))
    costs = calibrated["relative_flops"]
    add_row("relative FLOPs, sample", ".3f", before["sample_relative_flops"], *(costs if has_budgets else [costs]))
    validation_costs = [result["relative_flops"] for result in after]
    add_row("relative FLOPs, validation", ".3f", before.get("relative_flops"), *validation_costs)
    metric = f"{results['metric']['name']}, validation"
    old_metric = before.get("metric") or {}
    add_row(metric, ".4f", old_metric.get("value"), *(result["metric"]["value"] for result in after))
    return table


def _goal_text(calibrated: dict[str, Any]) -> str:
    if "target_latency_ms" in calibrated:
        return f"calibrated to {calibrated['target_latency_ms']:g} ms"
    if calibrated.get("agreement_bound") is not None:
        return f"calibrated to {calibrated['agreement_bound']:g} of the dense model's predictions"
    targets = calibrated["budgets"] if "budgets" in calibrated else [calibrated["target_flops"]]
    return f"calibrated to {', '.join(f'{target:g}' for target in targets)} of the FLOPs"
