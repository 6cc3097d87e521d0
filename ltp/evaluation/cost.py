"""The inference cost of a split: FLOPs and surviving tokens as a torchmetrics metric."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ltp.pruning.flops import CostModel


class CostMetric(Metric):
    """Exact sums of FLOPs (:mod:`ltp.pruning.flops`) and surviving tokens over a split and all processes.

    Args:
        cost: counts the FLOPs of the model.
    """

    full_state_update = False
    token_sums: Tensor
    flops: Tensor
    dense_flops: Tensor
    examples: Tensor

    def __init__(self, cost: CostModel) -> None:
        super().__init__()
        self.cost, num_layers = cost, cost.num_layers
        zeros = {"token_sums": num_layers + 1, "flops": num_layers, "dense_flops": num_layers, "examples": 1}
        for name, size in zeros.items():
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, token_lengths: Tensor) -> None:
        """Add a batch: tokens that enter each layer and leave the last, (B, L+1) int64."""
        self.token_sums += token_lengths.double().sum(dim=0)
        self.flops += self.cost.layer_flops(token_lengths).sum(dim=0)
        self.dense_flops += self.cost.dense_layer_flops(token_lengths[:, 0]).sum(dim=0)
        self.examples += len(token_lengths)

    def compute(self) -> dict[str, Any]:
        """Return means over the examples.

        Returns:
            ``relative_flops`` (share of the dense FLOPs), ``gflops`` and ``dense_gflops`` (GFLOPs per example),
            ``gflops_per_layer`` (L values) and ``tokens_per_layer`` (L+1 values).
        """
        per_layer = self.flops / self.examples / 1e9
        dense = self.dense_flops / self.examples / 1e9
        tokens = self.token_sums / self.examples
        return {
            "relative_flops": (per_layer.sum() / dense.sum()).item(),
            "gflops": per_layer.sum().item(),
            "dense_gflops": dense.sum().item(),
            "gflops_per_layer": per_layer.tolist(),
            "tokens_per_layer": tokens.tolist(),
        }
