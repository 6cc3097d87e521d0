"""The masked form of a pruned forward pass: every token is computed, pruned ones are only hidden.

It is the readable reference. It decides nothing: who survives is the pruner's decision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltp.attention import masked_attention
from ltp.backbones import Backbone
from ltp.encoder import EncoderPass
from ltp.pruning import Pruner, importance


def masked_encoder(
    backbone: type[Backbone],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    alive: Tensor,
    *,
    soft: bool,
    scoring_mode: str,
    score_length: int,
    keep_states: bool = False,
    keep_attentions: bool = False,
) -> EncoderPass:
    """Run the encoder's layers over padded sequences.

    Args:
        backbone: adapter of the encoder's family.
        layers: its L layers.
        pruner: who decides.
        hidden: embeddings, (B, N, D).
        alive: real tokens, (B, N) bool, position 0 among them.
        soft: the soft rule (gates on each layer's output) instead of the hard one.
        scoring_mode, score_length: see :func:`~ltp.pruning.importance`.
        keep_states, keep_attentions: return them for every layer.
    """
    real_lengths = alive.sum(dim=1)
    token_lengths, gate_sums = [real_lengths], []
    states: list[Tensor] = [hidden]
    attentions: list[Tensor] = []
    for number, layer in enumerate(layers, start=1):
        query, key, value = backbone.project(layer, hidden)
        context, probs = masked_attention(query, key, value, alive, backbone.attention_dropout(layer))
        scores = (
            importance(probs, alive, scoring_mode=scoring_mode, score_length=score_length)
            if pruner.needs_scores
            else torch.zeros_like(alive, dtype=torch.float32)
        )
        if soft:
            gate = pruner.gate(number, scores, alive)
            gate_sums.append(gate.sum(dim=1))
        else:
            alive = pruner.survivors(number, scores, alive, real_lengths)
            gate = alive
        hidden = backbone.attention_output(layer, context, hidden)
        hidden = backbone.feed_forward(layer, hidden) * gate[:, :, None]
        token_lengths.append(alive.sum(dim=1))
        if keep_states:
            states.append(hidden)
        if keep_attentions:
            attentions.append(probs)
    return EncoderPass(
        class_token=hidden[:, 0],
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if soft else None,
        hidden_states=tuple(states) if keep_states else (),
        attentions=tuple(attentions),
    )
