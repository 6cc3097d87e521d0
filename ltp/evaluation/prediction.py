"""Prediction: what a model says of texts, and optionally trace each token through the layers."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch

from ltp.data.sequences import make_batches
from ltp.data.tasks import kind_of
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
) -> list[Prediction]:
    """Predict texts.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's fast tokenizer.
        texts: tuples of one or two texts, all of the same length.
        max_length: truncation length in tokens, special tokens included.
        batch_size: texts per forward pass.
        trace: record each token's path; this runs the masked form.
        advance: called after each batch with its number of texts.

    Returns:
        One prediction per text, in the order of ``texts``.
    """
    encoded, full_lengths = encode(tokenizer, texts, max_length)
    ids, types = encoded["input_ids"], encoded.get("token_type_ids")
    kind = kind_of(type(model).__name__, model.config.problem_type, model.num_labels or 0)
    names: Any = model.config.id2label
    labels = [str(names[index]) for index in range(len(names))]
    encodings = encoded.encodings if trace or model.output_class.is_of_tokens else None
    del encoded  # most of what tokenising takes is freed before the model needs memory
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))  # similar lengths together: little padding
    cost = model.cost
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
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
            output = model(**batch)
            of_rows = [] if encodings is None else [encodings[row] for row in rows]
            results = kind.read(output.logits.float(), labels, of_rows, [texts[row] for row in rows])
            costs = cost.relative_flops(output.token_lengths).tolist()
            for index, row in enumerate(rows):
                token_traces, marks = [], []
                if recorder is not None and encodings is not None:
                    tokens = readable_tokens(tokenizer, encodings[row], texts[row])
                    token_traces = traces(recorder, index, tokens)
                    marks = kind.marks(results[index], encodings[row])
                note = reading_note(ids[row], full_lengths.get(row, len(ids[row])), max_length, special)
                predictions[row] = Prediction(
                    results[index], kind.show(results[index]), note, costs[index], token_traces, marks
                )
            if recorder is not None:
                recorder.layers.clear()
            advance(len(rows))
    return [predictions[row] for row in range(len(texts))]


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
