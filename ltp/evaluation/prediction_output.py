"""Predictions in the terminal, as CSV or JSONL, and as a page."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltp.data.texts import Texts
from ltp.evaluation.page import Example, render_page
from ltp.evaluation.prediction import Prediction
from ltp.model.tracing import format_layers, printable
from ltp.runs.directory import write_atomically

_NAMED_ROWS = 5  # of many rows with the same note the first so many are named
_SHOWN_LETTERS = 200


def print_notes(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Say on standard error which rows were skipped, truncated, or hold no word."""
    kinds: dict[str, list[str]] = {}
    for row in texts.skipped:
        kinds.setdefault("skipped, no text", []).append(str(row))
    for row, prediction in zip(texts.rows, predictions, strict=True):
        if prediction.note:
            kind, _, detail = prediction.note.partition(": ")
            kinds.setdefault(kind, []).append(f"{row} ({detail})" if detail else str(row))
    for kind, rows in kinds.items():
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        word = "row" if len(rows) == 1 else "rows"
        print(f"{kind}: {word} {', '.join(rows[:_NAMED_ROWS])}{more}", file=sys.stderr)


def records(texts: Texts, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """What is written of each text: its row in the input, the text, label and probability or the score."""
    found = []
    for row, given, prediction in zip(texts.rows, texts.texts, predictions, strict=True):
        record: dict[str, Any] = {"row": row, **dict(zip(("text", "text_pair"), given, strict=False))}
        if prediction.label is None:
            found.append(record | {"score": prediction.value})
        else:
            found.append(record | {"label": prediction.label, "probability": prediction.value})
    return found


def write_predictions(path: Path, texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Write the predictions as CSV or JSONL, by the file's suffix, whole or not at all."""
    found = records(texts, predictions)
    content = io.StringIO()
    if path.suffix == ".csv":
        writer = csv.DictWriter(content, found[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    else:
        content.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in found)
    write_atomically(path, content.getvalue())


def write_page(
    path: Path,
    title: str,
    texts: Texts,
    predictions: Sequence[Prediction],
    thresholds: Sequence[float] | None,
) -> None:
    """Write the page of the texts and their tokens, whole or not at all."""
    examples = [
        Example(row, result_text(prediction), prediction.note, prediction.cost, prediction.traces)
        for row, prediction in zip(texts.rows, predictions, strict=True)
    ]
    write_atomically(path, render_page(title, examples, thresholds))


def result_text(prediction: Prediction) -> str:
    """A prediction in words: ``positive 0.982``, or the score."""
    return f"{prediction.label} {prediction.value:.3f}" if prediction.label is not None else f"{prediction.value:.3f}"


def print_table(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Print a line a text; of a long one its beginning."""
    value = "probability" if predictions[0].label is not None else "score"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", justify="right", no_wrap=True)
    for name in ("text", "text_pair")[: len(texts.texts[0])]:
        table.add_column(name)
    if predictions[0].label is not None:
        table.add_column("label", no_wrap=True)
    table.add_column(value, justify="right", no_wrap=True)
    for row, given, prediction in zip(texts.rows, texts.texts, predictions, strict=True):
        cells = [shortened(printable(text)) for text in given]
        cells += [prediction.label] if prediction.label is not None else []
        table.add_row(str(row), *map(Text, cells), f"{prediction.value:.4f}")
    Console().print(table)


def shortened(text: str) -> str:
    """A text's beginning."""
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"


def print_layers(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Print each text layer by layer, the tokens that have left dimmed."""
    console = Console(highlight=False)
    for row, prediction in zip(texts.rows, predictions, strict=True):
        cost = f"{100 * prediction.cost:.0f} % of the dense FLOPs"
        console.print(Text(f"{row}: {printable(result_text(prediction))}", style="bold"), Text(f"· {cost}"))
        console.print(format_layers(prediction.traces, plain=not console.is_terminal))
