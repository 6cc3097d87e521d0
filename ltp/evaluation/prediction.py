"""Texts through a classifier: what it says of each, and, where asked for, which tokens it read how far."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltp.model.classifier import LTPForSequenceClassification
from ltp.model.tracing import TokenTrace, readable_tokens, recording, traces
from ltp.pruning.flops import relative_flops
from ltp.runs.loading import check_token_ids


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of a text.

    Attributes:
        label: the predicted class; None for a regression.
        value: its probability; of a regression the score.
        note: what there is to say about the text, or nothing.
        cost: FLOPs relative to the dense model's.
        pieces: its tokens' ways through the encoder, where they were traced.
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
        model: in evaluation mode.
        tokenizer: its tokenizer.
        texts: one or two each, the same number for all.
        max_length: tokens at which a text is truncated, special ones included.
        batch_size: texts computed at once.
        trace: record each token's way; the masked form is computed then.
        advance: told the number of texts after each batch.

    Returns:
        A prediction for each text, in their order.

    Raises:
        UserError: the tokenizer does not belong to the model.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    whole = [len(ids) for ids in tokenizer(*columns, verbose=False)["input_ids"]]
    ids, types = encoded["input_ids"], encoded.get("token_type_ids")
    notes = [reading_note(row, length, max_length, tokenizer) for row, length in zip(ids, whole, strict=True)]
    check_token_ids(max(max(row) for row in ids), model)
    order = np.argsort([-len(row) for row in ids], kind="stable")  # little is padded then
    found: dict[int, Prediction] = {}
    with torch.inference_mode(), recording(model) if trace else contextlib.nullcontext() as recorder:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size].tolist()
            inputs = {"input_ids": _padded([ids[row] for row in rows], tokenizer.pad_token_id or 0)}
            inputs["attention_mask"] = _padded([[1] * len(ids[row]) for row in rows], 0)
            if types is not None:
                inputs["token_type_ids"] = _padded([types[row] for row in rows], 0)
            output = model(**{name: values.to(model.device) for name, values in inputs.items()})
            logits = output.logits.float()
            sizes = (model.config.hidden_size, model.config.intermediate_size)
            costs = relative_flops(output.token_lengths, *sizes).tolist()
            for place, row in enumerate(rows):
                traced = []
                if recorder is not None:
                    traced = traces(recorder, place, readable_tokens(tokenizer, encoded.encodings[row], texts[row]))
                label, value = label_and_score(logits[place], model)
                found[row] = Prediction(label, value, notes[row], costs[place], traced)
            if recorder is not None:
                recorder.layers.clear()
            advance(len(rows))
    return [found[row] for row in range(len(texts))]


def label_and_score(logits: Tensor, model: LTPForSequenceClassification) -> tuple[str | None, float]:
    """A text's label and its probability; of a regression None and the score.

    Args:
        logits: (num_labels,) float32.
        model: whose ``config`` names the labels.
    """
    if model.num_labels == 1:
        return None, logits.item()
    label = int(logits.argmax())
    names: Any = model.config.id2label
    return str(names[label]), logits.softmax(dim=0)[label].item()


def reading_note(ids: Sequence[int], length: int, max_length: int, tokenizer: Any) -> str:
    """What there is to say about how a text was read, or nothing.

    Args:
        ids: its tokens, truncated.
        length: how many it would have without a limit.
        max_length: the limit.
        tokenizer: who made them.
    """
    if length > len(ids):
        return f"truncated: the first {max_length} of {length} tokens were read"
    words = set(ids) - (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    return "" if words else "nothing but special tokens"


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
