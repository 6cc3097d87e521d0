"""Graphs of OpenVINO, converted from ONNX. Requires the packages of the extra ``openvino``."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ltp.data.sequences import Batch
from ltp.deploy.onnx import Infer, quiet
from ltp.errors import RunError


def convert(traced: Path, target: Path, dtype: str, examples: Sequence[Batch] = ()) -> None:
    """Write a traced graph as OpenVINO's ``.xml``, with its weights in a ``.bin`` file beside it.

    Args:
        traced: the ONNX graph, float32.
        target: the ``.xml`` file to write.
        dtype: ``float32``, or ``int8``: weights and activations of the products are quantised by NNCF, activations with
            ranges from the examples.
        examples: batches to calibrate int8 with.

    Raises:
        RunError: OpenVINO does not support an operation of the graph.
    """
    import openvino

    try:
        model = openvino.convert_model(traced)
    except openvino.frontend.OpConversionFailure as error:
        raise RunError(f"OpenVINO does not convert this model's graph: {str(error).splitlines()[-1]}") from error
    if dtype == "int8":
        model = _quantise(model, examples)
    openvino.save_model(model, target, compress_to_fp16=False)


def _quantise(model: Any, examples: Sequence[Batch]) -> Any:
    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # NNCF draws progress bars
        import nncf

        names = [item.any_name for item in model.inputs]
        dataset = nncf.Dataset(examples, lambda batch: {name: batch[name].numpy() for name in names})
        return nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(examples))


def load(path: Path) -> Infer:
    """Load a graph on the CPU, with PyTorch's current number of threads."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # by default OpenVINO computes in bfloat16 where the CPU can
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    names = [item.any_name for item in compiled.inputs]

    def run(batch: Batch) -> list[torch.Tensor]:
        results = request.infer({name: batch[name].numpy() for name in names})
        return [torch.from_numpy(results[output].copy()) for output in compiled.outputs]

    return run
