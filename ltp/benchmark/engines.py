"""The engines that are compared: each turns a batch into logits. How it is built, and where it cannot run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltp.benchmark.models import in_type, shared_copy, without_pruning
from ltp.data.sequences import Batch
from ltp.deploy.linears import DTYPES as LINEAR_DTYPES
from ltp.deploy.linears import PlainLinear, linear_type
from ltp.deploy.onnx import missing_packages, onnx_engine
from ltp.errors import RunError
from ltp.model.classifier import LTPForSequenceClassification

Infer = Callable[[Batch], Tensor]  #: a batch's logits, (B, num_labels)

DTYPES = ("float32", "bfloat16", "int8")
_TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class UnavailableError(Exception):
    """An engine cannot run here; the text says why and what would help."""


class WrongResultsError(RunError):
    """An engine's logits are not the reference's: timing it would be pointless."""


class Models:
    """One classifier in every type and form the engines need; copies are made when first asked for, and shared.

    Args:
        pruned: the classifier, float32, in evaluation mode on its device, with the pruning to measure.
    """

    def __init__(self, pruned: LTPForSequenceClassification) -> None:
        self.pruned = pruned
        self.device = pruned.device
        self._copies: dict[tuple[str, bool], LTPForSequenceClassification] = {}

    @cached_property
    def prunes(self) -> bool:
        """Whether there is anything to compare a dense model with."""
        return self.pruned.config.prune_mode != "none"

    def ltp(self, dtype: str, *, pruned: bool, execution: str = "packed") -> LTPForSequenceClassification:
        """The classifier in a type, pruned or dense, packed or masked."""
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
        """The dense Hugging Face classifier with an attention implementation."""
        model = shared_copy(self.ltp(dtype, pruned=True).dense)
        model.set_attn_implementation(attention)
        return model


@dataclass(frozen=True)
class Engine:
    """A way to run the classifier.

    Attributes:
        title: for people.
        pruned: whether it prunes; it is then compared with the masked form, and else with Hugging Face's.
        dtypes: those it has.
        build: makes it for a type; raises :class:`UnavailableError` where it cannot.
        dense: the engine that differs only in not pruning, for the efficiency.
        backend: whose bare matrix products are its limit: ``plain`` linears, ``deployed`` ones, or None.
    """

    title: str
    pruned: bool
    dtypes: tuple[str, ...]
    build: Callable[[Models, str], Infer]
    dense: str | None = None
    backend: str | None = "plain"


def _hugging_face(attention: str) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        model = models.hugging_face(dtype, attention)
        return lambda batch: model(**batch).logits

    return build


def _ltp(*, pruned: bool, execution: str) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        model = models.ltp(dtype, pruned=pruned, execution=execution)
        return lambda batch: model(**batch).logits

    return build


def _deployed(*, pruned: bool) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        _require_cpu(models, "deploy() is")
        try:
            deployed = models.ltp("float32", pruned=pruned).deploy(dtype)
        except RuntimeError as error:  # a type that this CPU has no products for
            raise UnavailableError(str(error)) from error
        return lambda batch: cast(Tensor, deployed(**batch).logits)

    return build


def _hugging_face_prepacked(models: Models, dtype: str) -> Infer:
    _require_cpu(models, "the linears of deploy() are")
    model = models.hugging_face("bfloat16" if dtype == "bfloat16" else "float32", "sdpa")
    try:
        linear = linear_type(dtype)
    except RuntimeError as error:
        raise UnavailableError(str(error)) from error
    for layer in models.pruned.family.layers(model):
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                layer.set_submodule(name, _Product(module, linear, LINEAR_DTYPES[dtype]))
    return lambda batch: model(**batch).logits


class _Product(nn.Module):
    """A linear layer of ``deploy()`` in the place of a Hugging Face model's."""

    def __init__(self, replaced: nn.Linear, linear: type[PlainLinear], dtype: torch.dtype) -> None:
        super().__init__()
        with torch.no_grad():
            self.product = linear(replaced.weight.detach(), replaced.bias.detach(), dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.product(hidden)


def _require_cpu(models: Models, what: str) -> None:
    if models.device.type != "cpu":
        raise UnavailableError(f"{what} for CPUs")


def _onnx(models: Models, dtype: str) -> Infer:
    if missing := missing_packages():
        raise UnavailableError(f"{', '.join(missing)} not installed: pip install 'ltp[bench]'")
    _require_cpu(models, "the packages of ltp[bench] are")
    return onnx_engine(models.hugging_face("float32", "sdpa"), dtype)


#: Every engine by the name that ``bench.engines`` takes, in the order of the table.
ENGINES: dict[str, Engine] = {
    "hf_sdpa": Engine("HF sdpa", False, ("float32", "bfloat16"), _hugging_face("sdpa")),
    "hf_eager": Engine("HF eager", False, ("float32", "bfloat16"), _hugging_face("eager")),
    "hf_prepacked": Engine("HF sdpa, prepacked linears", False, DTYPES, _hugging_face_prepacked, backend="deployed"),
    "onnx": Engine("ONNX Runtime, dense", False, ("float32", "int8"), _onnx, backend=None),
    "masked": Engine("ltp masked, pruned", True, ("float32", "bfloat16"), _ltp(pruned=True, execution="masked")),
    "packed_dense": Engine("ltp packed, dense", False, ("float32", "bfloat16"), _ltp(pruned=False, execution="packed")),
    "packed_pruned": Engine(
        "ltp packed, pruned",
        True,
        ("float32", "bfloat16"),
        _ltp(pruned=True, execution="packed"),
        dense="packed_dense",
    ),
    "deployed_dense": Engine("ltp deployed, dense", False, DTYPES, _deployed(pruned=False), backend="deployed"),
    "deployed_pruned": Engine(
        "ltp deployed, pruned", True, DTYPES, _deployed(pruned=True), dense="deployed_dense", backend="deployed"
    ),
}

#: How far logits may be from the float32 reference. float32: the largest difference of a sequence, in units of the
#: reference's largest logit or 1, whichever is larger. Others: root mean square of the differences over that of the
#: reference, since a token whose score is close to the threshold may fall the other way.
ALLOWED = {"float32": 1e-4, "bfloat16": 0.15, "int8": 0.3}
#: Share of the sequences that may differ in float32: tokens whose score is the threshold but for rounding.
_TOLERATED_SHARE = 0.02


def check_logits(name: str, dtype: str, logits: Sequence[Tensor], reference: Tensor, against: str) -> float:
    """Check that an engine computes what it should before it is timed.

    Args:
        name: for the message.
        dtype: the engine's type, which decides what is allowed: :data:`ALLOWED`.
        logits: batch by batch, (B, num_labels).
        reference: of all sequences, (S, num_labels) float32.
        against: what the reference is, for the message.

    Returns:
        The difference, as :data:`ALLOWED` measures it.

    Raises:
        WrongResultsError: it is too large.
    """
    found, wanted = torch.cat([part.float().cpu() for part in logits]), reference.float()
    allowed = ALLOWED[dtype]
    if dtype == "float32":
        differences = (found - wanted).abs().amax(dim=1) / max(1.0, float(wanted.abs().max()))
        wrong = int((~(differences <= allowed)).sum())  # NaN is wrong
        difference = float(differences.max())
        ok = wrong <= _TOLERATED_SHARE * len(wanted)
    else:
        difference = float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
        wrong = len(wanted)
        ok = difference <= allowed
    if not ok:
        raise WrongResultsError(
            f"{name}, {dtype}: the logits of {wrong} of {len(wanted)} sequences differ from those of {against} by up "
            f"to {difference:.2g} (allowed: {allowed:g}), so nothing was timed. Wrong results have no speed: please "
            "report this, or leave the engine out with bench.engines=[…]."
        )
    return difference
