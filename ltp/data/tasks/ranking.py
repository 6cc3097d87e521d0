"""A score for a query with each of its candidates, as cross-encoders give it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.data.tasks.base import Row, Task
from ltp.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor
    from torchmetrics import Metric

#: Metrics read this many of the candidates that a query ranks first.
TOP = 10


@dataclass(frozen=True)
class RankingTask(Task):
    """A ranking task: each row is a query, a candidate and its relevance, a number from 0 on.

    A file may hold triples instead, with the columns `positive` and `negative` beside the query, each a text or a list
    of texts; or BEIR's judgements, see :mod:`ltp.data.beir`. Rows with the same query rank against each other. The loss
    is the binary cross entropy of relevance above 0, as in sentence-transformers' `CrossEncoder`.
    """

    kind: ClassVar[str] = "ranking"
    model_class: ClassVar[str] = "LTPForSequenceClassification"
    known_metrics: ClassVar[tuple[str, ...]] = (f"mrr_{TOP}", f"ndcg_{TOP}")
    companions: ClassVar[dict[str, tuple[str, ...]]] = {
        f"mrr_{TOP}": (f"ndcg_{TOP}",),
        f"ndcg_{TOP}": (f"mrr_{TOP}",),
    }
    min_texts: ClassVar[int] = 2
    example_columns: ClassVar[str] = "[query,passage]"
    max_texts: ClassVar[int] = 2
    scores_rows: ClassVar[bool] = False
    has_names: ClassVar[bool] = False

    @property
    def problem_type(self) -> str | None:
        """`problem_type` of the model's configuration: its loss for one label is the binary cross entropy."""
        return "multi_label_classification"

    @property
    def has_several_labels(self) -> bool:
        """Whether the logits are of independent labels: here of one."""
        return True

    @property
    def num_labels(self) -> int:
        """Width of the head."""
        return 1

    def read_file(self, path: Path, columns: Sequence[str], *, remedy: str) -> pa.Table:
        """Read a table of pairs, or of triples or judgements, which become pairs."""
        import pyarrow as pa

        from ltp.data.beir import is_qrels, read_beir
        from ltp.data.tables import read_table

        query, candidate = self.text_columns
        if is_qrels(path):
            judged = read_beir(path)
            return pa.table({name: [pair[place] for pair in judged] for place, name in enumerate(self.columns)})
        if self.label_column not in columns or not _has_triples(path):
            return read_table(path, columns, remedy=remedy)
        triple = ("positive", "negative")
        table = read_table(path, (query, *triple), remedy=remedy, lists=triple)
        rows = []
        for number, row in enumerate(table.to_pylist(), start=1):
            pairs = [
                (text, relevance)
                for name, relevance in zip(triple, (1, 0), strict=True)
                for text in (row[name] if isinstance(row[name], list) else [row[name]])
            ]
            if not pairs:
                raise UserError(f"{path}: row {number} has a query without candidates; remove it or give it some")
            rows += [{query: row[query], candidate: text, self.label_column: relevance} for text, relevance in pairs]
        return pa.Table.from_pylist(rows)

    def is_labelled_file(self, path: Path) -> bool:
        """Whether a file has relevances, as a test file may not."""
        from ltp.data.beir import is_qrels

        return super().is_labelled_file(path) or _has_triples(path) or is_qrels(path)

    def files_beside(self, path: Path) -> dict[str, Path]:
        """Return the texts and the candidates of judgements."""
        from ltp.data.beir import files_beside, is_qrels

        return files_beside(path) if is_qrels(path) else {}

    def infer_labels(self, table: pa.Table, source: object) -> tuple[str, ...]:
        """Return no names: relevance is a number."""
        return ()

    def check_labels(self, table: pa.Table, source: object) -> pa.ChunkedArray:
        """Return the relevance of each row and the number of its query, a list of two float64."""
        import pyarrow as pa

        from ltp.data.columns import check_labels, parse_number

        values = check_labels(table[self.label_column], self.label_column, source).to_pylist()
        queries: dict[str, int] = {}
        rows = []
        for number, (query, value) in enumerate(zip(table[self.text_columns[0]].to_pylist(), values, strict=True), 1):
            relevance = parse_number(str(value))
            if relevance is None or relevance < 0:
                raise UserError(
                    f"{source}: row {number} has the relevance {value!r} in column {self.label_column!r}; it must be a "
                    "number from 0 on"
                )
            rows.append([relevance, float(queries.setdefault(query, len(queries)))])
        return pa.chunked_array([pa.array(rows, pa.list_(pa.float64()))])

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Return the relevance of each row and the number of its query, (B, 2) float32."""
        import torch

        return torch.tensor([list(row) for row in labels], dtype=torch.float32)

    def model_labels(self, labels: Tensor) -> Tensor:
        """Return whether each candidate is relevant, (B, 1) float32."""
        return (labels[:, :1] > 0).float()

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the scores, (B,)."""
        return logits.squeeze(-1)

    def build_metric(self, name: str) -> Metric:
        """Build a metric of scores, (B,), and labels, (B, 2)."""
        from ltp.data.metrics import RankingScore

        return RankingScore(name.removesuffix(f"_{TOP}"), TOP)

    @classmethod
    def fits(cls, model_class: str, problem_type: str | None, num_labels: int) -> bool:
        """Whether a model scores pairs of texts."""
        return model_class == cls.model_class and problem_type == "multi_label_classification" and num_labels == 1

    @classmethod
    def prediction_columns(cls, num_labels: int) -> tuple[str, ...]:
        """Return `score`."""
        return ("score",)

    @classmethod
    def read(cls, logits: Tensor, labels: Sequence[str], encodings: Sequence[Any], texts: Sequence[Any]) -> list[Row]:
        """Return the probability that each candidate is relevant, from (B, 1)."""
        return [{"score": score} for score in logits[:, 0].sigmoid().tolist()]

    @classmethod
    def show(cls, prediction: Row) -> str:
        """Return the score."""
        return f"{prediction['score']:.3f}"

    def outcome_columns(self, logits: Tensor, labels: Tensor) -> Iterator[tuple[str, Any]]:
        """Yield relevance, the number of the query, and the score."""
        yield "label", labels[:, 0].numpy()
        yield "query", labels[:, 1].long().numpy()
        yield "prediction", self.predictions(logits).numpy()


def _has_triples(path: Path) -> bool:
    """Whether a file has the columns of triples."""
    from ltp.data.tables import column_names

    return path.is_file() and {"positive", "negative"} <= {*column_names(path)}
