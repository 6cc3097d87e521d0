"""Read texts to classify from the command line, a file or standard input, chunk by chunk."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ltp.data import TABLE_SUFFIXES
from ltp.errors import UserError

SUFFIXES = (".txt", *TABLE_SUFFIXES)
STANDARD_INPUT = "-"
#: Names of the texts of a row that has no column names.
TEXT_COLUMNS = ("text", "text_pair")

#: The most rows and characters of a chunk: what a prediction needs beside its text is kept for these.
CHUNK_ROWS = 8192
CHUNK_CHARACTERS = 4_000_000  # tokenising takes some 150 bytes a character
_LONGEST_LINE = 1 << 26  # bytes

#: A row of the input: its values by column.
Record = dict[str, Any]


@dataclass
class Texts:
    """Rows of an input that have text.

    Attributes:
        rows: row numbers in the input, counted from 1, header excluded.
        texts: one or two texts per row.
        records: the whole rows, as read.
    """

    rows: list[int] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


@dataclass
class Overview:
    """What a first reading of an input finds.

    Attributes:
        count: number of rows with text.
        skipped: numbers of the rows without text.
    """

    count: int = 0
    skipped: list[int] = field(default_factory=list)


class TextSource:
    """Texts to classify, which can be read several times; a context manager, which frees what they are kept in.

    Args:
        key: the configuration key and its value, for messages.
        columns: the columns with the one or two texts of a row.
        records: starts to read the rows.
        file: a temporary file that they are read from.
        skips_blank: whether rows without text are left out.
    """

    def __init__(
        self,
        key: str,
        columns: Sequence[str],
        records: Callable[[], Iterable[Record]],
        file: BinaryIO | None = None,
        *,
        skips_blank: bool = True,
    ) -> None:
        self.key = key
        self.columns = tuple(columns)
        self._records = records
        self._file = file
        self._skips_blank = skips_blank

    def __enter__(self) -> "TextSource":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def chunks(self, overview: Overview | None = None) -> Iterator[Texts]:
        """Read the rows that have text, in chunks.

        Args:
            overview: is filled on the way.

        Raises:
            UserError: a row cannot be read, or holds no text but something else.
        """
        overview = Overview() if overview is None else overview
        chunk, characters = Texts(), 0
        for row, record in enumerate(self._records(), start=1):
            texts = tuple(self._text(row, column, record[column]) for column in self.columns)
            if self._skips_blank and not any(text.strip() for text in texts):
                overview.skipped.append(row)
                continue
            length = sum(map(len, texts))
            if chunk.rows and (len(chunk.rows) == CHUNK_ROWS or characters + length > CHUNK_CHARACTERS):
                yield chunk
                chunk, characters = Texts(), 0
            overview.count += 1
            characters += length
            chunk.rows.append(row)
            chunk.texts.append(texts)
            chunk.records.append(record)
        if chunk.rows:
            yield chunk

    def check(self, look: Callable[[Texts], None] = lambda _: None) -> Overview:
        """Read everything once, so that mistakes are known before anything is computed.

        Args:
            look: is called with each chunk.

        Raises:
            UserError: a row cannot be read, or no row has text.
        """
        overview = Overview()
        for chunk in self.chunks(overview):
            look(chunk)
        if not overview.count:
            raise UserError(f"{self.key} holds no text")
        return overview

    def read(self) -> Texts:
        """Read all rows that have text at once.

        Raises:
            UserError: see :meth:`check`.
        """
        everything = Texts()

        def keep(chunk: Texts) -> None:
            everything.rows += chunk.rows
            everything.texts += chunk.texts
            everything.records += chunk.records

        self.check(keep)
        return everything

    def _text(self, row: int, column: str, value: Any) -> str:
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            value = " ".join(value)  # the words of a text
        if isinstance(value, dict | list | bytes):
            raise UserError(f"{self.key}: row {row}: column {column!r} holds {str(value)[:60]}, not a text or number.")
        text = "" if value is None else str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{self.key}: row {row}: column {column!r} holds half a character (a lone surrogate)."
            ) from None
        return text


def given_texts(*texts: str) -> TextSource:
    """Return the source of one text, or one pair, that is given itself."""
    columns = TEXT_COLUMNS[: len(texts)]
    return TextSource("text=…", columns, lambda: [dict(zip(columns, texts, strict=True))])


def open_texts(source: str, columns: Sequence[str], key: str = "input") -> TextSource:
    """Open a file or standard input.

    Args:
        source: a path, or ``-`` for the lines of standard input.
        columns: names of the one or two text columns; ignored for ``.txt`` files and standard input.
        key: the configuration key of the source, for messages.

    Raises:
        UserError: the file does not exist, or its suffix is unknown.
    """
    path = Path(source).expanduser()
    key = f"{key}={source}"
    if source == STANDARD_INPUT:
        file = _spooled(sys.stdin.buffer)
        return TextSource(key, TEXT_COLUMNS[:1], lambda: _line_records(file, "standard input"), file)
    if path.is_dir():
        raise UserError(f"{key} is a directory; give a file")
    if not path.is_file():
        raise UserError(f"{key}: no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{key}: unknown format {path.suffix!r}; use one of {', '.join(SUFFIXES)}, or - for lines")
    if path.suffix == ".txt":
        return TextSource(key, TEXT_COLUMNS[:1], lambda: _file_records(path))
    from ltp.data.tables import read_records

    return TextSource(
        key, columns, lambda: read_records(path, columns, remedy="Name the text columns with columns=[…].")
    )


def _spooled(stream: BinaryIO) -> BinaryIO:
    """Copy a stream that can be read only once to a temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the source closes it
    shutil.copyfileobj(stream, file)
    return file


def _line_records(file: BinaryIO, source: str) -> Iterator[Record]:
    file.seek(0)
    for line in lines(file, source):
        yield {TEXT_COLUMNS[0]: line}


def _file_records(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            yield from _line_records(file, str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def lines(file: BinaryIO, source: str) -> Iterator[str]:
    """Read the lines of a file; a trailing line break does not start another line.

    Args:
        file: the file.
        source: its name, for the message.

    Raises:
        UserError: a line is not UTF-8, or longer than 64 MiB; the message names line and byte.
    """
    number = 0
    while content := file.readline(_LONGEST_LINE):
        number += 1
        if len(content) == _LONGEST_LINE:
            raise UserError(f"{source}: line {number} is longer than {_LONGEST_LINE >> 20} MiB; split it")
        try:
            line = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{source}: line {number}, byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8; "
                "save the file in that encoding"
            ) from None
        if number == 1:
            line = line.removeprefix("\ufeff")
        yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
