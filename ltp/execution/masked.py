"""The masked form of a pruned forward pass: it computes every token and masks the pruned ones.

It is the readable reference implementation. The pruner selects the tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltp.encoders.base import EncoderFamily
from ltp.execution.attention import Pairs, comparable_in_padded, masked_attention
from ltp.execution.output import EncoderOutput
from ltp.pruning.importance import ATTENTION_READS, attention_sums
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import Tokens

#: What is known of each token besides its hidden state, by name, each (B, N): ``alive``; ``survival`` under a soft
#: rule; and of what the method needs ``sizes``, ``carried`` and ``owner``, the column that a merged token went into.
State = dict[str, Tensor]


def masked_encoder(
    family: type[EncoderFamily],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    alive: Tensor,
    *,
    masking_mode: str,
    positions: Tensor | None = None,
    keep_states: bool = False,
    keep_last_state: bool = False,
    keep_attentions: bool = False,
    keep_class_states: bool = False,
    keep_scores: bool = False,
    recompute: bool = False,
) -> EncoderOutput:
    """Run the encoder's layers over padded sequences.

    Args:
        family: adapter to the encoder.
        layers: the L encoder layers.
        pruner: the method and its parameters.
        hidden: embeddings, (B, N, D).
        alive: real tokens, (B, N) bool, position 0 among them.
        masking_mode: see :data:`~ltp.pruning.MASKING_MODES`.
        positions: what attention takes for the tokens' positions, (B, N) int64; the columns if it is left out.
        keep_states, keep_attentions, keep_class_states, keep_scores: whether to return these outputs of every layer.
        keep_last_state: whether to return the state of every token after the last layer.
        recompute: whether to compute activations again in the backward pass rather than keep them.
    """
    real_lengths = alive.sum(dim=1)
    token_lengths, gate_sums = [real_lengths], []
    expected_lengths = [alive.float().sum(dim=1)]
    class_states: list[Tensor] = []
    restored = hidden * alive[:, :, None]
    token_layers = torch.zeros_like(alive, dtype=torch.int64) if keep_states or keep_last_state else None
    states: list[Tensor] = [restored] if keep_states else []
    attentions: list[Tensor] = []
    scores: list[Tensor] = []
    gates: list[Tensor] = []
    columns = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    positions = columns if positions is None else positions.expand(alive.shape)
    reads, is_soft, is_weighted = pruner.reads, masking_mode != "hard", masking_mode == "survival"

    state: State = {"alive": alive}
    if is_soft:
        state["survival"] = alive.float()
    if pruner.merges:
        state["sizes"] = alive.float()
        state["owner"] = columns
    if pruner.carries:
        state["carried"] = torch.zeros_like(alive, dtype=torch.float32)
    if keep_scores:  # before the first decision all tokens are alike
        state["scores"] = alive.float()

    def decide(
        number: int, state: State, sums: dict[str, Tensor], rows: tuple[Tensor, ...], keys: Tensor | None
    ) -> tuple[State, tuple[Tensor, ...], Tensor | None]:
        """Apply the method: what is known of the tokens, their rows, and the gates, (B, N)."""
        tensors = {"positions": columns, "hidden": rows[-1]}
        if keys is not None:
            tensors["keys"] = keys.mean(dim=2)
        tokens = Tokens(
            number,
            len(layers),
            1 if keys is None else keys.shape[2],
            state["alive"],
            real_lengths,
            survival=state["survival"] if is_weighted else None,
            sizes=state.get("sizes"),
            carried=state.get("carried"),
            attention=sums,
            states={name: tensor for name, tensor in tensors.items() if name in reads},
            training=pruner.training,
        )
        if pruner.carries:
            state = {**state, "carried": pruner.carry(tokens)}
        if keep_scores:
            state = {**state, "scores": pruner.scores(tokens)}
        if is_soft:
            gate = pruner.gate(tokens)
            return {**state, "survival": state["survival"] * gate}, rows, gate
        if not pruner.merges:
            return {**state, "alive": pruner.survivors(tokens)}, rows, None
        targets = pruner.merge_targets(tokens)
        # into[b, i, j]: the size with which token j goes into token i
        into = (targets[:, None, :] == columns[:, :, None]) * state["sizes"][:, None, :]
        sizes = into.sum(dim=2)
        rows = tuple(into.to(row.dtype) @ row / sizes.clamp(min=1)[:, :, None].to(row.dtype) for row in rows)
        owner = targets.gather(1, state["owner"])
        return {**state, "alive": state["alive"] & (targets == columns), "sizes": sizes, "owner": owner}, rows, None

    def run_layer(number: int, hidden: Tensor, state: State) -> tuple[Tensor, State, Tensor | None, Tensor]:
        """Run a layer: its output, what is known of the tokens, the gates, and the probabilities."""
        layer, gate = layers[number - 1], None
        decides, pairs = pruner.decides_in(number), None
        if not decides and is_soft:
            gate = state["alive"].float()
        if decides and pruner.decides_before:
            state, (hidden,), gate = decide(number, state, {}, (hidden,), None)
        query, key, value = family.project(layer, hidden)
        own_key = key
        if family.has_positions:
            if (rotate := family.rotation(layer)) is not None:
                query, key = rotate(query, key, positions)
            pairs = Pairs.of_layer(family, layer, positions, alive.shape[1] - 1)
        presence = pruner.presence(state["survival"]) if is_weighted else state["alive"]
        weights = presence if is_weighted else None
        if pruner.merges:
            weights = state["sizes"] if weights is None else weights * state["sizes"]
        dropout = family.attention_dropout(layer)
        context, probs = masked_attention(query, key, value, state["alive"], dropout, weights, pairs)
        if decides and not pruner.decides_before:
            sums = attention_sums(probs, value.transpose(1, 2), presence, reads & ATTENTION_READS)
            sums = comparable_in_padded(sums, pairs, presence)
            state, (context, hidden), gate = decide(number, state, sums, (context, hidden), own_key)
        hidden = family.feed_forward(layer, family.attention_output(layer, context, hidden))
        return hidden, state, gate, probs

    def settled(restored: Tensor, hidden: Tensor, state: State) -> Tensor:
        """Return the state of every token after a layer, (B, N, D)."""
        if is_soft:
            survival = pruner.presence(state["survival"])[:, :, None].to(hidden.dtype)
            return survival * hidden + (1 - survival) * restored
        return torch.where(state["alive"][:, :, None], hidden, restored)

    run = partial(checkpoint, run_layer, use_reentrant=False) if recompute else run_layer
    for number in range(1, len(layers) + 1):
        hidden, state, gate, probs = run(number, hidden, state)
        if keep_states or keep_last_state:
            restored = settled(restored, hidden, state)
            token_layers = torch.where(state["alive"], number, cast(Tensor, token_layers))
            if keep_states or number == len(layers):
                owner = state.get("owner")
                states.append(restored if owner is None else restored.gather(1, owner[:, :, None].expand_as(restored)))
        factor = gate if gate is not None and masking_mode == "soft" else state["alive"]
        hidden = hidden * factor[:, :, None]
        if gate is not None:
            gate_sums.append(gate.sum(dim=1))
            expected_lengths.append(state["survival"].sum(dim=1))
        token_lengths.append(state["alive"].sum(dim=1))
        if keep_scores:
            scores.append(state["scores"].masked_fill(~state["alive"], -1))
            if gate is not None:
                gates.append(gate)
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
        hidden_states=tuple(states),
        token_layers=token_layers,
        scores=tuple(scores),
        gates=tuple(gates),
        attentions=tuple(attentions),
    )
