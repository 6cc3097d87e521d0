"""Traces of tokens: their importance in each layer, and the layer that prunes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.text import Text
from torch import Tensor

from ltp.errors import printable
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE, method_class
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import Tokens


@dataclass(frozen=True)
class TokenTrace:
    """Importance of a token in each layer, and the layer that prunes it.

    Attributes:
        text: readable text of the token, without markers of the tokenizer.
        token: the token in the tokenizer's vocabulary: ``##ing``, ``Ġfilm``.
        joined: whether no space separates it from the previous token.
        scores: importance in layers 1..L; None in layers that it does not enter, or in which no token may leave.
        pruned_at: the layer that prunes it; None if no layer does.
    """

    text: str
    token: str
    joined: bool
    scores: tuple[float | None, ...]
    pruned_at: int | None


class RecordingPruner(Pruner):
    """Applies a pruner and records its inputs and results.

    Attributes:
        layers: by the number of each layer in which tokens may leave: scores, (B, N) float32, tokens alive before and
            tokens alive after, both (B, N) bool.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(method_class(DENSE_MODE)(), pruner.shape, sliding_layers=pruner.sliding_layers)
        self.method = pruner.method
        self.pruner = pruner
        self.layers: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def reads(self) -> frozenset[str]:
        """What the method reads, and what it takes to record importance for dense models, too."""
        return self.pruner.reads if self.decides_before else self.pruner.reads | {"received"}

    def decides_in(self, number: int) -> bool:
        """Where tokens may leave; for dense models every layer without a window, to record importance."""
        if self.method.name != DENSE_MODE:
            return super().decides_in(number)
        return not self.shape.windows or self.shape.windows[number - 1] is None

    def survivors(self, tokens: Tokens) -> Tensor:
        """Apply the pruner's rule, and record it."""
        survivors = self.pruner.survivors(tokens)
        self._record(tokens, survivors)
        return survivors

    def merge_targets(self, tokens: Tokens) -> Tensor:
        """Apply the pruner's rule, and record it: a token that goes into another leaves."""
        targets = self.pruner.merge_targets(tokens)
        self._record(tokens, tokens.alive & (targets == torch.arange(targets.shape[1], device=targets.device)))
        return targets

    def scores(self, tokens: Tokens) -> Tensor:
        """Compute the importance by the pruner's parameters."""
        return self.pruner.scores(tokens)

    def _record(self, tokens: Tokens, survivors: Tensor) -> None:
        self.layers[tokens.layer] = (self.scores(tokens), tokens.alive, survivors)


@contextmanager
def recording(model: LTPPreTrainedModel) -> Iterator[RecordingPruner]:
    """Record the pruning of a model, in its masked form, where a token keeps its position.

    Args:
        model: the classifier, in evaluation mode. Its pruner and execution are restored on exit.

    Yields:
        The recorder. Its ``layers`` are those of the last forward pass.
    """
    pruner, execution = model.pruner, model.execution
    recorder = RecordingPruner(pruner)
    model.pruner, model.execution = recorder, "masked"
    try:
        yield recorder
    finally:
        model.pruner, model.execution = pruner, execution


def traces(recorder: RecordingPruner, row: int, tokens: Sequence[tuple[str, str, bool]]) -> list[TokenTrace]:
    """Return the traces of the tokens of one example.

    Args:
        recorder: recording of one batch.
        row: index of the example in the batch.
        tokens: ``text``, ``token`` and ``joined`` of each real token, see :class:`TokenTrace`.
    """
    layers = {number: [tensor[row].tolist() for tensor in layer] for number, layer in recorder.layers.items()}
    token_traces = []
    for position, (text, token, joined) in enumerate(tokens):
        importances: list[float | None] = [None] * recorder.shape.num_layers
        left = None
        for number, (score, before, after) in layers.items():
            if before[position]:
                importances[number - 1] = score[position]
                left = None if after[position] else number
        token_traces.append(TokenTrace(text, token, joined, tuple(importances), left))
    return token_traces


def readable_tokens(tokenizer: Any, encoding: Any, texts: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Convert tokens to readable text, without ``##`` and ``Ġ``, and find the spaces between them.

    Args:
        tokenizer: a fast tokenizer.
        encoding: encoding of one example by the tokenizer's backend.
        texts: the one or two texts of the example.

    Returns:
        ``text``, ``token`` and ``joined`` of each token, see :class:`TokenTrace`.
    """
    readable = []
    previous: tuple[int | None, int] = (None, 0)  # text and end of the previous token
    for token, number, (start, end) in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True):
        if number is None:
            readable.append((token, token, False))
        else:
            word = token[2:] if token.startswith("##") else tokenizer.convert_tokens_to_string([token]).strip()
            if token == tokenizer.unk_token or "\N{REPLACEMENT CHARACTER}" in word:  # part of a multi-byte character
                word = texts[number][start:end]
            word = word or "\N{OPEN BOX}"
            readable.append((word, token, previous[0] == number and start <= previous[1]))
        previous = (number, end)
    return readable


def format_layers(example: Sequence[TokenTrace], *, plain: bool = False) -> Text:
    """Format a text for the terminal, one line per layer, with pruned tokens dimmed and struck out.

    Args:
        example: traces of the tokens of one example.
        plain: replace pruned tokens by dots, for output without styles.
    """
    lines = Text()
    for layer in range(len(example[0].scores) + 1):
        lines.append(f"{'input' if layer == 0 else f'layer {layer}':8}", style="bold")
        for trace in example:
            pruned = trace.pruned_at is not None and trace.pruned_at <= layer
            word = printable(trace.text)
            lines.append("" if trace.joined else " ")
            lines.append("·" * len(word) if pruned and plain else word, style="bright_black strike" if pruned else "")
        lines.append("\n")
    return lines
