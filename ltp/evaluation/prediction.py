"""Prediction: what a model says of texts, and optionally trace each token through the layers."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch

from ltp.data.sequences import Batch, make_batches
from ltp.data.tasks import Task, kind_of
from ltp.data.tokenising import tokenise
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.model.tracing import TokenTrace, readable_tokens, recording, traces


@dataclass(frozen=True)
class Prediction:
    """The model's output for one text.

    Attributes:
        columns: what is predicted, by column; see :meth:`ltp.data.tasks.Task.read`.
        shown: the same as a short text.
        note: a remark about the input, such as truncation; empty if there is none.
        cost: relative FLOPs of the text.
        traces: one trace per token; empty if tracing was off.
        marks: what is said of each token, an empty text for nothing; see :meth:`ltp.data.tasks.Task.marks`.
    """

    columns: dict[str, Any]
    shown: str
    note: str
    cost: float
    traces: list[TokenTrace]
    marks: list[str] = field(default_factory=list)


_LONGEST_COUNTED = 100_000  # characters up to which the tokens of a truncated text are counted


def predict(
    model: LTPPreTrainedModel,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    *,
    max_length: int,
    batch_size: int,
    trace: bool,
    advance: Callable[[int], None],
    n_best: int = 1,
    null_threshold: float | None = None,
    forward: Callable[[Batch], Any] | None = None,
) -> list[Prediction]:
    """Predict texts. A text of several windows has one prediction, and the cost of all of them.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's fast tokenizer.
        texts: tuples of one or two texts, all of the same length.
        max_length: truncation length in tokens, special tokens included.
        batch_size: rows per forward pass: texts, or their windows.
        trace: record each token's path, of the window that a text's answer is from; this runs the masked form.
        advance: called after each batch with the number of texts that it completes.
        n_best, null_threshold: of spans, see :meth:`ltp.data.tasks.SpanTask.join`.
        forward: computes a batch in another form of the model, such as an :class:`~ltp.evaluation.scoring.Engine`;
            None: the model itself. A trace is always the model's.

    Returns:
        One prediction per text, in the order of ``texts``.
    """
    kind = kind_of(type(model).__name__, model.config.problem_type, model.num_labels or 0)
    owners: Sequence[int] = range(len(texts))
    full_lengths, notes = dict[int, float](), dict[int, str]()
    if kind.has_windows:
        encoded, owners, notes = kind.windows(tokenizer, texts, max_length)
    else:
        encoded, full_lengths = encode(tokenizer, texts, max_length)
    ids, types = encoded["input_ids"], encoded.get("token_type_ids")
    names: Any = model.config.id2label
    labels = [str(names[index]) for index in range(len(names))]
    encodings = encoded.encodings if trace or model.output_class.is_of_tokens else None
    del encoded  # most of what tokenising takes is freed before the model needs memory
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))  # similar lengths together: little padding
    cost = model.cost
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    waiting: dict[int, _Rows] = {}
    for row, number in enumerate(owners):
        waiting.setdefault(number, _Rows()).numbers.append(row)
    predictions: dict[int, Prediction] = {}
    tracing = recording(model) if trace else contextlib.nullcontext()
    with torch.inference_mode(), _without_onednn(), tracing as recorder:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            (batch,) = make_batches(
                [ids[row] for row in rows],
                batch_size,
                pad_token_id=tokenizer.pad_token_id or 0,
                token_types=None if types is None else [types[row] for row in rows],
                device=model.device,
            )
            output = model(**batch) if forward is None or trace else forward(batch)
            of_rows = [] if encodings is None else [encodings[row] for row in rows]
            readings = kind.read(output.logits.float(), labels, of_rows, [texts[owners[row]] for row in rows])
            costs = [values.tolist() for values in cost.flops_and_dense(output.token_lengths)]
            before = len(predictions)
            for index, (row, number) in enumerate(zip(rows, (owners[row] for row in rows), strict=True)):
                text, own = texts[number], waiting[number]
                own.add(row, readings[index], costs[0][index], costs[1][index])
                if recorder is not None and encodings is not None and own.ranks_first(kind, row):
                    own.shown = row
                    own.traces = traces(recorder, index, readable_tokens(tokenizer, encodings[row], text))
                if len(own.readings) == len(own.numbers):
                    found = own.joined(kind, text, n_best, null_threshold)
                    first = own.numbers[0]
                    note = reading_note(ids[first], full_lengths.get(number, len(ids[first])), max_length, special)
                    marks, part = [], ""
                    if own.shown is not None and encodings is not None:
                        marks, part = kind.marks(found, encodings[own.shown]), own.part(kind, encodings[own.shown])
                    predictions[number] = Prediction(
                        found,
                        kind.show(found),
                        "; ".join(filter(None, (notes.get(number), note, part))),
                        own.flops / own.dense_flops,
                        own.traces,
                        marks,
                    )
                    del waiting[number]
            advance(len(predictions) - before)
    return [predictions[number] for number in range(len(texts))]


@dataclass
class _Rows:
    """The rows of the model that a text has, and what is known of them so far.

    Attributes:
        numbers: the rows, in the order of the text.
        readings: what :meth:`ltp.data.tasks.Task.read` returned, by row.
        flops, dense_flops: FLOPs of the rows that were read, with and without pruning.
        shown: the row whose traces are kept; None without tracing.
        traces: of its tokens.
    """

    numbers: list[int] = field(default_factory=list)
    readings: dict[int, Any] = field(default_factory=dict)
    flops: float = 0.0
    dense_flops: float = 0.0
    shown: int | None = None
    traces: list[TokenTrace] = field(default_factory=list)

    def add(self, row: int, reading: Any, flops: float, dense_flops: float) -> None:
        """Take what was read of a row."""
        self.readings[row] = reading
        self.flops += flops
        self.dense_flops += dense_flops

    def ranks_first(self, kind: type[Task], row: int) -> bool:
        """Whether a row is to be shown rather than those before; of equal ones the first in the text is."""
        ranks = [(kind.rank(self.readings[one]), -one) for one in (row, self.shown) if one is not None]
        return ranks[0] == max(ranks)

    def joined(self, kind: type[Task], text: tuple[str, ...], n_best: int, null_threshold: float | None) -> Any:
        """Return what is predicted of the text."""
        readings = [self.readings[row] for row in self.numbers]
        return kind.join(readings, text, n_best=n_best, null_threshold=null_threshold)

    def part(self, kind: type[Task], encoding: Any) -> str:
        """Return a remark on the row that is shown; empty if it is the whole text."""
        if self.shown is None or len(self.numbers) == 1:
            return ""
        place = self.numbers.index(self.shown) + 1
        return f"shown in part: window {place} of {len(self.numbers)}, {kind.part(encoding)}"


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Let PyTorch use its own float32 kernels on a CPU, which are as fast.

    oneDNN keeps a kernel for each number of tokens, and these pieces keep memory between them from being used again:
    2 KB more a text, up to gigabytes in a long prediction.
    """
    backend: Any = torch.backends.mkldnn
    before, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        backend.enabled = before


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int) -> tuple[Any, dict[int, float]]:
    """Tokenise texts, truncated. Of a text far beyond the limit only the beginning is read: the tokens are the same.

    Args:
        tokenizer: a fast tokenizer.
        texts: tuples of one or two texts, all of the same length.
        max_length: truncation length in tokens.

    Returns:
        The tokenizer's output, and the length of each truncated text without truncation by its row, in tokens;
        infinity for a text whose end was not read.
    """
    encoded, is_cut = tokenise(tokenizer, list(map(list, zip(*texts, strict=True))), max_length)
    ids = encoded["input_ids"]
    full = [row for row in range(len(ids)) if len(ids[row]) == max_length or is_cut[row]]
    lengths: dict[int, float] = dict.fromkeys(full, math.inf)
    full = [row for row in full if sum(map(len, texts[row])) <= _LONGEST_COUNTED]
    if full:
        whole = tokenizer(*map(list, zip(*(texts[row] for row in full), strict=True)), verbose=False)["input_ids"]
        lengths |= {row: len(one) for row, one in zip(full, whole, strict=True)}
    return encoded, lengths


def reading_note(ids: Sequence[int], length: float, max_length: int, special: Set[int]) -> str:
    """Return a remark about a tokenised text (truncated, or only special tokens); empty if there is none.

    Args:
        ids: token ids after truncation.
        length: number of tokens without truncation; infinity if it was not counted.
        max_length: truncation length in tokens.
        special: ids of the special tokens but the unknown one.
    """
    if length > len(ids):
        total = "many" if math.isinf(length) else f"{length:.0f}"
        return f"truncated: the first {max_length} of {total} tokens were read"
    return "" if set(ids) - special else "nothing but special tokens"
