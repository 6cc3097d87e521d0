"""Score a classifier on a split: outcomes per example, metrics, cost, and groups by input length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor
from torchmetrics import Metric

from ltp.data.datamodule import Batch, GLUEDataModule
from ltp.data.metrics import undefined_metrics
from ltp.data.tasks import Task
from ltp.evaluation.cost import CostMetric
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.runs.directory import open_atomically


@dataclass(frozen=True)
class Outcome:
    """Labels and model outputs of each example, in the order of the split.

    Attributes:
        task: the task, which says what a prediction is.
        labels: what the model takes, (N, …), see :meth:`ltp.data.tasks.Task.collate_labels`.
        logits: (N, …, num_labels) float32.
        token_lengths: tokens that enter each layer and leave the last, (N, L+1) int64.
        token_layers: number of layers whose output each token has, (N, …) int64; None unless the head reads tokens.
    """

    task: Task
    labels: Tensor
    logits: Tensor
    token_lengths: Tensor
    token_layers: Tensor | None = None

    @property
    def predictions(self) -> Tensor:
        """What the metrics compare with the labels, see :meth:`ltp.data.tasks.Task.predictions`."""
        return self.task.predictions(self.logits)

    def __getitem__(self, rows: Tensor) -> Outcome:
        """Select examples by row number."""
        layers = None if self.token_layers is None else self.token_layers[rows]
        return Outcome(self.task, self.labels[rows], self.logits[rows], self.token_lengths[rows], layers)

    def labelled_tokens(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return of each label of a token the example, its layers, both int64, and whether it is right; else None."""
        found = None if self.token_layers is None else self.task.labelled_tokens(self.logits, self.labels)
        if found is None or self.token_layers is None:
            return None
        rows, columns, is_right = found
        return rows, self.token_layers[rows, columns], is_right

    def score(self, metric: Metric, name: str) -> float | None:
        """Compute a metric of the task by its name; None if it is not defined on these examples."""
        return score(self.task, metric, name, self.logits, self.labels)


def score(task: Task, metric: Metric, name: str, logits: Tensor, labels: Tensor) -> float | None:
    """Compute a metric of a task; None if it is not defined on these examples.

    Args:
        task: the task.
        metric, name: one of its metrics, built, and its name.
        logits: (N, …, num_labels) float32.
        labels: what the model takes, see :meth:`ltp.data.tasks.Task.collate_labels`.
    """
    predictions = task.predictions(logits)
    if not task.is_defined(name, predictions, labels):
        return None
    metric.reset()
    metric.update(predictions, labels)
    value = float(metric.compute())
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Engine:
    """A model prepared for one execution, dtype and device; made by :meth:`create`."""

    forward: Callable[..., Any]
    device: torch.device
    autocast: torch.dtype | None

    @classmethod
    def create(
        cls, model: LTPPreTrainedModel, execution: str, dtype: str, device: torch.device, **settings: Any
    ) -> Engine:
        """Prepare a model, with its current pruning, for a device.

        Args:
            model: the classifier, on the CPU, in evaluation mode; it is moved to ``device`` unless deployed.
            execution: ``packed``, ``masked`` or ``deployed``.
            dtype: ``float32`` or ``bfloat16`` (autocast, as in training); deployed also ``int8``, ``auto``.
            device: device of the inputs; deployed models need the CPU.
            settings: of a deployed one, see :meth:`ltp.model.pretrained.LTPPreTrainedModel.deploy`.

        Raises:
            RuntimeError: this machine cannot compute in ``dtype``.
        """
        if execution == "deployed":
            return cls(model.deploy(dtype, **settings), device, None)
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
    labels, logits, token_lengths, token_layers = [], [], [], []
    for batch, numbers in zip(loader, batches, strict=True):
        labels.append(batch.pop("labels"))
        output = engine(batch)
        logits.append(output.logits.float().cpu())
        token_lengths.append(output.token_lengths.cpu())
        if output.token_layers is not None:
            token_layers.append(output.token_layers.cpu())
        rows += numbers
        advance(len(numbers))
    order = torch.tensor(rows).argsort()  # undo the loader's sorting by length
    # of tokens: batches differ in their longest text
    task = data.task.for_split(list(data.splits.validation.values())[split])
    layers = _joined(token_layers) if token_layers else None
    return Outcome(task, _joined(labels, task.no_label), _joined(logits), torch.cat(token_lengths), layers)[order]


