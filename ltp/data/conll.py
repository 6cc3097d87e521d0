"""Read CoNLL-style files: a word and its columns on a line, an empty line between texts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ltp.data.tables import not_utf8
from ltp.errors import UserError

_DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, words: str, labels: str) -> pa.Table:
    """Read the first column of the lines as words, and the last as labels.

    Columns are separated by a tab or by spaces. Lines that begin with `-DOCSTART-` or `# ` are left out.

    Args:
        path: the file, UTF-8.
        words, labels: names of the columns of the result.

    Returns:
        The words and labels of a text in one row, lists of strings.

    Raises:
        UserError: the file does not exist, or a line has one column only, or not as many as the line before.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    texts: list[tuple[list[str], list[str]]] = [([], [])]
    count = None
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.isspace():
                    if texts[-1][0]:
                        texts.append(([], []))
                    continue
                if line.startswith((_DOCUMENT, "# ")):
                    continue
                fields = line.rstrip("\n").split("\t") if "\t" in line else line.split()
                if len(fields) < 2 or (count is not None and len(fields) != count):
                    wanted = "a word and its label" if count is None else f"{count} columns, as the lines before"
                    raise UserError(
                        f"{path}: line {number} has {len(fields)} columns, not {wanted}: {line.strip()[:60]!r}"
                    )
                count = len(fields)
                texts[-1][0].append(fields[0])
                texts[-1][1].append(fields[-1])
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    rows = [text for text in texts if text[0]]
    kind = pa.list_(pa.string())
    return pa.table({words: pa.array([row for row, _ in rows], kind), labels: pa.array([own for _, own in rows], kind)})
