"""FLOPs of a forward pass, computed from the number of tokens alive in each layer.

One MAC is one multiply-add; FLOPs = 2 MACs. Layer l of one example costs ``4·D²·n_l + 2·D·n_l²`` MACs (the four
projections and the two attention products, on the n_l tokens that enter) plus ``2·D·I·n_{l+1}`` (the FFN, on the
tokens that the layer keeps), and what the method itself computes. Embeddings, pooler and head are not counted: they are
the same for every method. This is the usual count of the literature, with the actual FFN width I.

A gated FFN costs ``3·D·I·n_{l+1}``. In a layer with a window a token attends to W tokens at most:
``2·D·n_l·min(n_l, W)``. Each term of content with relative position adds ``D·n_l·min(2·n_1 − 1, span)``; the projection
of the positions, once for a batch, is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltp.pruning.method import Method
from ltp.pruning.tokens import EncoderShape

DEFINITION = (
    "FLOPs = 2 MACs; per layer 4·D²·n + 2·D·n² MACs on the n tokens that enter and 2·D·I·m on the m that survive; "
    "(gated FFN: 3·D·I·m; windows and relative positions as in ltp.pruning.flops); "
    "embeddings, pooler and head left out; dense = the same example without pruning and without padding"
)


@dataclass(frozen=True)
class CostModel:
    """Counts the FLOPs of an encoder that drops tokens.

    Attributes:
        num_layers: L.
        hidden_size: D.
        intermediate_size: I, the width of the FFN.
        decides_before: whether a layer's decision falls before its attention, so that the tokens which it drops do not
            enter that layer.
        own_flops: FLOPs that the method adds in each layer for a token that enters it; empty for none.
        ffn_products, windows, position_terms, position_span: see :class:`~ltp.pruning.tokens.EncoderShape`.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    decides_before: bool = False
    own_flops: tuple[float, ...] = ()
    ffn_products: int = 2
    windows: tuple[int | None, ...] = ()
    position_terms: int = 0
    position_span: int = 0

    @classmethod
    def of_method(cls, method: Method, shape: EncoderShape, decides: Sequence[bool] | None = None) -> "CostModel":
        """Create the cost model of a method on an encoder.

        Args:
            method, shape: the method and the encoder.
            decides: whether tokens may leave in each layer; None for all.
        """
        names = (
            "num_layers",
            "hidden_size",
            "intermediate_size",
            "ffn_products",
            "windows",
            "position_terms",
            "position_span",
        )
        sizes = {name: getattr(shape, name) for name in names}
        own = method.own_flops(shape)
        own_flops = tuple(own * in_layer for in_layer in decides or [True] * shape.num_layers) if own else ()
        return cls(**sizes, decides_before=method.decides_before, own_flops=own_flops)

    def layer_flops(self, token_lengths: Tensor) -> Tensor:
        """Compute the FLOPs of each layer for each example.

        Args:
            token_lengths: real tokens, then tokens alive after the decision of each layer, (B, L+1), integer or float.
                The cost is quadratic, so a row must be one example (or its expected lengths), not a mean over examples.

        Returns:
            (B, L) float64, in FLOPs.
        """
        lengths = token_lengths.to(torch.float64)
        deciding, surviving = lengths[:, :-1], lengths[:, 1:]
        entering = surviving if self.decides_before else deciding
        seen = entering
        if self.windows:
            widths = [torch.inf if width is None else width for width in self.windows]
            seen = torch.minimum(entering, torch.tensor(widths, dtype=torch.float64, device=lengths.device))
        attention = 4 * self.hidden_size**2 * entering + 2 * self.hidden_size * entering * seen
        if self.position_terms:
            distances = (2 * lengths[:, :1] - 1).clamp(max=self.position_span)
            attention = attention + self.position_terms * self.hidden_size * entering * distances
        feed_forward = self.ffn_products * self.hidden_size * self.intermediate_size * surviving
        total = 2 * (attention + feed_forward)
        if self.own_flops:
            total = total + torch.tensor(self.own_flops, dtype=torch.float64, device=lengths.device) * deciding
        return total

    def dense_layer_flops(self, lengths: Tensor) -> Tensor:
        """Compute the FLOPs of each layer without pruning and without padding.

        Args:
            lengths: number of real tokens n of each example, (B,).

        Returns:
            (B, L) float64, in FLOPs.
        """
        return self._dense(lengths[:, None].expand(-1, self.num_layers + 1))

    def _dense(self, token_lengths: Tensor) -> Tensor:
        return replace(self, decides_before=False, own_flops=()).layer_flops(token_lengths)

    def mean_dense_flops(self, lengths: Tensor) -> float:
        """Compute the mean FLOPs per example without pruning; ``lengths``, (B,), are the numbers of real tokens."""
        return float(self.dense_layer_flops(lengths).sum(dim=1).mean())

    def flops_and_dense(self, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the FLOPs of each example and its dense FLOPs without padding, each (B,) float64."""
        dense = self._dense(token_lengths[:, :1].expand_as(token_lengths))
        return self.layer_flops(token_lengths).sum(dim=1), dense.sum(dim=1)

    def relative_flops(self, token_lengths: Tensor) -> Tensor:
        """Compute the FLOPs of each example divided by its dense FLOPs without padding, (B,) float64, above 0."""
        cost, dense = self.flops_and_dense(token_lengths)
        return cost / dense

    def total_relative_flops(self, token_lengths: Tensor) -> float:
        """Compute the FLOPs of all examples divided by their dense FLOPs, as in ``results.json``."""
        cost, dense = self.flops_and_dense(token_lengths)
        return float(cost.sum() / dense.sum())

    def lowest_relative_flops(self, lengths: Tensor) -> float:
        """Compute the relative FLOPs if only the classification token survives the first layer: the lower bound.

        Args:
            lengths: number of real tokens n of each example, (B,).
        """
        fewest = torch.ones(len(lengths), self.num_layers + 1, dtype=torch.float64)
        fewest[:, 0] = lengths
        return self.total_relative_flops(fewest)
