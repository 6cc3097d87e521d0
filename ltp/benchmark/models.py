"""The models that engines run: random classifiers of a given shape, and copies in other types, dense or pruned."""

import copy
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltp.benchmark.shapes import SHAPES
from ltp.deploy.linears import DTYPES, PlainLinear, linear_type
from ltp.encoders import encoder_family
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE

#: Names of the projections to queries and keys, in all families; ModernBERT's is fused with the values'.
_PROJECTIONS = re.compile(r"\.(query|key|query_proj|key_proj|q_lin|k_lin|q|k|Wqkv)\.")
_TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_classifier(shape: str, seed: int = 0) -> PreTrainedModel:
    """Build a dense classifier with random weights, in evaluation mode.

    Query and key weights are doubled: attention is then far from uniform and importance scores vary between tokens, as
    in trained models.

    Args:
        shape: a key of :data:`SHAPES`.
        seed: seed of the weights.
    """
    family = encoder_family(SHAPES[shape]["model_type"])
    config = family.config_class.from_dict(SHAPES[shape])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family.classifier_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _PROJECTIONS.search(name):
                parameter.mul_(2)
    return model.eval()


def shared_copy(model: nn.Module) -> Any:
    """Copy a model but share its tensors, so that settings can differ without extra memory."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def in_type(model: LTPPreTrainedModel, dtype: torch.dtype) -> LTPPreTrainedModel:
    """Copy a classifier with its dense weights in another type; thresholds stay float32. Shares tensors if possible."""
    if model.dense.dtype == dtype:
        return shared_copy(model)
    copied = copy.deepcopy(model)
    copied.dense.to(dtype)
    return copied


def without_pruning(model: LTPPreTrainedModel) -> LTPPreTrainedModel:
    """The classifier without pruning, with the same tensors."""
    return type(model).from_dense(shared_copy(model.dense), prune_mode=DENSE_MODE).eval()


class Models:
    """One classifier in every type and form that the engines need; copies are made on first use and share tensors.

    Args:
        pruned: the classifier with the pruning to measure, float32, in evaluation mode on its device.
        folder: a folder for graphs, which must exist while :meth:`graph` is called.
    """

    def __init__(self, pruned: LTPPreTrainedModel, folder: Path) -> None:
        self.pruned = pruned
        self.device = pruned.device
        self._copies: dict[tuple[str, bool], LTPPreTrainedModel] = {}
        self._folder = folder

    @cached_property
    def prunes(self) -> bool:
        """Whether the classifier prunes."""
        return self.pruned.config.prune_mode != DENSE_MODE

    def ltp(self, dtype: str, *, pruned: bool, execution: str = "packed") -> LTPPreTrainedModel:
        """The classifier in a type, pruned or dense, with packed or masked execution."""
        if (dtype, pruned) not in self._copies:
            if pruned:
                model = in_type(self.pruned, _TORCH_TYPES[dtype])
            else:
                model = without_pruning(self.ltp(dtype, pruned=True))
            self._copies[dtype, pruned] = model.eval()
        model = shared_copy(self._copies[dtype, pruned])
        model.execution = execution
        return model

    def hugging_face(self, dtype: str, attention: str) -> Any:
        """The dense Hugging Face classifier with an attention implementation.

        Raises:
            ValueError: the model has no such attention.
        """
        model = shared_copy(self.ltp(dtype, pruned=True).dense)
        if attention == "sdpa" and not model._supports_sdpa:
            raise ValueError(f"{type(model).__name__} has no sdpa attention")
        model.set_attn_implementation(attention)
        return model

    def graph(self, *, pruned: bool) -> Path:
        """The classifier as an ONNX graph in float32, pruned or dense.

        Raises:
            RunError: it has an operation that ONNX lacks.
        """
        from ltp.deploy.graph import write_dense_onnx, write_onnx  # which need their packages

        path = self._folder / ("pruned.onnx" if pruned else "dense.onnx")
        if not path.exists():
            (write_onnx if pruned else write_dense_onnx)(self.ltp("float32", pruned=pruned), path)
        return path

    def prepacked(self, dtype: str) -> Any:
        """The dense Hugging Face classifier with sdpa attention and the linears of ``deploy()``.

        Raises:
            RuntimeError: the CPU has no matrix products for the type.
        """
        linear = linear_type(dtype)
        model = self.hugging_face("bfloat16" if dtype == "bfloat16" else "float32", "sdpa")
        layers = self.pruned.family.layer_list(model)
        for name, module in list(layers.named_modules()):
            if isinstance(module, nn.Linear):
                layers.set_submodule(name, _DeployedLinear(module, linear, DTYPES[dtype]))
        return model


class _DeployedLinear(nn.Module):
    """A linear layer of ``deploy()`` that replaces one of a Hugging Face model."""

    def __init__(self, replaced: nn.Linear, linear: type[PlainLinear], dtype: torch.dtype) -> None:
        super().__init__()
        with torch.no_grad():
            bias = replaced.weight.new_zeros(replaced.out_features) if replaced.bias is None else replaced.bias
            self.linear = linear(replaced.weight.detach(), bias.detach(), dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)
