"""Encoder families: where each keeps its parts. The only package that knows the internals of Hugging Face's models.

A new family is one file with a subclass of :class:`~ltp.encoders.base.EncoderFamily`, and its entry in
:data:`FAMILIES`. This module itself needs neither PyTorch nor transformers.
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


#: ``model_type`` of a Hugging Face ``config.json`` -> a function that imports the family's class.
FAMILIES: dict[str, Callable[[], type[EncoderFamily]]] = {"bert": _bert, "roberta": _roberta}


def encoder_family(model_type: str) -> type[EncoderFamily]:
    """The family of a Hugging Face model.

    Args:
        model_type: a key of :data:`FAMILIES`.
    """
    return FAMILIES[model_type]()
