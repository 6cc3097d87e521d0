"""The span of a context that answers a question, or none."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.data import SQUAD
from ltp.data.tasks.base import Row, Task
from ltp.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import Metric

#: Most answers to a question, as Hugging Face's `n_best_size`: the best spans that are kept of each window.
MAX_N_BEST = 20


@dataclass(frozen=True)
class SpanTask(Task):
    """A question answering task of SQuAD's form.

    A row is a question, a context, and answers: an object with the lists `text` and `answer_start`, in characters; both
    are empty for a question without an answer. A context beyond the limit is read in windows that overlap, each a row
    of the model; the answer is the best span of all of them. Files of SQuAD's own form, `.json`, are read, too.

    Attributes:
        null_threshold: by how much the score of no answer must exceed that of the best span to be predicted; None for a
            task in which every question has an answer.
        examples: the split that the metrics are of; see :meth:`for_split`.
    """

    null_threshold: float | None = 0.0
    examples: Any = field(default=None, compare=False, repr=False)

    kind: ClassVar[str] = "span"
    model_class: ClassVar[str] = "LTPForQuestionAnswering"
    known_metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    companions: ClassVar[dict[str, tuple[str, ...]]] = {"f1": ("exact_match",), "exact_match": ("f1",)}
    min_texts: ClassVar[int] = 2
    example_columns: ClassVar[str] = "[question,context]"
    max_texts: ClassVar[int] = 2
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".jsonl", SQUAD)
    scores_rows: ClassVar[bool] = False
    has_names: ClassVar[bool] = False
    has_windows: ClassVar[bool] = True
    no_label: ClassVar[int] = -1

    @property
    def num_labels(self) -> int:
        """Width of the head: the start and the end."""
        return 2

    def for_split(self, split: Dataset) -> Task:
        """Return the task whose metrics are those of a split."""
        return dataclasses.replace(self, examples=split)

    # -- rows ------------------------------------------------------------------------------------------------------

    def read_file(self, path: Path, columns: Sequence[str], *, remedy: str) -> pa.Table:
        """Read columns of a table, or a file of SQuAD's form."""
        import pyarrow as pa

        if path.suffix == SQUAD:
            rows = _read_squad(path)
            question, context = self.text_columns
            names = {question: "question", context: "context", self.label_column: "answers"}
            return pa.Table.from_pylist([{name: row[own] for name, own in names.items()} for row in rows])
        from ltp.data.tables import read_records

        records = list(read_records(path, columns, remedy=remedy))
        try:
            return pa.Table.from_pylist([{name: record[name] for name in columns} for record in records])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"{path}: rows differ in the types of their values: {error}") from None

    def infer_labels(self, table: pa.Table, source: object) -> tuple[str, ...]:
        """Return no names: answers are spans."""
        return ()

    def check_labels(self, table: pa.Table, source: object) -> pa.ChunkedArray:
        """Return the answers of each row: the lists `text` and `answer_start`."""
        import pyarrow as pa

        context = self.text_columns[1]
        rows, wrong = [], []
        pairs = zip(table[context].to_pylist(), table[self.label_column].to_pylist(), strict=True)
        for number, (text, answers) in enumerate(pairs, start=1):
            texts, starts = _lists(answers)
            if texts is None or starts is None or len(texts) != len(starts):
                raise UserError(
                    f"{source}: row {number} has no answers in column {self.label_column!r}: an object with the lists "
                    "text and answer_start, of equal length"
                )
            if not texts and self.null_threshold is None:
                raise UserError(
                    f"{source}: row {number} has no answer, and every question of task={self.name} must have one; "
                    "task=custom takes such rows, and so does task=squad_v2"
                )
            for answer, start in zip(texts, starts, strict=True):
                if text[start : start + len(answer)] != answer or not answer:
                    wrong.append((number, answer))
            rows.append({"text": texts, "answer_start": starts})
        if wrong:
            number, answer = wrong[0]
            more = f"; so are {len(wrong) - 1} others" if len(wrong) > 1 else ""
            raise UserError(
                f"{source}: row {number}: the answer {answer[:60]!r} is not in column {context!r} at its "
                f"answer_start{more}"
            )
        kind = pa.struct({"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int64())})
        return pa.chunked_array([pa.array(rows, kind)])

    # -- tensors ---------------------------------------------------------------------------------------------------

    def encode(self, tokenizer: Any, rows: Mapping[str, list[Any]], max_length: int) -> dict[str, list[Any]]:
        """Tokenise questions and the windows of their contexts.

        Args:
            rows: the text columns; `label`; and `example`, the number of each row in its split.

        Returns:
            The model's inputs; and with labels, as `label`, a list for each window: the first and the last token of the
            first answer (0 where it is not in the window), the number of the example, the first and the last token of
            the context, and the first and the last character of each of its tokens.
        """
        texts = list(zip(*(rows[name] for name in self.text_columns), strict=True))
        encoded, owners, _ = self.windows(tokenizer, texts, max_length)
        result: dict[str, list[Any]] = dict(encoded)
        if "label" in rows:
            numbers = rows.get("example", range(len(texts)))
            result["label"] = [
                _window(encoding, rows["label"][owner], numbers[owner])
                for encoding, owner in zip(encoded.encodings, owners, strict=True)
            ]
        return result

    @classmethod
    def windows(
        cls, tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int
    ) -> tuple[Any, Sequence[int], dict[int, str]]:
        """Tokenise questions with the windows of their contexts, which overlap by a third of ``max_length``.

        Of a question at most half of ``max_length`` is read.

        Returns:
            The tokenizer's output, a row a window; the number of the text of each; and remarks about questions that
            were truncated, by the number of the text.

        Raises:
            UserError: ``max_length`` is too small for windows.
        """
        from ltp.data.tokenising import first_tokens, require_fast

        require_fast(tokenizer, cls.kind)
        stride = max_length // 3
        room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride - 1  # a window must move on
        if room < 1:
            raise UserError(f"max_length={max_length} is too small for a question and windows of its context")
        questions = [question.strip() for question, _ in texts]
        most, notes = min(room, max_length // 2), {}
        for number, (begin, total) in enumerate(first_tokens(tokenizer, questions, most)):
            if begin != questions[number]:
                questions[number] = begin
                notes[number] = f"truncated: of a question of {total} tokens the first {most} were read"
        encoded = tokenizer(
            questions,
            [context for _, context in texts],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        return encoded, encoded.pop("overflow_to_sample_mapping"), notes

    def collate_labels(self, labels: Sequence[Any], width: int) -> Tensor:
        """Return the rows of :meth:`encode`, (B, …) int64, padded with -1."""
        return _padded(labels)

    def model_labels(self, labels: Tensor) -> Tensor:
        """Return first and last token of the answer, (B, 2) int64."""
        return labels[:, :2]

    def model_inputs(self, labels: Tensor) -> dict[str, Tensor]:
        """Return `start_positions` and `end_positions`."""
        return {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}

    # -- outputs ---------------------------------------------------------------------------------------------------

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the logits of start and end, (B, N, 2): the metric finds the best spans of all windows."""
        return logits

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of starts and of ends, (2B, N)."""
        return logits.transpose(1, 2).flatten(0, 1)

    def build_metric(self, name: str) -> Metric:
        """Build a metric of logits, (B, N, 2), and labels, of the split of :meth:`for_split`."""
        from ltp.data.metrics import SpanScore

        return SpanScore(self, name)

    def answers(self, spans: Sequence[tuple[int, int, int, float, float]]) -> list[str]:
        """Return the answer to each question of the split.

        Args:
            spans: the best one of each window: number of the example, first and last character, its score, and that of
                no answer.
        """
        best: dict[int, tuple[float, int, int]] = {}
        nothing: dict[int, float] = {}
        for number, first, last, score, null in spans:
            if number not in best or score > best[number][0]:
                best[number] = (score, first, last)
            nothing[number] = min(null, nothing.get(number, null))
        found = []
        for number, context in enumerate(self.examples[self.text_columns[1]]):
            score, first, last = best.get(number, (0.0, 0, 0))
            found.append("" if _is_null(nothing[number], score, self.null_threshold) else context[first:last])
        return found

    def labelled_tokens(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first and the last token of each answer, and whether it has the largest logit of its window."""
        import torch

        from ltp.data.metrics import HEADER

        rows = (labels[:, 0] > 0).nonzero().squeeze(1)  # windows with an answer
        columns, _, first, last = labels[rows, :HEADER].split([2, 1, 1, 1], dim=1)
        places = torch.arange(logits.shape[1], device=logits.device)
        is_outside = (places < first) | (places > last)  # of the context
        is_right = logits[rows].masked_fill(is_outside[:, :, None], -math.inf).argmax(dim=1) == columns
        return torch.cat([rows, rows]), columns.T.flatten(), is_right.T.flatten()

    def outcome_columns(self, logits: Tensor, labels: Tensor) -> Iterator[tuple[str, Any]]:
        """Yield the number of each window's example, its best span in characters, and the span's score."""
        from ltp.data.metrics import best_spans

        spans = best_spans(logits, labels)
        for column, name in enumerate(("example", "start", "end", "score", "null_score")):
            yield name, [span[column] for span in spans]

    @classmethod
    def prediction_columns(cls, num_labels: int) -> tuple[str, ...]:
        """Return `answer`, its `start` and `end` in characters, and its `probability`."""
        return ("answer", "start", "end", "probability")

    @classmethod
    def read(cls, logits: Tensor, labels: Sequence[str], encodings: Sequence[Any], texts: Sequence[Any]) -> list[Row]:
        """Return the best spans of each window, from (B, N, 2).

        Returns:
            For each window `spans`, the best first: score, first and last character, and probability; and `null`, score
            and probability of no answer.
        """
        from ltp.data.metrics import ranked_spans

        target = _padded([_window(encoding, {"text": []}, number) for number, encoding in enumerate(encodings)])
        found = []
        nulls, wholes = logits[:, 0].sum(dim=1).tolist(), logits.logsumexp(dim=1).sum(dim=1).tolist()
        for spans, null, whole in zip(ranked_spans(logits, target, MAX_N_BEST), nulls, wholes, strict=True):
            ranked = [(score, first, last, math.exp(score - whole)) for first, last, score in spans]
            found.append({"spans": ranked, "null": (null, math.exp(null - whole))})
        return found

    @classmethod
    def join(cls, readings: Sequence[Row], text: tuple[str, ...], *, n_best: int, null_threshold: float | None) -> Row:
        """Return the answer to a question, over all windows of its context.

        The best span is that with the largest sum of the logits of its start and end, as in an evaluation. No answer,
        an empty text at 0, is predicted by the rule of an evaluation, too. `probability` is the product of the
        probabilities of start and end, each a softmax over the tokens of the window that the span is from; of no answer
        that of the first token in the window where it scores least.

        Args:
            readings: the windows, see :meth:`read`.
            text: the question and its context.
            n_best: from 2 on, `n_best` lists as many of the best different spans, if there are as many; the empty
                answer is none of them.
            null_threshold: see :class:`SpanTask`.
        """
        best: dict[tuple[int, int], Row] = {}
        ranked = sorted((span for reading in readings for span in reading["spans"]), key=lambda span: -span[0])
        for _, first, last, probability in ranked:
            answer = {"answer": text[1][first:last], "start": first, "end": last, "probability": probability}
            best.setdefault((first, last), answer)
        null, probability = min((reading["null"] for reading in readings), key=lambda one: one[0])
        if not ranked or _is_null(null, ranked[0][0], null_threshold):
            found: Row = {"answer": "", "start": 0, "end": 0, "probability": probability}
        else:
            found = dict(next(iter(best.values())))
        return found | ({"n_best": list(best.values())[:n_best]} if n_best > 1 else {})

    @classmethod
    def rank(cls, reading: Row) -> float:
        """Return the score of the best span of a window."""
        return reading["spans"][0][0] if reading["spans"] else -math.inf

    @classmethod
    def part(cls, encoding: Any) -> str:
        """Return the characters of the context that a window reads."""
        pairs = zip(encoding.sequence_ids, encoding.offsets, strict=True)
        context = [offsets for sequence, offsets in pairs if sequence == 1]
        return f"characters {context[0][0]:,} to {context[-1][1]:,} of the context"

    @classmethod
    def marks(cls, prediction: Row, encoding: Any) -> list[str]:
        """Return `answer` at the tokens of the answer."""
        inside = [
            sequence == 1 and prediction["start"] <= start < end <= prediction["end"]
            for sequence, (start, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True)
        ]
        return ["answer" if is_part else "" for is_part in inside]

    @classmethod
    def show(cls, prediction: Row) -> str:
        """Return `not good 0.981`, a dash for no answer, and the other ones of `n_best`."""
        place = (prediction["start"], prediction["end"])
        others = [row for row in prediction.get("n_best", ()) if (row["start"], row["end"]) != place]
        return " | ".join(f"{row['answer'] or '–'} {row['probability']:.3f}" for row in (prediction, *others))


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of integers, (B, …) int64, padded with -1."""
    import torch

    target = torch.full((len(rows), max(map(len, rows))), SpanTask.no_label)
    for number, values in enumerate(rows):
        target[number, : len(values)] = torch.tensor(values)
    return target


def _lists(answers: Any) -> tuple[list[str] | None, list[int] | None]:
    """Return the texts and starts of answers; None for each that is missing."""
    if not isinstance(answers, dict):
        return None, None
    texts, starts = answers.get("text"), answers.get("answer_start")
    return (texts if isinstance(texts, list) else None), (starts if isinstance(starts, list) else None)


def _is_null(null: float, score: float, threshold: float | None) -> bool:
    """Whether no answer is predicted, from its score and that of the best span; see :class:`SpanTask`."""
    return threshold is not None and null - score > threshold


def _window(encoding: Any, answers: Any, number: int) -> list[int]:
    """Return the labels of a window, see :meth:`SpanTask.encode`."""
    offsets = encoding.offsets
    context = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    if not context:
        return [0, 0, number, 0, -1]
    first, last = context[0], context[-1]
    start = end = 0
    if answers["text"]:
        begin = answers["answer_start"][0]
        stop = begin + len(answers["text"][0])
        if offsets[first][0] <= begin and stop <= offsets[last][1]:
            start = max(place for place in context if offsets[place][0] <= begin)
            end = min(place for place in context if offsets[place][1] >= stop)
    characters = [character for place in context for character in offsets[place]]
    return [start, end, number, first, last, *characters]


def _read_squad(path: Path) -> list[Row]:
    """Read a file of SQuAD's form: articles with paragraphs with questions."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "question": item["question"],
                "context": paragraph["context"],
                "answers": {
                    "text": [answer["text"] for answer in item["answers"]],
                    "answer_start": [answer["answer_start"] for answer in item["answers"]],
                },
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not of SQuAD's form (data, paragraphs, qas, answers): {type(error).__name__}: {error}"
        ) from None
