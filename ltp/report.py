"""``python -m ltp.report``: finished runs side by side. Reading, tables and figures are :mod:`ltp.reporting`'s."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING
from rich.console import Console

from ltp.command.cli import Command
from ltp.command.overrides import folders_as_key
from ltp.errors import UserError

if TYPE_CHECKING:  # Matplotlib takes a second to import, and a mistake should not
    from ltp.reporting.collect import Collection, LeftOut
    from ltp.reporting.rows import Group


@dataclass
class ReportSettings:
    """One report; ``python -m ltp.report --help`` says what each key means.

    ``folders`` is one (str) or a list: :func:`fill` makes it a list.
    """

    output_root: str = MISSING
    folders: Any = MISSING
    to: str | None = None
    points: float = MISSING
    figures: bool = MISSING


def main(settings: ReportSettings) -> None:
    """Read the runs that a configuration names, print their tables and write the report's files."""
    from ltp.reporting.rows import compare

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every letter that goes into a PDF
    settings = fill(settings)
    collection = read_runs(settings)
    groups = compare(collection.runs, settings.points)
    files, unread = build_files(groups, collection.left_out, figures=settings.figures)
    assert settings.to is not None
    write_files(Path(settings.to), files)
    print_report(groups, [*collection.left_out, *unread])
    figures = sum(name.endswith(".png") for name in files)
    texts = [name for name in files if not name.endswith((".png", ".pdf"))]
    print(f"report: {settings.to} ({', '.join(texts)}, {figures} figures as PNG and PDF)")


def fill(settings: ReportSettings) -> ReportSettings:
    """Check the configuration and fill its nulls.

    Raises:
        UserError: a value is out of range, or a folder is not there.
    """
    if not isinstance(settings.folders, list):
        settings.folders = [settings.folders]
    if not settings.folders:
        raise UserError("folders=[] names no folder")
    settings.folders = [str(Path(str(folder)).expanduser()) for folder in settings.folders]
    for folder in settings.folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder. Give the folder of the runs: python -m ltp.report outputs")
    settings.to = str(Path(settings.to).expanduser() if settings.to else Path(settings.folders[0]) / "report")
    if Path(settings.to).exists() and not Path(settings.to).is_dir():
        raise UserError(f"to={settings.to} is a file; give a folder")
    if not 0 <= settings.points < float("inf"):
        raise UserError(f"points={settings.points} is out of range: it must be 0 or more")
    return settings


def read_runs(settings: ReportSettings) -> "Collection":
    """Every run under the folders.

    Raises:
        UserError: there is no finished one.
    """
    from ltp.reporting.collect import collect
    from ltp.reporting.table import left_out

    collection = collect([Path(folder) for folder in settings.folders])
    if not collection.runs:
        lines = [f"no finished run (results.json) under {', '.join(settings.folders)}", *left_out(collection.left_out)]
        raise UserError("\n".join(lines))
    return collection


def build_files(
    groups: "Sequence[Group]", entries: "Sequence[LeftOut]", *, figures: bool
) -> "tuple[dict[str, bytes], list[LeftOut]]":
    """The report's files.

    Returns:
        Contents by name; and what could not be drawn.
    """
    from ltp.reporting.documents import summary_markdown, summary_tex, table_of_runs
    from ltp.reporting.figures import draw

    pictures: dict[str, bytes] = {}
    unread: list[LeftOut] = []
    by_group: dict[str, list[str]] = {}
    for group in groups if figures else ():
        drawn, missing = draw(group)
        pictures |= drawn
        unread += missing
        by_group[group.slug] = [name for name in drawn if name.endswith(".png")]
    texts = {
        "results.csv": table_of_runs(groups),
        "summary.md": summary_markdown(groups, [*entries, *unread], by_group),
        "summary.tex": summary_tex(groups),
    }
    return {**{name: text.encode("utf-8") for name, text in texts.items()}, **pictures}, unread


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, each whole or not at all.

    Raises:
        UserError: nothing can be written there.
    """
    from ltp.runs.directory import open_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with open_atomically(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"to={folder}: cannot write: {error.strerror}") from error


def print_report(groups: "Sequence[Group]", entries: "Sequence[LeftOut]") -> None:
    """Print a table a group with its summary, and what is in none."""
    from ltp.reporting.table import comparison, left_out, shown_rows
    from ltp.reporting.text import DEFINITIONS, summary

    console = Console()
    console.width = max(console.width, 130)  # a narrower terminal wraps lines, which is better than cut columns

    def print_line(words: str) -> None:
        console.print(words, highlight=False, markup=False, soft_wrap=True)

    for group in groups:
        console.print(comparison(group))
        hidden = len(group.rows) - len(shown_rows(group))
        if hidden:
            print_line(f"{hidden} more rows, on no method's Pareto front: see summary.md")
        print_line(f"{summary(group)}\n")
    for line in (*DEFINITIONS, *left_out(entries)):
        print_line(line)


COMMAND = Command("report", ReportSettings, main, fill, prepare=folders_as_key)

if __name__ == "__main__":
    sys.exit(COMMAND())
