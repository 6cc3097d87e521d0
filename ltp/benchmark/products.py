"""The speed limit: a forward pass that computes only the layers' matrix products, at given token counts."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ltp.deploy.linears import DTYPES, PlainLinear, Scale, int8_type, linear_type
from ltp.deploy.timing import Pass

DEFINITION = (
    "per layer the fused query-key-value product on the tokens that enter the layer, and the output projection and the "
    "two FFN products on the tokens that survive (in the last layer: on the classification tokens); same type and kind "
    "of linear layer as the engine; without attention, softmax, norms, gathers, embeddings and head"
)

Linear = Callable[[Tensor], Tensor]


def linear_tokens(token_lengths: Tensor) -> list[tuple[int, int]]:
    """Rows of each layer's matrix products for one packed batch: of query-key-value, and of the other three.

    Args:
        token_lengths: tokens alive before each layer and after the last, (B, L+1) int64.
    """
    totals = token_lengths.sum(dim=0).tolist()
    totals[-1] = len(token_lengths)  # after the last layer's attention only the classification tokens are used
    return list(itertools.pairwise(totals))


def bare_products(config: Any, token_lengths: Sequence[Tensor], dtype: str, backend: str, device: torch.device) -> Pass:
    """Build a pass over all batches that computes only the linear products, one after the other, on random numbers.

    Args:
        config: gives hidden_size, intermediate_size, num_hidden_layers and encoder_shape, as
            :class:`~ltp.model.configuration.LTPConfig` does.
        token_lengths: one tensor per batch, (B, L+1) int64.
        dtype: float32, bfloat16 or int8.
        backend: ``plain`` (``F.linear``) or ``deployed`` (the linears of ``deploy()``, with its padding of rows).
        device: where the products are computed.
    """
    if device.type == "cuda":
        backend = "plain"  # the device's library is the limit there
    make_linear = {"plain": _plain, "deployed": _deployed}[backend]
    kind = int8_type() if dtype == "int8" else linear_type(dtype)
    padded_rows = kind.row_count if backend == "deployed" else PlainLinear.row_count
    hidden_size, inner_size = config.hidden_size, config.intermediate_size
    shapes = (
        (3 * hidden_size, hidden_size),
        (hidden_size, hidden_size),
        ((config.encoder_shape.ffn_products - 1) * inner_size, hidden_size),  # with a gate, both in one
        (hidden_size, inner_size),
    )
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    layers = [[make_linear(0.02 * random(*shape), dtype) for shape in shapes] for _ in range(config.num_hidden_layers)]
    counts = [[(padded_rows(a), padded_rows(b)) for a, b in linear_tokens(lengths)] for lengths in token_lengths]
    max_rows = max(rows for batch in counts for rows, _ in batch)
    torch_type = torch.bfloat16 if dtype == "bfloat16" else torch.float32  # int8 linears take float32 activations
    hidden = random(max_rows, hidden_size).to(torch_type)
    intermediate = random(max_rows, inner_size).to(torch_type)

    def run() -> None:
        for batch in counts:
            for (entering, surviving), (query_key_value, output, up, down) in zip(batch, layers, strict=True):
                query_key_value(hidden[:entering])
                output(hidden[:surviving])
                up(hidden[:surviving])
                down(intermediate[:surviving])

    return run


def _plain(weight: Tensor, dtype: str) -> Linear:
    weight = weight.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    return lambda rows: functional.linear(rows, weight, bias)


def _deployed(weight: Tensor, dtype: str) -> Linear:
    bias = torch.zeros(len(weight))
    if dtype == "int8":
        return int8_type()(weight, bias, Scale(step=0.03, zero=128))
    return linear_type(dtype)(weight, bias, DTYPES[dtype])
