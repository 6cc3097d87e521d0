"""The packed form as one graph of tensor operations, and its ONNX file. Needs the packages of the extra ``onnx``."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltp.deploy.onnx import export_graph
from ltp.errors import RunError
from ltp.execution.attention import masked_attention
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.importance import importance

OUTPUTS = ("logits", "token_lengths")


class GraphForm(nn.Module):
    """A pruned classifier without anything that depends on values but sizes of tensors: what a graph can hold.

    As in :mod:`ltp.execution.packed`, hidden states are one (T, D) tensor of all tokens alive, sequence after sequence;
    the pruner decides who survives. Attention reads rows that are padded to the longest sequence alive, since a graph
    cannot loop over sequences of equal length.

    Args:
        model: the classifier, in evaluation mode.
    """

    def __init__(self, model: LTPForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify a batch.

        Args:
            input_ids, attention_mask, token_type_ids: (B, N) int64; position 0 of each example is real.

        Returns:
            Logits, (B, num_labels) float32; tokens alive entering each layer, and after the last, (B, L+1) int64.
        """
        model, family, config = self.model, self.model.family, self.model.config
        alive = attention_mask.bool()
        lengths = counts = alive.sum(dim=1)
        token_lengths = [counts]
        hidden = family.embed_tokens(model.dense, input_ids, _places(alive), token_type_ids, None)  # (T, D)
        layers = family.layers(model.dense)
        for number, layer in enumerate(layers, start=1):
            starts = counts.cumsum(dim=0) - counts
            columns = torch.arange(_size(counts.max()), device=counts.device)
            alive = columns < counts[:, None]  # (B, N_l)
            # the place of each slot's token; behind a sequence's end it is another's, which attention masks
            slots = torch.minimum(starts[:, None] + columns, counts.sum() - 1).flatten()
            query, key, value = (
                part.index_select(0, slots).unflatten(0, alive.shape) for part in family.project(layer, hidden)
            )
            context, probs = masked_attention(query, key, value, alive, dropout=0.0)  # (B, N_l, D)
            scores = (
                importance(probs, alive, scoring_mode=config.scoring_mode, score_length=config.score_length)
                if model.pruner.needs_scores
                else torch.zeros_like(alive, dtype=torch.float32)
            )
            survivors = model.pruner.survivors(number, scores, alive, lengths)
            counts = survivors.sum(dim=1)
            token_lengths.append(counts)
            if number == len(layers):  # nothing but the classification tokens is read behind its attention
                context, hidden = context[:, 0], hidden.index_select(0, starts)
            else:
                indices = _places(survivors)
                context = context.flatten(0, 1).index_select(0, indices)
                hidden = hidden.index_select(0, slots.index_select(0, indices))
            hidden = family.feed_forward(layer, family.attention_output(layer, context, hidden))
        return family.classify(model.dense, hidden), torch.stack(token_lengths, dim=1)


def _places(rows: Tensor) -> Tensor:
    """Where a mask is true, in flattened rows: (B, N) bool → (T,) int64."""
    return rows.flatten().nonzero().squeeze(1)


def _size(number: Tensor) -> Any:
    """A number that becomes a size: to the exporter a symbol, which ``int`` would ask for its value."""
    size = number.item()
    torch._check(size >= 1)
    return size


def input_names(model: LTPForSequenceClassification) -> tuple[str, ...]:
    """The graph's inputs: token types only where the encoder tells several apart."""
    several = model.dense.config.type_vocab_size > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if several else ()))


def write_onnx(model: LTPForSequenceClassification, path: Path) -> None:
    """Write a classifier as an ONNX graph that removes tokens: float32, any batch size and length.

    Args:
        model: on the CPU, in float32 and evaluation mode.
        path: the file.

    Raises:
        RunError: the exporter does not know one of the model's operations.
    """
    try:
        export_graph(GraphForm(model).eval(), path, inputs=input_names(model), outputs=OUTPUTS)
    except torch.onnx.OnnxExporterError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise RunError(f"this model has no ONNX graph: {str(reason).splitlines()[0]}") from error
