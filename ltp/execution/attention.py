"""Self-attention over padded and packed tokens that also returns what it gives each token."""

import dataclasses
import warnings
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ltp.encoders.base import EncoderFamily, PairBias, distances
from ltp.execution.packing import Packing
from ltp.pruning.importance import attention_sums

#: On a CPU, half-precision sequences of up to this many tokens use float32 attention: as fast, and exact.
FLOAT32_TOKENS = 128
#: Above this number, attention probabilities are computed for a part of the queries at a time: 64 MiB in float32.
CHUNK = 2**24
#: Sums over the queries, which a window leaves out for tokens far away.
_OVER_QUERIES = ("received", "value_weighted")
#: Lower bound of the weights of keys: smaller values are negligible next to 1 in float32.
SMALLEST_WEIGHT = 1e-12


def key_bias(weights: Tensor) -> Tensor:
    """Compute the bias of a key's attention logits for its weight w: it counts as w·exp(logit).

    Args:
        weights: w, any shape, float32: a survival probability, or the number of tokens that the key stands for.

    Returns:
        ``log w`` with w clamped at :data:`SMALLEST_WEIGHT`, so that gradients at w = 0 are finite.
    """
    return weights.clamp(min=SMALLEST_WEIGHT).log()


@dataclass(frozen=True)
class Pairs:
    """What attention logits depend on besides queries and keys: the positions of a pair.

    Attributes:
        positions: of each token in the input, in the layout of the tokens: (T,) or (B, N) int64, ascending within a
            sequence.
        bias: added to the logits; None for nothing.
        window: largest distance of a token that a token attends to; None for no limit.
    """

    positions: Tensor
    bias: PairBias | None = None
    window: int | None = None

    @classmethod
    def of_layer(cls, family: type[EncoderFamily], layer: object, positions: Tensor, reach: int) -> "Pairs | None":
        """Return the pairs of a layer; None if its logits depend on queries and keys alone.

        Args:
            family, layer: the layer.
            positions: of the tokens.
            reach: largest distance between two positions.
        """
        bias, window = family.pair_bias(layer, reach), family.window(layer)
        if window is not None and window >= reach:
            window = None
        return None if bias is None and window is None else cls(positions, bias, window)

    def part(self, queries: slice, keys: slice) -> "Part":
        """Return the pairs of some queries with some keys; positions are (…, N)."""
        return Part(self.positions[..., queries], self.positions[..., keys], self.bias, self.window)


@dataclass(frozen=True)
class Part:
    """Pairs of some queries with some keys.

    Attributes:
        of_queries, of_keys: positions, (…, Q) and (…, K) int64.
        bias, window: see :class:`Pairs`.
    """

    of_queries: Tensor
    of_keys: Tensor
    bias: PairBias | None
    window: int | None

    def is_visible(self) -> Tensor | None:
        """Whether each query sees each key, (…, Q, K) bool; None if all do."""
        if self.window is None:
            return None
        return distances(self.of_queries, self.of_keys).abs() <= self.window

    def added(self, query: Tensor, key: Tensor) -> Tensor:
        """Return what is added to the logits of scaled queries and keys, (…, H or 1, Q, K)."""
        bias = None if self.bias is None else self.bias(query, key, self.of_queries, self.of_keys)
        visible = self.is_visible()
        if visible is None:
            assert bias is not None
            return bias
        lowest = torch.finfo(query.dtype).min
        if bias is None:
            bias = torch.zeros_like(visible, dtype=query.dtype).unsqueeze(-3)
        return bias.masked_fill(~visible.unsqueeze(-3), lowest)


def comparable(sums: dict[str, Tensor], seen: Tensor, total: Tensor) -> dict[str, Tensor]:
    """Make sums of a layer with a window comparable with those of one without: divide by the share of queries that see.

    Args:
        sums: see :func:`~ltp.pruning.importance.attention_sums`, each (B, N).
        seen: weight of the queries that see each token, (B, N).
        total: weight of all queries, (B, 1).
    """
    factor = total / seen.clamp(min=SMALLEST_WEIGHT)
    return {name: value * factor if name in _OVER_QUERIES else value for name, value in sums.items()}


