"""Several labels, or none, for a text or a pair of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.data.tasks.base import Row, Task
from ltp.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor
    from torchmetrics import Metric

#: What separates the labels of a text in a CSV or TSV file.
SEPARATORS = re.compile(r"\s*[,;|]\s*")
MAX_LABELS = 1_000


@dataclass(frozen=True)
class MultiLabelTask(Task):
    """A multi-label classification task. A label is predicted where its probability is above one half.

    The label column holds a list of names or ids; in CSV and TSV files they are separated by `,`, `;` or `|`.
    """

    kind: ClassVar[str] = "multilabel"
    model_class: ClassVar[str] = "LTPForSequenceClassification"
    known_metrics: ClassVar[tuple[str, ...]] = ("f1_micro", "f1_macro", "map", "accuracy")
    companions: ClassVar[dict[str, tuple[str, ...]]] = {
        "f1_micro": ("f1_macro", "map"),
        "f1_macro": ("f1_micro", "map"),
        "map": ("f1_micro", "f1_macro"),
        "accuracy": ("f1_micro", "f1_macro", "map"),
    }
    max_texts: ClassVar[int] = 2

    @property
    def has_several_labels(self) -> bool:
        """Whether an example has any number of labels."""
        return True

    @property
    def problem_type(self) -> str | None:
        """`problem_type` of the model's configuration."""
        return "multi_label_classification"

    @property
    def list_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold lists."""
        return (self.label_column,)

    def infer_labels(self, table: pa.Table, source: object) -> tuple[str, ...]:
        """Return the distinct labels of a training file, sorted."""
        from ltp.data.columns import require_rows

        require_rows(table, source)
        names = {name for row in self._names(table, source) for name in row}
        if not 1 <= len(names) <= MAX_LABELS:
            raise UserError(
                f"{source}: column {self.label_column!r} holds {len(names)} different labels; a multi-label task has 1 "
                f"to {MAX_LABELS}. It takes lists of names, or names separated by a comma."
            )
        numeric = all(name.isdecimal() for name in names)
        return tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))

    def check_labels(self, table: pa.Table, source: object) -> pa.ChunkedArray:
        """Return the labels of each row: a list of int64 ids, ascending."""
        import pyarrow as pa

        rows = [sorted(set(ids)) for ids in self.ids_of(self._names(table, source), source)]
        return pa.chunked_array([pa.array(rows, pa.list_(pa.int64()))])

    def _names(self, table: pa.Table, source: object) -> list[list[str]]:
        from ltp.data.columns import label_name

        rows = []
        for number, value in enumerate(table[self.label_column].to_pylist(), start=1):
            if value is None:
                raise UserError(
                    f"{source}: row {number} has no value in column {self.label_column!r}; a text without labels has "
                    "an empty list"
                )
            if isinstance(value, str):
                value = [part for part in SEPARATORS.split(value.strip()) if part]
            elif not isinstance(value, list):
                value = [value]
            if any(isinstance(part, list | dict) or part is None for part in value):
                raise UserError(f"{source}: row {number} has no list of labels in column {self.label_column!r}")
            rows.append([label_name(part).strip() for part in value])
        return rows

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Return whether each row has each label, (B, num_labels) float32."""
        import torch

        target = torch.zeros(len(labels), self.num_labels)
        for row, ids in enumerate(labels):
            target[row, list(ids)] = 1.0
        return target

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the probability of each label, (B, num_labels)."""
        return logits.sigmoid()

    @classmethod
    def fits(cls, model_class: str, problem_type: str | None, num_labels: int) -> bool:
        """Whether a model predicts several labels for a text."""
        return model_class == cls.model_class and problem_type == "multi_label_classification" and num_labels > 1

    @classmethod
    def prediction_columns(cls, num_labels: int) -> tuple[str, ...]:
        """Return `labels`, and `probabilities`, of all labels by name."""
        return ("labels", "probabilities")

    @classmethod
    def read(cls, logits: Tensor, labels: Sequence[str], encodings: Sequence[Any], texts: Sequence[Any]) -> list[Row]:
        """Return the labels of each text, and the probability of every label, from (B, num_labels)."""
        return [
            {
                "labels": [name for name, value in zip(labels, row, strict=True) if value > 0.5],
                "probabilities": dict(zip(labels, row, strict=True)),
            }
            for row in logits.sigmoid().tolist()
        ]

    @classmethod
    def show(cls, prediction: Row) -> str:
        """Return `praise 0.98, place 0.71`, or a dash."""
        shown = [f"{name} {prediction['probabilities'][name]:.3f}" for name in prediction["labels"]]
        return ", ".join(shown) or "–"

    def build_metric(self, name: str) -> Metric:
        """Build a metric of probabilities and labels, both (B, num_labels)."""
        from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score

        from ltp.data.metrics import MeanAveragePrecision

        return {
            "f1_micro": lambda: MultilabelF1Score(self.num_labels, average="micro"),
            "f1_macro": lambda: MultilabelF1Score(self.num_labels, average="macro"),
            "map": lambda: MeanAveragePrecision(self.num_labels),
            "accuracy": lambda: MultilabelExactMatch(self.num_labels),
        }[name]()
