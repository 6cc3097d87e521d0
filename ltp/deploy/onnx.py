"""ONNX graphs, and inference with ONNX Runtime. Requires the packages of the extra ``onnx``."""

import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltp.data.sequences import Batch
from ltp.errors import RunError

#: Version of ONNX's operators, the lowest that PyTorch's exporter writes. For an older one it calls ONNX's converter,
#: which leaves attributes that the older operators do not have (``noop_with_empty_axes`` of ReduceMax).
OPSET = 18

Infer = Callable[[Batch], list[Tensor]]  #: computes the outputs of a graph, in their order


class ResultsOf(nn.Module):
    """A Hugging Face model that returns some of its results as a tuple of tensors.

    Args:
        model: the model.
        names: attributes of its output.
    """

    def __init__(self, model: Any, names: Sequence[str] = ("logits",)) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(output[name] for name in self.names)


def trace_graph(module: nn.Module, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write a model as an ONNX file with dynamic batch size and sequence length.

    Args:
        module: the model, in evaluation mode; returns a tuple of tensors.
        path: the file to write, weights included.
        inputs: names of the arguments, from ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        outputs: names of the results.

    Raises:
        RunError: the exporter does not support an operation of the model.
    """
    ids = torch.arange(5, 23).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # otherwise the exporter may treat the mask as a constant
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    try:
        with quiet():
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
    except torch.onnx.OnnxExporterError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise RunError(f"this model has no ONNX graph: {str(reason).splitlines()[0]}") from error


def convert(traced: Path, target: Path, dtype: str, examples: Sequence[Batch] = ()) -> None:
    """Write a traced graph in a type.

    Args:
        traced: the float32 graph.
        target: the file to write.
        dtype: ``float32``, or ``int8``: weights are quantised per output channel, and activations when they are
            computed, with one range for each tensor.
        examples: not needed.
    """
    if dtype == "float32":
        shutil.copyfile(traced, target)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(traced, target, weight_type=QuantType.QInt8, per_channel=True)


def load(path: Path) -> Infer:
    """Load a graph on the CPU, with PyTorch's current number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return lambda batch: list(map(torch.from_numpy, session.run(None, {name: batch[name].numpy() for name in names})))


def _stable_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Translate ``torch.sort(stable=True)``, which the exporter lacks; ONNX's TopK orders equal values by index."""
    op = _operators()
    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _index(values: Any, indices: Sequence[Any]) -> Any:
    """Translate ``values[index]`` to one Gather; the exporter writes GatherND between reshapes."""
    import onnx_ir
    from onnxscript.function_libs.torch_lib.ops.core import aten_index

    if len(indices) > 1 or indices[0].dtype == onnx_ir.DataType.BOOL:
        return aten_index(values, indices)
    return _operators().Gather(values, indices[0], axis=0)


def _gelu(values: Any, approximate: str = "none") -> Any:
    """Translate GELU to operations in the order in which ONNX Runtime finds them, and computes them as one."""
    from onnxscript.function_libs.torch_lib.ops.nn import aten_gelu

    if approximate != "none":
        return aten_gelu(values, approximate)
    op = _operators()
    erf = op.Erf(op.Div(values, op.Constant(value_float=math.sqrt(2))))
    return op.Mul(op.Mul(values, op.Add(erf, op.Constant(value_float=1.0))), op.Constant(value_float=0.5))


def _operators() -> Any:
    """Return the operators of :data:`OPSET`, whose type annotations reject constants."""
    import onnxscript

    return getattr(onnxscript, f"opset{OPSET}")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress log messages and warnings of the libraries; errors are still raised as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
