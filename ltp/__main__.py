"""``python -m ltp``: list the commands."""

import sys

from ltp import __version__
from ltp.command.output import run_until_broken_pipe

COMMANDS = {
    "train": "train a run or a sweep: dense, soft and hard stages, and the baselines",
    "evaluate": "metrics, FLOPs and tokens per layer of a run on a split",
    "predict": "labels for new texts, and the tokens pruned in each layer",
    "serve": "an HTTP server for a run: batches without padding, metrics, a page to try it",
    "calibrate": "calibrate a run to another budget, without training",
    "export": "export a run as a Hugging Face directory or an ONNX graph",
    "bench": "benchmark the speed of pruned and dense inference engines",
    "report": "tables and figures of all finished runs",
    "leaderboard": "compare methods at equal cost, with the error of every difference",
    "list": "the runs of a folder: finished, under way, and how to go on with the others",
}


def main() -> int:
    """Print the commands, or the version for ``--version``.

    Returns:
        The exit code: 2 if an argument is not a flag, else 0.
    """
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"ltp {__version__}")
        return 0
    lines = [f"  python -m ltp.{name:11} {summary}" for name, summary in COMMANDS.items()]
    print(
        "\n".join(["Train, compare and deploy token-pruned encoders.", "", *lines, "", "--help explains each command."])
    )
    return 2 if any(not argument.startswith("-") for argument in arguments) else 0


if __name__ == "__main__":
    sys.exit(run_until_broken_pipe(main))
