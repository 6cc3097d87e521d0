"""Encoder families: adapters to Hugging Face models. No other package accesses the internals of these models.

To add a family, write one file with a subclass of :class:`~ltp.encoders.base.EncoderFamily`, and add it to
:data:`SHIPPED`; from outside the package, name the class by an entry point of ``ltp.encoders``. This module imports
neither PyTorch nor transformers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from ltp.encoders.registry import REGISTERED

if TYPE_CHECKING:
    from ltp.encoders.base import EncoderFamily

#: Group of entry points of packages that bring families: an entry is named after the ``model_type``, and its value is
#: the class, ``module:Class``.
ENTRY_POINTS = "ltp.encoders"

#: Families of this package: the file of each ``model_type``.
SHIPPED = {
    "albert": "albert",
    "bert": "bert",
    "camembert": "roberta",
    "deberta-v2": "deberta_v2",
    "distilbert": "distilbert",
    "electra": "electra",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}


def known_families() -> list[str]:
    """Return the ``model_type`` of every family, in alphabetical order."""
    return sorted({*SHIPPED, *REGISTERED, *(entry.name for entry in _entries())})


def encoder_family(model_type: str) -> type[EncoderFamily]:
    """Return the encoder family of a Hugging Face model.

    Raises:
        ValueError: there is none of this ``model_type``, or the package that brings it cannot be imported.
    """
    if model_type not in REGISTERED and model_type in SHIPPED:
        importlib.import_module(f"{__name__}.{SHIPPED[model_type]}")
    for entry in _entries() if model_type not in REGISTERED else ():
        if entry.name == model_type:
            try:
                REGISTERED[model_type] = entry.load()
            except Exception as error:
                raise ValueError(
                    f"the entry point {model_type} of {ENTRY_POINTS}, {entry.value}, cannot be imported: "
                    f"{type(error).__name__}: {' '.join(str(error).split())}"
                ) from error
    if model_type not in REGISTERED:
        raise ValueError(unknown_family(model_type))
    return REGISTERED[model_type]


def unknown_family(model_type: Any) -> str:
    """Return the message about a ``model_type`` without a family."""
    return (
        f"model_type is {model_type!r}; ltp prunes {', '.join(known_families())}. Another family is one class, found "
        f"by an entry point of {ENTRY_POINTS} (docs/extending.md)"
    )


def _entries() -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=ENTRY_POINTS))
