"""What a task is: its columns, labels and metrics, and how texts and labels become tensors and back.

Imports neither torch nor pyarrow, so that the command line can check a task's name in milliseconds.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.data import TABLE_SUFFIXES
from ltp.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor
    from torchmetrics import Metric, MetricCollection

Row = dict[str, Any]


@dataclass(frozen=True)
class Task(ABC):
    """A task: an instance is one data set, a subclass one kind of output.

    Attributes:
        name: the value of `task=`, and the name of the task's directory under `data_dir`.
        text_columns: names of the columns with the input, in the tokenizer's order.
        labels: label names by id; None for numbers, and for a custom task whose file has not been read.
        metrics: names of the task's metrics, the main one first.
        size: "small" or "large"; selects the training length in recipes.
        lr: default learning rate for fine-tuning.
        label_column: name of the column with the label.
        validation_splits: names of the validation splits, the main one first.
        hub: the data set on the hub, and its configuration; None if it is not there.
        generate: makes the rows of a split, "train", "validation" or "test", for a task that the package generates.
        is_custom: whether its columns and files are named on the command line.
        max_length: truncation length in tokens; None for the default.
    """

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    size: str
    lr: float
    label_column: str = "label"
    validation_splits: tuple[str, ...] = ("validation",)
    hub: tuple[str, str | None] | None = None
    generate: Callable[[str], list[Row]] | None = None
    is_custom: bool = False
    max_length: int | None = None

    #: The value of `task.kind=` for custom tasks.
    kind: ClassVar[str]
    #: Name of the pruned model's class, see `ltp.model.MODEL_CLASSES`.
    model_class: ClassVar[str]
    #: What `task.metric=` accepts, the default first.
    known_metrics: ClassVar[tuple[str, ...]]
    #: The metrics that are reported beside the main one.
    companions: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: The label of what has none, where labels are padded.
    no_label: ClassVar[int] = 0
    #: Formats of files, by suffix.
    suffixes: ClassVar[tuple[str, ...]] = TABLE_SUFFIXES
    #: Whether the input is a list of words rather than texts.
    reads_words: ClassVar[bool] = False
    #: Least and most text columns.
    min_texts: ClassVar[int] = 1
    example_columns: ClassVar[str] = "[text]"  #: for messages
    max_texts: ClassVar[int] = 1
    #: Whether a row may be several rows of the model, windows of a long text.
    has_windows: ClassVar[bool] = False
    #: Whether the metrics are defined on any part of the rows, which an error by resampling and groups need.
    scores_rows: ClassVar[bool] = True
    #: Whether labels have names, which a custom task finds in its training file.
    has_names: ClassVar[bool] = True

    @classmethod
    def describe_metrics(cls) -> str:
        """Return what `task.metric=` accepts, for messages."""
        return f"Metrics: {', '.join(cls.known_metrics)}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read."""
        return (*self.text_columns, self.label_column)

    @property
    def list_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold lists."""
        return ()

    def read_file(self, path: Path, columns: Sequence[str], *, remedy: str) -> pa.Table:
        """Read columns of a file; see :func:`ltp.data.tables.read_table`."""
        from ltp.data.tables import read_table

        return read_table(path, columns, remedy=remedy, lists=self.list_columns)

    def is_labelled_file(self, path: Path) -> bool:
        """Whether a file has labels, as a test file may not."""
        from ltp.data.tables import column_names

        return path.suffix not in TABLE_SUFFIXES or (path.is_file() and self.label_column in column_names(path))

    def files_beside(self, path: Path) -> dict[str, Path]:
        """Return the files that are read with a file, by what they hold."""
        return {}

    @property
    def is_pair(self) -> bool:
        """Whether the input is a pair of texts."""
        return len(self.text_columns) == 2

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Names of the test splits, the main one first."""
        return tuple(split.replace("validation", "test") for split in self.validation_splits)

    @property
    def main_metric(self) -> str:
        """The metric that selects checkpoints and compares runs."""
        return self.metrics[0]

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return False

    @property
    def has_one_class(self) -> bool:
        """Whether each example has one class."""
        return False

    @property
    def has_several_labels(self) -> bool:
        """Whether an example has any number of labels."""
        return False

    @property
    def problem_type(self) -> str | None:
        """`problem_type` of the model's configuration."""
        return None

    @property
    def num_labels(self) -> int:
        """Width of the head; 1 for numbers.

        Raises:
            ValueError: the task is custom and its training file has not been read.
        """
        if self.is_regression:
            return 1
        if self.labels is None:
            raise ValueError(f"task {self.name}: labels are known only once the training file was read")
        return len(self.labels)

    def for_split(self, split: Any) -> Task:
        """Return the task for the metrics of a split, a `datasets.Dataset`."""
        return self

    @property
    def knows_labels(self) -> bool:
        """Whether labels can be checked: a custom task finds their names in its training file."""
        return self.is_regression or not self.has_names or self.labels is not None

    def with_labels(self, labels: Sequence[str]) -> Task:
        """Return the task with the labels of its training file."""
        return dataclasses.replace(self, labels=tuple(labels))

    # -- rows ------------------------------------------------------------------------------------------------------

    def check_texts(self, table: pa.Table, source: object, *, blank_is_missing: bool) -> pa.Table:
        """Check the input of a split, and return it: the text columns (string).

        Args:
            table: the columns that were read; others are dropped.
            source: the file, for error messages.
            blank_is_missing: whether a blank text counts as a missing value.

        Raises:
            UserError: the split is empty, or an input is missing or invalid.
        """
        from ltp.data.columns import check_texts

        return check_texts(table, self.text_columns, source, blank_is_missing=blank_is_missing)

    @abstractmethod
    def check_labels(self, table: pa.Table, source: object) -> pa.ChunkedArray:
        """Check the labels of a split, and return them as :meth:`encode` takes them; the task's labels are known.

        Raises:
            UserError: a label is missing, or not in the task's set or range; names file, row and remedy.
        """

    @property
    def label_ids(self) -> dict[str, int]:
        """Ids of the labels by name; files of a known data set may hold the ids themselves."""
        assert self.labels is not None, "labels are inferred before rows are checked"
        ids = {name: index for index, name in enumerate(self.labels)}
        return ids if self.is_custom else ids | {str(index): index for index in range(len(self.labels))}

    def ids_of(self, rows: Sequence[Sequence[str]], source: object) -> list[list[int]]:
        """Return the ids of the labels of each row.

        Raises:
            UserError: a label is not one of the task's.
        """
        ids = self.label_ids
        for number, names in enumerate(rows, start=1):
            for name in names:
                if name not in ids:
                    origin = " (from the training file)" if self.is_custom else ""
                    raise UserError(
                        f"{source}: row {number} has label {name!r} in column {self.label_column!r};"
                        f" labels of task {self.name}{origin}: {', '.join(self.labels or ())}."
                    )
        return [[ids[name] for name in names] for names in rows]

    def check_rows(self, table: pa.Table, source: object, *, blank_is_missing: bool) -> pa.Table:
        """Check a split, and return what :meth:`check_texts` does and `label`, what :meth:`check_labels` does."""
        texts = self.check_texts(table, source, blank_is_missing=blank_is_missing)
        return texts.append_column("label", self.check_labels(table, source))

    @abstractmethod
    def infer_labels(self, table: pa.Table, source: object) -> tuple[str, ...]:
        """Return the labels of a custom task's training file.

        Raises:
            UserError: they are too few, or not labels of this kind.
        """

    def is_unlabelled(self, table: pa.Table) -> bool:
        """Whether every label is missing."""
        column = table[self.label_column]
        return column.null_count == len(column)

    # -- tensors ---------------------------------------------------------------------------------------------------

    def encode(self, tokenizer: Any, rows: Mapping[str, list[Any]], max_length: int) -> dict[str, list[Any]]:
        """Tokenise rows.

        Args:
            tokenizer: a fast tokenizer.
            rows: the text columns, and `label` if the rows are labelled.
            max_length: truncation length in tokens, special tokens included.

        Returns:
            The model's inputs, and `label`; all lists by row.
        """
        from ltp.data.tokenising import tokenise

        encoded = dict(tokenise(tokenizer, [rows[column] for column in self.text_columns], max_length)[0])
        return encoded | ({"label": rows["label"]} if "label" in rows else {})

    @abstractmethod
    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Return the labels of a batch, as the model takes them.

        Args:
            labels: those of the rows, as :meth:`encode` returns them.
            width: number of tokens of the padded batch.
        """

    def model_labels(self, labels: Tensor) -> Tensor:
        """Return what the model's loss takes of the labels of a batch."""
        return labels

    def model_inputs(self, labels: Tensor) -> dict[str, Tensor]:
        """Return the arguments of the model for the labels of a batch."""
        return {"labels": self.model_labels(labels)}

    def label_counts(self, labels: Sequence[Any]) -> Sequence[int] | None:
        """Return how many labels each row has, over which the loss is a mean; None for one each."""
        return None

    def truncated_rows(self, labels: Sequence[Any], encoded: Mapping[str, list[Any]], max_length: int) -> int:
        """Return how many rows lose labels to truncation.

        Args:
            labels: those of the rows, as :meth:`check_labels` returns them.
            encoded, max_length: see :meth:`encode`.
        """
        return 0

    # -- outputs ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """Return what the metrics compare with the labels, from the logits, (B, …, num_labels) float32."""

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits that have a label: (B, …, num_labels) → (M, num_labels)."""
        return logits

    @abstractmethod
    def build_metric(self, name: str) -> Metric:
        """Build a metric; its inputs are predictions and labels of a batch."""

    def is_defined(self, metric: str, predictions: Tensor, labels: Tensor) -> bool:
        """Whether a metric is defined on these examples."""
        return True

    @classmethod
    def fits(cls, model_class: str, problem_type: str | None, num_labels: int) -> bool:
        """Whether a model's outputs are of this kind, from its class, `config.problem_type` and width."""
        return model_class == cls.model_class

    @classmethod
    @abstractmethod
    def prediction_columns(cls, num_labels: int) -> tuple[str, ...]:
        """Return the names of what is predicted of a text."""

    @classmethod
    def windows(
        cls, tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int
    ) -> tuple[Any, Sequence[int], dict[int, str]]:
        """Tokenise texts in windows, of a kind that :attr:`has_windows`.

        Returns:
            The tokenizer's output, the number of the text of each of its rows, and remarks about texts by their number.
        """
        raise NotImplementedError(f"{cls.__name__} has no windows")

    @classmethod
    @abstractmethod
    def read(cls, logits: Tensor, labels: Sequence[str], encodings: Sequence[Any], texts: Sequence[Any]) -> list[Row]:
        """Return what is predicted of texts, by column; of a kind with windows what :meth:`join` takes of each.

        Args:
            logits: (B, …, num_labels) float32.
            labels: names of the labels by id.
            encodings: of each row, by the tokenizer's backend.
            texts: the one or two texts of each row.
        """

    @classmethod
    def join(cls, readings: Sequence[Row], text: tuple[str, ...], *, n_best: int, null_threshold: float | None) -> Row:
        """Return what is predicted of a text, by column.

        Args:
            readings: what :meth:`read` returns of its rows.
            text: its one or two texts.
            n_best, null_threshold: see :meth:`ltp.data.tasks.SpanTask.join`.
        """
        return readings[0]

    @classmethod
    def rank(cls, reading: Row) -> float:
        """Return a number that is the largest for the row of a text by which its tokens are shown."""
        return 0.0

    @classmethod
    def part(cls, encoding: Any) -> str:
        """Return which part of a text a window reads, for a remark."""
        return ""

    @classmethod
    @abstractmethod
    def show(cls, prediction: Row) -> str:
        """Return a prediction as a short text."""

    @classmethod
    def marks(cls, prediction: Row, encoding: Any) -> list[str]:
        """Return what a page says of each token, an empty text for nothing; see :meth:`join`."""
        return [""] * len(encoding.tokens)

    def labelled_tokens(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the tokens that have labels, and whether their predictions are right; None for labels of texts.

        Args:
            logits: (B, N, num_labels) float32.
            labels: see :meth:`collate_labels`.

        Returns:
            Of M labels the row and the column of the token, (M,) int64, and whether it is right, (M,) bool.
        """
        return None

    def outcome_columns(self, logits: Tensor, labels: Tensor) -> Iterator[tuple[str, Any]]:
        """Yield the columns of a file of outcomes, one value an example: `label`, `prediction`, and what else there is.

        Args:
            logits: (N, …, num_labels) float32.
            labels: see :meth:`collate_labels`.
        """
        yield "label", labels.tolist()
        yield "prediction", self.predictions(logits).tolist()

    def build_metrics(self) -> MetricCollection:
        """Build the task's metrics, exact for any number of processes, by name."""
        from torchmetrics import MetricCollection

        # compute groups merge metrics whose states are equal after the first batch: accuracy's and F1's can be equal
        # by coincidence
        metrics: dict[str, Metric | MetricCollection] = {name: self.build_metric(name) for name in self.metrics}
        return MetricCollection(metrics, compute_groups=False)
