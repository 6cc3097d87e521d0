"""Predictions in parts: a file for each chunk of the input, in a folder beside the output until all can be joined.

::

    out.parquet.parts/
        about.json       what the parts are made of: fingerprints of input and model, and the settings
        000000.parquet   the predictions of the first chunk, written atomically
        000000.notes     the notes on its rows, if there are some

Any process can write any part, so that several share them out, and a prediction that was killed goes on.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltp.data.texts import Overview, Texts, TextSource
from ltp.errors import UserError
from ltp.evaluation.prediction import Prediction
from ltp.evaluation.prediction_output import Notes, OutputColumns, join_files, prediction_writer
from ltp.runs.directory import write_atomically
from ltp.runs.locks import HOLDER_FILE, LOCK_FILE, run_lock
from ltp.runs.results import DamagedError, read_json

log = logging.getLogger("ltp")

_ABOUT = "about.json"


@dataclass(frozen=True)
class Parts:
    """The parts of an output file.

    Attributes:
        output: the file that they are joined to.
        columns: its columns.
        overview: what the first reading of the input found.
        sizes: the number of rows of each chunk.
        facts: what the parts are made of; parts of other facts are never mixed with them.
    """

    output: Path
    columns: OutputColumns
    overview: Overview
    sizes: Sequence[int]
    facts: dict[str, Any]

    @classmethod
    def of(cls, source: TextSource, output: Path, columns: OutputColumns, facts: dict[str, Any]) -> "Parts":
        """Read the input once, to check it and to know its chunks.

        Args:
            source: the input.
            output: the file that the parts are joined to.
            columns: its columns; those of the input are added.
            facts: of the model and the settings; that of the input is added.

        Raises:
            UserError: the input cannot be read, or has no text.
        """
        sizes, digest = list[int](), hashlib.sha256()

        def look(chunk: Texts) -> None:
            columns.look(chunk)
            sizes.append(len(chunk.rows))
            digest.update(repr(chunk).encode())  # with the bounds of the chunks

        overview = source.check(look)
        return cls(output, columns, overview, sizes, {"input": digest.hexdigest(), **facts})

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return self.output.with_name(f"{self.output.name}.parts")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Context manager: hold the folder's lock; create the folder, or check that it holds parts of these facts.

        Raises:
            UserError: it holds something else, or cannot be written.
            RunError: another prediction writes it.
        """
        setting = f"output={self.output}"
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{setting}: cannot write {self.folder}: {error.strerror}") from error
        with run_lock(self.folder, wait=False):
            about = self.folder / _ABOUT
            if not about.is_file() and {path.name for path in self.folder.iterdir()} - {LOCK_FILE, HOLDER_FILE}:
                raise UserError(f"{setting}: {self.folder} holds something else than parts: name another output")
            if len(self.missing()) == len(self.sizes):  # none is written
                write_atomically(about, json.dumps(self.facts, indent=2) + "\n")
            try:
                found = read_json(about)
            except DamagedError as error:
                raise UserError(f"{about} is damaged ({error}): remove its folder to start over") from None
            if different := [key for key, value in self.facts.items() if found.get(key) != value]:
                raise UserError(
                    f"{setting}: the parts in {self.folder} are of another {', '.join(different)}. Give the former "
                    "command again, name another output, or remove the folder to start over"
                )
            yield

    def missing(self) -> list[int]:
        """The numbers of the parts that are not written yet."""
        written = {path.stem for path in self.folder.glob(f"[0-9]*{self.output.suffix}")}
        return [number for number in range(len(self.sizes)) if self._path(number).stem not in written]

    def rows_of(self, numbers: Sequence[int]) -> int:
        """The number of rows of some parts."""
        return sum(self.sizes[number] for number in numbers)

    def write(self, number: int, chunk: Texts, predictions: Sequence[Prediction]) -> None:
        """Write a part: its presence says that it is whole."""
        notes = [(row, prediction.note) for row, prediction in zip(chunk.rows, predictions, strict=True)]
        if notes := [(row, note) for row, note in notes if note]:
            write_atomically(self._path(number).with_suffix(".notes"), json.dumps(notes))
        with prediction_writer(self._path(number), self.columns) as write:
            write(self.columns.records(chunk, predictions))

    def join(self) -> Notes:
        """Join the parts to the output, in the order of the input, and remove them; return their notes."""
        paths = [self._path(number) for number in range(len(self.sizes))]
        notes = Notes(self.overview.skipped)
        for path in paths:
            if (noted := path.with_suffix(".notes")).is_file():
                notes.add(*zip(*json.loads(noted.read_text(encoding="utf-8")), strict=True))
        join_files(paths, self.output, self.columns)
        shutil.rmtree(self.folder)
        return notes

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.output.suffix}"
