"""Output of predictions: in the terminal, as CSV or JSONL, and as an HTML page."""

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

_MAX_LISTED_ROWS = 5  # the most row numbers listed with one note
_MAX_CHARACTERS = 200


def print_notes(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """List on standard error the rows that were skipped or truncated, or that have no words."""
    rows_by_note: dict[str, list[str]] = {}
    for row in texts.skipped:
        rows_by_note.setdefault("skipped, no text", []).append(str(row))
    for row, prediction in zip(texts.rows, predictions, strict=True):
        if prediction.note:
            kind, _, detail = prediction.note.partition(": ")
            rows_by_note.setdefault(kind, []).append(f"{row} ({detail})" if detail else str(row))
    for kind, rows in rows_by_note.items():
        more = f" and {len(rows) - _MAX_LISTED_ROWS} more" if len(rows) > _MAX_LISTED_ROWS else ""
        word = "row" if len(rows) == 1 else "rows"
        print(f"{kind}: {word} {', '.join(rows[:_MAX_LISTED_ROWS])}{more}", file=sys.stderr)


def records(texts: Texts, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The output record of each text: row in the input, text (and pair), and label and probability, or score."""
    result = []
    for row, row_texts, prediction in zip(texts.rows, texts.texts, predictions, strict=True):
        record: dict[str, Any] = {"row": row, **dict(zip(("text", "text_pair"), row_texts, strict=False))}
        if prediction.label is None:
            result.append(record | {"score": prediction.value})
        else:
            result.append(record | {"label": prediction.label, "probability": prediction.value})
    return result


def write_predictions(path: Path, texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Write the predictions atomically as CSV or JSONL, by the file's suffix."""
    rows = records(texts, predictions)
    content = io.StringIO()
    if path.suffix == ".csv":
        writer = csv.DictWriter(content, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        content.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in rows)
    write_atomically(path, content.getvalue())


def write_page(
    path: Path,
    title: str,
    texts: Texts,
    predictions: Sequence[Prediction],
    thresholds: Sequence[float] | None,
) -> None:
    """Write the HTML page of the texts and their tokens atomically."""
    examples = [
        Example(row, result_text(prediction), prediction.note, prediction.cost, prediction.traces)
        for row, prediction in zip(texts.rows, predictions, strict=True)
    ]
    write_atomically(path, render_page(title, examples, thresholds))


def result_text(prediction: Prediction) -> str:
    """Format a prediction: ``positive 0.982``, or the score."""
    return f"{prediction.label} {prediction.value:.3f}" if prediction.label is not None else f"{prediction.value:.3f}"


def print_table(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Print a table with one row per text; long texts are shortened."""
    value = "probability" if predictions[0].label is not None else "score"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", justify="right", no_wrap=True)
    for name in ("text", "text_pair")[: len(texts.texts[0])]:
        table.add_column(name)
    if predictions[0].label is not None:
        table.add_column("label", no_wrap=True)
    table.add_column(value, justify="right", no_wrap=True)
    for row, row_texts, prediction in zip(texts.rows, texts.texts, predictions, strict=True):
        cells = [shortened(printable(text)) for text in row_texts]
        cells += [prediction.label] if prediction.label is not None else []
        table.add_row(str(row), *map(Text, cells), f"{prediction.value:.4f}")
    Console().print(table)


def shortened(text: str) -> str:
    """The first characters of a text."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def print_layers(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Print each text layer by layer, with pruned tokens dimmed."""
    console = Console(highlight=False)
    for row, prediction in zip(texts.rows, predictions, strict=True):
        cost = f"{100 * prediction.cost:.0f} % of the dense FLOPs"
        console.print(Text(f"{row}: {printable(result_text(prediction))}", style="bold"), Text(f"· {cost}"))
        console.print(format_layers(prediction.traces, plain=not console.is_terminal))
