"""Score a classifier on a split: outcomes per example, metrics, cost, and groups by input length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from ltp.data.datamodule import Batch, GLUEDataModule
from ltp.data.metrics import undefined_metrics
from ltp.data.tasks import Task, build_metrics
from ltp.evaluation.cost import CostMetric
from ltp.model.classifier import LTPForSequenceClassification
from ltp.runs.directory import open_atomically


@dataclass(frozen=True)
class Outcome:
    """Labels and model outputs of each example, in the order of the split.

    Attributes:
        labels: class ids, (N,) int64, or regression targets, (N,) float32.
        logits: (N, num_labels) float32.
        token_lengths: tokens that enter each layer and leave the last, (N, L+1) int64.
    """

    labels: Tensor
    logits: Tensor
    token_lengths: Tensor

    @property
    def predictions(self) -> Tensor:
        """Predicted class ids, (N,) int64; for a regression the scores, (N,) float32."""
        return self.logits.squeeze(-1) if self.logits.shape[1] == 1 else self.logits.argmax(dim=1)

    def __getitem__(self, rows: Tensor) -> Outcome:
        """Select examples by row number."""
        return Outcome(self.labels[rows], self.logits[rows], self.token_lengths[rows])


@dataclass(frozen=True)
class Engine:
    """A model prepared for one execution, dtype and device; made by :meth:`create`."""

    forward: Callable[..., Any]
    device: torch.device
    autocast: torch.dtype | None

    @classmethod
    def create(cls, model: LTPForSequenceClassification, execution: str, dtype: str, device: torch.device) -> Engine:
        """Prepare a model, with its current pruning, for a device.

        Args:
            model: the classifier, on the CPU, in evaluation mode; it is moved to ``device`` unless deployed.
            execution: ``packed``, ``masked`` or ``deployed``.
            dtype: ``float32`` or ``bfloat16`` (autocast, as in training); deployed also ``int8``.
            device: device of the inputs; deployed models need the CPU.

        Raises:
            RuntimeError: this machine cannot compute in ``dtype``.
        """
        if execution == "deployed":
            return cls(model.deploy(dtype), device, None)
        model.execution = execution
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides self from mypy
        return cls(model, device, torch.bfloat16 if dtype == "bfloat16" else None)

    def __call__(self, inputs: Batch) -> Any:
        """Compute a batch without labels; the output has ``logits`` and ``token_lengths``."""
        moved = {name: values.to(self.device) for name, values in inputs.items()}
        autocast = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), autocast:
            return self.forward(**moved)


def evaluate(
    engine: Engine,
    data: GLUEDataModule,
    advance: Callable[[int], None],
    split: int = 0,
) -> Outcome:
    """Run an engine over a validation split.

    Args:
        engine: the prepared model.
        data: the data module, after ``setup``.
        advance: called after each batch with its number of examples.
        split: index of the split in ``data.validation_splits``.
    """
    loader = data.val_dataloader()[split]
    batches: Any = loader.batch_sampler  # lists of row numbers, in the loader's order
    rows: list[int] = []
    labels, logits, token_lengths = [], [], []
    for batch, numbers in zip(loader, batches, strict=True):
        labels.append(batch.pop("labels"))
        output = engine(batch)
        logits.append(output.logits.float().cpu())
        token_lengths.append(output.token_lengths.cpu())
        rows += numbers
        advance(len(numbers))
    order = torch.tensor(rows).argsort()  # undo the loader's sorting by length
    return Outcome(torch.cat(labels), torch.cat(logits), torch.cat(token_lengths))[order]


def summarise(outcome: Outcome, task: Task, model: LTPForSequenceClassification) -> dict[str, Any]:
    """Compute metrics and cost of an outcome.

    Returns:
        ``examples`` (their number), ``input_tokens`` (smallest and largest), ``metric`` (the task's main metric),
        ``metrics`` (by name; None if a metric is undefined on these examples), and the keys of
        :meth:`ltp.evaluation.cost.CostMetric.compute`.
    """
    predictions = outcome.predictions
    metrics: dict[str, float | None] = {}
    for name, metric in build_metrics(task).items():
        metrics[name] = None
        if is_defined(name, predictions, outcome.labels):
            metric.update(predictions, outcome.labels)
            metrics[name] = metric.compute().item()
    cost = CostMetric(model.cost)
    cost.update(outcome.token_lengths)
    lengths = outcome.token_lengths[:, 0]
    return {
        "examples": len(lengths),
        "input_tokens": [int(lengths.min()), int(lengths.max())],
        "metric": {"name": task.main_metric, "value": metrics[task.main_metric]},
        "metrics": metrics,
        **undefined_metrics(metrics),
        **cost.compute(),
    }


def is_defined(metric: str, predictions: Tensor, labels: Tensor) -> bool:
    """Whether a metric is defined on these examples: correlations need at least two distinct values on each side."""
    if metric == "matthews":
        return bool((labels != labels[0]).any())
    if metric in ("pearson", "spearman"):
        return bool((labels != labels[0]).any() and (predictions != predictions[0]).any())
    if metric == "f1":
        return bool(labels.any() or predictions.any())  # binary F1 is the F1 of class 1
    return True


def chance_warning(summary: dict[str, Any], task: Task) -> str | None:
    """Return a warning if a classifier's accuracy is three standard errors below chance; else None."""
    accuracy, count = summary["metrics"].get("accuracy"), summary["examples"]
    if accuracy is None or task.is_regression:
        return None
    chance = 1 / task.num_labels
    if accuracy >= chance - 3 * math.sqrt(chance * (1 - chance) / count):
        return None
    return (
        f"accuracy {accuracy:.4f} is below chance ({chance:.4f}): the classifier numbers its labels in another order "
        f"than task={task.name} ({', '.join(task.labels or ())}), or was trained for another task"
    )


def by_length(outcome: Outcome, groups: int) -> list[Outcome]:
    """Group examples by quantiles of the input length in tokens, shortest first.

    Examples of equal length share a group, so groups may differ in size, and there may be fewer than ``groups``.
    """
    lengths = outcome.token_lengths[:, 0]
    inner_quantiles = torch.linspace(0, 1, groups + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(lengths.double(), inner_quantiles).unique()
    group = torch.bucketize(lengths.double(), edges)
    return [outcome[(group == number).nonzero().squeeze(1)] for number in group.unique()]


def write_predictions(path: Path, outcome: Outcome) -> None:
    """Write one parquet row per example, atomically.

    Columns: ``label`` and ``prediction`` (class ids, or regression targets and scores), ``probability`` (of the
    predicted class; classification only), ``token_lengths`` (list of L+1: tokens that enter each layer and leave the
    last).
    """
    columns = {"label": pa.array(outcome.labels.numpy()), "prediction": pa.array(outcome.predictions.numpy())}
    if outcome.logits.shape[1] > 1:
        columns["probability"] = pa.array(outcome.logits.softmax(dim=1).amax(dim=1).numpy())
    columns["token_lengths"] = pa.array(outcome.token_lengths.tolist(), pa.list_(pa.int32()))
    with open_atomically(path) as file:
        pyarrow.parquet.write_table(pa.table(columns), file)
