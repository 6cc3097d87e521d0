"""The packed form of a pruned forward pass: it removes pruned tokens, which cost nothing in later layers.

Hidden states are one (T, D) tensor of all tokens alive, sequence after sequence, without padding. The pruner selects
the tokens. Results equal those of the reference implementation, :mod:`ltp.execution.masked`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltp.encoders.base import EncoderFamily
from ltp.execution.attention import packed_attention
from ltp.execution.output import EncoderOutput
from ltp.execution.packing import Packing
from ltp.pruning.base import Pruner
from ltp.pruning.importance import normalise


def packed_encoder(
    family: type[EncoderFamily],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    packing: Packing,
    *,
    masking_mode: str,
    scoring_mode: str,
    score_length: int,
    keep_class_states: bool = False,
    recompute: bool = False,
) -> EncoderOutput:
    """Run the encoder's layers over packed tokens.

    On a GPU each layer that prunes synchronises once with the device, to read the number of remaining tokens.

    Args:
        family: adapter to the encoder.
        layers: the L encoder layers.
        pruner: pruning method.
        hidden: embeddings of the real tokens, (T, D).
        packing: positions of these tokens; position 0 of each example must be a real token.
        masking_mode: see :data:`~ltp.pruning.MASKING_MODES`.
        scoring_mode, score_length: see :func:`~ltp.pruning.importance`.
        keep_class_states: whether to return the class states of every layer.
        recompute: whether to compute activations again in the backward pass rather than keep them.
    """
    real_lengths = packing.to_example_order(packing.counts)
    token_lengths, gate_sums = [real_lengths], []
    survival = packing.alive.float()  # (B, N) in packing order; under a soft rule: the product of the gates so far
    expected_lengths = [real_lengths.float()]
    class_states: list[Tensor] = []

    def run_layer(
        number: int, hidden: Tensor, packing: Packing, survival: Tensor
    ) -> tuple[Tensor, Packing, Tensor | None]:
        """Run a layer: its output, the tokens that are left, and the gates, (B, N) in packing order."""
        layer = layers[number - 1]
        query, key, value = family.project(layer, hidden)
        weighted = masking_mode == "survival"
        context, received = packed_attention(
            *(query, key, value, packing, family.attention_dropout(layer)),
            needs_received=pruner.needs_scores,
            survival=packing.pack(survival) if weighted else None,
        )
        if pruner.needs_scores:
            scores = normalise(
                packing.pad(received),
                survival if weighted else packing.alive,
                query.shape[1],
                scoring_mode=scoring_mode,
                score_length=score_length,
            )
        else:
            scores = torch.zeros_like(packing.alive, dtype=torch.float32)
        gates = gate = None
        if masking_mode != "hard":
            gates = pruner.gate(number, scores, packing.alive)
            gate = packing.pack(gates) if masking_mode == "soft" else None
        else:
            survivors = pruner.survivors(number, scores, packing.alive, real_lengths[packing.order])
            if survivors is not packing.alive:
                kept, indices = packing.keep(survivors)
                if kept.total < packing.total:
                    context, hidden = context[indices], hidden[indices]
                    packing = kept
        if number == len(layers):  # after its attention only the classification tokens are needed
            context, hidden = context[packing.starts], hidden[packing.starts]
            gate = gate[packing.starts] if gate is not None else None
        hidden = family.feed_forward(layer, family.attention_output(layer, context, hidden))
        if gate is not None:
            hidden = hidden * gate[:, None]
        return hidden, packing, gates

    run = partial(checkpoint, run_layer, use_reentrant=False) if recompute else run_layer
    for number in range(1, len(layers) + 1):
        before = packing
        hidden, packing, gates = run(number, hidden, packing, survival)
        token_lengths.append(packing.to_example_order(packing.counts))
        if gates is not None:
            gate_sums.append(before.to_example_order(gates.sum(dim=1)))
            survival = survival * gates
            expected_lengths.append(before.to_example_order(survival.sum(dim=1)))
        if keep_class_states:
            states = hidden if number == len(layers) else hidden[packing.starts]
            class_states.append(packing.to_example_order(states))
    return EncoderOutput(
        class_token=packing.to_example_order(hidden),
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if gate_sums else None,
        expected_lengths=torch.stack(expected_lengths, dim=1) if gate_sums else None,
        class_states=torch.stack(class_states) if keep_class_states else None,
    )
