"""Speed of an exported graph compared with the dense graph of the same weights."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltp.data.sequences import Batch
from ltp.deploy.formats import GRAPHS
from ltp.deploy.graph import write_dense_onnx
from ltp.deploy.timing import Spread, interleaved, ratio
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
    model: LTPPreTrainedModel,
    path: Path,
    batches: dict[int, list[Batch]],
    rounds: int,
    *,
    form: str = "onnx",
    dtype: str = "float32",
) -> dict[int, Speed]:
    """Time a graph and the dense Hugging Face model's graph of the same format and type in interleaved rounds.

    Args:
        model: the classifier.
        path: its exported graph.
        batches: input batches by batch size.
        form, dtype: see :func:`~ltp.exporting.run.export_graph`.
        rounds: number of timed passes of each graph.

    Returns:
        Speed by batch size.
    """
    runtime = GRAPHS[form].runtime
    with tempfile.TemporaryDirectory() as folder:
        traced, target = Path(folder) / "traced.onnx", Path(folder) / GRAPHS[form].file
        write_dense_onnx(model, traced)
        runtime.convert(traced, target, dtype, batches[min(batches)])
        dense, graph = runtime.load(target), runtime.load(path)
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
