"""The deployed model: encoder layers with prepacked weights, and their forward pass."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ltp.data.sequences import Batch, make_batches, random_sequences
from ltp.deploy.agreement import Agreement, compare_results
from ltp.deploy.attention import deployed_attention
from ltp.deploy.linears import (
    DTYPES,
    FeedForward,
    Int8FeedForward,
    PlainLinear,
    has_bfloat16_instructions,
    int8_type,
    join_linears,
    linear_type,
    smoothing,
)
from ltp.encoders.base import LayerParts, PairBias, Rotation
from ltp.execution.attention import Pairs
from ltp.execution.packing import Layout, owners, real_tokens
from ltp.pruning.importance import ATTENTION_READS
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import Tokens

log = logging.getLogger("ltp")

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def random_examples(model: Any, count: int = 144) -> list[Batch]:
    """Return sorted batches of random tokens, which give nearly the ranges of values that real ones give.

    Args:
        model: the pruned model.
        count: number of sequences; their lengths halve from 64 to 2, because values are larger in short sequences.
    """
    config = model.dense.config
    longest = min(64, model.family.max_input_tokens(config))
    lengths = [max(1, longest >> number % 6) for number in range(count)]
    return make_batches(random_sequences(lengths, config.vocab_size), 24, order="sorted")


class DeployedModel:
    """A frozen copy of a pruned model for inference on a CPU, created by its ``deploy``.

    Call it like the model, without labels. It shares no weights with the original model. It keeps no state between
    calls, so several threads may use it. Its prepacked weights cannot be saved: save the model, and deploy it again
    on the machine that serves it.

    In float32, logits equal those of the packed form up to rounding. In bfloat16 and int8, a token whose score is
    close to its threshold may be kept where the model prunes it, or the reverse. In all types the logits of a sequence
    are the same alone and in any batch, up to rounding.

    Args:
        model: the pruned model, an :class:`~ltp.model.pretrained.LTPPreTrainedModel`; its weights are copied.
        dtype: ``float32``, ``bfloat16``, or ``int8``: weights and inputs of products in int8, everything else in
            float32.
        examples: batches of inputs, such as the model will see, from which int8 takes the ranges of the products'
            inputs; random tokens if none are given.

    Attributes:
        dtype: as given.
        agreement: in int8, how the given examples come out, beside the model's results; None without examples. Below
            95 % of the model's answers there is a warning.
        back_end: class of the linear layers, see :mod:`ltp.deploy.linears`.

    Raises:
        ValueError: an unknown dtype, or a model that is not on the CPU.
        RuntimeError: int8 where PyTorch has no products for it.
        DisagreementError: int8 computes something else on the examples.
    """

    def __init__(self, model: Any, *, dtype: str, examples: Sequence[Mapping[str, Tensor]] | None = None) -> None:
        family, dense = model.family, model.dense
        self.back_end: Any = linear_type(dtype)
        self.agreement: Agreement | None = None
        if (device := next(dense.parameters()).device).type != "cpu":
            raise ValueError(f"the model is on {device}; deploy is for CPUs: move the model there first")
        if dtype == "bfloat16" and not has_bfloat16_instructions():
            log.warning("this CPU has no instructions for bfloat16, so that it is slower than float32")
        self.dtype = dtype
        self._hidden_type = DTYPES[dtype]
        self._family = family
        self._model_class = type(model)
        self.set_pruner(model.pruner)
        layers = family.layers(dense)
        # embeddings and head: a copy of the model with an empty list of encoder layers
        memo: dict[int, Any] = {id(family.layer_list(dense)): nn.ModuleList()}
        self._dense = copy.deepcopy(dense, memo).float().eval().requires_grad_(False)
        self._reads_tokens = model.reads_tokens(family, dense)
        reach = family.max_input_tokens(dense.config) - 1
        prepared: dict[int, DeployedLayer] = {}  # layers may be one and the same
        self._layers = []
        with torch.no_grad():
            for number, layer in enumerate(layers, start=1):
                if id(layer) not in prepared:
                    parts = family.parts(layer)
                    check_plain(parts, number)
                    prepared[id(layer)] = DeployedLayer(
                        *(parts, self.back_end, self._hidden_type),
                        rotation=family.rotation(layer),
                        bias=family.pair_bias(layer, reach),
                        window=family.window(layer),
                    )
                self._layers.append(prepared[id(layer)])
            if dtype == "int8":
                given = [{name: batch[name] for name in _INPUTS if name in batch} for batch in examples or ()]
                self._quantise(list(prepared.values()), given or random_examples(model))
                if given:
                    self.agreement = self._compare(model, given)

    def _quantise(self, layers: Sequence["DeployedLayer"], examples: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the ranges of products' inputs from examples, and replace the products by those in int8."""
        for batch in examples:
            self(**batch)
        for layer in layers:
            layer.quantise()
        self.back_end = int8_type()

    def _compare(self, model: Any, examples: Sequence[Batch]) -> Agreement:
        training = model.training
        try:
            agreement = compare_results(model.eval(), self.results, examples, dtype=self.dtype)
        finally:
            model.train(training)
        if agreement.has_few_answers:
            log.warning("%s, on %d examples: %s", self.dtype, agreement.sequences, agreement)
        return agreement

    def results(self, batch: Batch) -> list[Tensor]:
        """Compute the results of the head, and the token lengths, as a graph does."""
        output = self(**batch)
        return [*(output[name] for name in output.results), output.token_lengths]

    def set_pruner(self, pruner: Pruner) -> None:
        """Replace the pruner by a copy of another one, without preparing the weights again."""
        self._pruner = copy.deepcopy(pruner).cpu().eval().requires_grad_(False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dtype={self.dtype!r}, back_end={self.back_end.__name__})"

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Any:
        """Compute the results of a batch.

        Args:
            input_ids: (B, N) int64.
            attention_mask: 1 for real tokens, 0 for padding, (B, N); position 0 must be real.
            token_type_ids, position_ids: (B, N) int64, as in Hugging Face models.

        Returns:
            The output of the model, float32, without a loss, and ``token_lengths``, (B, L+1) int64; the rest is None.

        Raises:
            ValueError: an example without a real token at position 0 (padding on the left).
        """
        alive = real_tokens(attention_mask, input_ids)
        indices = alive.flatten().nonzero().squeeze(1)
        hidden = self._family.embed_tokens(self._dense, input_ids, indices, token_type_ids, position_ids)
        positions = None
        if self._family.has_positions:
            columns = torch.arange(alive.shape[1])[None]
            positions = self._family.attention_positions(columns, position_ids).expand(alive.shape).flatten()[indices]
        lengths = alive.sum(dim=1)
        last, token_lengths, token_layers = self._encode(hidden.to(self._hidden_type), lengths, positions)
        layout = Layout(alive, indices)
        results = self._model_class.head(self._family, self._dense, last.float(), layout)
        if token_layers is not None:
            results["token_layers"] = layout.padded(token_layers, 0)
        return self._model_class.output_class(token_lengths=token_lengths, **results)

    def _encode(
        self, hidden: Tensor, real_lengths: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the encoder.

        Hidden states are (R, D) with R ≥ T: rows from T on are unused padding, see ``row_count``.

        Args:
            hidden: embeddings of the real tokens, (T, D).
            real_lengths: number of real tokens of each sequence, (B,) int64.
            positions: their positions for attention, (T,) int64; None if the family has none.

        Returns:
            The last class states, (B, D), or if the head reads tokens the last state of every real token, (T, D); the
            token lengths, (B, L+1); and of these tokens the number of layers, (T,), or None.
        """
        rows, pruner = Rows(real_lengths.numpy()), self._pruner
        state: dict[str, Tensor] = {}  # what the method needs of each token, each (T,)
        if "positions" in pruner.reads:
            state["positions"] = torch.from_numpy(rows.columns)
        if pruner.merges:
            state["sizes"] = torch.ones(rows.total)
        if pruner.carries:
            state["carried"] = torch.zeros(rows.total)
        if positions is not None:
            state["places"] = positions
        restored = token_layers = None
        if self._reads_tokens:
            restored, token_layers = hidden.clone(), torch.zeros(rows.total, dtype=torch.int64)
            state["origin"] = state["owner"] = torch.arange(rows.total)
        hidden = self._pad_rows(hidden, rows)
        token_lengths = [rows.lengths]
        for number, layer in enumerate(self._layers, start=1):
            # after its attention only the classification tokens are needed
            last = number == len(self._layers) and restored is None
            decides = pruner.decides_in(number)
            if decides and pruner.decides_before:
                rows, kept, state, _ = self._decide(number, rows, real_lengths, state, {}, (hidden,), None, layer.heads)
                if kept is not None:
                    hidden = hidden.index_select(0, self._selected(kept))
            qkv = layer.project(hidden)[: rows.total]
            own_key, pairs = qkv[:, 1] if "keys" in pruner.reads else None, None
            if positions is not None:
                qkv, pairs = layer.place(qkv, state["places"])
            contexts, sums = deployed_attention(
                qkv,
                rows.lengths.tolist(),
                reads=pruner.reads & ATTENTION_READS if decides else frozenset(),
                first_only=last and not pruner.merges,
                key_weights=state.get("sizes"),
                pairs=pairs,
            )
            context = (contexts[0] if len(contexts) == 1 else torch.cat(contexts)).flatten(1).to(hidden.dtype)
            del qkv, contexts  # the products that follow take their memory, which is in the cache
            kept, before = None, rows
            if decides and not pruner.decides_before:
                rows, kept, state, merged = self._decide(
                    *(number, rows, real_lengths, state, sums, (context, hidden), own_key, layer.heads)
                )
                context, hidden = merged
            token_lengths.append(rows.lengths)
            if last:
                first = torch.from_numpy(before.first)
                hidden = hidden.index_select(0, first)
                if pruner.merges:
                    context = context.index_select(0, first)
            elif kept is None:
                context = self._pad_rows(context, rows)
                hidden = self._pad_rows(hidden, rows)
            else:
                selected = self._selected(kept)
                context, hidden = context.index_select(0, selected), hidden.index_select(0, selected)
            hidden = layer.finish(context, hidden)
            if restored is not None and token_layers is not None:
                restored[state["origin"]] = hidden[: rows.total]
                token_layers[state["origin"]] = number
        if restored is not None:
            hidden = restored[state["owner"]]
        return hidden, torch.from_numpy(np.stack(token_lengths, axis=1)), token_layers

    def _decide(
        self,
        number: int,
        rows: "Rows",
        real_lengths: Tensor,
        state: dict[str, Tensor],
        sums: dict[str, Tensor],
        tensors: tuple[Tensor, ...],
        keys: Tensor | None,
        heads: int,
    ) -> tuple["Rows", np.ndarray | None, dict[str, Tensor], tuple[Tensor, ...]]:
        """Apply the method.

        Args:
            tensors: context and hidden states, or hidden states alone, each (R, D).

        Returns:
            The rows that are left; their indices, None for all; what is known of these tokens; and ``tensors``, in
            which tokens are merged, but none is left out yet.
        """
        pruner = self._pruner
        padded = {name: rows.pad(state[name]) for name in ("positions", "sizes", "carried") if name in state}
        states = {"positions": padded["positions"]} if "positions" in pruner.reads else {}
        if "hidden" in pruner.reads:
            states["hidden"] = rows.pad(tensors[-1][: rows.total].float())
        if keys is not None:
            states["keys"] = rows.pad(keys.float().mean(dim=1))
        tokens = Tokens(
            number,
            len(self._layers),
            heads,
            rows.alive,
            real_lengths,
            sizes=padded.get("sizes"),
            carried=padded.get("carried"),
            attention={name: rows.pad(value) for name, value in sums.items()},
            states=states,
        )
        if pruner.carries:
            state = {**state, "carried": rows.packed(pruner.carry(tokens))}
        if pruner.merges:
            targets = pruner.merge_targets(tokens)
            survivors = rows.alive & (targets == torch.arange(targets.shape[1]))
            into = rows.packed(torch.from_numpy(rows.first)[:, None] + targets)
            sizes = torch.zeros_like(state["sizes"]).index_add(0, into, state["sizes"])
            tensors = tuple(_merged(tensor[: rows.total], into, state["sizes"], sizes) for tensor in tensors)
            state = {**state, "sizes": sizes}
            if "owner" in state:  # of each real token that which it is merged into
                state["owner"] = owners(state["owner"], state["origin"], into)
        else:
            survivors = pruner.survivors(tokens)
        if survivors is rows.alive:
            return rows, None, state, tensors
        alive = survivors.numpy()
        lengths = alive.sum(axis=1)
        if lengths.sum() == rows.total:
            return rows, None, state, tensors
        kept = np.flatnonzero(rows.pack(alive))
        index = torch.from_numpy(kept)
        left = {name: value if name == "owner" else value.index_select(0, index) for name, value in state.items()}
        return Rows(lengths), kept, left, tensors

    def _selected(self, kept: np.ndarray) -> Tensor:
        """Return the indices of the rows to keep, padded with row 0 to the back end's preferred number of rows."""
        index = np.zeros(self.back_end.row_count(len(kept)), dtype=np.int64)
        index[: len(kept)] = kept
        return torch.from_numpy(index)

    def _pad_rows(self, packed: Tensor, rows: "Rows") -> Tensor:
        """Append zero rows to (T, D) up to the back end's preferred number of rows, which (R, D) has already."""
        missing = self.back_end.row_count(rows.total) - len(packed)
        return functional.pad(packed, (0, 0, 0, missing)) if missing else packed


def _merged(rows: Tensor, into: Tensor, sizes: Tensor, merged_sizes: Tensor) -> Tensor:
    """Return the mean of the rows, (T, D), that go into each row, weighted by their sizes."""
    total = torch.zeros_like(rows).index_add(0, into, rows * sizes[:, None].to(rows.dtype))
    return total / merged_sizes.clamp(min=1)[:, None].to(rows.dtype)


def check_plain(parts: LayerParts, number: int) -> None:
    """Check that the parts of a layer are plain modules: only their weights are copied.

    Raises:
        ValueError: a part is of another class (an adapter), or has hooks or parametrisations, which would be lost.
    """
    expected: dict[str, type] = {"attention_norm": nn.LayerNorm, "output_norm": nn.LayerNorm}
    expected |= dict.fromkeys(("query", "key", "value", "attention_output", "up", "gate", "down"), nn.Linear)
    for name, kind in expected.items():
        module = getattr(parts, name)
        if module is None:
            continue
        found = f"{kind.__name__} with hooks" if module._forward_hooks or module._forward_pre_hooks else None
        if type(module) is not kind:  # parametrisations change the class, too
            found = type(module).__name__
        if found is not None:
            raise ValueError(
                f"layer {number}: {name} is a {found}, and deploy would copy its weight alone. Merge adapters into the "
                "weights first (peft: model.merge_and_unload()), and remove hooks and parametrisations."
            )


class DeployedLayer:
    """One encoder layer with linear layers of a back end.

    Args:
        parts: modules of the original layer.
        linear: class of the linear layers.
        dtype: dtype of hidden states.
        rotation, bias, window: what attention does with positions; see :class:`~ltp.encoders.base.EncoderFamily`.
    """

    def __init__(
        self,
        parts: LayerParts,
        linear: type[PlainLinear],
        dtype: torch.dtype,
        rotation: Rotation | None = None,
        bias: PairBias | None = None,
        window: int | None = None,
    ) -> None:
        self.heads = parts.heads
        self._rotation, self._bias, self._window = rotation, bias, window
        self._norm_first = parts.norm_first

        def prepare(*modules: nn.Linear, scales: tuple[float, ...] = (1.0,), activation: Any = None) -> Any:
            return linear(*join_linears(modules, scales), dtype, activation)

        # the attention scale, 1/√(D/H), is folded into the query weights
        scale = parts.query_scale * (parts.query.out_features // parts.heads) ** -0.5
        self._qkv = prepare(parts.query, parts.key, parts.value, scales=(scale, 1.0, 1.0))
        self._attention_output = prepare(parts.attention_output)
        self._feed_forward = FeedForward(
            prepare(parts.up, activation=parts.activation),
            None if parts.gate is None else prepare(parts.gate),
            prepare(parts.down),
        )
        self._attention_norm: _Norm
        self._output_norm: _Norm
        self._attention_norm, self._output_norm = (
            None
            if norm is None
            else (
                norm.normalized_shape,
                norm.weight.float().clone(),
                None if norm.bias is None else norm.bias.float().clone(),
                norm.eps,
            )
            for norm in (parts.attention_norm, parts.output_norm)
        )

    def quantise(self) -> None:
        """Replace observed linear layers by those in int8."""
        self._qkv, self._attention_output = self._qkv.quantised(), self._attention_output.quantised()
        up, gate, down = self._feed_forward.up, self._feed_forward.gate, self._feed_forward.down
        factors = smoothing([layer for layer in (up, gate) if layer is not None])
        inner = FeedForward(up.smoothed(factors), None if gate is None else gate.smoothed(factors), down)
        if self._norm_first:  # the norm divides by the factors, without a pass of its own
            self._output_norm = _divided(self._output_norm, factors)
            self._feed_forward = Int8FeedForward(inner)
        else:  # what it divides is the residual, too
            self._attention_norm = _divided(self._attention_norm, factors)
            self._feed_forward = Int8FeedForward(inner, factors)

    def project(self, hidden: Tensor) -> Tensor:
        """Compute scaled queries, keys and values: (R, D) → (R, 3, H, D/H)."""
        if self._norm_first:
            hidden = _normalised(hidden, self._attention_norm)
        return self._qkv(hidden).unflatten(1, (3, self.heads, -1))

    def place(self, qkv: Tensor, positions: Tensor) -> tuple[Tensor, Pairs | None]:
        """Put positions, (T,), into queries and keys, (T, 3, H, D/H); and return what pairs of them add."""
        if self._rotation is not None:
            query, key = self._rotation(qkv[:, 0], qkv[:, 1], positions)
            qkv = torch.stack([query, key, qkv[:, 2]], dim=1)
        window = self._window
        if window is not None and int(positions.max()) <= window:  # every token sees every other
            window = None
        return qkv, None if self._bias is None and window is None else Pairs(positions, self._bias, window)

    def finish(self, context: Tensor, hidden: Tensor) -> Tensor:
        """Apply all steps after attention to context and hidden states: (R, D), (R, D) → (R, D)."""
        hidden = self._attention_output.add(context, hidden)
        if self._norm_first:
            return self._feed_forward(_normalised(hidden, self._output_norm), hidden)
        hidden = _normalised(hidden, self._attention_norm)
        return _normalised(self._feed_forward(hidden, hidden), self._output_norm)


#: Shape, weight, bias and epsilon of a LayerNorm; None for no norm.
_Norm = tuple[Any, Tensor, Tensor | None, float] | None


def _divided(norm: _Norm, factors: Tensor) -> _Norm:
    """Return the norm whose results are divided by factors, (D,)."""
    if norm is None:
        raise ValueError("a layer has no norm before its feed-forward products, which int8 needs")
    shape, weight, bias, epsilon = norm
    return shape, weight / factors, None if bias is None else bias / factors, epsilon


def _normalised(hidden: Tensor, norm: _Norm) -> Tensor:
    return hidden if norm is None else functional.layer_norm(hidden, *norm)


class Rows:
    """Positions of the tokens of a batch in a packed tensor, in NumPy: faster than PyTorch for small operations.

    Args:
        lengths: number of tokens alive of each sequence, (B,) int64, at least 1.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths
        self.total = int(lengths.sum())
        self._alive = np.arange(lengths.max()) < lengths[:, None]
        self.alive = torch.from_numpy(self._alive)  # (B, N) bool, left-aligned

    @property
    def first(self) -> np.ndarray:
        """Index of each classification token, (B,) int64."""
        return self.lengths.cumsum() - self.lengths

    @property
    def columns(self) -> np.ndarray:
        """Column of each token in the padded form, (T,) int64."""
        return np.nonzero(self._alive)[1]

    def pad(self, packed: Tensor) -> Tensor:
        """Convert (T, …) to (B, N, …), 0 where there is no token."""
        if self.total == self._alive.size:
            return packed.reshape(*self._alive.shape, *packed.shape[1:])
        values = packed.numpy()
        padded = np.zeros((*self._alive.shape, *packed.shape[1:]), dtype=values.dtype)
        padded[self._alive] = values
        return torch.from_numpy(padded)

    def pack(self, padded: np.ndarray) -> np.ndarray:
        """Convert (B, N) to (T,)."""
        return padded[self._alive]

    def packed(self, padded: Tensor) -> Tensor:
        """Convert (B, N) to (T,)."""
        return padded[self.alive]
