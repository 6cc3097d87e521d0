"""What an encoder's adapter is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerParts:
    """The modules of one post-norm encoder layer, for those who execute it otherwise (:mod:`ltp.deploy`).

    Attributes:
        heads: H.
        query, key, value: projections D → D.
        attention_output: projection D → D of the context, normalised by ``attention_norm`` with the residual.
        up: D → I, followed by ``activation``.
        down: I → D, normalised by ``output_norm`` with the residual.
    """

    heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    output_norm: nn.LayerNorm


class EncoderFamily(ABC):
    """The parts of one family of sequence classifiers, as functions of the Hugging Face modules.

    It holds no state. ``model`` is the Hugging Face classifier and ``layer`` one of its encoder layers, typed
    ``Any`` because their parts are known by name only. Functions of a layer take hidden states of any leading
    shape, (..., D), so that the same adapter serves padded and packed tokens.
    """

    config_class: ClassVar[Any]  #: a subclass of ``PreTrainedConfig``
    classifier_class: ClassVar[Any]  #: a subclass of ``PreTrainedModel``

    @classmethod
    def max_input_tokens(cls, config: Any) -> int:
        """Tokens that a model of this configuration can read at once, special ones included."""
        return int(config.max_position_embeddings)

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
    def position_ids(model: Any, input_ids: Tensor) -> Tensor:
        """Positions where the caller gives none: (B, N) int64 → (B, N) or (1, N) int64."""

    @classmethod
    def embed_tokens(
        cls,
        model: Any,
        input_ids: Tensor,
        indices: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> Tensor:
        """Hidden states of some tokens alone, such as those that are no padding.

        Args:
            model: the classifier.
            input_ids: (B, N) int64.
            indices: the tokens, in flattened ``input_ids``, (T,) int64.
            token_type_ids, position_ids: (B, N) or (1, N) int64, or None.

        Returns:
            (T, D), in the order of ``indices``.
        """
        if position_ids is None:
            position_ids = cls.position_ids(model, input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        ids, types, positions = (
            x.expand_as(input_ids).flatten()[indices][None] for x in (input_ids, token_type_ids, position_ids)
        )  # one long sequence, (1, T), that brings its own positions
        return cls.embed(model, ids, types, positions, None).squeeze(0)

    @staticmethod
    @abstractmethod
    def parts(layer: Any) -> LayerParts:
        """A layer's modules."""

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
