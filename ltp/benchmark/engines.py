"""The engines to compare, each a function from a batch to logits: how they are built, and where they cannot run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ltp.deploy.formats import GRAPHS, MOST_ERROR
from ltp.deploy.requirements import missing_packages
from ltp.errors import RunError, install_hint

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.benchmark.models import Models

Infer = Callable[[dict[str, Any]], "Tensor"]  #: maps a batch to its logits, (B, num_labels)

DTYPES = ("float32", "bfloat16", "int8")


class UnavailableError(Exception):
    """An engine cannot run here; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Engine:
    """A way to run the classifier.

    Attributes:
        title: its name in tables and messages.
        pruned: whether it prunes. Its reference is then masked execution, otherwise Hugging Face eager.
        dtypes: the types that it supports.
        build: builds it for a type; raises :class:`UnavailableError` if it cannot run.
        dense: name of the same engine without pruning, to compute the efficiency; None if there is none.
        backend: the linear layers whose bare matrix products are its limit: ``plain``, ``deployed``, or
            None for no limit.
        is_default: whether it is measured if none are named; tracing a graph takes half a minute.
    """

    title: str
    pruned: bool
    dtypes: tuple[str, ...]
    build: Callable[[Models, str], Infer]
    dense: str | None = None
    backend: str | None = "plain"
    is_default: bool = True


def _hugging_face(attention: str) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        try:
            model = models.hugging_face(dtype, attention)
        except ValueError as error:  # DeBERTa and MPNet have no sdpa attention
            raise UnavailableError(str(error)) from error
        return lambda batch: model(**batch).logits

    return build


def _ltp(*, pruned: bool, execution: str) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        model = models.ltp(dtype, pruned=pruned, execution=execution)
        return lambda batch: model(**batch).logits

    return build


def _deployed(*, pruned: bool) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        try:
            deployed = models.ltp("float32", pruned=pruned).deploy(dtype)
        except (RuntimeError, ValueError, ImportError) as error:  # the device has no products for this type
            raise UnavailableError(str(error)) from error
        return lambda batch: cast("Tensor", deployed(**batch).logits)

    return build


def _hugging_face_prepacked(models: Models, dtype: str) -> Infer:
    _require_cpu(models, "the linears of deploy() are")
    try:
        model = models.prepacked(dtype)
    except (RuntimeError, ValueError) as error:  # no matrix products for this type, or no sdpa attention
        raise UnavailableError(str(error)) from error
    return lambda batch: model(**batch).logits


def _require_cpu(models: Models, subject: str) -> None:
    if models.device.type != "cpu":
        raise UnavailableError(f"{subject} for CPUs")


def _graph(form: str, *, pruned: bool) -> Callable[[Models, str], Infer]:
    def build(models: Models, dtype: str) -> Infer:
        extra = GRAPHS[form].extra
        if missing := missing_packages(extra):
            raise UnavailableError(f"{', '.join(missing)} not installed: {install_hint(extra)}")
        _require_cpu(models, "graphs are, as they are run here,")
        from ltp.deploy.model import random_examples

        runtime = GRAPHS[form].runtime
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / GRAPHS[form].file
            try:
                runtime.convert(models.graph(pruned=pruned), path, dtype, random_examples(models.pruned))
            except (RunError, ValueError) as error:  # an operation that the format lacks
                raise UnavailableError(str(error)) from error
            infer = runtime.load(path)
        return lambda batch: infer(batch)[0]

    return build


#: All engines by their names in ``bench.engines``, in the order of the report's table.
ENGINES: dict[str, Engine] = {
    "hf_sdpa": Engine("HF sdpa", False, ("float32", "bfloat16"), _hugging_face("sdpa")),
    "hf_eager": Engine("HF eager", False, ("float32", "bfloat16"), _hugging_face("eager")),
    "hf_prepacked": Engine(
        "HF sdpa, prepacked linears",
        False,
        ("float32", "bfloat16"),
        _hugging_face_prepacked,
        backend="deployed",
    ),
    "onnx": Engine("ONNX Runtime, dense", False, ("float32", "int8"), _graph("onnx", pruned=False), backend=None),
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
    "onnx_pruned": Engine(
        "ltp's graph in ONNX Runtime, pruned",
        True,
        ("float32", "int8"),
        _graph("onnx", pruned=True),
        dense="onnx",
        backend=None,
        is_default=False,
    ),
    "openvino": Engine(
        "OpenVINO, dense",
        False,
        ("float32", "int8"),
        _graph("openvino", pruned=False),
        backend=None,
        is_default=False,
    ),
    "openvino_pruned": Engine(
        "ltp's graph in OpenVINO, pruned",
        True,
        ("float32", "int8"),
        _graph("openvino", pruned=True),
        dense="openvino",
        backend=None,
        is_default=False,
    ),
}

#: Largest allowed difference from the float32 reference logits. float32: the largest difference of a sequence, divided
#: by the reference's largest logit or 1, whichever is larger. Other types: root mean square of the differences over
#: that of the reference, because rounding can move a token's score across the threshold.
ALLOWED = {"float32": 1e-4, "bfloat16": 0.15, "int8": MOST_ERROR}

#: The engines that are measured if none are named.
DEFAULT_ENGINES = tuple(name for name, engine in ENGINES.items() if engine.is_default)
