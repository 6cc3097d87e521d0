"""``python -m ltp``: the list of commands."""

import sys

from ltp import __version__

COMMANDS = {
    "train": "train one run, or a sweep: dense, soft, hard, and the baselines",
    "evaluate": "metrics, FLOPs and tokens per layer of a run on a split",
    "predict": "labels for new texts, and which tokens were pruned where",
    "calibrate": "bring a run to another budget, without training",
    "export": "a run as a Hugging Face directory or an ONNX graph",
    "bench": "measure the speed of a model beside others",
    "report": "tables and figures of all finished runs",
}


def main() -> int:
    """Print the commands, or the version for ``--version``.

    Returns:
        The exit code: 2 where a word was given that is no flag.
    """
    words = sys.argv[1:]
    if "--version" in words:
        print(f"ltp {__version__}")
        return 0
    lines = [f"  python -m ltp.{name:10} {summary}" for name, summary in COMMANDS.items()]
    print(
        "\n".join(["Train, compare and deploy token-pruned encoders.", "", *lines, "", "--help explains each command."])
    )
    return 2 if any(not word.startswith("-") for word in words) else 0


if __name__ == "__main__":
    sys.exit(main())
