"""Prediction: classify texts, and optionally trace each token through the layers."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltp.data.sequences import make_batches
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
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    full_lengths = [len(row) for row in tokenizer(*columns, verbose=False)["input_ids"]]
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
                note = reading_note(ids[row], full_lengths[row], max_length, tokenizer)
                predictions[row] = Prediction(label, value, note, costs[index], token_traces)
            if recorder is not None:
                recorder.layers.clear()
            advance(len(rows))
    return [predictions[row] for row in range(len(texts))]


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


def reading_note(ids: Sequence[int], length: int, max_length: int, tokenizer: Any) -> str:
    """Return a remark about a tokenised text (truncated, or only special tokens); empty if there is none.

    Args:
        ids: token ids after truncation.
        length: number of tokens without truncation.
        max_length: truncation length in tokens.
        tokenizer: the tokenizer that made ``ids``.
    """
    if length > len(ids):
        return f"truncated: the first {max_length} of {length} tokens were read"
    words = set(ids) - (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    return "" if words else "nothing but special tokens"