def comparable_in_padded(sums: dict[str, Tensor], pairs: Pairs | None, presence: Tensor) -> dict[str, Tensor]:
    """:func:`comparable` for padded sequences, whose tokens are present by ``presence``, (B, N)."""
    visible = None if pairs is None else pairs.part(slice(None), slice(None)).is_visible()
    if visible is None:
        return sums
    weight = presence.float()
    seen = (weight[:, None, :] @ visible.float()).squeeze(1)
    return comparable(sums, seen, weight.sum(dim=1, keepdim=True))


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alive: Tensor,
    dropout: float,
    key_weights: Tensor | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over padded sequences; keys that are not alive have probability 0.

    Args:
        query, key, value: (B, N, H, D/H).
        alive: tokens alive, (B, N) bool, at least one in each example.
        dropout: probability of dropping an attention weight (0 outside training).
        key_weights: factors on the weights of keys, (B, N) float32; None for 1.
        pairs: what pairs of positions add, with positions (B, N); None for nothing.

    Returns:
        The context, (B, N, D), and the probabilities *before* dropout, (B, H, N, N): with dropout, importance would
        be random, and rows would not sum to 1.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, H, N, D/H)
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if pairs is not None:
        logits = logits + pairs.part(slice(None), slice(None)).added(query * query.shape[-1] ** -0.5, key)
    bias = logits.new_zeros(()) if key_weights is None else key_bias(key_weights).to(logits.dtype)
    bias = torch.where(alive, bias, torch.finfo(logits.dtype).min)
    probs = (logits + bias[:, None, None, :]).softmax(dim=-1)
    weights = functional.dropout(probs, dropout) if dropout else probs
    context = (weights.to(value.dtype) @ value).transpose(1, 2)  # (B, N, H, D/H)
    return context.flatten(2), probs


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    reads: frozenset[str] = frozenset(),
    key_weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scaled dot-product attention within each packed sequence.

    Args:
        query, key, value: (T, H, D/H).
        packing: positions of the sequences.
        dropout: probability of dropping an attention weight (0 outside training).
        reads: which sums to compute, see :func:`~ltp.pruning.importance.attention_sums`; with none, a fused kernel is
            used.
        key_weights: factors on the weights of keys, (T,) float32; None for 1.
        query_weights: weights of the queries in the sums, (T,) float32; None for 1.
        pairs: what pairs of positions add, with positions (T,); None for nothing.

    Returns:
        The context, (T, D), and the sums over each token's own sequence, by name, each (T,) float32.
    """
    # neither computes padding; the padded form is for GPUs: where the kernels do not run, and for pairs of positions
    if query.device.type == "cpu":
        attend = attention_by_length
    elif pairs is None and kernels_work(query.device, query.dtype, query.shape[-1]):
        attend = attention_by_kernel
    else:
        attend = attention_by_rows
    weights = {"key_weights": key_weights, "query_weights": query_weights}
    return attend(query, key, value, packing, dropout, reads=reads, pairs=pairs, **weights)


def attention_by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    reads: frozenset[str] = frozenset(),
    key_weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`packed_attention` with one product per group of sequences of equal length, without padding or copies."""
    contexts: list[Tensor] = []
    sums: dict[str, list[Tensor]] = {}
    sizes = [sequences * length for sequences, length in packing.groups]
    keyed, queried = (
        [None] * len(sizes) if weights is None else weights.split(sizes) for weights in (key_weights, query_weights)
    )
    placed = [None] * len(sizes) if pairs is None else pairs.positions.split(sizes)
    parts = zip(packing.groups, keyed, queried, placed, *(x.split(sizes) for x in (query, key, value)), strict=True)
    with torch.autocast("cpu", enabled=False):  # dtypes are chosen explicitly here
        for (sequences, length), of_keys, of_queries, places, *qkv in parts:
            dtype = torch.float32 if length <= FLOAT32_TOKENS else query.dtype
            q, k, v = (x.to(dtype).unflatten(0, (sequences, length)).transpose(1, 2) for x in qkv)  # (…, H, n, D/H)
            context, group_sums = attend(
                *(q, k, v),
                dropout=dropout,
                reads=reads,
                bias=None if of_keys is None else key_bias(of_keys.view(sequences, 1, 1, length)).to(dtype),
                presence=None if of_queries is None else of_queries.view(sequences, length),
                pairs=None
                if pairs is None or places is None
                else dataclasses.replace(pairs, positions=places.view(sequences, length)),
            )
            for name, values in group_sums.items():
                sums.setdefault(name, []).append(values.flatten())
            contexts.append(context.transpose(1, 2).flatten(0, 1))  # (sequences · n, H, D/H)
    context = torch.cat(contexts).flatten(1).to(value.dtype)
    return context, {name: torch.cat(values) for name, values in sums.items()}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float,
    reads: frozenset[str],
    bias: Tensor | None,
    presence: Tensor | None,
    pairs: Pairs | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention of sequences of equal length; of long ones a part of the queries at a time.

    With a window only the keys that a part of the queries can see are computed.

    Args:
        query, key, value: (S, H, n, D/H).
        dropout, reads: see :func:`packed_attention`.
        bias: added to the logits of each key, (S, 1, 1, n); None for nothing.
        presence: weights of the queries in the sums, (S, n) float32; None for 1.
        pairs: what pairs of positions add, with positions (S, n); None for nothing.

    Returns:
        The context, (S, H, n, D/H), and the sums by name, each (S, n) float32.
    """
    sequences, heads, length = query.shape[:3]
    compute = partial(_attend_part, dropout=dropout, reads=reads)
    if sequences * heads * length**2 <= CHUNK or not (reads or bias is not None or pairs is not None):
        part = None if pairs is None else pairs.part(slice(None), slice(None))
        context, totals = compute(query, key, value, bias, presence, part, 0)
        return context, totals if part is None else _comparable_totals(totals, presence, length)
    step = max(1, CHUNK // (sequences * heads * length))
    if pairs is not None and pairs.window is not None:
        step = max(step, pairs.window)  # more keys than a part sees are never computed
    contexts: list[Tensor] = []
    totals = {}
    for start in range(0, length, step):
        queries, keys = slice(start, min(start + step, length)), slice(0, length)
        if pairs is not None and pairs.window is not None:  # keys that one of the queries can see
            nearest = pairs.positions[:, queries.start, None] - pairs.window
            farthest = pairs.positions[:, queries.stop - 1, None] + pairs.window
            before, until = (pairs.positions < nearest).sum(dim=1), (pairs.positions <= farthest).sum(dim=1)
            keys = slice(int(before.min()), int(until.max()))
        arguments = (
            *(query[:, :, queries], key[:, :, keys], value[:, :, keys]),
            None if bias is None else bias[..., keys],
            None if presence is None else presence[:, queries],
            None if pairs is None else pairs.part(queries, keys),
            queries.start - keys.start,
        )
        if torch.is_grad_enabled() and query.requires_grad:  # keep the probabilities of no part
            context, sums = checkpoint(compute, *arguments, use_reentrant=False)
        else:
            context, sums = compute(*arguments)
        contexts.append(context)
        around = (keys.start, length - keys.stop)
        for name, values in sums.items():
            padded = functional.pad(values, around)
            totals[name] = totals[name] + padded if name in totals else padded
    return torch.cat(contexts, dim=2), _comparable_totals(totals, presence, length)


def _attend_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    presence: Tensor | None,
    part: Part | None,
    first: int,
    *,
    dropout: float,
    reads: frozenset[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention of some queries to some keys; ``first`` is the number of the first query among the keys.

    With a window the sums contain ``seen``, the weight of the queries that see each key.
    """
    scale = query.shape[-1] ** -0.5
    if not reads and bias is None:
        mask = None if part is None else part.added(query * scale, key)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), {}
    logits = query @ key.transpose(-1, -2) * scale
    if part is not None:
        logits = logits + part.added(query * scale, key)
    if bias is not None:
        logits = logits + bias
    probs = logits.softmax(dim=-1)  # (S, H, Q, K)
    sums = attention_sums(probs, value, presence, reads, first)
    visible = None if part is None or not reads else part.is_visible()
    if visible is not None:
        weighted = visible.float() if presence is None else visible * presence[:, :, None]
        sums["seen"] = weighted.sum(dim=1)
    return (functional.dropout(probs, dropout) if dropout else probs) @ value, sums