def _joined(parts: Sequence[Tensor], padding: float = 0) -> Tensor:
    """Concatenate batches, (B, …), and pad their second dimension to the largest."""
    if parts[0].ndim < 2 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    whole = parts[0].new_full((sum(map(len, parts)), width, *parts[0].shape[2:]), padding)
    start = 0
    for part in parts:
        whole[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return whole


def summarise(outcome: Outcome, model: LTPPreTrainedModel) -> dict[str, Any]:
    """Compute metrics and cost of an outcome.

    Returns:
        ``examples`` (their number), ``input_tokens`` (smallest and largest), ``metric`` (the task's main metric),
        ``metrics`` (by name; None if a metric is undefined on these examples), ``token_labels`` where tokens have
        labels, see :func:`by_layers`, and the keys of :meth:`ltp.evaluation.cost.CostMetric.compute`.
    """
    task = outcome.task
    metrics = {name: outcome.score(metric, name) for name, metric in task.build_metrics().items()}
    cost = CostMetric(model.cost)
    cost.update(outcome.token_lengths)
    lengths, labelled = outcome.token_lengths[:, 0], outcome.labelled_tokens()
    return {
        "examples": len(lengths),
        "input_tokens": [int(lengths.min()), int(lengths.max())],
        "metric": {"name": task.main_metric, "value": metrics[task.main_metric]},
        "metrics": metrics,
        **undefined_metrics(metrics),
        **({} if labelled is None else {"token_labels": by_layers(*labelled[1:], model.cost.num_layers)}),
        **cost.compute(),
    }


def by_layers(layers: Tensor, is_right: Tensor, num_layers: int) -> dict[str, list[Any]]:
    """Summarise labels by the number of layers that their tokens went through.

    Args:
        layers: of each label, (M,) int64.
        is_right: whether it is predicted, (M,) bool.
        num_layers: L.

    Returns:
        ``count`` and ``accuracy`` for 0 to L layers, L being that of the tokens alive at the end; None for no label.
    """
    count = torch.bincount(layers, minlength=num_layers + 1).tolist()
    right = torch.bincount(layers[is_right], minlength=num_layers + 1).tolist()
    return {"count": count, "accuracy": [one / all_ if all_ else None for one, all_ in zip(right, count, strict=True)]}


def chance_warning(summary: dict[str, Any], task: Task) -> str | None:
    """Return a warning if a classifier's accuracy is three standard errors below chance; else None."""
    accuracy, count = summary["metrics"].get("accuracy"), summary["examples"]
    if accuracy is None or not task.has_one_class:
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

    Columns: those of :meth:`ltp.data.tasks.Task.outcome_columns`; ``token_lengths`` (list of L+1: tokens that enter
    each layer and leave the last); and where tokens have labels ``token_layers`` and ``token_is_right`` (lists with an
    entry a label: the number of layers that its token went through, and whether it is predicted).
    """
    columns = {name: pa.array(values) for name, values in outcome.task.outcome_columns(outcome.logits, outcome.labels)}
    columns["token_lengths"] = pa.array(outcome.token_lengths.tolist(), pa.list_(pa.int32()))
    if (labelled := outcome.labelled_tokens()) is not None:
        rows, *values = (value[labelled[0].argsort(stable=True)] for value in labelled)
        counts = torch.bincount(rows, minlength=len(outcome.labels)).tolist()
        names = {"token_layers": pa.int32(), "token_is_right": pa.bool_()}
        for (name, kind), value in zip(names.items(), values, strict=True):
            columns[name] = pa.array([part.tolist() for part in value.split(counts)], pa.list_(kind))
    with open_atomically(path) as file:
        pyarrow.parquet.write_table(pa.table(columns), file)
