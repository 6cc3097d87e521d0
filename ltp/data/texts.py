"""Read texts to classify from the command line, a file or standard input."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltp.data import TABLE_SUFFIXES
from ltp.errors import UserError

SUFFIXES = (".txt", *TABLE_SUFFIXES)
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Texts:
    """Texts to classify.

    Attributes:
        rows: row numbers in the input, counted from 1, header excluded.
        texts: one or two texts per row.
        skipped: numbers of the rows without text.
    """

    rows: list[int]
    texts: list[tuple[str, ...]]
    skipped: list[int]


def read_texts(source: str, columns: Sequence[str], key: str = "input") -> Texts:
    """Read texts from a file or standard input.

    Args:
        source: a path, or ``-`` for the lines of standard input.
        columns: names of the one or two text columns; ignored for ``.txt`` files and standard input.
        key: the configuration key of the source, for messages.

    Raises:
        UserError: the file or a column does not exist, the file cannot be read, or it contains no text.
    """
    path = Path(source).expanduser()
    key = f"{key}={source}"
    rows: list[tuple[str, ...]]
    if source == STANDARD_INPUT:
        rows = [(line,) for line in lines(sys.stdin.buffer.read(), "standard input")]
    elif path.is_dir():
        raise UserError(f"{key} is a directory; give a file")
    elif not path.is_file():
        raise UserError(f"{key}: no such file")
    elif path.suffix not in SUFFIXES:
        raise UserError(f"{key}: unknown format {path.suffix!r}; use one of {', '.join(SUFFIXES)}, or - for lines")
    elif path.suffix == ".txt":
        rows = [(line,) for line in lines(_read_bytes(path), str(path))]
    else:
        rows = _read_columns(path, columns)
    return keep_nonempty(rows, key)


def keep_nonempty(rows: Sequence[tuple[str, ...]], source: str) -> Texts:
    """Drop the rows without text.

    Args:
        rows: one or two texts per row.
        source: source of the rows, for messages.

    Raises:
        UserError: no row has text, or a text cannot be encoded as UTF-8.
    """
    for row, texts in enumerate(rows, start=1):
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise UserError(f"{source}: the text of row {row} is not valid UTF-8") from None
    kept = {row: texts for row, texts in enumerate(rows, start=1) if any(text.strip() for text in texts)}
    if not kept:
        raise UserError(f"{source} holds no text")
    skipped = [row for row in range(1, len(rows) + 1) if row not in kept]
    return Texts(list(kept), list(kept.values()), skipped)


def lines(content: bytes, source: str) -> list[str]:
    """Split a file's content into lines; a trailing line break does not start another line.

    Args:
        content: bytes of the file.
        source: the file, for the message.

    Raises:
        UserError: the content is not UTF-8; the message names line and byte.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise UserError(
            f"{source}: line {line}, byte {column} (0x{content[error.start]:02x}) is not UTF-8; "
            "save the file in that encoding"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _read_columns(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    import pyarrow as pa

    from ltp.data.tables import read_table

    table = read_table(path, columns, remedy="Name the text columns with columns=[…].")
    values = []
    for column in columns:
        data_type = table[column].type
        if pa.types.is_nested(data_type) or pa.types.is_binary(data_type):
            raise UserError(f"{path}: column {column!r} holds {data_type} values, not text.")
        values.append(["" if value is None else str(value) for value in table[column].to_pylist()])
    return list(zip(*values, strict=True))
