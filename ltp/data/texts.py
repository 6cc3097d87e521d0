"""Texts to classify: given on the command line, in a file, or on standard input."""

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
        rows: their numbers in the input, counted from 1 without a header.
        texts: one or two for each row.
        skipped: numbers of the rows that held no text.
    """

    rows: list[int]
    texts: list[tuple[str, ...]]
    skipped: list[int]


def read_texts(source: str, columns: Sequence[str]) -> Texts:
    """Read a file or standard input.

    Args:
        source: a path, or ``-``: its lines, as of a ``.txt`` file.
        columns: names of the one or two text columns, for files that have columns.

    Raises:
        UserError: there is no such file or column, it cannot be read, or it holds no text.
    """
    path = Path(source).expanduser()
    what = f"input={source}"
    found: list[tuple[str, ...]]
    if source == STANDARD_INPUT:
        found = [(line,) for line in lines(sys.stdin.buffer.read(), "standard input")]
    elif path.is_dir():
        raise UserError(f"{what} is a directory; give a file")
    elif not path.is_file():
        raise UserError(f"{what}: no such file")
    elif path.suffix not in SUFFIXES:
        raise UserError(f"{what}: unknown format {path.suffix!r}; use one of {', '.join(SUFFIXES)}, or - for lines")
    elif path.suffix == ".txt":
        found = [(line,) for line in lines(_bytes(path), str(path))]
    else:
        found = _rows(path, columns)
    return keep_nonempty(found, what)


def keep_nonempty(found: Sequence[tuple[str, ...]], what: str) -> Texts:
    """The rows that hold text.

    Raises:
        UserError: none does, or one cannot be written in UTF-8.
    """
    for row, texts in enumerate(found, start=1):
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise UserError(f"{what}: the text of row {row} is not valid UTF-8") from None
    kept = [(row, texts) for row, texts in enumerate(found, start=1) if any(text.strip() for text in texts)]
    if not kept:
        raise UserError(f"{what} holds no text")
    rows = {row for row, _ in kept}
    skipped = [row for row in range(1, len(found) + 1) if row not in rows]
    return Texts([row for row, _ in kept], [texts for _, texts in kept], skipped)


def lines(content: bytes, where: str) -> list[str]:
    """Lines of a file; an end of line at its end begins no further one.

    Raises:
        UserError: it is not UTF-8; the message names line and byte.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise UserError(
            f"{where}: line {line}, byte {column} (0x{content[error.start]:02x}) is not UTF-8; "
            "save the file in that encoding"
        ) from None
    found = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    return found[:-1] if found[-1] == "" else found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    import pyarrow as pa

    from ltp.data.tables import read_table

    table = read_table(path, columns, remedy="Name the text columns with columns=[…].")
    values = []
    for column in columns:
        kind = table[column].type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise UserError(f"{path}: column {column!r} holds {kind} values, not text.")
        values.append(["" if value is None else str(value) for value in table[column].to_pylist()])
    return list(zip(*values, strict=True))
