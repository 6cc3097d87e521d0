"""The masked form of a pruned forward pass: it computes every token and masks the pruned ones.

It is the readable reference implementation. The pruner selects the tokens.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltp.encoders.base import EncoderFamily
from ltp.execution.attention import masked_attention
from ltp.execution.output import EncoderOutput
from ltp.pruning.base import Pruner
from ltp.pruning.importance import importance


def masked_encoder(
    family: type[EncoderFamily],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    alive: Tensor,
    *,
    masking_mode: str,
    scoring_mode: str,
    score_length: int,
    keep_states: bool = False,
    keep_attentions: bool = False,
    keep_class_states: bool = False,
    recompute: bool = False,
) -> EncoderOutput:
    """Run the encoder's layers over padded sequences.

    Args:
        family: adapter to the encoder.
        layers: the L encoder layers.
        pruner: pruning method.
        hidden: embeddings, (B, N, D).
        alive: real tokens, (B, N) bool, position 0 among them.
        masking_mode: see :data:`~ltp.pruning.MASKING_MODES`.
        scoring_mode, score_length: see :func:`~ltp.pruning.importance`.
        keep_states, keep_attentions, keep_class_states: whether to return these outputs of every layer.
        recompute: whether to compute activations again in the backward pass rather than keep them.
    """
    real_lengths = alive.sum(dim=1)
    token_lengths, gate_sums = [real_lengths], []
    survival = alive.float()  # under a soft rule: the product of the gates so far
    expected_lengths = [survival.sum(dim=1)]
    class_states: list[Tensor] = []
    states: list[Tensor] = [hidden]
    attentions: list[Tensor] = []

    def run_layer(
        number: int, hidden: Tensor, alive: Tensor, survival: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Run a layer: its output, the tokens that are left, the gates, and the probabilities."""
        layer = layers[number - 1]
        query, key, value = family.project(layer, hidden)
        weighted = survival if masking_mode == "survival" else None
        context, probs = masked_attention(query, key, value, alive, family.attention_dropout(layer), weighted)
        scores = (
            importance(
                probs, alive if weighted is None else weighted, scoring_mode=scoring_mode, score_length=score_length
            )
            if pruner.needs_scores
            else torch.zeros_like(alive, dtype=torch.float32)
        )
        gate = None
        if masking_mode == "hard":
            alive = pruner.survivors(number, scores, alive, real_lengths)
        else:
            gate = pruner.gate(number, scores, alive)
        hidden = family.attention_output(layer, context, hidden)
        factor = gate if gate is not None and masking_mode == "soft" else alive
        return family.feed_forward(layer, hidden) * factor[:, :, None], alive, gate, probs

    run = partial(checkpoint, run_layer, use_reentrant=False) if recompute else run_layer
    for number in range(1, len(layers) + 1):
        hidden, alive, gate, probs = run(number, hidden, alive, survival)
        if gate is not None:
            gate_sums.append(gate.sum(dim=1))
            survival = survival * gate
            expected_lengths.append(survival.sum(dim=1))
        token_lengths.append(alive.sum(dim=1))
        if keep_states:
            states.append(hidden)
        if keep_attentions:
            attentions.append(probs)
        if keep_class_states:
            class_states.append(hidden[:, 0])
    return EncoderOutput(
        class_token=hidden[:, 0],
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if gate_sums else None,
        expected_lengths=torch.stack(expected_lengths, dim=1) if gate_sums else None,
        class_states=torch.stack(class_states) if keep_class_states else None,
        hidden_states=tuple(states) if keep_states else (),
        attentions=tuple(attentions),
    )
