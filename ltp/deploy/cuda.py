"""The deployed classifier on a GPU: decisions stay on the device, and each shape of batch is one CUDA graph."""

import copy
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltp.deploy.linears import gelu_approximation
from ltp.deploy.model import check_plain
from ltp.encoders.base import EncoderFamily, LayerParts
from ltp.execution.attention import key_bias
from ltp.execution.output import LTPOutput
from ltp.execution.packing import real_tokens
from ltp.kernels.attention import LARGEST_HEAD, forward, received_by_head
from ltp.kernels.rows import compact, layer_norm, linear
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import Tokens

#: Types of a classifier that is deployed on a GPU.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Number of shapes whose graphs are kept.
MAX_GRAPHS = 64
#: Lengths of a batch are rounded up to a multiple of this, so that few shapes have to be captured. Padding is not
#: computed, except in the embeddings.
LENGTH_STEP = 16


class DeployedOnCUDA:
    """A frozen copy of a pruned classifier for inference on a GPU, created by ``LTPForSequenceClassification.deploy``.

    Call it like the model, without labels. Results stay on the device, and no call waits for it. The first batch of a
    shape (B, N rounded up to 16) takes a fraction of a second more: its work is captured as a CUDA graph, which later
    batches of the shape replay. A product computes the tokens that are alive only; how many there are is read on the
    device.

    Args:
        family: adapter to the encoder.
        dense: the Hugging Face classifier, on a GPU.
        pruner: pruning method; it is copied.
        dtype: ``float32`` (exact, without TF32), ``bfloat16`` or ``float16``.

    Raises:
        ValueError: an unknown dtype, or a size of heads or parts of a layer that the kernels do not take.
    """

    def __init__(self, family: type[EncoderFamily], dense: Any, pruner: Pruner, *, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; on a GPU deploy offers {', '.join(DTYPES)}")
        self.dtype = dtype
        self._type = DTYPES[dtype]
        self._device = next(dense.parameters()).device
        self._family = family
        if family.has_positions or family.pools_mean(dense.config):
            what = "positions enter their attention" if family.has_positions else "their head reads the mean"
            raise ValueError(f"{family.model_type} models are deployed on a CPU only: {what}; on a GPU use the model")
        layers = family.layers(dense)
        memo: dict[int, Any] = {id(family.layer_list(dense)): nn.ModuleList()}
        self._dense = copy.deepcopy(dense, memo).to(self._type).eval().requires_grad_(False)
        with torch.no_grad():
            for number, layer in enumerate(layers, start=1):
                check_plain(family.parts(layer), number)
            self._layers = [_Layer.of(family.parts(layer), self._type) for layer in layers]
        self._lock = threading.Lock()
        self._pool: Any = None
        self.set_pruner(pruner)

    def set_pruner(self, pruner: Pruner) -> None:
        """Replace the pruner by a copy of another one, without preparing the weights again."""
        self._pruner = copy.deepcopy(pruner).to(self._device).eval().requires_grad_(False)
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
        self._is_capturable = self._device.type == "cuda"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dtype={self.dtype!r}, device={str(self._device)!r})"

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> LTPOutput:
        """Classify a batch.

        Args:
            input_ids: (B, N) int64, on the host or the device.
            attention_mask: 1 for real tokens, 0 for padding, (B, N); position 0 must be real.
            token_type_ids, position_ids: (B, N) int64, as in Hugging Face models.

        Returns:
            ``logits``, (B, num_labels) float32, and ``token_lengths``, (B, L+1) int64, on the device.

        Raises:
            ValueError: an example without a real token at position 0, if the mask is on the host. On the device, where
                a check would wait for it, the logits of such an example are NaN.
        """
        given = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
        if attention_mask is None or attention_mask.device.type == "cpu":
            real_tokens(attention_mask, input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {name: value for name, value in given.items() if value is not None} | {"mask": attention_mask}
        if not self._is_capturable:
            moved = {name: value.to(self._device) for name, value in inputs.items()}
            logits, lengths = self._run(**moved)
            return LTPOutput(logits=logits, token_lengths=lengths)
        with self._lock, torch.cuda.device(self._device):
            graph = self._graph_for(inputs)
            if graph is not None:
                logits, lengths = graph.replay(inputs)
                return LTPOutput(logits=logits, token_lengths=lengths)
        return self(input_ids, attention_mask, token_type_ids, position_ids)

    def _graph_for(self, inputs: dict[str, Tensor]) -> "_Graph | None":
        """The graph of a shape; None if the method's work cannot be captured."""
        batch, length = inputs["input_ids"].shape
        length = -(-length // LENGTH_STEP) * LENGTH_STEP
        limit = self._family.max_input_tokens(self._dense.config)
        if inputs["input_ids"].shape[1] <= limit:
            length = min(length, limit)
        key = (batch, length, *sorted(inputs))
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        static = {
            name: torch.zeros(batch, length, dtype=torch.int64, device=self._device)
            for name in inputs
            if name != "mask"
        }
        static["mask"] = torch.zeros(batch, length, dtype=torch.bool, device=self._device)
        static["mask"][:, : inputs["mask"].shape[1]].copy_(inputs["mask"])
        for name, value in inputs.items():
            static[name][:, : value.shape[1]].copy_(value)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # compiles the kernels, and gives libraries their workspaces
            for _ in range(2):
                self._run(**static)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = self._run(**static)
        except RuntimeError as error:  # a method that waits for the device
            self._is_capturable = False
            warnings.warn(
                f"{self._pruner.method.name}: its decisions cannot be captured as a CUDA graph, so batches run without "
                f"one, more slowly at small sizes ({str(error).splitlines()[0]})",
                stacklevel=3,
            )
            return None
        self._pool = self._pool or graph.pool()
        self._graphs[key] = _Graph(graph, static, *outputs)
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return self._graphs[key]

    def _run(
        self,
        input_ids: Tensor,
        mask: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute logits, (B, num_labels) float32, and token lengths, (B, L+1); reads nothing back from the device."""
        real = mask.bool()
        capacity, width = real.numel(), real.shape[1]
        starts = torch.arange(len(real), device=real.device) * width
        batch = _Batch(starts, real.sum(dim=1), real, torch.zeros((), device=real.device), width)
        batch, kept = batch.keep(real, capacity)
        hidden = self._family.embed_tokens(self._dense, input_ids, kept, token_type_ids, position_ids)
        class_states, lengths = self._encode(hidden, batch, capacity)
        logits = self._family.classify(self._dense, class_states).float()
        return logits.masked_fill(~real[:, :1], float("nan")), lengths

    def _encode(self, hidden: Tensor, batch: "_Batch", capacity: int) -> tuple[Tensor, Tensor]:
        """Run the encoder: embeddings, (T, D), to the last class states, (B, D), and token lengths, (B, L+1)."""
        pruner, real_lengths, token_lengths = self._pruner, batch.counts, [batch.counts]
        state: dict[str, Tensor] = {}  # what the method needs of each token, each (T,)
        if "positions" in pruner.reads:
            state["positions"] = torch.arange(capacity, device=hidden.device) - batch.starts[batch.owner(capacity)]
        if pruner.merges:
            state["sizes"] = torch.ones(capacity, device=hidden.device)
        if pruner.carries:
            state["carried"] = torch.zeros(capacity, device=hidden.device)
        for number, layer in enumerate(self._layers, start=1):
            last = number == len(self._layers)
            index: Tensor | None = None
            decides = pruner.decides_in(number)
            if decides and pruner.decides_before:
                batch, state, (hidden,), index = self._decide(
                    number, batch, real_lengths, state, {}, (hidden,), None, layer.heads
                )
                if index is not None:
                    hidden, index = hidden.index_select(0, index), None
            qkv = linear(hidden, layer.qkv, layer.qkv_bias, batch.total).view(capacity, 3, layer.heads, -1)
            query, key, value = qkv.unbind(1)
            where = (batch.starts, batch.counts, batch.width)
            bias = key_bias(state["sizes"]) if pruner.merges else None
            context, lse = forward(query, key, value, *where, bias=bias)
            sums = self._sums(query, key, value, lse, batch, bias) if decides else {}
            context = context.flatten(1)
            before = batch
            if decides and not pruner.decides_before:
                batch, state, (context, hidden), index = self._decide(
                    number, batch, real_lengths, state, sums, (context, hidden), key, layer.heads
                )
            token_lengths.append(batch.counts)
            total = batch.total
            if last:  # after its attention only the classification tokens are needed
                index = before.starts.clamp(max=capacity - 1)
                total = torch.full_like(batch.total, len(index))
            hidden = layer.finish(context, hidden, index, total)
        return hidden, torch.stack(token_lengths, dim=1)

    def _sums(
        self, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, batch: "_Batch", bias: Tensor | None
    ) -> dict[str, Tensor]:
        """What attention gives each token, by name, each (B, N) float32."""
        reads, sums = self._pruner.reads, {}
        if reads & {"received", "value_weighted"}:
            received = received_by_head(query, key, lse, batch.starts, batch.counts, batch.width, bias=bias)
            if "received" in reads:
                sums["received"] = received.sum(dim=1)
            if "value_weighted" in reads:
                norms = value.float().norm(dim=-1)  # (T, H)
                sums["value_weighted"] = (received * batch.pad(norms).transpose(1, 2)).sum(dim=1)
        scale, added = query.shape[-1] ** -0.5, 0.0 if bias is None else bias[:, None]
        if "diagonal" in reads:
            logits = (query.float() * key.float()).sum(dim=-1) * scale + added
            sums["diagonal"] = batch.pad((logits - lse).exp().sum(dim=1))
        if "class_attention" in reads:
            first = batch.starts[batch.owner(len(key))]
            logits = (query[first].float() * key.float()).sum(dim=-1) * scale + added
            sums["class_attention"] = batch.pad((logits - lse[first]).exp().sum(dim=1))
        return sums

    def _decide(
        self,
        number: int,
        batch: "_Batch",
        real_lengths: Tensor,
        state: dict[str, Tensor],
        sums: dict[str, Tensor],
        tensors: tuple[Tensor, ...],
        keys: Tensor | None,
        heads: int,
    ) -> tuple["_Batch", dict[str, Tensor], tuple[Tensor, ...], Tensor | None]:
        """Apply the method.

        Returns:
            The tokens that are left; what is known of them; ``tensors``, in which tokens are merged, but none is left
            out yet; and the rows to take of them, (T,) int64, or None for all.
        """
        pruner = self._pruner
        padded = {name: batch.pad(value) for name, value in state.items()}
        states = {"positions": padded["positions"]} if "positions" in pruner.reads else {}
        if "hidden" in pruner.reads:
            states["hidden"] = batch.pad(tensors[-1]).float()
        if "keys" in pruner.reads and keys is not None:
            states["keys"] = batch.pad(keys.float().mean(dim=1))
        tokens = Tokens(
            number,
            len(self._layers),
            heads,
            batch.alive,
            real_lengths,
            sizes=padded.get("sizes"),
            carried=padded.get("carried"),
            attention=sums,
            states=states,
        )
        if pruner.carries:
            state = {**state, "carried": batch.pack(pruner.carry(tokens), state["carried"])}
        if pruner.merges:
            targets = pruner.merge_targets(tokens)
            survivors = batch.alive & (targets == torch.arange(targets.shape[1], device=targets.device))
            rows = torch.arange(len(state["sizes"]), device=targets.device)
            into = batch.pack(batch.starts[:, None] + targets, rows)
            owned = rows < batch.total
            sizes = torch.zeros_like(state["sizes"]).index_add(0, into, state["sizes"] * owned)
            share = (state["sizes"] * owned)[:, None]
            tensors = tuple(_merged(tensor, into, share, sizes) for tensor in tensors)
            state = {**state, "sizes": sizes}
        else:
            survivors = pruner.survivors(tokens)
        if survivors is batch.alive:
            return batch, state, tensors, None
        left, index = batch.keep(survivors, len(tensors[0]))
        return left, {name: value.index_select(0, index) for name, value in state.items()}, tensors, index


def _merged(rows: Tensor, into: Tensor, share: Tensor, sizes: Tensor) -> Tensor:
    """Return the mean of the rows, (T, D), that go into each row, weighted by their shares."""
    weighted = rows.float().masked_fill(share == 0, 0.0) * share
    total = torch.zeros_like(weighted).index_add(0, into, weighted)
    return (total / sizes.clamp(min=1)[:, None]).to(rows.dtype)


@dataclass(frozen=True)
class _Batch:
    """The tokens alive, all on the device.

    Attributes:
        starts, counts: first row and number of rows of each sequence, (B,) int64.
        alive: in padded form, left-aligned, (B, N) bool.
        total: their number, (1,) int64.
        width: N, on the host.
    """

    starts: Tensor
    counts: Tensor
    alive: Tensor
    total: Tensor
    width: int

    def keep(self, survivors: Tensor, capacity: int) -> tuple["_Batch", Tensor]:
        """Drop all tokens but the survivors, (B, N) bool; also return their rows, (T,) int64."""
        starts, counts, kept, alive, total = compact(survivors, self.starts, self.counts, capacity)
        return _Batch(starts, counts, alive, total, self.width), kept

    def owner(self, capacity: int) -> Tensor:
        """Return the sequence of each row, (T,) int64."""
        rows = torch.arange(capacity, device=self.starts.device)
        return (torch.searchsorted(self.starts + self.counts, rows, right=True)).clamp(max=len(self.starts) - 1)

    def pad(self, packed: Tensor) -> Tensor:
        """Convert (T, …) to (B, N, …), 0 where there is no token."""
        slots = self.starts[:, None] + torch.arange(self.width, device=packed.device)
        rows = packed[slots.clamp(max=len(packed) - 1)]
        return rows.masked_fill(~self.alive.view(*self.alive.shape, *[1] * (rows.dim() - 2)), 0)

    def pack(self, padded: Tensor, other: Tensor) -> Tensor:
        """Convert (B, N) to (T,), with the values of ``other`` in rows of no token."""
        rows = torch.arange(len(other), device=other.device)
        owner = self.owner(len(other))
        column = (rows - self.starts[owner]).clamp(min=0, max=self.width - 1)
        return torch.where(rows < self.total, padded[owner, column], other)


@dataclass(frozen=True)
class _Layer:
    """The weights of a layer, in the order of its products."""

    heads: int
    qkv: Tensor
    qkv_bias: Tensor
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Any
    fused: str
    down: nn.Linear
    output_norm: nn.LayerNorm

    @classmethod
    def of(cls, parts: LayerParts, dtype: torch.dtype) -> "_Layer":
        """Copy the weights of a layer in a type."""
        projections = (parts.query, parts.key, parts.value)
        size = parts.query.out_features // parts.heads
        if size > LARGEST_HEAD:
            raise ValueError(f"heads of {size} numbers: deploy on a GPU takes {LARGEST_HEAD} at most")
        fused = {"none": "gelu", "tanh": "gelu_tanh", None: ""}[gelu_approximation(parts.activation)]
        return cls(
            heads=parts.heads,
            qkv=torch.cat([part.weight for part in projections]).to(dtype).contiguous(),
            qkv_bias=torch.cat([part.bias for part in projections]).to(dtype),
            output=copy.deepcopy(parts.attention_output).to(dtype),
            attention_norm=copy.deepcopy(cast("nn.LayerNorm", parts.attention_norm)).to(dtype),
            up=copy.deepcopy(parts.up).to(dtype),
            activation=parts.activation,
            fused=fused,
            down=copy.deepcopy(parts.down).to(dtype),
            output_norm=copy.deepcopy(parts.output_norm).to(dtype),
        )

    def finish(self, context: Tensor, residual: Tensor, index: Tensor | None, total: Tensor) -> Tensor:
        """Compute the rest of the layer after its attention, on the rows that ``index`` selects."""
        hidden = linear(context, self.output.weight, self.output.bias, total, index=index, residual=residual)
        norm = self.attention_norm
        hidden = layer_norm(hidden, norm.weight, norm.bias, norm.eps, total)
        inner = linear(hidden, self.up.weight, self.up.bias, total, activation=self.fused)
        if not self.fused:
            inner = self.activation(inner)
        hidden = linear(inner, self.down.weight, self.down.bias, total, residual=hidden)
        norm = self.output_norm
        return layer_norm(hidden, norm.weight, norm.bias, norm.eps, total)


@dataclass(frozen=True)
class _Graph:
    """The captured work of one shape, with the tensors that it reads and writes."""

    graph: Any
    inputs: dict[str, Tensor]
    logits: Tensor
    token_lengths: Tensor

    def replay(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute a batch of the shape; its outputs are copied out of the graph's memory."""
        for name, value in inputs.items():
            static = self.inputs[name]
            if value.shape == static.shape:
                static.copy_(value, non_blocking=True)
            else:
                static.zero_()
                static[:, : value.shape[1]].copy_(value, non_blocking=True)
        self.graph.replay()
        return self.logits.clone(), self.token_lengths.clone()
