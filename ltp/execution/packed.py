"""The packed form of a pruned forward pass: it removes pruned tokens, which cost nothing in later layers.

Hidden states are one (T, D) tensor of all tokens alive, sequence after sequence, without padding. The pruner selects
the tokens. Results equal those of the reference implementation, :mod:`ltp.execution.masked`.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltp.encoders.base import EncoderFamily
from ltp.execution.attention import Pairs, packed_attention
from ltp.execution.output import EncoderOutput
from ltp.execution.packing import Packing, owners
from ltp.pruning.importance import ATTENTION_READS
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import Tokens

#: What is known of each token besides its hidden state, by name, each (T,): ``survival`` under a soft rule, and of what
#: the method needs ``sizes``, ``positions`` and ``carried``; to restore states ``origin``, its row in the embeddings;
#: ``scores`` of the last decision; and ``places``, its position for attention.
State = dict[str, Tensor]


def packed_encoder(
    family: type[EncoderFamily],
    layers: Sequence[nn.Module],
    pruner: Pruner,
    hidden: Tensor,
    packing: Packing,
    *,
    masking_mode: str,
    positions: Tensor | None = None,
    reach: int = 0,
    keep_states: bool = False,
    keep_last_state: bool = False,
    keep_class_states: bool = False,
    keep_scores: bool = False,
    recompute: bool = False,
) -> EncoderOutput:
    """Run the encoder's layers over packed tokens.

    On a GPU each layer that prunes waits for the device once, to read the number of remaining tokens; the deployed form
    (:mod:`ltp.deploy.cuda`) never does.

    Args:
        family: adapter to the encoder.
        layers: the L encoder layers.
        pruner: the method and its parameters.
        hidden: embeddings of the real tokens, (T, D).
        packing: positions of these tokens; position 0 of each example must be a real token.
        masking_mode: see :data:`~ltp.pruning.MASKING_MODES`.
        positions: what attention takes for the tokens' positions, (T,) int64; needed if the family has positions.
        reach: largest distance between two of them.
        keep_states, keep_last_state: whether to return the state of every token after every layer, or after the last.
        keep_class_states: whether to return the class states of every layer.
        keep_scores: whether to return the importance of every token in every layer, and its gates.
        recompute: whether to compute activations again in the backward pass rather than keep them.
    """
    real_lengths = packing.to_example_order(packing.counts)
    token_lengths, gate_sums = [real_lengths], []
    expected_lengths = [real_lengths.float()]
    class_states: list[Tensor] = []
    reads, is_soft = pruner.reads, masking_mode != "hard"
    attention_reads = reads & ATTENTION_READS

    state: State = {}
    if is_soft:
        state["survival"] = hidden.new_ones(packing.total, dtype=torch.float32)
    if pruner.merges:
        state["sizes"] = hidden.new_ones(packing.total, dtype=torch.float32)
    if "positions" in reads:
        state["positions"] = packing.positions
    if pruner.carries:
        state["carried"] = hidden.new_zeros(packing.total, dtype=torch.float32)
    if family.has_positions:
        assert positions is not None
        state["places"] = positions
    restores = keep_states or keep_last_state
    if restores or keep_scores:
        state["origin"] = torch.arange(packing.total, device=hidden.device)
    if keep_scores:  # before the first decision all tokens are alike
        state["scores"] = hidden.new_ones(packing.total, dtype=torch.float32)
    restored, states, scores, gates = hidden, [hidden] if keep_states else [], [], []
    token_layers = torch.zeros(packing.total, dtype=torch.int64, device=hidden.device) if restores else None
    owner = state.get("origin")  # of each token of the embeddings: that which it was merged into, (T,)
    merged_into: dict[int, Tensor] = {}  # by layer, not in the state, because no row of it leaves

    def decide(
        number: int, packing: Packing, state: State, sums: State, rows: tuple[Tensor, ...], keys: Tensor | None
    ) -> tuple[Packing, State, tuple[Tensor, ...], Tensor | None]:
        """Apply the method: the tokens that are left, their states, their rows, and the gates, (T,)."""
        heads = 1 if keys is None else keys.shape[1]
        padded = {name: packing.pad(value) for name, value in state.items()}
        read = {"positions": padded["positions"]} if "positions" in reads else {}
        if "hidden" in reads:
            read["hidden"] = packing.pad(rows[-1])
        if "keys" in reads and keys is not None:
            read["keys"] = packing.pad(keys.mean(dim=1))
        tokens = Tokens(
            number,
            len(layers),
            heads,
            packing.alive,
            real_lengths[packing.order],
            survival=padded["survival"] if masking_mode == "survival" else None,
            sizes=padded.get("sizes"),
            carried=padded.get("carried"),
            attention={name: packing.pad(value) for name, value in sums.items()},
            states=read,
            training=pruner.training,
        )
        if pruner.carries:
            state = {**state, "carried": packing.pack(pruner.carry(tokens))}
        if keep_scores:
            state = {**state, "scores": packing.pack(pruner.scores(tokens))}
        if is_soft:
            gate = packing.pack(pruner.gate(tokens))
            return packing, {**state, "survival": state["survival"] * gate}, rows, gate
        if pruner.merges:
            targets = pruner.merge_targets(tokens)
            into = packing.pack(packing.starts[:, None] + targets)  # (T,): the row that each token goes into
            merged_into[number] = into
            sizes = torch.zeros_like(state["sizes"]).index_add(0, into, state["sizes"])
            rows = tuple(_merged(row, into, state["sizes"], sizes) for row in rows)
            state = {**state, "sizes": sizes}
            survivors = packing.alive & (targets == torch.arange(targets.shape[1], device=targets.device))
        else:
            survivors = pruner.survivors(tokens)
        if survivors is not packing.alive:
            kept, indices = packing.keep(survivors)
            if kept.total < packing.total:
                rows = tuple(row[indices] for row in rows)
                state = {name: value[indices] for name, value in state.items()}
                packing = kept
        return packing, state, rows, None

    def run_layer(
        number: int, hidden: Tensor, packing: Packing, state: State
    ) -> tuple[Tensor, Packing, State, Tensor | None]:
        """Run a layer: its output, the tokens that are left with their states, and the gates, (T,)."""
        layer, gate = layers[number - 1], None
        decides, pairs = pruner.decides_in(number), None
        if not decides and is_soft:
            gate = torch.ones_like(state["survival"])
        if decides and pruner.decides_before:
            packing, state, (hidden,), gate = decide(number, packing, state, {}, (hidden,), None)
        query, key, value = family.project(layer, hidden)
        own_key = key
        if family.has_positions:
            if (rotate := family.rotation(layer)) is not None:
                query, key = rotate(query, key, state["places"])
            pairs = Pairs.of_layer(family, layer, state["places"], reach)
        weights = [pruner.presence(state["survival"])] if masking_mode == "survival" else []
        context, sums = packed_attention(
            *(query, key, value, packing, family.attention_dropout(layer)),
            reads=attention_reads if decides else frozenset(),
            pairs=pairs,
            key_weights=_product([*weights, *([state["sizes"]] if pruner.merges else [])]),
            query_weights=_product(weights),
        )
        if decides and not pruner.decides_before:
            packing, state, (context, hidden), gate = decide(number, packing, state, sums, (context, hidden), own_key)
        if number == len(layers) and not restores:  # after its attention only the classification tokens are needed
            context, hidden = context[packing.starts], hidden[packing.starts]
        hidden = family.feed_forward(layer, family.attention_output(layer, context, hidden))
        return hidden, packing, state, gate

    run = partial(checkpoint, run_layer, use_reentrant=False) if recompute else run_layer
    for number in range(1, len(layers) + 1):
        previous = state
        hidden, packing, state, gate = run(number, hidden, packing, state)
        is_last = number == len(layers)
        if restores:
            restored = _settled(restored, hidden, pruner, state)
            token_layers = cast(Tensor, token_layers).index_fill(0, state["origin"], number)
            if number in merged_into:
                owner = owners(cast(Tensor, owner), previous["origin"], merged_into[number])
            if keep_states or is_last:
                states.append(restored[owner] if pruner.merges else restored)
        if keep_scores:
            none = state["scores"].new_full((len(restored),), -1)
            scores.append(none.index_copy(0, state["origin"], state["scores"]))
            if gate is not None:
                gates.append(gate)
        if gate is not None and masking_mode == "soft":
            factor = gate[packing.starts] if is_last and not restores else gate
            hidden = hidden * factor[:, None]
        token_lengths.append(packing.to_example_order(packing.counts))
        if gate is not None:
            gate_sums.append(packing.to_example_order(packing.pad(gate).sum(dim=1)))
            expected_lengths.append(packing.to_example_order(packing.pad(state["survival"]).sum(dim=1)))
        if keep_class_states:
            of_class = hidden if len(hidden) == len(packing.starts) else hidden[packing.starts]
            class_states.append(packing.to_example_order(of_class))
    if restores:
        hidden = hidden[packing.starts]
    return EncoderOutput(
        class_token=packing.to_example_order(hidden),
        token_lengths=torch.stack(token_lengths, dim=1),
        gate_sums=torch.stack(gate_sums, dim=1) if gate_sums else None,
        expected_lengths=torch.stack(expected_lengths, dim=1) if gate_sums else None,
        class_states=torch.stack(class_states) if keep_class_states else None,
        hidden_states=tuple(states),
        token_layers=token_layers,
        scores=tuple(scores),
        gates=tuple(gates),
    )


def _settled(restored: Tensor, hidden: Tensor, pruner: Pruner, state: State) -> Tensor:
    """Return the state of every token of the embeddings after a layer, (T, D); a pruned one keeps its last."""
    if "survival" in state:
        survival = pruner.presence(state["survival"])[:, None].to(hidden.dtype)
        return survival * hidden + (1 - survival) * restored
    return restored.index_copy(0, state["origin"], hidden.to(restored.dtype))


def _product(factors: Sequence[Tensor]) -> Tensor | None:
    """Multiply weights, (T,); None if there are none."""
    product = None
    for factor in factors:
        product = factor if product is None else product * factor
    return product


def _merged(rows: Tensor, into: Tensor, sizes: Tensor, merged_sizes: Tensor) -> Tensor:
    """Return the mean of the rows, (T, D), that go into each row, weighted by their sizes."""
    weighted = rows * sizes[:, None].to(rows.dtype)
    total = torch.zeros_like(rows).index_add(0, into, weighted)
    return total / merged_sizes.clamp(min=1)[:, None].to(rows.dtype)
