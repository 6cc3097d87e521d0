"""One self-contained page of classified texts, their tokens coloured by the layer at which they left."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ltp.model.tracing import TokenTrace

_TEMPLATE = "page.html"


@dataclass(frozen=True)
class Example:
    """A classified text as the page shows it.

    Attributes:
        row: its number in the input.
        result: label and probability, or the score, in words.
        note: what there is to say about it, or nothing.
        cost: its FLOPs relative to the dense model's.
        pieces: its tokens.
    """

    row: int
    result: str
    note: str
    cost: float
    traces: list[TokenTrace]


def render_page(title: str, examples: Sequence[Example], thresholds: Sequence[float] | None) -> str:
    """The page as HTML. It loads nothing from elsewhere, and what stands in a text is shown as text.

    Args:
        title: plain text.
        examples: at least one.
        thresholds: of layers 1..L; None where the method has none.
    """
    data = {
        "layers": len(examples[0].traces[0].scores),
        "thresholds": None if thresholds is None else [_short(threshold) for threshold in thresholds],
        "examples": [
            {
                "row": example.row,
                "result": example.result,
                "note": example.note,
                "cost": round(example.cost, 4),
                "tokens": [
                    [piece.text, piece.token, int(piece.joined), piece.left, [_short(score) for score in piece.scores]]
                    for piece in example.traces
                ],
            }
            for example in examples
        ],
    }
    template = resources.files("ltp.evaluation").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    before, _, after = template.partition("{{data}}")  # the texts may hold anything, {{title}} too
    escaped = html.escape(title)
    return before.replace("{{title}}", escaped) + script_json(data) + after.replace("{{title}}", escaped)


def script_json(data: object) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _short(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.3g}")
