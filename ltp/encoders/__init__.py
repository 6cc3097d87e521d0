"""Encoder families: adapters to Hugging Face models. No other package accesses the internals of these models.

To add a family, write one file with a subclass of :class:`~ltp.encoders.base.EncoderFamily` and add it to
:data:`FAMILIES`. This module imports neither PyTorch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltp.encoders.base import EncoderFamily


def _bert() -> type[EncoderFamily]:
    from ltp.encoders.bert import BertFamily

    return BertFamily


def _roberta() -> type[EncoderFamily]:
    from ltp.encoders.roberta import RobertaFamily

    return RobertaFamily


#: Maps ``model_type`` of a Hugging Face ``config.json`` to a function that imports the family's class.
FAMILIES: dict[str, Callable[[], type[EncoderFamily]]] = {"bert": _bert, "roberta": _roberta}


def encoder_family(model_type: str) -> type[EncoderFamily]:
    """Return the encoder family of a Hugging Face model.

    Args:
        model_type: a key of :data:`FAMILIES`.
    """
    return FAMILIES[model_type]()
