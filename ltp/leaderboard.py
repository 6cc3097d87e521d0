"""``python -m ltp.leaderboard``: compare methods at equal cost. The work itself is in :mod:`ltp.comparison`."""

import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markdown import Markdown

from ltp.command.cli import Command, command_line
from ltp.command.imports import fast_imports
from ltp.comparison.request import LeaderboardSettings, check

_OWN = {item.name for item in dataclasses.fields(LeaderboardSettings)} - {"train"}


def main(settings: LeaderboardSettings) -> None:
    """Train, measure, rank, and print the table."""
    settings = check(settings)
    with fast_imports():
        from ltp.comparison.run import run

    words = [word for word in command_line("leaderboard").split(" ") if not word.startswith("train=")]
    folder = run(settings, " ".join([*words, *settings.train]))
    console = Console()
    console.width = max(console.width, 130)
    console.print(Markdown((folder / "leaderboard.md").read_text(encoding="utf-8")))
    print(f"leaderboard: {folder} (leaderboard.md, .csv, .png, .pdf)")


def arguments_of_trainings(arguments: Sequence[str]) -> list[str]:
    """Collect the overrides that are not the leaderboard's own, which go to every training, in the key ``train``."""
    own: list[str] = []
    train: list[str] = []
    for word in arguments:
        key, equals, _ = word.lstrip("+~").partition("=")
        is_training = bool(equals) and not word.startswith("-") and key.split(".")[0] not in (*_OWN, "hydra")
        (train if is_training else own).append(word)
    quoted = ("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in train)
    return [*own, f"train=[{','.join(quoted)}]"] if train else own


COMMAND = Command("leaderboard", LeaderboardSettings, main, check, prepare=arguments_of_trainings)

if __name__ == "__main__":
    sys.exit(COMMAND())
