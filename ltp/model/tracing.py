"""Which tokens left at which layer, and with what importance: recorded while a classifier computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from torch import Tensor

from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.base import Pruner


@dataclass(frozen=True)
class TokenTrace:
    """A token's way through the encoder.

    Attributes:
        text: the token as one reads it, without the marks of its tokenizer.
        token: the token as its tokenizer writes it: ``##ing``, ``Ġfilm``.
        joined: whether it follows its predecessor without a space.
        scores: its importance in layers 1..L; None in layers that it no longer enters.
        left: the layer at which it left; None if it stayed to the end.
    """

    text: str
    token: str
    joined: bool
    scores: tuple[float | None, ...]
    left: int | None


class RecordingPruner(Pruner):
    """Decides as another pruner does, and keeps what it saw and said.

    Attributes:
        layers: scores, (B, N) float32, tokens alive before and tokens alive after, both (B, N) bool, of each layer.
    """

    needs_scores = True  # a dense model's importance is worth seeing too

    def __init__(self, pruner: Pruner) -> None:
        super().__init__()
        self.pruner = pruner
        self.layers: list[tuple[Tensor, Tensor, Tensor]] = []

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        survivors = self.pruner.survivors(layer, scores, alive, lengths)
        self.layers.append((scores, alive, survivors))
        return survivors


@contextmanager
def recording(model: LTPForSequenceClassification) -> Iterator[RecordingPruner]:
    """Let a model record what it prunes, in its masked form: there a token keeps its place.

    Args:
        model: in evaluation mode; afterwards it is as before.

    Yields:
        The recorder; its ``layers`` grow with each forward pass, and may be cleared between two.
    """
    pruner, execution = model.pruner, model.execution
    recorder = RecordingPruner(pruner)
    model.pruner, model.execution = recorder, "masked"
    try:
        yield recorder
    finally:
        model.pruner, model.execution = pruner, execution


def traces(recorder: RecordingPruner, row: int, tokens: Sequence[tuple[str, str, bool]]) -> list[TokenTrace]:
    """The tokens of one example of the last batch.

    Args:
        recorder: what was recorded of that batch.
        row: the example's place in it.
        tokens: ``text``, ``token`` and ``joined`` of each real token, see :class:`TokenTrace`.
    """
    scores = [[layer[0][row].tolist(), layer[1][row].tolist(), layer[2][row].tolist()] for layer in recorder.layers]
    found = []
    for place, (text, token, joined) in enumerate(tokens):
        seen = tuple(score[place] if before[place] else None for score, before, _ in scores)
        left = next((number for number, (_, _, after) in enumerate(scores, start=1) if not after[place]), None)
        found.append(TokenTrace(text, token, joined, seen, left))
    return found


def readable_tokens(tokenizer: Any, encoding: Any, texts: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Tokens as one reads them: without ``##`` and ``Ġ``, and with the spaces of the text they stand in.

    Args:
        tokenizer: a fast tokenizer.
        encoding: one example, as its backend encodes it.
        texts: the example's one or two texts.

    Returns:
        ``text``, ``token`` and ``joined`` of each token, see :class:`TokenTrace`.
    """
    found = []
    previous: tuple[int | None, int] = (None, 0)  # text and end of the token before
    for token, number, (start, end) in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True):
        if number is None:
            found.append((token, token, False))
        else:
            word = token[2:] if token.startswith("##") else tokenizer.convert_tokens_to_string([token]).strip()
            if token == tokenizer.unk_token or "\N{REPLACEMENT CHARACTER}" in word:  # some bytes of a letter
                word = texts[number][start:end]
            word = word or "\N{OPEN BOX}"
            found.append((word, token, previous[0] == number and start <= previous[1]))
        previous = (number, end)
    return found


def printable(text: str) -> str:
    """A text without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def format_layers(example: Sequence[TokenTrace], *, plain: bool = False) -> Text:
    """A text once a layer for the terminal, the tokens that have left dimmed.

    Args:
        example: its tokens.
        plain: draw dots in the place of tokens that have left, where styles cannot be seen.
    """
    lines = Text()
    for layer in range(len(example[0].scores) + 1):
        lines.append(f"{'input' if layer == 0 else f'layer {layer}':8}", style="bold")
        for piece in example:
            gone = piece.left is not None and piece.left <= layer
            word = printable(piece.text)
            lines.append("" if piece.joined else " ")
            lines.append("·" * len(word) if gone and plain else word, style="bright_black strike" if gone else "")
        lines.append("\n")
    return lines
