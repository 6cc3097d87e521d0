"""Small networks of methods that score a token by its hidden state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltp.pruning.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Width of :func:`new_scorer`.
WIDTH = 32


def new_scorer(hidden_size: int, bias: float = 0.0) -> Any:
    """Create a network from hidden states to one number a token: (…, D) to (…, 1), about ``bias`` at first."""
    nn = torch.nn
    network: Any = initialised(nn.Sequential(nn.Linear(hidden_size, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1)))
    nn.init.constant_(network[2].bias, bias)
    return network


def scorer_flops(hidden_size: int) -> float:
    """Return the FLOPs of :func:`new_scorer` for a token."""
    return 2.0 * WIDTH * (hidden_size + 1)


def initialised(network: Any) -> Any:
    """Give the linear layers of a network small random weights, as BERT's, and no bias."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.02)
            torch.nn.init.zeros_(module.bias)
    return network


def at_odds(probability: float, strength: float) -> float:
    """Return the probability whose odds are ``strength`` times those of another."""
    odds = probability / max(1 - probability, 1e-9) * strength
    return odds / (1 + odds)


def float32_outputs(network: Any, hidden: Tensor) -> Tensor:
    """Compute a network's numbers of hidden states, (B, N, D), in its own precision, also under autocast: float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        return network(hidden.to(next(network.parameters()).dtype)).float()
