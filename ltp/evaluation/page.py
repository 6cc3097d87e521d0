"""A self-contained HTML page of classified texts; tokens are coloured by the layer that pruned them."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ltp.model.tracing import TokenTrace


@dataclass(frozen=True)
class Example:
    """A classified text on the page.

    Attributes:
        row: row number in the input.
        result: label and probability, or the regression score, as text.
        note: a remark about the input, such as truncation; empty if there is none.
        cost: relative FLOPs of the text.
        traces: one trace per token.
        marks: what is said of each token, such as its label; none for texts.
    """

    row: int
    result: str
    note: str
    cost: float
    traces: list[TokenTrace]
    marks: Sequence[str] = ()


def render_page(
    title: str,
    examples: Sequence[Example],
    thresholds: Sequence[float] | None,
    *,
    layers: int | None = None,
    form: str = "",
) -> str:
    """Render the page as HTML. It loads no external resources, and texts are escaped.

    Args:
        title: plain text.
        examples: the classified texts.
        thresholds: thresholds of layers 1..L; None if the method has none.
        layers: number of layers L; None: that of the examples, of which there is at least one.
        form: HTML above the legend that asks for further texts. Its script may call the page's own server, and
            ``add(example)``.
    """
    data = {
        "layers": layers or len(examples[0].traces[0].scores),
        "thresholds": None if thresholds is None else [_short(threshold) for threshold in thresholds],
        "examples": [
            {
                "row": example.row,
                "result": example.result,
                "note": example.note,
                "cost": round(example.cost, 4),
                "tokens": [
                    [
                        trace.text,
                        trace.token,
                        int(trace.joined),
                        trace.pruned_at,
                        [_short(score) for score in trace.scores],
                        mark,
                    ]
                    for trace, mark in zip(example.traces, example.marks or [""] * len(example.traces), strict=True)
                ],
            }
            for example in examples
        ],
    }
    template = resources.files("ltp.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    if form:
        template = template.replace("default-src 'none';", "default-src 'none'; connect-src 'self';")
    template = template.replace("{{form}}", form)
    before, _, after = template.partition("{{data}}")  # split first: a text may contain "{{title}}"
    escaped = html.escape(title)
    return before.replace("{{title}}", escaped) + script_json(data) + after.replace("{{title}}", escaped)


def script_json(data: object) -> str:
    """Serialise to JSON that is safe inside a script element: it cannot close the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _short(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.3g}")
