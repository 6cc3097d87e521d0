"""Search the keep rates of all layers at a given cost by evolution, as LAT does (Kim and Cho, arXiv 2010.07003).

No labels are read: of two configurations with the same cost, the better one changes the unpruned
model's logits less.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ltp.calibration.flops import Tick
from ltp.calibration.search import TOLERANCE
from ltp.data.sequences import Batch
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE, RankedMethod, method_class

#: Configurations that are kept from a generation to the next; each has one mutated and one crossed child.
POPULATION = 8
#: Probability that a mutation draws a layer's keep rate anew, as published.
MUTATION = 0.5
_BISECTIONS = 30

Rates = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Evolved:
    """Result of a search.

    Attributes:
        rates: keep rates of layers 1..L.
        divergence: of the logits from those of the unpruned model, mean over the sample.
        start_divergence: the same with the rates that the search started from.
        tried: number of configurations measured.
    """

    rates: Rates
    divergence: float
    start_divergence: float
    tried: int


def evolve(
    model: LTPPreTrainedModel,
    batches: Sequence[Batch],
    *,
    generations: int,
    seed: int = 0,
    tick: Tick = lambda count: None,
) -> Evolved:
    """Search keep rates with the cost of the model's own, and set the best ones.

    Args:
        model: a classifier whose method has keep rates, at the wanted cost, on its device and in evaluation mode.
        batches: the sample.
        generations: number of generations; each measures 2 · :data:`POPULATION` configurations at most.
        seed: of the mutations.
        tick: called after each measurement with its number of examples.
    """
    method = model.pruner.method
    assert isinstance(method, RankedMethod)
    num_layers = model.pruner.shape.num_layers
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches]).cpu()
    decides = model.pruner.decides
    measure = _divergence(model, batches, tick)

    def cost(rates: Sequence[float]) -> float:
        return model.cost.total_relative_flops(method.with_rates(rates).expected_lengths(lengths, decides))

    start: Rates = tuple(method.rates(num_layers))
    target = cost(start)
    draw = np.random.default_rng(seed)
    found = {start: measure(start)}
    for _ in range(generations):
        parents = sorted(found, key=lambda rates: found[rates])[:POPULATION]
        children = [_mutated(rates, draw) for rates in parents]
        children += [_crossed(rates, parents[draw.integers(len(parents))], draw) for rates in parents]
        for child in children:
            rates = _at_cost(child, cost, target)
            if rates is not None and rates not in found:
                found[rates] = measure(rates)
    best = min(found, key=lambda rates: found[rates])
    model.set_pruning(**method.setting_of(best))
    return Evolved(best, found[best], found[start], len(found))


def _divergence(model: LTPPreTrainedModel, batches: Sequence[Batch], tick: Tick) -> Callable[[Sequence[float]], float]:
    """Return a function from keep rates to the divergence of the logits from those of the unpruned model."""
    pruner, method = model.pruner, model.pruner.method
    assert isinstance(method, RankedMethod)

    @torch.inference_mode()
    def logits() -> Tensor:
        made = []
        for batch in batches:
            output = model(**{name: value.to(model.device) for name, value in batch.items() if name != "labels"})
            made.append(output.logits.double().cpu())  # small differences of small numbers
            tick(len(batch["input_ids"]))
        return torch.cat(made)

    pruner.method = method_class(DENSE_MODE)()
    dense = logits()
    pruner.method = method

    def measure(rates: Sequence[float]) -> float:
        pruner.method = method.with_rates(rates)
        try:
            pruned = logits()
        finally:
            pruner.method = method
        if pruned.shape[1] == 1 or model.config.problem_type == "multi_label_classification":
            return float(functional.mse_loss(pruned, dense))
        expected, actual = functional.log_softmax(dense, dim=-1), functional.log_softmax(pruned, dim=-1)
        return float(functional.kl_div(actual, expected, reduction="batchmean", log_target=True))

    return measure


def _mutated(rates: Rates, draw: np.random.Generator) -> Rates:
    """Draw some layers' rates anew, each between those of its neighbours."""
    new = list(rates)
    for layer in range(len(new)):
        if draw.random() < MUTATION:
            lowest = new[layer + 1] if layer + 1 < len(new) else 0.0
            new[layer] = draw.uniform(lowest, new[layer - 1] if layer else 1.0)
    return tuple(new)


def _crossed(rates: Rates, other: Rates, draw: np.random.Generator) -> Rates:
    """Take each layer's rate from one of two configurations."""
    picked = [pair[draw.integers(2)] for pair in zip(rates, other, strict=True)]
    return tuple(sorted(picked, reverse=True))


def _at_cost(rates: Rates, cost: Callable[[Sequence[float]], float], target: float) -> Rates | None:
    """Scale what the layers drop until a configuration has the target cost; None if it cannot."""

    def scaled(factor: float) -> Rates:
        return tuple(round(min(max(1 - (1 - rate) * factor, 0.0), 1.0), 6) for rate in rates)

    low, high = 1e-3, 1e3
    for _ in range(_BISECTIONS):
        factor = math.sqrt(low * high)
        current = cost(scaled(factor))
        if abs(current - target) <= TOLERANCE:
            return scaled(factor)
        low, high = (factor, high) if current > target else (low, factor)
    return None
