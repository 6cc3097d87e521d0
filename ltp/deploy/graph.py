"""The packed forward pass as an ONNX graph. Requires the packages of the extra ``onnx``."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltp.deploy.linears import join_linears
from ltp.deploy.model import check_plain
from ltp.deploy.onnx import ResultsOf, trace_graph
from ltp.execution.attention import Pairs, comparable_in_padded, masked_attention
from ltp.execution.packing import Layout, owners
from ltp.pruning.importance import ATTENTION_READS, attention_sums
from ltp.pruning.tokens import Tokens


class GraphForm(nn.Module):
    """A pruned classifier without data-dependent control flow, which can be exported as a graph.

    As in :mod:`ltp.execution.packed`, hidden states are one (T, D) tensor of all tokens alive, sequence after sequence,
    and the pruner selects the tokens. Attention pads sequences to the longest remaining one, because a graph cannot
    loop over groups of equal length. Only sizes of tensors depend on the data.

    Args:
        model: the classifier, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.projections = _projections(model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the results of a batch.

        Args:
            input_ids, attention_mask, token_type_ids: (B, N) int64. Padding may be on either side. A row of padding
                only is computed as if its first token were real: it changes no other row.

        Returns:
            The results of the head, float32; tokens alive entering each layer, and after the last, (B, L+1) int64.
        """
        model, family, pruner = self.model, self.model.family, self.model.pruner
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
        real, indices = alive, _indices(alive)
        of_batch = indices
        hidden = family.embed_tokens(model.dense, input_ids, indices, token_type_ids, None)  # (T, D)
        # of each token; not by division, which the exporter refuses for sizes
        column = torch.arange(length, device=indices.device).expand(alive.shape).flatten()[indices]
        state: dict[str, Tensor] = {}  # what the method needs of each token, each (T,)
        if "positions" in pruner.reads:
            state["positions"] = column
        if pruner.merges:
            state["sizes"] = torch.ones_like(indices, dtype=torch.float32)
        if pruner.carries:
            state["carried"] = torch.zeros_like(indices, dtype=torch.float32)
        if family.has_positions:
            state["places"] = column
        reads_tokens = model.reads_tokens(family, model.dense)
        restored, owner = hidden, indices
        if reads_tokens:
            owner = state["origin"] = torch.ones_like(indices).cumsum(dim=0) - 1
        layers = family.layers(model.dense)
        have_left = True
        for number, layer in enumerate(layers, start=1):
            is_new = have_left
            if is_new:
                slots, alive = _slots(counts)
                everyone = _indices(alive)
            decides = pruner.decides_in(number)
            if decides and pruner.decides_before:
                tokens = self._tokens(number, alive, lengths, slots, state, {}, hidden, None)
                if pruner.carries:
                    state["carried"] = pruner.carry(tokens).flatten()[everyone]
                survivors = pruner.survivors(tokens)
                kept = slots.flatten()[_indices(survivors)]
                hidden = hidden[kept]
                state = {name: value[kept] for name, value in state.items()}
                counts = survivors.sum(dim=1)
                slots, alive = _slots(counts)
                everyone, is_new = _indices(alive), True
            qkv, pairs = self._project(number, layer, hidden), None  # (T, 3, H, D/H)
            own_key = qkv[:, 1]
            if family.has_positions:
                if (rotate := family.rotation(layer)) is not None:
                    qkv = torch.stack([*rotate(qkv[:, 0], own_key, state["places"]), qkv[:, 2]], dim=1)
                # tables for the longest input, because the length of this one is no constant
                reach = family.max_input_tokens(model.dense.config) - 1
                places = state["places"][slots]
                pairs = Pairs.of_layer(family, layer, places, reach)
            by_head = qkv[slots].permute(2, 0, 3, 1, 4)  # (3, B, H, N_l, D/H)
            query, key, value = (by_head[part].transpose(1, 2) for part in range(3))
            sizes = None if not pruner.merges else state["sizes"][slots]
            context, probs = masked_attention(query, key, value, alive, 0.0, sizes, pairs)  # (B, N_l, D)
            survivors = alive
            if decides and not pruner.decides_before:
                sums = attention_sums(probs, value.transpose(1, 2), alive, pruner.reads & ATTENTION_READS)
                sums = comparable_in_padded(sums, pairs, alive)
                tokens = self._tokens(number, alive, lengths, slots, state, sums, hidden, own_key)
                if pruner.carries:
                    state["carried"] = pruner.carry(tokens).flatten()[everyone]
                if sizes is not None:
                    survivors, sizes, context, hidden, into = self._merge(tokens, sizes, context, hidden, slots)
                    if reads_tokens:
                        owner = owners(owner, state["origin"], into)
                    state["sizes"] = sizes.flatten()[everyone]
                else:
                    survivors = pruner.survivors(tokens)
                counts = survivors.sum(dim=1)
            token_lengths.append(counts)
            is_last = number == len(layers) and not reads_tokens
            have_left = is_last or survivors is not alive
            # after the last attention only the classification tokens are needed, the first of each row
            first_of_rows = torch.arange(counts.shape[0], device=counts.device) * alive.shape[1]
            indices = first_of_rows if is_last else _indices(survivors) if have_left else everyone
            context = context.flatten(0, 1)[indices]
            # where all stay, too, if these slots are new: shape inference then finds one number of tokens in both
            if have_left or is_new:
                kept = slots.flatten()[indices]
                hidden = hidden[kept]
                state = {name: value[kept] for name, value in state.items()}
            hidden = family.feed_forward(layer, family.attention_output(layer, context, hidden))
            if reads_tokens:
                restored = restored.index_copy(0, state["origin"], hidden)
        last = restored[owner] if reads_tokens else hidden
        results = model.head(family, model.dense, last, Layout(real, of_batch))
        if model.output_class.is_of_tokens:  # back to their places in the input
            places = torch.arange(length, device=input_ids.device) - first
            places = torch.where(places < 0, places + length, places)
            results = {name: _moved(value, places) for name, value in results.items()}
        return *results.values(), torch.stack(token_lengths, dim=1)

    def _project(self, number: int, layer: Any, hidden: Tensor) -> Tensor:
        """Compute query, key and value of all tokens, (T, 3, H, D/H)."""
        family = self.model.family
        if not self.projections:
            return torch.stack(family.project(layer, hidden), dim=1)
        return self.projections[number - 1](hidden).unflatten(1, (3, self.model.pruner.shape.num_heads, -1))

    def _tokens(
        self,
        number: int,
        alive: Tensor,
        lengths: Tensor,
        slots: Tensor,
        state: dict[str, Tensor],
        sums: dict[str, Tensor],
        hidden: Tensor,
        key: Tensor | None,
    ) -> Tokens:
        """Return what the method sees of a layer."""
        reads = self.model.pruner.reads

        def pad(packed: Tensor) -> Tensor:
            return packed[slots]

        states = {name: pad(state[name]) for name in ("positions",) if name in reads}
        if "hidden" in reads:
            states["hidden"] = pad(hidden)
        if "keys" in reads and key is not None:
            states["keys"] = pad(key.mean(dim=1))
        return Tokens(
            number,
            self.model.pruner.shape.num_layers,
            1 if key is None else key.shape[1],
            alive,
            lengths,
            sizes=pad(state["sizes"]) if "sizes" in state else None,
            carried=pad(state["carried"]) if "carried" in state else None,
            attention=sums,
            states=states,
        )

    def _merge(
        self, tokens: Tokens, sizes: Tensor, context: Tensor, hidden: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Merge tokens.

        Returns:
            Those that stay, (B, N); the sizes, (B, N); the context, (B, N, D); hidden states, (T, D); and the row that
            each token goes into, (T,).
        """
        targets, everyone = self.model.pruner.merge_targets(tokens), _indices(tokens.alive)
        columns = torch.arange(targets.shape[1], device=targets.device)
        shares = (targets[:, None, :] == columns[:, None]) * (sizes * tokens.alive)[:, None, :]  # of j in i, (B, i, j)
        merged = shares.sum(dim=2)
        shares = shares / merged.clamp(min=1)[:, :, None]
        # packed in between: shape inference loses track of the joined heads
        context = context.flatten(0, 1)[everyone]
        hidden = (shares @ hidden[slots]).flatten(0, 1)[everyone]
        starts = tokens.alive.sum(dim=1).cumsum(dim=0) - tokens.alive.sum(dim=1)
        into = (starts[:, None] + targets).flatten()[everyone]
        return tokens.alive & (targets == columns), merged, shares @ context[slots], hidden, into


def _projections(model: Any) -> nn.ModuleList:
    """Return modules that compute query, key and value of each layer in one product, (T, D) → (T, 3D).

    Empty if the family does not take its layers apart, or a layer has adapters: those compute more than their weights.
    """
    fused: dict[nn.Module, nn.Module] = {}  # ALBERT's layers share theirs
    projections = []
    for number, layer in enumerate(model.family.layers(model.dense), start=1):
        try:
            parts = model.family.parts(layer)
            check_plain(parts, number)
        except ValueError:
            return nn.ModuleList()
        if parts.query not in fused:
            weight, bias = join_linears((parts.query, parts.key, parts.value), (parts.query_scale, 1.0, 1.0))
            product = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            product.weight, product.bias = nn.Parameter(weight), nn.Parameter(bias)
            norm = parts.attention_norm if parts.norm_first else None
            fused[parts.query] = product if norm is None else nn.Sequential(norm, product)
        projections.append(fused[parts.query])
    return nn.ModuleList(projections)


def _moved(values: Tensor, places: Tensor) -> Tensor:
    """Return values of tokens, (B, N, …), in another order, (B, N) int64."""
    index = places.view(*places.shape, *[1] * (values.ndim - 2)).expand(*places.shape, *values.shape[2:])
    return values.gather(1, index)


def _slots(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the padded form of sequences of these lengths, (B,).

    Returns:
        The index of the token in each slot, (B, N) int64, and which slots hold a token, (B, N) bool. Slots after the
        end of a sequence hold token 0, which is masked.
    """
    starts = counts.cumsum(dim=0) - counts
    columns = torch.arange(_size(counts.max()), device=counts.device)
    alive = columns < counts[:, None]
    return torch.where(alive, starts[:, None] + columns, 0), alive


def _indices(mask: Tensor) -> Tensor:
    """Return the indices of True in the flattened mask: (B, N) bool → (T,) int64."""
    return mask.flatten().nonzero().squeeze(1)


def _size(number: Tensor) -> Any:
    """Convert a scalar to a size; ``int`` would fail for the symbolic sizes of the exporter."""
    size = number.item()
    torch._check(size >= 1)
    return size


def input_names(model: Any) -> tuple[str, ...]:
    """Return the names of the graph's inputs; ``token_type_ids`` only if the encoder has several token types."""
    has_token_types = getattr(model.dense.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", *(("token_type_ids",) if has_token_types else ()))


def output_names(model: Any) -> tuple[str, ...]:
    """Return the names of the graph's outputs: the results of the head, and ``token_lengths``."""
    return (*model.output_class.results, "token_lengths")


def write_onnx(model: Any, path: Path) -> None:
    """Write a classifier as an ONNX graph that removes pruned tokens, for any batch size and sequence length.

    Args:
        model: the classifier, on the CPU, in float32 and evaluation mode.
        path: the file to write.

    Raises:
        RunError: the exporter does not support an operation of the model.
    """
    trace_graph(GraphForm(model).eval(), path, inputs=input_names(model), outputs=output_names(model))


def write_dense_onnx(model: Any, path: Path) -> None:
    """Write the dense Hugging Face model of a classifier as an ONNX graph, with the results of its head.

    Args:
        model, path: as of :func:`write_onnx`.
    """
    names = model.output_class.results
    trace_graph(ResultsOf(model.dense, names).eval(), path, inputs=input_names(model), outputs=names)
