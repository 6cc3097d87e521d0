"""The limit: a forward pass of nothing but the layers' matrix products, at the token counts of a pass."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ltp.benchmark.timing import Pass
from ltp.deploy.linears import DTYPES, PlainLinear, linear_type

DEFINITION = (
    "per layer the fused query-key-value product on the tokens that enter, the output projection and the two FFN "
    "products on the survivors, in the last layer on the classification tokens; same type, same kind of linear as the "
    "engine; attention, softmax, norms, gathers, embeddings and head left out"
)

Linear = Callable[[Tensor], Tensor]


def linear_tokens(token_lengths: Tensor) -> list[tuple[int, int]]:
    """Rows of each layer's products for one packed batch: query-key-value, and all others.

    Args:
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1) int64.
    """
    totals = token_lengths.sum(dim=0).tolist()
    totals[-1] = len(token_lengths)  # behind the last layer's attention only classification tokens are read
    return list(itertools.pairwise(totals))


def bare_products(config: Any, token_lengths: Sequence[Tensor], dtype: str, backend: str, device: torch.device) -> Pass:
    """A pass over all batches that does the linear products alone, one after the other, on random numbers.

    Args:
        config: D, I and L, as an :class:`~ltp.model.configuration.LTPConfig` has them.
        token_lengths: of each batch, (B, L+1) int64.
        dtype: float32, bfloat16 or int8.
        backend: ``plain`` (``F.linear``) or ``deployed`` (the linears of ``deploy()``, with rows as it fills them up).
        device: where.

    """
    make = {"plain": _plain, "deployed": _deployed}[backend]
    rounded = linear_type(dtype).row_count if backend == "deployed" else PlainLinear.row_count
    width, inner = config.hidden_size, config.intermediate_size
    shapes = ((3 * width, width), (width, width), (inner, width), (width, inner))
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    layers = [[make(0.02 * random(*shape), dtype) for shape in shapes] for _ in range(config.num_hidden_layers)]
    counts = [[(rounded(a), rounded(b)) for a, b in linear_tokens(lengths)] for lengths in token_lengths]
    most = max(rows for batch in counts for rows, _ in batch)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32  # int8 linears quantise float32 activations
    narrow, wide = random(most, width).to(kind), random(most, inner).to(kind)

    def run() -> None:
        for batch in counts:
            for (entering, surviving), (project, output, up, down) in zip(batch, layers, strict=True):
                project(narrow[:entering])
                output(narrow[:surviving])
                up(narrow[:surviving])
                down(wide[:surviving])

    return run


def _plain(weight: Tensor, dtype: str) -> Linear:
    weight = weight.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    return lambda rows: functional.linear(rows, weight, bias)


def _deployed(weight: Tensor, dtype: str) -> Linear:
    return linear_type(dtype)(weight, torch.zeros(len(weight)), DTYPES[dtype])
