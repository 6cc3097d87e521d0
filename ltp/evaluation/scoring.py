"""What a classifier does on a split, example by example, and what follows from it: scores, cost, groups by length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from ltp.data.datamodule import Batch, GLUEDataModule
from ltp.data.tasks import Task, build_metrics
from ltp.deploy.classifier import DeployedClassifier
from ltp.evaluation.cost import CostMetric
from ltp.model.classifier import LTPForSequenceClassification
from ltp.runs.directory import open_atomically
from ltp.runs.loading import check_token_ids


@dataclass(frozen=True)
class Outcome:
    """What came out for each example, in the order of the split.

    Attributes:
        labels: class ids, (N,) int64, or numbers, (N,) float32.
        logits: (N, num_labels) float32.
        token_lengths: tokens alive entering each layer, and after the last, (N, L+1) int64.
    """

    labels: Tensor
    logits: Tensor
    token_lengths: Tensor

    @property
    def predictions(self) -> Tensor:
        """Class ids, (N,) int64; of a regression the numbers, (N,) float32."""
        return self.logits.squeeze(-1) if self.logits.shape[1] == 1 else self.logits.argmax(dim=1)

    def __getitem__(self, rows: Tensor) -> Outcome:
        """The outcome of some of the examples."""
        return Outcome(self.labels[rows], self.logits[rows], self.token_lengths[rows])


@dataclass(frozen=True)
class Engine:
    """A way to compute the model: see :meth:`of`."""

    forward: Callable[..., Any]
    device: torch.device
    autocast: torch.dtype | None

    @classmethod
    def of(cls, model: LTPForSequenceClassification, execution: str, dtype: str, device: torch.device) -> Engine:
        """The model as it is now, on a device.

        Args:
            model: on the CPU, in evaluation mode; it is moved.
            execution: ``packed``, ``masked`` or ``deployed``.
            dtype: ``float32`` or ``bfloat16`` (autocast, as in training); deployed also ``int8``.
            device: where; deployed models are for the CPU.
        """
        if execution == "deployed":
            deployed: DeployedClassifier = model.deploy(dtype)
            return cls(deployed, device, None)
        model.execution = execution
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides self from mypy
        return cls(model, device, torch.bfloat16 if dtype == "bfloat16" else None)

    def __call__(self, inputs: Batch) -> Any:
        """``logits`` and ``token_lengths`` of a batch without labels."""
        moved = {name: values.to(self.device) for name, values in inputs.items()}
        mixed = (
            torch.autocast(self.device.type, dtype=self.autocast)
            if self.autocast is not None
            else contextlib.nullcontext()
        )
        with torch.inference_mode(), mixed:
            return self.forward(**moved)


def evaluate(
    engine: Engine, data: GLUEDataModule, model: LTPForSequenceClassification, advance: Callable[[int], None]
) -> Outcome:
    """Run an engine over a data module's main validation split.

    Args:
        engine: what computes.
        data: its batches, set up.
        model: the classifier that the engine computes.
        advance: told the number of examples after each batch.

    Raises:
        UserError: the tokenizer does not belong to the model.
    """
    loader = data.val_dataloader()[0]
    batches: Any = loader.batch_sampler  # lists of row numbers, in the order of the loader
    rows: list[int] = []
    labels, logits, token_lengths = [], [], []
    for batch, numbers in zip(loader, batches, strict=True):
        check_token_ids(int(batch["input_ids"].max()), model)
        labels.append(batch.pop("labels"))
        output = engine(batch)
        logits.append(output.logits.float().cpu())
        token_lengths.append(output.token_lengths.cpu())
        rows += numbers
        advance(len(numbers))
    back = torch.tensor(rows).argsort()  # batches are sorted by length
    return Outcome(torch.cat(labels)[back], torch.cat(logits)[back], torch.cat(token_lengths)[back])


def summarise(outcome: Outcome, task: Task, model: LTPForSequenceClassification) -> dict[str, Any]:
    """Metrics and cost of some examples.

    Returns:
        ``examples``, ``input_tokens`` (fewest and most), ``metric`` (the task's main one), ``metrics`` (None where
        one cannot be computed on these examples), and the keys of :meth:`ltp.evaluation.cost.CostMetric.compute`.
    """
    predictions = outcome.predictions
    metrics: dict[str, float | None] = {}
    for name, metric in build_metrics(task).items():
        metrics[name] = None
        if is_defined(name, predictions, outcome.labels):
            metric.update(predictions, outcome.labels)
            metrics[name] = metric.compute().item()
    config = model.config
    cost = CostMetric(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    cost.update(outcome.token_lengths)
    lengths = outcome.token_lengths[:, 0]
    return {
        "examples": len(lengths),
        "input_tokens": [int(lengths.min()), int(lengths.max())],
        "metric": {"name": task.main_metric, "value": metrics[task.main_metric]},
        "metrics": metrics,
        **cost.compute(),
    }


def is_defined(metric: str, predictions: Tensor, labels: Tensor) -> bool:
    """Whether a metric says anything about these examples: correlations need more than one value on a side."""
    if metric == "matthews":
        return bool((labels != labels[0]).any())
    if metric in ("pearson", "spearman"):
        return bool((labels != labels[0]).any() and (predictions != predictions[0]).any())
    if metric == "f1":
        return bool(labels.any() or predictions.any())  # of two classes F1 is about class 1
    return True


def by_length(outcome: Outcome, groups: int) -> list[Outcome]:
    """Examples grouped by quantiles of the input's length in tokens, shortest first.

    Examples of one length stay together, so that groups may differ in size, and be fewer where lengths are few.
    """
    lengths = outcome.token_lengths[:, 0]
    inner = torch.linspace(0, 1, groups + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(lengths.double(), inner).unique()
    group = torch.bucketize(lengths.double(), edges)
    return [outcome[(group == number).nonzero().squeeze(1)] for number in group.unique()]


def write_predictions(path: Path, outcome: Outcome) -> None:
    """Write every example's label, prediction and tokens alive as parquet, whole or not at all.

    Columns: ``label``, ``prediction`` (class ids; of a regression numbers), ``probability`` (of the predicted class;
    not for a regression), ``token_lengths`` (a list: tokens alive entering each layer, and after the last).
    """
    columns = {"label": pa.array(outcome.labels.numpy()), "prediction": pa.array(outcome.predictions.numpy())}
    if outcome.logits.shape[1] > 1:
        columns["probability"] = pa.array(outcome.logits.softmax(dim=1).amax(dim=1).numpy())
    columns["token_lengths"] = pa.array(outcome.token_lengths.tolist(), pa.list_(pa.int32()))
    with open_atomically(path) as file:
        pyarrow.parquet.write_table(pa.table(columns), file)
