"""The engines that are compared: each turns a batch into logits. How it is built, and where it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ltp.deploy.requirements import missing_onnx_packages
from ltp.errors import install_hint

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.benchmark.models import Models

Infer = Callable[[dict[str, Any]], "Tensor"]  #: from a batch to its logits, (B, num_labels)

DTYPES = ("float32", "bfloat16", "int8")


class UnavailableError(Exception):
    """An engine cannot run here; the text says why and what would help."""


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
        return lambda batch: cast("Tensor", deployed(**batch).logits)

    return build


def _hugging_face_prepacked(models: Models, dtype: str) -> Infer:
    _require_cpu(models, "the linears of deploy() are")
    try:
        model = models.prepacked(dtype)
    except RuntimeError as error:  # a type that this CPU has no products for
        raise UnavailableError(str(error)) from error
    return lambda batch: model(**batch).logits


def _require_cpu(models: Models, what: str) -> None:
    if models.device.type != "cpu":
        raise UnavailableError(f"{what} for CPUs")


def _onnx(models: Models, dtype: str) -> Infer:
    if missing := missing_onnx_packages():
        raise UnavailableError(f"{', '.join(missing)} not installed: {install_hint('onnx')}")
    _require_cpu(models, "ONNX Runtime, as it is installed here, is")
    from ltp.deploy.onnx import onnx_engine

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
