"""Read a ranking data set of BEIR's form: `corpus.jsonl`, `queries.jsonl` and `qrels/train.tsv`.

Beside the judgements may stand candidates of the same name, `qrels/train.trec`: a run of a retriever in TREC's form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ltp.errors import UserError

#: Columns of the judgements, by which they are recognised.
QRELS = ("query-id", "corpus-id", "score")
_RUN_FIELDS = 6  # query, Q0, document, rank, score, name


def is_qrels(path: Path) -> bool:
    """Whether a file holds judgements, by its header. Imports nothing: planning a run asks."""
    if path.suffix != ".tsv" or not path.is_file():
        return False
    with path.open("rb") as file:
        names = file.readline(1024).decode(errors="replace").lstrip("\ufeff").split()
    return {*QRELS} <= {*names}


def files_beside(qrels: Path) -> dict[str, Path]:
    """Return the files that belong to judgements: `corpus` and `queries`, and `candidates` if there are any.

    Raises:
        UserError: one is missing.
    """
    folder = next((folder for folder in qrels.absolute().parents[:2] if (folder / "corpus.jsonl").is_file()), None)
    if folder is None or not (folder / "queries.jsonl").is_file():
        missing = "corpus.jsonl" if folder is None else "queries.jsonl"
        raise UserError(
            f"{qrels}: its columns are those of BEIR's judgements, and there is no {missing} in "
            f"{folder or qrels.absolute().parents[1]}; put it there"
        )
    files = {"corpus": folder / "corpus.jsonl", "queries": folder / "queries.jsonl"}
    run = qrels.with_suffix(".trec")
    return files | ({"candidates": run} if run.is_file() else {})


def read_beir(qrels: Path) -> list[tuple[str, str, float]]:
    """Read the candidates of each query: those that are judged, and then those of the run, whose relevance is 0.

    Only texts that are judged or candidates are kept in memory.

    Returns:
        Query, candidate (its title and its text) and relevance of each pair; the pairs of a query stand together if
        there is a run, else in the order of the file.

    Raises:
        UserError: a file is missing, a score is no number from 0 on, or a query or document is unknown or empty; names
            file, row and remedy.
    """
    from ltp.data.columns import parse_number
    from ltp.data.tables import read_table

    files = files_beside(qrels)
    judged: dict[tuple[str, str], float] = {}
    origins: dict[tuple[str, str], str] = {}
    rows = read_table(qrels, QRELS, remedy="").to_pylist()
    for number, (query, document, score) in enumerate((map(row.get, QRELS) for row in rows), start=1):
        relevance = parse_number(str(score))
        if relevance is None or relevance < 0:
            raise UserError(f"{qrels}: row {number} has the score {score!r}; it must be a number from 0 on")
        judged[str(query), str(document)] = relevance
        origins[str(query), str(document)] = f"{qrels}: row {number}"
    if "candidates" in files:
        queries = dict.fromkeys(query for query, _ in judged)
        for number, query, document in _read_run(files["candidates"]):
            if query in queries:  # a run may be of all splits
                origins.setdefault((query, document), f"{files['candidates']}: line {number}")
        place = {query: index for index, query in enumerate(queries)}
        origins = dict(sorted(origins.items(), key=lambda item: place[item[0][0]]))
    queries_by_id = _texts(files["queries"], {query for query, _ in origins}, lambda record: record["text"])
    documents = _texts(files["corpus"], {document for _, document in origins}, _title_and_text)
    pairs = []
    for (query, document), origin in origins.items():
        for name, found, file in ((query, queries_by_id, files["queries"]), (document, documents, files["corpus"])):
            if name not in found:
                raise UserError(f"{origin} names {name!r}, and {file} holds no such _id; add it, or remove the row")
        pairs.append((queries_by_id[query], documents[document], judged.get((query, document), 0.0)))
    return pairs


def _title_and_text(record: dict[str, Any]) -> str:
    return f"{record.get('title') or ''} {record['text']}"


def _texts(path: Path, wanted: set[str], text_of: Callable[[dict[str, Any]], str]) -> dict[str, str]:
    """Return the texts with the wanted ids."""
    from ltp.data.tables import read_records

    found = {}
    for number, record in enumerate(read_records(path, ("_id", "text"), remedy="BEIR's files have it."), start=1):
        if (name := str(record["_id"])) in wanted:
            found[name] = text_of(record).strip()
            if not found[name]:
                raise UserError(f"{path}: row {number}, {name!r}, has no text; fill it in, or remove what names it")
    return found


def _read_run(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the query and the document of each candidate."""
    from ltp.data.texts import lines

    with path.open("rb") as file:
        for number, line in enumerate(lines(file, str(path)), start=1):
            if fields := line.split():
                if len(fields) != _RUN_FIELDS:
                    raise UserError(
                        f"{path}: line {number} has {len(fields)} fields; TREC's form is query, Q0, document, rank, "
                        "score, name"
                    )
                yield number, fields[0], fields[2]
