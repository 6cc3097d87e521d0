"""One class, or one number, for a text or a pair of texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.data.tasks.base import Row, Task
from ltp.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor
    from torchmetrics import Metric

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews")
REGRESSION_METRICS = ("pearson", "spearman")
MAX_LABELS = 1_000
MAX_FRACTIONAL_LABELS = 20  # star ratings in halves are classes; more values than these are measurements


@dataclass(frozen=True)
class TextTask(Task):
    """A text classification or regression task: the main metric says which.

    Attributes:
        label_range: smallest and largest label of a regression task; None allows any finite number.
        numbers_in_submissions: whether GLUE's submission files hold class ids rather than label names.
    """

    label_range: tuple[float, float] | None = None
    numbers_in_submissions: bool = False

    kind: ClassVar[str] = "single"
    model_class: ClassVar[str] = "LTPForSequenceClassification"
    known_metrics: ClassVar[tuple[str, ...]] = CLASSIFICATION_METRICS + REGRESSION_METRICS
    companions: ClassVar[dict[str, tuple[str, ...]]] = {
        "f1": ("accuracy",),
        "matthews": ("accuracy",),
        "pearson": ("spearman",),
        "spearman": ("pearson",),
    }
    max_texts: ClassVar[int] = 2

    @classmethod
    def describe_metrics(cls) -> str:
        """Return what `task.metric=` accepts, for messages."""
        classes, numbers = ", ".join(CLASSIFICATION_METRICS), ", ".join(REGRESSION_METRICS)
        return f"Classification: {classes}; regression: {numbers}"

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return self.main_metric in REGRESSION_METRICS

    @property
    def has_one_class(self) -> bool:
        """Whether each example has one class."""
        return not self.is_regression

    @property
    def problem_type(self) -> str | None:
        """`problem_type` of the model's configuration."""
        return "regression" if self.is_regression else "single_label_classification"

    def is_unlabelled(self, table: pa.Table) -> bool:
        """Whether every label is -1, as in the hub's test splits of GLUE, or missing."""
        import pyarrow.compute as pc

        return {str(value) for value in pc.unique(table[self.label_column]).to_pylist()} <= {"-1", "-1.0", "None"}

    def infer_labels(self, table: pa.Table, source: object) -> tuple[str, ...]:
        """Return the distinct labels of a training file: numbers in numerical order, then names, sorted.

        Raises:
            UserError: there are fewer than two labels, the labels look like measurements, or a label is missing.
        """
        import pyarrow.compute as pc

        from ltp.data.columns import check_labels, label_name, parse_number, require_rows

        require_rows(table, source)
        column = check_labels(table[self.label_column], self.label_column, source)
        names = {label_name(value) for value in pc.unique(column).to_pylist()}
        numbers = {name: parse_number(name) for name in names}
        fractional = any(number is not None and not number.is_integer() for number in numbers.values())
        if len(names) > MAX_LABELS or (fractional and len(names) > MAX_FRACTIONAL_LABELS):
            raise UserError(
                f"{source}: column {self.label_column!r} holds {len(names)} values such as {min(names)!r}:"
                " numbers to predict rather than classes? Then use task.metric=pearson."
            )
        if len(names) < 2:
            only = f", not only {names.pop()!r}" if names else ""
            raise UserError(f"{source}: column {self.label_column!r} needs at least two different labels{only}.")
        return tuple(sorted(names, key=lambda name: ((number := numbers[name]) is None, number or 0.0, name)))

    def check_labels(self, table: pa.Table, source: object) -> pa.ChunkedArray:
        """Return the labels: int64 class ids, or float32 for a regression."""
        from ltp.data.columns import check_labels

        column = check_labels(table[self.label_column], self.label_column, source)
        return self._to_float32(column, source) if self.is_regression else self._to_class_ids(column, source)

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Return class ids, (B,) int64, or numbers, (B,) float32."""
        import torch

        return torch.tensor(labels, dtype=torch.float32 if self.is_regression else torch.int64)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return class ids, (B,) int64, or numbers, (B,) float32."""
        return logits.squeeze(-1) if self.is_regression else logits.argmax(dim=-1)

    @classmethod
    def fits(cls, model_class: str, problem_type: str | None, num_labels: int) -> bool:
        """Whether a model predicts one class, or one number, for a text."""
        return model_class == cls.model_class and problem_type != "multi_label_classification"

    @classmethod
    def prediction_columns(cls, num_labels: int) -> tuple[str, ...]:
        """Return `label` and `probability`, or `score`."""
        return ("score",) if num_labels == 1 else ("label", "probability")

    @classmethod
    def read(cls, logits: Tensor, labels: Sequence[str], encodings: Sequence[Any], texts: Sequence[Any]) -> list[Row]:
        """Return the label of each text and its probability, or its score, from (B, num_labels)."""
        if logits.shape[1] == 1:
            return [{"score": score} for score in logits[:, 0].tolist()]
        values, ids = logits.softmax(dim=1).max(dim=1)
        return [
            {"label": labels[index], "probability": value}
            for index, value in zip(ids.tolist(), values.tolist(), strict=True)
        ]

    @classmethod
    def show(cls, prediction: Row) -> str:
        """Return `positive 0.982`, or the score."""
        if "score" in prediction:
            return f"{prediction['score']:.3f}"
        return f"{prediction['label']} {prediction['probability']:.3f}"

    def outcome_columns(self, logits: Tensor, labels: Tensor) -> Iterator[tuple[str, Any]]:
        """Yield class ids, and the probability of the predicted one; of a regression numbers."""
        yield "label", labels.numpy()
        yield "prediction", self.predictions(logits).numpy()
        if not self.is_regression:
            yield "probability", logits.softmax(dim=1).amax(dim=1).numpy()

    def build_metric(self, name: str) -> Metric:
        """Build a metric of class ids or numbers, (B,)."""
        from ltp.data.metrics import build_metric

        return build_metric(name, self.num_labels)

    def is_defined(self, metric: str, predictions: Tensor, labels: Tensor) -> bool:
        """Whether a metric is defined: correlations need at least two distinct values on each side."""
        if metric == "matthews":
            return bool((labels != labels[0]).any())
        if metric in REGRESSION_METRICS:
            return bool((labels != labels[0]).any() and (predictions != predictions[0]).any())
        if metric == "f1":
            return bool(labels.any() or predictions.any())  # binary F1 is the F1 of class 1
        return True

    def _to_class_ids(self, column: pa.ChunkedArray, source: object) -> pa.ChunkedArray:
        """Convert label names, or ids of a built-in task, to int64 ids."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from ltp.data.columns import first_row, label_name

        assert self.labels is not None, "labels are inferred before rows are checked"
        ids = self.label_ids
        distinct = pc.unique(column)
        distinct_ids = pa.array([ids.get(label_name(value)) for value in distinct.to_pylist()], pa.int64())
        labels = pc.take(distinct_ids, pc.index_in(column, value_set=distinct))
        if (row := first_row(pc.is_null(labels))) is not None:
            label = label_name(column[row - 1].as_py())
            if label == "-1" and not self.is_custom:
                raise UserError(
                    f"{source}: row {row} has label -1: the split is unlabelled, as the hub's test splits are;"
                    " use a labelled one."
                )
            accepted = [name if self.is_custom else f"{name} ({i})" for i, name in enumerate(self.labels)]
            origin = " (from the training file)" if self.is_custom else ""
            raise UserError(
                f"{source}: row {row} has label {label!r} in column {self.label_column!r};"
                f" labels of task {self.name}{origin}: {', '.join(accepted)}."
            )
        return labels

    def _to_float32(self, column: pa.ChunkedArray, source: object) -> pa.ChunkedArray:
        """Convert the labels of a regression task to float32."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from ltp.data.columns import first_row, parse_number

        try:
            numbers = pc.cast(column, pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            rows = (row for row, value in enumerate(column.to_pylist(), start=1) if parse_number(str(value)) is None)
            first = next(rows, 1)
            raise UserError(
                f"{source}: row {first} has label {column[first - 1].as_py()!r} in column {self.label_column!r};"
                f" task {self.name} needs numbers{self._range_text()}."
            ) from None
        low, high = self.label_range or (-sys.float_info.max, sys.float_info.max)
        within = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
        if (row := first_row(pc.invert(within))) is not None:
            raise UserError(
                f"{source}: row {row} has label {numbers[row - 1].as_py():g} in column {self.label_column!r};"
                f" task {self.name} needs finite numbers{self._range_text()}."
            )
        return pc.cast(numbers, pa.float32())

    def _range_text(self) -> str:
        return f" from {self.label_range[0]:g} to {self.label_range[1]:g}" if self.label_range else ""
