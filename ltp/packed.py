"""The packed form of a pruned forward pass: a token that is pruned costs nothing from that moment on.

Hidden states are one (T, D) tensor of all tokens alive, sequence after sequence, without padding. It decides nothing:
who survives is the pruner's decision, and :mod:`ltp.masked` is the reference that it equals.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltp.attention import packed_attention
from ltp.backbones import Backbone
from ltp.encoder import EncoderPass
from ltp.pruning import Pruner, normalise


class Packing:
    """Where the tokens of a batch stand in a packed tensor, and how to get from one layout to the other.

    Args:
        lengths: tokens alive of each sequence, (B,) at least 1.
        device: of the index tensors.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.counts = torch.tensor(self.lengths, device=device)  # (B,)
        positions = torch.arange(max(self.lengths), device=device)
        self.alive = positions < self.counts[:, None]  # (B, N) bool, left-aligned
        self.first = torch.cumsum(self.counts, dim=0) - self.counts  # (B,) index of each classification token

    def pad(self, packed: Tensor) -> Tensor:
        """(T,) → (B, N), 0 where there is no token."""
        return torch.zeros(self.alive.shape, dtype=packed.dtype, device=packed.device).masked_scatter(
            self.alive, packed
        )

    def pack(self, padded: Tensor) -> Tensor:
        """(B, N, …) → (T, …)."""
        return padded[self.alive]


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
    real_lengths = alive.sum(dim=1)
    packing = Packing(real_lengths.tolist(), hidden.device)
    hidden = hidden[alive]  # (T, D)
    token_lengths, gate_sums = [real_lengths], []
    for number, layer in enumerate(layers, start=1):
        query, key, value = backbone.project(layer, hidden)
        context, received = packed_attention(
            query,
            key,
            value,
            packing.lengths,
            backbone.attention_dropout(layer),
            needs_received=pruner.needs_scores,
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
                padded_gate = pruner.gate(number, scores, packing.alive)
                gate_sums.append(padded_gate.sum(dim=1))
                gate = packing.pack(padded_gate)
            else:
                survivors = pruner.survivors(number, scores, packing.alive, real_lengths)
                kept = packing.pack(survivors)
                lengths = survivors.sum(dim=1)
                if not bool(kept.all()):
                    context, hidden = context[kept], hidden[kept]
                    packing = Packing(lengths.tolist(), hidden.device)
        token_lengths.append(packing.counts)
        if number == len(layers):  # nothing but the classification tokens is read behind the last layer
            context, hidden = context[packing.first], hidden[packing.first]
            gate = gate[packing.first] if gate is not None else None
        hidden = backbone.feed_forward(layer, backbone.attention_output(layer, context, hidden))
        if gate is not None:
            hidden = hidden * gate[:, None]
    return EncoderPass(
        class_token=hidden,
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if soft else None,
    )
