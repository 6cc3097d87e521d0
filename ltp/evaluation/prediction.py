"""Prediction: classify texts, and optionally trace each token through the layers."""

import contextlib
import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltp.data.sequences import make_batches
from ltp.data.tokenising import tokenise
from ltp.model.classifier import LTPForSequenceClassification
from ltp.model.tracing import TokenTrace, readable_tokens, recording, traces
from ltp.pruning.flops import relative_flops


@dataclass(frozen=True)
class Prediction:
    """The classifier's output for one text.

    Attributes:
        label: the predicted class; None for a regression.
        value: probability of the label, or the regression score.
        note: a remark about the input, such as truncation; empty if there is none.
        cost: relative FLOPs of the text.
        traces: one trace per token; empty if tracing was off.
    """

    label: str | None
    value: float
    note: str
    cost: float
    traces: list[TokenTrace]


_LONGEST_COUNTED = 100_000  # characters up to which the tokens of a truncated text are counted


def predict(
    model: LTPForSequenceClassification,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    *,
    max_length: int,
    batch_size: int,
    trace: bool,
    advance: Callable[[int], None],
) -> list[Prediction]:
    """Classify texts.

    Args:
        model: the classifier, in evaluation mode.
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
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))  # similar lengths together: little padding
    sizes = (model.config.hidden_size, model.config.intermediate_size)
    predictions: dict[int, Prediction] = {}
    with torch.inference_mode(), recording(model) if trace else contextlib.nullcontext() as recorder:
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
            logits = output.logits.float()
            costs = relative_flops(output.token_lengths, *sizes).tolist()
            for index, row in enumerate(rows):
                token_traces = []
                if recorder is not None:
                    tokens = readable_tokens(tokenizer, encoded.encodings[row], texts[row])
                    token_traces = traces(recorder, index, tokens)
                label, value = label_and_score(logits[index], model)
                note = reading_note(ids[row], full_lengths.get(row, len(ids[row])), max_length, tokenizer)
                predictions[row] = Prediction(label, value, note, costs[index], token_traces)
            if recorder is not None:
                recorder.layers.clear()
            advance(len(rows))
    return [predictions[row] for row in range(len(texts))]


def free_unused_memory() -> None:
    """Return freed memory to the system; glibc keeps pieces of it for each size of batch (5 KB a text were seen)."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


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


def label_and_score(logits: Tensor, model: LTPForSequenceClassification) -> tuple[str | None, float]:
    """Return a text's label and its probability; for a regression None and the score.

    Args:
        logits: (num_labels,) float32.
        model: the classifier; its ``config`` names the labels.
    """
    if model.num_labels == 1:
        return None, logits.item()
    label = int(logits.argmax())
    names: Any = model.config.id2label
    return str(names[label]), logits.softmax(dim=0)[label].item()


def reading_note(ids: Sequence[int], length: float, max_length: int, tokenizer: Any) -> str:
    """Return a remark about a tokenised text (truncated, or only special tokens); empty if there is none.

    Args:
        ids: token ids after truncation.
        length: number of tokens without truncation; infinity if it was not counted.
        max_length: truncation length in tokens.
        tokenizer: the tokenizer that made ``ids``.
    """
    if length > len(ids):
        total = "many" if math.isinf(length) else f"{length:.0f}"
        return f"truncated: the first {max_length} of {total} tokens were read"
    words = set(ids) - (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    return "" if words else "nothing but special tokens"