def _comparable_totals(sums: dict[str, Tensor], presence: Tensor | None, length: int) -> dict[str, Tensor]:
    """:func:`comparable`, where the sums contain ``seen``."""
    if "seen" not in sums:
        return sums
    seen = sums.pop("seen")
    total = torch.full_like(seen[:, :1], length) if presence is None else presence.float().sum(dim=1, keepdim=True)
    return comparable(sums, seen, total)


def attention_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    reads: frozenset[str] = frozenset(),
    key_weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`packed_attention` with one product for all sequences, padded to the longest remaining one."""
    query, key, value = (packing.pad(x) for x in (query, key, value))  # (B, N, H, D/H)
    if pairs is not None:
        pairs = dataclasses.replace(pairs, positions=packing.pad(pairs.positions))
    if reads or key_weights is not None or pairs is not None:
        of_keys = None if key_weights is None else packing.pad(key_weights)
        context, probs = masked_attention(query, key, value, packing.alive, dropout, of_keys, pairs)
        presence = packing.alive if query_weights is None else packing.pad(query_weights)
        sums = attention_sums(probs, value.transpose(1, 2), presence, reads)
        sums = comparable_in_padded(sums, pairs, presence)
        return packing.pack(context), {name: packing.pack(values) for name, values in sums.items()}
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = packing.alive[:, None, None, :]
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return packing.pack(context.transpose(1, 2).flatten(2)), {}


def attention_by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    reads: frozenset[str] = frozenset(),
    key_weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`packed_attention` with Triton's kernels for packed sequences, without padding; not for pairs."""
    assert pairs is None
    from ltp.kernels.attention import attention

    bias = None if key_weights is None else key_bias(key_weights)
    context, lse, received = attention(
        *(query, key, value, packing.starts, packing.counts, packing.alive.shape[1]),
        bias=bias,
        query_weights=query_weights,
        dropout=dropout,
        seed=int(torch.randint(2**31 - 1, ())) if dropout else 0,  # from the host's generator: no wait
        received=bool(reads & {"received", "value_weighted"}),
    )
    sums: dict[str, Tensor] = {}
    with torch.autocast(query.device.type, enabled=False):
        if "received" in reads and received is not None:
            sums["received"] = packing.pack(received.sum(dim=1))
        if "value_weighted" in reads and received is not None:
            by_head = packing.pack(received.transpose(1, 2))  # (T, H)
            sums["value_weighted"] = (by_head * value.float().norm(dim=-1)).sum(dim=1)
        scale, added = query.shape[-1] ** -0.5, 0.0 if bias is None else bias[:, None]
        if "diagonal" in reads:
            logits = (query.float() * key.float()).sum(dim=-1) * scale + added
            diagonal = (logits - lse).exp().sum(dim=1)
            sums["diagonal"] = diagonal if query_weights is None else diagonal * query_weights
        if "class_attention" in reads:
            first = packing.starts.repeat_interleave(packing.counts, output_size=packing.total)
            logits = (query[first].float() * key.float()).sum(dim=-1) * scale + added
            sums["class_attention"] = (logits - lse[first]).exp().sum(dim=1)
    return context.flatten(1), sums


