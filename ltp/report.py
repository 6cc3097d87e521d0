"""``python -m ltp.report``: compare finished runs. Reading, tables and figures are in :mod:`ltp.reporting`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING
from rich.console import Console

from ltp.command.cli import Command
from ltp.command.overrides import existing_folders, folders_as_key
from ltp.errors import UserError, printable

if TYPE_CHECKING:  # Matplotlib takes a second to import; report mistakes before that
    from ltp.reporting.collect import Collection, LeftOut
    from ltp.reporting.rows import Group


@dataclass
class ReportSettings:
    """Settings of a report; ``python -m ltp.report --help`` explains the keys.

    ``folders`` is a str or a list of str: :func:`fill` makes it a list.
    """

    output_root: str = MISSING
    folders: Any = MISSING
    to: str | None = None
    points: float = MISSING
    figures: bool = MISSING


def main(settings: ReportSettings) -> None:
    """Read the runs under the folders, write the report's files and print the tables."""
    from ltp.reporting.rows import compare

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every glyph that it embeds in a PDF
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
    """Check the settings and fill their nulls.

    Raises:
        UserError: a value is out of range, or a folder does not exist.
    """
    settings.folders = existing_folders(settings.folders, "report")
    settings.to = str(Path(settings.to).expanduser() if settings.to else Path(settings.folders[0]) / "report")
    if Path(settings.to).exists() and not Path(settings.to).is_dir():
        raise UserError(f"to={settings.to} is a file; give a folder")
    if not 0 <= settings.points < float("inf"):
        raise UserError(f"points={settings.points} is out of range: it must be 0 or more")
    return settings


def read_runs(settings: ReportSettings) -> "Collection":
    """Read every run under the folders.

    Raises:
        UserError: there is no finished run.
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
    """Build the report's files.

    Returns:
        Contents by file name, and entries for what could not be drawn.
    """
    from ltp.reporting.documents import summary_markdown, summary_tex, table_of_runs
    from ltp.reporting.figures import draw

    images: dict[str, bytes] = {}
    unread: list[LeftOut] = []
    by_group: dict[str, list[str]] = {}
    for group in groups if figures else ():
        drawn, missing = draw(group)
        images |= drawn
        unread += missing
        by_group[group.slug] = [name for name in drawn if name.endswith(".png")]
    texts = {
        "results.csv": table_of_runs(groups),
        "summary.md": summary_markdown(groups, [*entries, *unread], by_group),
        "summary.tex": summary_tex(groups),
    }
    return {**{name: text.encode("utf-8") for name, text in texts.items()}, **images}, unread


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, each atomically.

    Raises:
        UserError: the folder cannot be written to.
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
    """Print one table per group with its summary, the definitions, and what was left out."""
    from ltp.reporting.table import comparison, left_out, shown_rows
    from ltp.reporting.text import DEFINITIONS, summary

    console = Console()
    console.width = max(console.width, 130)  # in a narrower terminal lines wrap, which is better than truncated columns

    def print_line(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    for group in groups:
        console.print(comparison(group))
        hidden = len(group.rows) - len(shown_rows(group))
        if hidden:
            print_line(f"{hidden} more rows, on no method's Pareto front: see summary.md")
        print_line(summary(group))
        console.print()
    for line in (*DEFINITIONS, *left_out(entries)):
        print_line(line)


COMMAND = Command("report", ReportSettings, main, fill, prepare=folders_as_key)

if __name__ == "__main__":
    sys.exit(COMMAND())
