"""Output of predictions: in the terminal, as CSV or JSONL, and as an HTML page."""

import contextlib
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltp.data.texts import Texts
from ltp.evaluation.page import Example, render_page
from ltp.evaluation.prediction import Prediction
from ltp.model.tracing import format_layers, printable
from ltp.runs.directory import open_atomically, write_atomically

_MAX_LISTED_ROWS = 5  # the most row numbers listed with one note
_MAX_CHARACTERS = 200


class Notes:
    """Rows that were skipped or truncated, or that have no words: their numbers, and the first ones by name."""

    def __init__(self, skipped: Sequence[int]) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}
        for row in skipped:
            self._add("skipped, no text", str(row))

    def add(self, rows: Sequence[int], predictions: Sequence[Prediction]) -> None:
        """Add the notes of predictions."""
        for row, prediction in zip(rows, predictions, strict=True):
            if prediction.note:
                kind, _, detail = prediction.note.partition(": ")
                self._add(kind, f"{row} ({detail})" if detail else str(row))

    def _add(self, kind: str, row: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= _MAX_LISTED_ROWS:
            self._first.setdefault(kind, []).append(row)

    def print(self) -> None:
        """Print the notes on standard error, a line a kind."""
        for kind, rows in self._first.items():
            count = self._counts[kind]
            more = f" and {count - len(rows)} more" if count > len(rows) else ""
            print(f"{kind}: {'row' if count == 1 else 'rows'} {', '.join(rows)}{more}", file=sys.stderr)


def records(
    rows: Sequence[int], texts: Sequence[tuple[str, ...]], predictions: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """The output record of each text: row in the input, text (and pair), and label and probability, or score."""
    result = []
    for row, row_texts, prediction in zip(rows, texts, predictions, strict=True):
        record: dict[str, Any] = {"row": row, **dict(zip(("text", "text_pair"), row_texts, strict=False))}
        if prediction.label is None:
            result.append(record | {"score": prediction.value})
        else:
            result.append(record | {"label": prediction.label, "probability": prediction.value})
    return result


@contextlib.contextmanager
def prediction_writer(path: Path) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Write records as CSV, JSONL or parquet, by the file's suffix, chunk by chunk; the file appears when it is whole.

    Yields:
        A function that appends records.
    """
    with open_atomically(path) as file, contextlib.ExitStack() as stack:
        if path.suffix == ".parquet":
            yield _parquet_writer(file, stack)
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        stack.callback(text.detach)
        columns: list[str] = []

        def write(rows: list[dict[str, Any]]) -> None:
            if path.suffix == ".csv":
                writer = csv.DictWriter(text, rows[0], lineterminator="\n")
                if not columns:
                    columns.extend(rows[0])
                    writer.writeheader()
                writer.writerows(rows)
            else:
                text.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in rows)
            text.flush()

        yield write


def _parquet_writer(file: BinaryIO, stack: contextlib.ExitStack) -> Callable[[list[dict[str, Any]]], None]:
    import pyarrow as pa
    import pyarrow.parquet

    opened: list[pyarrow.parquet.ParquetWriter] = []

    def write(rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(rows)
        if not opened:
            opened.append(stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema)))
        opened[0].write_table(table)

    return write


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