@cache
def kernels_work(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether Triton's kernels run on a device and agree with the padded form, on a small example; warns if not."""
    try:
        from ltp.kernels.attention import LARGEST_HEAD

        if head_size > LARGEST_HEAD:
            reason = f"heads of {head_size} numbers; they take {LARGEST_HEAD} at most"
        else:
            reason = "" if _kernels_agree(device, dtype, head_size) else "they gave wrong results in a check"
    except Exception as error:  # no Triton, or a device that it does not compile for
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason:
        warnings.warn(f"attention on {device} is padded, which is slower than ltp's kernels: {reason}", stacklevel=3)
    return not reason


@torch.no_grad()
def _kernels_agree(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    counts = torch.tensor([1, 17, 70], device=device)
    packing = Packing(counts, torch.arange(3, device=device))
    numbers = torch.linspace(-40, 40, 88 * 2 * head_size, device=device)  # not random: leaves the generator as it is
    query, key, value = ((numbers * (2 + part)).sin().view(88, 2, head_size).to(dtype) for part in range(3))
    reads = frozenset({"received"})
    context, sums = attention_by_kernel(query, key, value, packing, 0.0, reads=reads)
    exact = (query.float(), key.float(), value.float())
    expected, expected_sums = attention_by_rows(*exact, packing, 0.0, reads=reads)
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    differences = (context.float() - expected, sums["received"] - expected_sums["received"])
    return all(bool(difference.abs().max() <= allowed * 2) for difference in differences)
