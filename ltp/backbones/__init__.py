"""Where each encoder family keeps its parts: the only package that knows Hugging Face's internals.

A new encoder is one file with one subclass of :class:`Backbone`, named in :data:`BACKBONES`.
"""

from ltp.backbones.base import Backbone, LayerParts
from ltp.backbones.bert import BertBackbone
from ltp.backbones.roberta import RobertaBackbone

#: ``model_type`` of a Hugging Face ``config.json`` -> the adapter.
BACKBONES: dict[str, type[Backbone]] = {
    backbone.config_class.model_type: backbone for backbone in (BertBackbone, RobertaBackbone)
}

__all__ = ["BACKBONES", "Backbone", "BertBackbone", "LayerParts", "RobertaBackbone"]
