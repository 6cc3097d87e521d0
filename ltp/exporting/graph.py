"""The packed forward pass as an ONNX graph. Requires the packages of the extra ``onnx``."""

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
    """A pruned classifier without data-dependent control flow, which can be exported as a graph.

    As in :mod:`ltp.execution.packed`, hidden states are one (T, D) tensor of all tokens alive, sequence after sequence,
    and the pruner selects the tokens. Attention pads sequences to the longest remaining one, because a graph cannot
    loop over groups of equal length. Only sizes of tensors depend on the data.

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
            input_ids, attention_mask, token_type_ids: (B, N) int64. Padding may be on either side. A row of padding
                only is computed as if its first token were real: it changes no other row.

        Returns:
            Logits, (B, num_labels) float32; tokens alive entering each layer, and after the last, (B, L+1) int64.
        """
        model, family, config = self.model, self.model.family, self.model.config
        length = input_ids.shape[1]
        # a graph cannot refuse a batch: it moves padding on the left to the right
        first = attention_mask.bool().int().argmax(dim=1, keepdim=True)
        columns = torch.arange(length, device=input_ids.device) + first
        columns = torch.where(columns < length, columns, columns - length)
        input_ids = input_ids.gather(1, columns)
        token_type_ids = None if token_type_ids is None else token_type_ids.gather(1, columns)
        alive = attention_mask.gather(1, columns).bool() | (columns == first)
        lengths = counts = alive.sum(dim=1)
        token_lengths = [counts]
        hidden = family.embed_tokens(model.dense, input_ids, _indices(alive), token_type_ids, None)  # (T, D)
        layers = family.layers(model.dense)
        for number, layer in enumerate(layers, start=1):
            starts = counts.cumsum(dim=0) - counts
            columns = torch.arange(_size(counts.max()), device=counts.device)
            alive = columns < counts[:, None]  # (B, N_l)
            # index of the token in each slot; slots after the end of a sequence hold other tokens, which are masked
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
            if number == len(layers):  # after its attention only the classification tokens are needed
                context, hidden = context[:, 0], hidden.index_select(0, starts)
            else:
                indices = _indices(survivors)
                context = context.flatten(0, 1).index_select(0, indices)
                hidden = hidden.index_select(0, slots.index_select(0, indices))
            hidden = family.feed_forward(layer, family.attention_output(layer, context, hidden))
        return family.classify(model.dense, hidden), torch.stack(token_lengths, dim=1)


def _indices(mask: Tensor) -> Tensor:
    """Return the indices of True in the flattened mask: (B, N) bool → (T,) int64."""
    return mask.flatten().nonzero().squeeze(1)


def _size(number: Tensor) -> Any:
    """Convert a scalar to a size; ``int`` would fail for the symbolic sizes of the exporter."""
    size = number.item()
    torch._check(size >= 1)
    return size


def input_names(model: LTPForSequenceClassification) -> tuple[str, ...]:
    """Return the names of the graph's inputs; ``token_type_ids`` only if the encoder has several token types."""
    has_token_types = model.dense.config.type_vocab_size > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if has_token_types else ()))


def write_onnx(model: LTPForSequenceClassification, path: Path) -> None:
    """Write a classifier as an ONNX graph that removes pruned tokens, for any batch size and sequence length.

    Args:
        model: the classifier, on the CPU, in float32 and evaluation mode.
        path: the file to write.

    Raises:
        RunError: the exporter does not support an operation of the model.
    """
    try:
        export_graph(GraphForm(model).eval(), path, inputs=input_names(model), outputs=OUTPUTS)
    except torch.onnx.OnnxExporterError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise RunError(f"this model has no ONNX graph: {str(reason).splitlines()[0]}") from error
