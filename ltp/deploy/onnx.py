"""ONNX export of classifiers and inference with ONNX Runtime. Requires the packages of the extra ``onnx``."""

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltp.data.sequences import Batch


#: The version of ONNX's operators: the lowest one that PyTorch writes itself. To older ones it converts with ONNX's
#: converter, which leaves attributes that they do not have.
OPSET = 18


class _Logits(nn.Module):
    """A classifier that returns its logits as a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def onnx_engine(model: Any, dtype: str, inputs: Sequence[str]) -> Any:
    """Export a classifier with dynamic batch size and sequence length, and load it with ONNX Runtime.

    Args:
        model: a Hugging Face classifier, float32, in evaluation mode, on the CPU.
        dtype: ``float32``, or ``int8``: weights quantised per channel, activations dynamically.
        inputs: see :func:`export_graph`.

    Returns:
        A function from a batch to its logits. It uses PyTorch's current number of threads.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_graph(_Logits(model).eval(), path, inputs=inputs, outputs=("logits",))
        if dtype == "int8":
            exported, path = path, path.with_name("int8.onnx")
            with _quiet():
                quantize_dynamic(exported, path, weight_type=QuantType.QInt8, per_channel=True)
        session = open_graph(path)

    def run(batch: Batch) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: batch[name].numpy() for name in inputs})[0])

    return run


def open_graph(path: Path) -> Any:
    """Open an ``InferenceSession`` of a graph on the CPU, with PyTorch's current number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def export_graph(module: nn.Module, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write a classifier as an ONNX file with dynamic batch size and sequence length.

    Args:
        module: the classifier, in evaluation mode.
        path: the file to write, weights included.
        inputs: names of the arguments, from ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        outputs: names of the results.
    """
    ids = torch.arange(5, 23).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # otherwise the exporter may treat the mask as a constant
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    with _quiet():
        torch.onnx.export(
            module,
            tuple(example[name] for name in inputs),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=({0: "batch", 1: "length"},) * len(inputs),
            opset_version=OPSET,
            custom_translation_table={
                torch.ops.aten.sort.stable: _stable_sort,
                torch.ops.aten.index.Tensor: _index,
                torch.ops.aten.gelu.default: _gelu,
            },
        )


def _stable_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Translate ``torch.sort(stable=True)``, which the exporter lacks; ONNX's TopK orders equal values by index."""
    from onnxscript import opset18

    op: Any = opset18  # its type annotations reject constants
    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _index(values: Any, indices: Sequence[Any]) -> Any:
    """Translate ``values[index]`` to one Gather; the exporter writes GatherND and reshapes."""
    import onnx_ir
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.core import aten_index

    if len(indices) > 1 or indices[0].dtype == onnx_ir.DataType.BOOL:
        return aten_index(values, indices)
    op: Any = opset18
    return op.Gather(values, indices[0], axis=0)


def _gelu(values: Any, approximate: str = "none") -> Any:
    """Translate GELU to the operations in the order in which ONNX Runtime finds them, to compute them as one."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.nn import aten_gelu

    if approximate != "none":
        return aten_gelu(values, approximate)
    op: Any = opset18
    doubled = op.Mul(values, op.Add(op.Erf(op.Div(values, op.Constant(value_float=math.sqrt(2)))), op.Constant(value_float=1.0)))
    return op.Mul(doubled, op.Constant(value_float=0.5))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages and warnings of the libraries; errors are still raised as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
