"""A label for every word of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.data import CONLL
from ltp.data.tasks.base import Row, Task
from ltp.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor
    from torchmetrics import Metric

#: The label of what has none, in the loss and in metrics: special tokens, and all but the first token of a word.
IGNORED = -100
MAX_LABELS = 1_000
_BIO = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class TokenTask(Task):
    """A token classification task, such as named entities.

    The text column holds the words of a text, a list of strings, and the label column as many labels. The first token
    of a word is labelled. `f1` is over entities, so that labels follow the BIO scheme; `accuracy` over words takes any.
    """

    kind: ClassVar[str] = "tokens"
    model_class: ClassVar[str] = "LTPForTokenClassification"
    known_metrics: ClassVar[tuple[str, ...]] = ("f1", "accuracy")
    companions: ClassVar[dict[str, tuple[str, ...]]] = {"f1": ("precision", "recall", "accuracy")}

    reads_words: ClassVar[bool] = True
    no_label: ClassVar[int] = IGNORED
    suffixes: ClassVar[tuple[str, ...]] = (*Task.suffixes, CONLL)

    @property
    def list_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold lists."""
        return self.columns

    def read_file(self, path: Path, columns: Sequence[str], *, remedy: str) -> pa.Table:
        """Read columns of a table, or the words and labels of a CoNLL-style file."""
        if path.suffix != CONLL:
            return super().read_file(path, columns, remedy=remedy)
        from ltp.data.conll import read_conll

        return read_conll(path, *self.columns)

    def check_texts(self, table: pa.Table, source: object, *, blank_is_missing: bool) -> pa.Table:
        """Check the words of a split, and return them (list of strings)."""
        import pyarrow as pa

        from ltp.data.columns import require_rows
        from ltp.data.tables import is_string

        require_rows(table, source)
        (name,) = self.text_columns
        column = table[name]
        if not pa.types.is_list(column.type) or not is_string(column.type.value_type):
            raise UserError(
                f"{source}: column {name!r} holds {column.type} values, not lists of words. Give .conll, .jsonl or "
                ".parquet, the words of a text in one list."
            )
        for number, words in enumerate(column.to_pylist(), start=1):
            if not words or any(word is None or not word.strip() for word in words):
                raise UserError(f"{source}: row {number} has an empty word, or none, in column {name!r}; remove it.")
        return pa.table({name: column.cast(pa.list_(pa.string()))})

    def is_unlabelled(self, table: pa.Table) -> bool:
        """Whether every list of labels is missing, or holds only -1."""
        return {str(value) for row in table[self.label_column].to_pylist() for value in row or ["-1"]} <= {"-1"}

    def infer_labels(self, table: pa.Table, source: object) -> tuple[str, ...]:
        """Return the distinct labels of a training file: `O`, and then by entity, `B` before `I`."""
        from ltp.data.columns import require_rows

        require_rows(table, source)
        names = {name for row in self._names(table, source) for name in row}
        if not 2 <= len(names) <= MAX_LABELS:
            raise UserError(
                f"{source}: column {self.label_column!r} holds {len(names)} different labels; a token task has 2 to "
                f"{MAX_LABELS}"
            )
        self._check_scheme(names, source)
        return tuple(sorted(names, key=lambda name: (name != "O", name.partition("-")[2], name)))

    def _check_scheme(self, names: set[str], source: object) -> None:
        if "f1" not in self.metrics:
            return
        for name in sorted(names):
            if not _BIO.fullmatch(name):
                raise UserError(
                    f"{source}: label {name!r} in column {self.label_column!r} is none of the BIO scheme (O, B-…, "
                    "I-…), over whose entities task.metric=f1 is; convert it, or take task.metric=accuracy"
                )

    def check_labels(self, table: pa.Table, source: object) -> pa.ChunkedArray:
        """Return the labels of each row's words: a list of int64 ids."""
        import pyarrow as pa

        rows = self.ids_of(self._names(table, source), source)
        return pa.chunked_array([pa.array(rows, pa.list_(pa.int64()))])

    def _names(self, table: pa.Table, source: object) -> list[list[str]]:
        from ltp.data.columns import label_name

        words, labels = (table[name].to_pylist() for name in self.columns)
        rows = []
        for number, (row, own) in enumerate(zip(words, labels, strict=True), start=1):
            if not isinstance(own, list):
                raise UserError(
                    f"{source}: row {number} has no list of labels in column {self.label_column!r}; it takes one for "
                    f"each word of column {self.text_columns[0]!r}"
                )
            if not isinstance(row, list) or len(row) != len(own):
                count = len(row) if isinstance(row, list) else 0
                raise UserError(
                    f"{source}: row {number} has {count} words in column {self.text_columns[0]!r} and {len(own)} "
                    f"labels in column {self.label_column!r}; give each word one label"
                )
            rows.append([label_name(name).strip() for name in own])
        return rows

    def encode(self, tokenizer: Any, rows: Mapping[str, list[Any]], max_length: int) -> dict[str, list[Any]]:
        """Tokenise words; the labels are those of the tokens, :data:`IGNORED` for all but a word's first."""
        from ltp.data.tokenising import require_fast

        require_fast(tokenizer, self.kind)
        words = rows[self.text_columns[0]]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        result = dict(encoded)
        if "label" in rows:
            result["label"] = [
                _of_tokens(encoded.word_ids(number), labels) for number, labels in enumerate(rows["label"])
            ]
        return result

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Return the label of each token, (B, N) int64."""
        import torch

        target = torch.full((len(labels), width), IGNORED)
        for row, ids in enumerate(labels):
            target[row, : len(ids)] = torch.tensor(ids)
        return target

    def label_counts(self, labels: Sequence[Any]) -> Sequence[int] | None:
        """Return how many tokens of each row are labelled."""
        return [sum(label != IGNORED for label in row) for row in labels]

    def truncated_rows(self, labels: Sequence[Any], encoded: Mapping[str, list[Any]], max_length: int) -> int:
        """Return how many rows have words beyond the limit, which have no prediction."""
        counts = self.label_counts(encoded["label"]) or ()
        rows = zip(labels, counts, encoded["input_ids"], strict=True)
        return sum(len(ids) == max_length and count < len(own) for own, count, ids in rows)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the label of each token, (B, N) int64."""
        return logits.argmax(dim=-1)

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of labelled tokens, (M, num_labels)."""
        return logits[labels != IGNORED]

    def labelled_tokens(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first token of each word, and whether its label is predicted."""
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        return rows, columns, self.predictions(logits[rows, columns]) == labels[rows, columns]

    def outcome_columns(self, logits: Tensor, labels: Tensor) -> Iterator[tuple[str, Any]]:
        """Yield the class ids of each text's words, lists."""
        predictions = self.predictions(logits)
        for name, values in (("label", labels), ("prediction", predictions)):
            yield name, [row[own != IGNORED].tolist() for row, own in zip(values, labels, strict=True)]

    @classmethod
    def prediction_columns(cls, num_labels: int) -> tuple[str, ...]:
        """Return `words`, as the tokenizer finds them, `labels`, and `probabilities` of these."""
        return ("words", "labels", "probabilities")

    @classmethod
    def read(cls, logits: Tensor, labels: Sequence[str], encodings: Sequence[Any], texts: Sequence[Any]) -> list[Row]:
        """Return the words of each text, their labels and the labels' probabilities, from (B, N, num_labels)."""
        values, ids = logits.softmax(dim=2).max(dim=2)
        rows = []
        for own, row, encoding, (text,) in zip(values.tolist(), ids.tolist(), encodings, texts, strict=True):
            first = _first_tokens(encoding)
            spans = [encoding.word_to_chars(encoding.word_ids[place]) for place in first]
            rows.append(
                {
                    "words": [text[start:end] for start, end in spans],
                    "labels": [labels[row[place]] for place in first],
                    "probabilities": [own[place] for place in first],
                }
            )
        return rows

    @classmethod
    def marks(cls, prediction: Row, encoding: Any) -> list[str]:
        """Return the label of each word at its first token, without `O`."""
        labels = dict(zip(_first_tokens(encoding), prediction["labels"], strict=True))
        return ["" if (label := labels.get(place, "O")) == "O" else label for place in range(len(encoding.tokens))]

    @classmethod
    def show(cls, prediction: Row) -> str:
        """Return the words that have a label: `not/B-negative good/I-negative`, or a dash."""
        pairs = zip(prediction["words"], prediction["labels"], strict=True)
        return " ".join(f"{word}/{label}" for word, label in pairs if label != "O") or "–"

    def build_metric(self, name: str) -> Metric:
        """Build a metric of labels of tokens, both (B, N) int64, :data:`IGNORED` in the target for those without."""
        from torchmetrics.classification import MulticlassAccuracy

        from ltp.data.metrics import EntityScore

        if name == "accuracy":
            return MulticlassAccuracy(self.num_labels, average="micro", ignore_index=IGNORED)
        assert self.labels is not None
        return EntityScore(self.labels, name, ignored=IGNORED)


def _first_tokens(encoding: Any) -> list[int]:
    """Return the first token of each word."""
    words = list(encoding.word_ids)
    return [place for place, word in enumerate(words) if word is not None and word != words[place - 1]]


def _of_tokens(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """Return the label of each token from the word of each token, None for special ones."""
    before: list[int | None] = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == previous else labels[word]
        for word, previous in zip(words, before, strict=True)
    ]
