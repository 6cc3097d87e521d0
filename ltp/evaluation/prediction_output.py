"""Output of predictions: in the terminal, as CSV or JSONL, and as an HTML page."""

import contextlib
import csv
import io
import json
import shutil
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
from ltp.errors import printable
from ltp.evaluation.page import Example, render_page
from ltp.evaluation.prediction import Prediction
from ltp.model.tracing import format_layers
from ltp.runs.directory import open_atomically, write_atomically
from ltp.runs.summary import dead_cell

_MAX_LISTED_ROWS = 5  # the most row numbers listed with one note
_MAX_CHARACTERS = 200


class Notes:
    """Rows that were skipped or truncated, or that have no words: their numbers, and the first ones by name."""

    def __init__(self, skipped: Sequence[int]) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}
        for row in skipped:
            self._add("skipped, no text", str(row))

    def add(self, rows: Sequence[int], notes: Sequence[str]) -> None:
        """Add the notes of predictions; those without one have an empty text."""
        for row, note in zip(rows, notes, strict=True):
            if note:
                kind, _, detail = note.partition(": ")
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


class OutputColumns:
    """The columns of an output file: the row's number, the input's columns, and the prediction's.

    A column of the input that has the name of one of the output's own is called ``input_…``.

    Args:
        own: the output's own columns: ``row``, and what is predicted.
        typed: whether to find the types of the columns, for parquet.
    """

    def __init__(self, own: Sequence[str], *, typed: bool) -> None:
        self._own = own
        self._typed = typed
        self._inputs: dict[str, str] = {}  # names of the output by those of the input
        self._types: dict[str, Any] = {}  # Arrow types by names of the input

    def look(self, chunk: Texts) -> None:
        """Take the columns of a chunk into account."""
        names = dict.fromkeys(name for record in chunk.records for name in record)
        for name in names:
            if name not in self._inputs:
                output = name
                while output in self._own or output in self._inputs.values():
                    output = f"input_{output}"
                self._inputs[name] = output
            if self._typed:
                self._types[name] = _joined_type(self._types.get(name), [record.get(name) for record in chunk.records])

    @property
    def names(self) -> list[str]:
        """All column names, in order."""
        return [self._own[0], *self._inputs.values(), *self._own[1:]]

    def records(self, chunk: Texts, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Return the output records of a chunk."""
        result = []
        for row, record, prediction in zip(chunk.rows, chunk.records, predictions, strict=True):
            inputs = {self._inputs[name]: value for name, value in record.items()}
            result.append({"row": row, **inputs, **prediction.columns})
        return result

    def table(self, rows: Sequence[dict[str, Any]]) -> Any:
        """Convert output records to an Arrow table; columns of mixed types hold text."""
        import pyarrow as pa

        arrays = {}
        types = {self._inputs[name]: data_type for name, data_type in self._types.items()}
        for name in self.names:
            values = [row.get(name) for row in rows]
            if name in types and pa.types.is_string(types[name]):
                values = [value if value is None or isinstance(value, str) else plain(value) for value in values]
            arrays[name] = pa.array(values, types.get(name))
        return pa.table(arrays)


def _joined_type(known: Any, values: Sequence[Any]) -> Any:
    """Return the Arrow type of earlier and further values; string if they have none in common."""
    import pyarrow as pa

    try:
        further = pa.array(values).type
        if known is None:
            return further
        schemas = [pa.schema({"": data_type}) for data_type in (known, further)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError):
        return pa.string()


def plain(value: Any) -> str:
    """Return a value as text: JSON of a list or an object."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)


def _cell(value: Any) -> str:
    return "" if value is None else plain(value)


@contextlib.contextmanager
def prediction_writer(path: Path, columns: OutputColumns) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Write records as CSV, JSONL or parquet, by the file's suffix, chunk by chunk; the file appears when it is whole.

    Yields:
        A function that appends records.
    """
    with open_atomically(path) as file, contextlib.ExitStack() as stack:
        if path.suffix == ".parquet":
            yield _parquet_writer(file, stack, columns)
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        stack.callback(text.detach)
        stack.callback(text.flush)
        if path.suffix == ".csv":
            writer = csv.DictWriter(text, columns.names, lineterminator="\n")
            writer.writeheader()
            # the label's name is the model's; the input's own columns are written as they are
            yield lambda rows: writer.writerows(
                {name: dead_cell(value) if name == "label" else _cell(value) for name, value in row.items()}
                for row in rows
            )
            return
        yield lambda rows: text.writelines(
            json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in rows
        )


def _parquet_writer(
    file: BinaryIO, stack: contextlib.ExitStack, columns: OutputColumns
) -> Callable[[list[dict[str, Any]]], None]:
    import pyarrow.parquet

    opened: list[pyarrow.parquet.ParquetWriter] = []

    def write(rows: list[dict[str, Any]]) -> None:
        table = columns.table(rows)
        if not opened:
            opened.append(stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema)))
        opened[0].write_table(table)

    return write


def join_files(paths: Sequence[Path], output: Path, columns: OutputColumns) -> None:
    """Join files of :func:`prediction_writer` to one, which appears when it is whole, as if it had written it alone."""
    with open_atomically(output) as file, contextlib.ExitStack() as stack:
        if output.suffix == ".parquet":
            import pyarrow.parquet

            first = stack.enter_context(pyarrow.parquet.ParquetFile(paths[0])).schema_arrow
            writer = stack.enter_context(pyarrow.parquet.ParquetWriter(file, first))
            for path in paths:
                with pyarrow.parquet.ParquetFile(path) as part:
                    writer.write_table(part.read())
            return
        header = io.StringIO()
        if output.suffix == ".csv":
            csv.DictWriter(header, columns.names, lineterminator="\n").writeheader()
        for path in paths:
            with path.open("rb") as part:
                part.seek(0 if path == paths[0] else len(header.getvalue().encode()))
                shutil.copyfileobj(part, file)


def write_page(
    path: Path,
    title: str,
    texts: Texts,
    predictions: Sequence[Prediction],
    thresholds: Sequence[float] | None,
) -> None:
    """Write the HTML page of the texts and their tokens atomically."""
    examples = [
        Example(row, prediction.shown, prediction.note, prediction.cost, prediction.traces, prediction.marks)
        for row, prediction in zip(texts.rows, predictions, strict=True)
    ]
    write_atomically(path, render_page(title, examples, thresholds))


def print_table(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Print a table with one row per text; long texts are shortened."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", justify="right", no_wrap=True)
    for name in ("text", "text_pair")[: len(texts.texts[0])]:
        table.add_column(name)
    numbers = [name for name, value in predictions[0].columns.items() if isinstance(value, float)]
    is_plain = all(isinstance(value, str | float) for value in predictions[0].columns.values())
    names = list(predictions[0].columns) if is_plain else ["prediction"]
    for name in names:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=is_plain)
    for row, row_texts, prediction in zip(texts.rows, texts.texts, predictions, strict=True):
        values = list(prediction.columns.values()) if is_plain else [prediction.shown]
        cells = [shortened(printable(text)) for text in row_texts]
        cells += [printable(value) if isinstance(value, str) else f"{value:.4f}" for value in values]
        table.add_row(str(row), *map(Text, cells))
    Console().print(table)


def shortened(text: str) -> str:
    """The first characters of a text."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def print_layers(texts: Texts, predictions: Sequence[Prediction]) -> None:
    """Print each text layer by layer, with pruned tokens dimmed."""
    console = Console(highlight=False)
    for row, prediction in zip(texts.rows, predictions, strict=True):
        cost = f"{100 * prediction.cost:.0f} % of the dense FLOPs"
        console.print(Text(f"{row}: {printable(prediction.shown)}", style="bold"), Text(f"· {cost}"))
        console.print(format_layers(prediction.traces, plain=not console.is_terminal))
