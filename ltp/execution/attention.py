"""Self-attention over padded and packed tokens that also returns what it gives each token."""

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ltp.execution.packing import Packing
from ltp.pruning.importance import attention_sums

#: On a CPU, half-precision sequences of up to this many tokens use float32 attention: as fast, and exact.
FLOAT32_TOKENS = 128
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


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, alive: Tensor, dropout: float, key_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over padded sequences; keys that are not alive have probability 0.

    Args:
        query, key, value: (B, N, H, D/H).
        alive: tokens alive, (B, N) bool, at least one in each example.
        dropout: probability of dropping an attention weight (0 outside training).
        key_weights: factors on the weights of keys, (B, N) float32; None for 1.

    Returns:
        The context, (B, N, D), and the probabilities *before* dropout, (B, H, N, N): with dropout, importance would
        be random, and rows would not sum to 1.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, H, N, D/H)
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    bias = (
        torch.zeros_like(alive, dtype=logits.dtype) if key_weights is None else key_bias(key_weights).to(logits.dtype)
    )
    bias = bias.masked_fill(~alive, torch.finfo(logits.dtype).min)
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

    Returns:
        The context, (T, D), and the sums over each token's own sequence, by name, each (T,) float32.
    """
    # neither computes padding; the padded form is for GPUs that cannot run the kernels
    if query.device.type == "cpu":
        attend = attention_by_length
    elif kernels_work(query.device, query.dtype, query.shape[-1]):
        attend = attention_by_kernel
    else:
        attend = attention_by_rows
    weights = {"key_weights": key_weights, "query_weights": query_weights}
    return attend(query, key, value, packing, dropout, reads=reads, **weights)


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`packed_attention` with one product per group of sequences of equal length, without padding or copies."""
    contexts: list[Tensor] = []
    sums: dict[str, list[Tensor]] = {}
    sizes = [sequences * length for sequences, length in packing.groups]
    keyed, queried = (
        [None] * len(sizes) if weights is None else weights.split(sizes) for weights in (key_weights, query_weights)
    )
    parts = zip(packing.groups, keyed, queried, *(x.split(sizes) for x in (query, key, value)), strict=True)
    with torch.autocast("cpu", enabled=False):  # dtypes are chosen explicitly here
        for (sequences, length), of_keys, of_queries, *qkv in parts:
            dtype = torch.float32 if length <= FLOAT32_TOKENS else query.dtype
            q, k, v = (x.to(dtype).unflatten(0, (sequences, length)).transpose(1, 2) for x in qkv)  # (…, H, n, D/H)
            if reads or of_keys is not None:
                logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
                if of_keys is not None:
                    logits = logits + key_bias(of_keys.view(sequences, 1, 1, length)).to(dtype)
                probs = logits.softmax(dim=-1)  # (…, H, n, n)
                presence = None if of_queries is None else of_queries.view(sequences, length)
                for name, values in attention_sums(probs, v, presence, reads).items():
                    sums.setdefault(name, []).append(values.flatten())
                context = (functional.dropout(probs, dropout) if dropout else probs) @ v
            else:
                context = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            contexts.append(context.transpose(1, 2).flatten(0, 1))  # (sequences · n, H, D/H)
    context = torch.cat(contexts).flatten(1).to(value.dtype)
    return context, {name: torch.cat(values) for name, values in sums.items()}


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`packed_attention` with one product for all sequences, padded to the longest remaining one."""
    query, key, value = (packing.pad(x) for x in (query, key, value))  # (B, N, H, D/H)
    if reads or key_weights is not None:
        of_keys = None if key_weights is None else packing.pad(key_weights)
        context, probs = masked_attention(query, key, value, packing.alive, dropout, of_keys)
        presence = packing.alive if query_weights is None else packing.pad(query_weights)
        sums = attention_sums(probs, value.transpose(1, 2), presence, reads)
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`packed_attention` with Triton's kernels for packed sequences, without padding."""
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
