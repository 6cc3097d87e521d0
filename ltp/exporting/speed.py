"""How much faster an exported graph is than a dense one of the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ltp.benchmark.timing import Spread, interleaved, ratio
from ltp.data.sequences import Batch
from ltp.deploy.onnx import onnx_engine
from ltp.exporting.agreement import Infer
from ltp.model.classifier import LTPForSequenceClassification

#: A pass of a round takes so many sequences at most: each batch size is timed on some of the same ones.
TIMED_SEQUENCES = 128


@dataclass(frozen=True)
class Speed:
    """Two graphs side by side, on the wall clock.

    Attributes:
        milliseconds, dense_milliseconds: a sequence, of the pruned and of the dense graph.
        speedup: their ratio, round by round.
    """

    milliseconds: Spread
    dense_milliseconds: Spread
    speedup: Spread


def compare_speed(
    model: LTPForSequenceClassification, graph: Infer, batches: dict[int, list[Batch]], rounds: int
) -> dict[int, Speed]:
    """Time a graph and the dense Hugging Face classifier's graph in interleaved rounds, on ONNX Runtime.

    Args:
        model: the classifier.
        graph: its exported graph.
        batches: what both read, by batch size.
        rounds: how often each is timed.

    Returns:
        Speeds by batch size.
    """
    dense = onnx_engine(model.dense, "float32")
    speeds = {}
    for size, all_batches in batches.items():
        chosen = all_batches[: max(1, TIMED_SEQUENCES // size)]
        passes = {"pruned": _pass(graph, chosen), "dense": _pass(dense, chosen)}
        for warm_up in passes.values():
            warm_up()
        seconds = interleaved(passes, rounds)
        sequences = sum(len(batch["input_ids"]) for batch in chosen)
        each = {name: Spread.of([1000 * second / sequences for second in seconds[name]]) for name in passes}
        speeds[size] = Speed(each["pruned"], each["dense"], ratio(seconds["dense"], seconds["pruned"]))
    return speeds


def _pass(infer: Callable[[Batch], Any], batches: Sequence[Batch]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                infer(batch)

    return run
