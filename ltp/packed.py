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
from ltp.packing import Packing
from ltp.pruning import Pruner, normalise


def packed_encoder(
    backbone: type[Backbone],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    packing: Packing,
    *,
    soft: bool,
    scoring_mode: str,
    score_length: int,
) -> EncoderPass:
    """Run the encoder's layers over packed tokens.

    On a GPU each layer waits for the device once, to learn how many tokens are left (not at all where nothing
    prunes).

    Args:
        backbone: adapter of the encoder's family.
        layers: its L layers.
        pruner: who decides.
        hidden: embeddings of the real tokens, (T, D).
        packing: where they stand; position 0 of each example is real.
        soft: the soft rule (gates on each layer's output) instead of the hard one.
        scoring_mode, score_length: see :func:`~ltp.pruning.importance`.
    """
    real_lengths = packing.by_example(packing.counts)
    token_lengths, gate_sums = [real_lengths], []
    for number, layer in enumerate(layers, start=1):
        last = number == len(layers)  # nothing but the classification tokens is read behind its attention
        query, key, value = backbone.project(layer, hidden)
        context, received = packed_attention(
            query, key, value, packing, backbone.attention_dropout(layer), needs_received=pruner.needs_scores
        )
        if pruner.needs_scores:
            scores = normalise(
                packing.pad(received),
                packing.alive,
                query.shape[1],
                scoring_mode=scoring_mode,
                score_length=score_length,
            )
        else:
            scores = torch.zeros_like(packing.alive, dtype=torch.float32)
        gate: Tensor | None = None
        if soft:
            gates = pruner.gate(number, scores, packing.alive)
            gate_sums.append(packing.by_example(gates.sum(dim=1)))
            gate = packing.pack(gates)
        else:
            survivors = pruner.survivors(number, scores, packing.alive, real_lengths[packing.order])
            if survivors is not packing.alive:
                kept, places = packing.keep(survivors)
                if kept.total < packing.total:
                    context, hidden = context[places], hidden[places]
                    packing = kept
        token_lengths.append(packing.by_example(packing.counts))
        if last:
            context, hidden = context[packing.starts], hidden[packing.starts]
            gate = gate[packing.starts] if gate is not None else None
        hidden = backbone.feed_forward(layer, backbone.attention_output(layer, context, hidden))
        if gate is not None:
            hidden = hidden * gate[:, None]
    return EncoderPass(
        class_token=packing.by_example(hidden),
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if soft else None,
    )
