"""The packed form of a pruned forward pass: a token that is pruned costs nothing from that moment on.

Hidden states are one (T, D) tensor of all tokens alive, sequence after sequence, without padding. It decides nothing:
who survives is the pruner's decision, and :mod:`ltp.masked` is the reference that it equals.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from ltp.attention import packed_attention
from ltp.backbones import Backbone
from ltp.encoder import EncoderPass
from ltp.pruning import Pruner, normalise


class Packing:
    """Where the tokens of a batch stand in a packed tensor.

    Sequences stand in the order of their lengths, so that those of equal length are neighbours and their attention is
    one batched product over a view, without padding.

    Attributes:
        counts: tokens of each sequence, (B,) int64, ascending.
        order: the example that each sequence is, (B,) int64.
        alive: the same tokens in rows, left-aligned, (B, N) bool.
        groups: (sequences, tokens of each) of every run of equal lengths.
    """

    def __init__(self, counts: Tensor, order: Tensor) -> None:
        self.counts, self.order = counts, order
        lengths = counts.tolist()  # a layer's one synchronisation with a GPU
        self.groups = [(len(list(run)), length) for length, run in groupby(lengths)]
        self.alive = torch.arange(lengths[-1], device=counts.device) < counts[:, None]

    @classmethod
    def of(cls, rows: Tensor) -> tuple["Packing", Tensor]:
        """Pack rows of tokens.

        Args:
            rows: the tokens to pack, (B, N) bool, at least one in each row.

        Returns:
            The packing, and the places of its tokens in the flattened rows, (T,) int64.
        """
        counts, order = rows.sum(dim=1).sort(stable=True)
        places = torch.arange(rows.numel(), device=rows.device).view(rows.shape)
        return cls(counts, order), places[order][rows[order]]

    def keep(self, survivors: Tensor) -> tuple["Packing", Tensor]:
        """Drop tokens.

        Args:
            survivors: the tokens to keep, (B, N) bool, a subset of :attr:`alive`.

        Returns:
            The packing of the survivors, and their places in this one, (T',) int64.
        """
        packing, places = Packing.of(survivors)
        packing.order = self.order[packing.order]
        packed_places = self.pad(torch.arange(int(self.alive.sum()), device=survivors.device))
        return packing, packed_places.flatten()[places]

    @property
    def first(self) -> Tensor:
        """Places of the classification tokens, (B,) int64."""
        return self.counts.cumsum(dim=0) - self.counts

    def pad(self, packed: Tensor) -> Tensor:
        """(T,) → (B, N), 0 where there is no token."""
        rows = torch.zeros(self.alive.shape, dtype=packed.dtype, device=packed.device)
        return rows.masked_scatter(self.alive, packed)

    def pack(self, rows: Tensor) -> Tensor:
        """(B, N) → (T,)."""
        return rows[self.alive]

    def by_example(self, values: Tensor) -> Tensor:
        """One value a sequence, (B, …), in the order of the examples."""
        return torch.empty_like(values).index_copy(0, self.order, values)


def packed_encoder(
    backbone: type[Backbone],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    alive: Tensor,
    *,
    soft: bool,
    scoring_mode: str,
    score_length: int,
) -> EncoderPass:
    """Run the encoder's layers over packed tokens.

    Args:
        backbone: adapter of the encoder's family.
        layers: its L layers.
        pruner: who decides.
        hidden: embeddings, padded, (B, N, D).
        alive: real tokens, (B, N) bool, position 0 among them.
        soft: the soft rule (gates on each layer's output) instead of the hard one.
        scoring_mode, score_length: see :func:`~ltp.pruning.importance`.
    """
    packing, places = Packing.of(alive)
    hidden = hidden.flatten(0, 1)[places]  # (T, D)
    real_lengths = alive.sum(dim=1)
    token_lengths, gate_sums = [real_lengths], []
    for number, layer in enumerate(layers, start=1):
        query, key, value = backbone.project(layer, hidden)
        dropout = backbone.attention_dropout(layer)
        context, received = packed_attention(
            query, key, value, packing.groups, dropout, needs_received=pruner.needs_scores
        )
        gate: Tensor | None = None
        if pruner.needs_scores:
            scores = normalise(
                packing.pad(received),
                packing.alive,
                query.shape[1],
                scoring_mode=scoring_mode,
                score_length=score_length,
            )
            if soft:
                gates = pruner.gate(number, scores, packing.alive)
                gate_sums.append(packing.by_example(gates.sum(dim=1)))
                gate = packing.pack(gates)
            else:
                survivors = pruner.survivors(number, scores, packing.alive, real_lengths[packing.order])
                if not torch.equal(survivors, packing.alive):
                    packing, places = packing.keep(survivors)
                    context, hidden = context[places], hidden[places]
        token_lengths.append(packing.by_example(packing.counts))
        if number == len(layers):  # nothing but the classification tokens is read behind the last layer
            context, hidden = context[packing.first], hidden[packing.first]
            gate = gate[packing.first] if gate is not None else None
        hidden = backbone.feed_forward(layer, backbone.attention_output(layer, context, hidden))
        if gate is not None:
            hidden = hidden * gate[:, None]
    return EncoderPass(
        class_token=packing.by_example(hidden),
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if soft else None,
    )
