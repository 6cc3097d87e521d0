"""What an encoder's adapter is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class Backbone(ABC):
    """The parts of one family of sequence classifiers, as functions of the Hugging Face modules.

    It holds no state. ``model`` is the Hugging Face classifier and ``layer`` one of its encoder layers, typed
    ``Any`` because their parts are known by name only. Functions of a layer take hidden states of any leading
    shape, (..., D), so that the same adapter serves padded and packed tokens.
    """

    config_class: ClassVar[Any]  #: a subclass of ``PreTrainedConfig``
    classifier_class: ClassVar[Any]  #: a subclass of ``PreTrainedModel``

    @staticmethod
    @abstractmethod
    def layers(model: Any) -> Sequence[nn.Module]:
        """The L encoder layers, in order."""

    @staticmethod
    @abstractmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Hidden states that enter layer 1, (B, N, D)."""

    @staticmethod
    @abstractmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (..., H, D/H)."""

    @staticmethod
    @abstractmethod
    def attention_dropout(layer: Any) -> float:
        """Dropout probability of attention weights as it applies now: 0 in evaluation mode."""

    @staticmethod
    @abstractmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        """Output projection, residual and normalisation, (..., D)."""

    @staticmethod
    @abstractmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        """FFN, residual and normalisation, (..., D)."""

    @staticmethod
    @abstractmethod
    def classify(model: Any, class_token: Tensor) -> Tensor:
        """Logits, (B, num_labels), from the last hidden state of the classification token, (B, D)."""
