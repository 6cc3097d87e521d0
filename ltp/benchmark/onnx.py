"""ONNX Runtime's dense graph of a Hugging Face classifier. Needs the packages of ``ltp[bench]``."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltp.benchmark.sequences import Batch

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Logits(nn.Module):
    """The classifier as a function of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


def onnx_engine(model: Any, dtype: str) -> Any:
    """Export a classifier with free batch and sequence length and open it with ONNX Runtime.

    Args:
        model: a Hugging Face classifier, float32, in evaluation mode, on the CPU.
        dtype: ``float32``, or ``int8``: weights quantised by channel, activations dynamically.

    Returns:
        A function from a batch to its logits, on as many threads as torch has now.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(_Logits(model).eval(), path)
        if dtype == "int8":
            exported, path = path, path.with_name("int8.onnx")
            with _quiet():
                quantize_dynamic(exported, path, weight_type=QuantType.QInt8, per_channel=True)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: batch[name].numpy() for name in _INPUTS})[0])

    return run


def _export(model: nn.Module, path: Path) -> None:
    ids = torch.arange(5, 23).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # else the exporter may take the mask for a constant
    with _quiet():
        torch.onnx.export(
            model,
            (ids, mask, torch.zeros_like(ids)),
            path,
            dynamo=True,
            verbose=False,
            input_names=_INPUTS,
            output_names=["logits"],
            dynamic_shapes=({0: "batch", 1: "length"},) * 3,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' many words about themselves; errors are exceptions anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
