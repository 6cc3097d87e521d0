"""Speed of an exported graph compared with the dense graph of the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ltp.benchmark.timing import Spread, interleaved, ratio
from ltp.data.sequences import Batch
from ltp.deploy.onnx import onnx_engine
from ltp.exporting.agreement import Infer
from ltp.exporting.graph import input_names
from ltp.model.pretrained import LTPPreTrainedModel

#: Maximum number of sequences in a timed pass: the first ones, so that all batch sizes use the same sequences.
TIMED_SEQUENCES = 128


@dataclass(frozen=True)
class Speed:
    """Wall-clock times of the pruned and the dense graph.

    Attributes:
        milliseconds, dense_milliseconds: milliseconds per sequence of the pruned and of the dense graph.
        speedup: ratio of their times in each round.
    """

    milliseconds: Spread
    dense_milliseconds: Spread
    speedup: Spread


def compare_speed(
    model: LTPPreTrainedModel, graph: Infer, batches: dict[int, list[Batch]], rounds: int
) -> dict[int, Speed]:
    """Time a graph and the dense Hugging Face classifier's graph in interleaved rounds, on ONNX Runtime.

    Args:
        model: the classifier.
        graph: its exported graph.
        batches: input batches by batch size.
        rounds: number of timed passes of each graph.

    Returns:
        Speed by batch size.
    """
    dense = onnx_engine(model.dense, "float32", input_names(model))
    speeds = {}
    for size, all_batches in batches.items():
        timed = all_batches[: max(1, TIMED_SEQUENCES // size)]
        passes = {"pruned": _pass(graph, timed), "dense": _pass(dense, timed)}
        for warm_up in passes.values():
            warm_up()
        seconds = interleaved(passes, rounds)
        sequences = sum(len(batch["input_ids"]) for batch in timed)
        times = {name: Spread.from_values([1000 * second / sequences for second in seconds[name]]) for name in passes}
        speeds[size] = Speed(times["pruned"], times["dense"], ratio(seconds["dense"], seconds["pruned"]))
    return speeds


def _pass(infer: Callable[[Batch], Any], batches: Sequence[Batch]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                infer(batch)

    return run
