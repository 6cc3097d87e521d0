"""Compare the time of dense models of this version with those of an earlier commit, in one process.

``python scripts/versions.py COMMIT`` copies the packages of that commit and of this one under new names, builds the
same random MiniLM with each, and runs all on the same batches in turn, in a random order. Runs of one version differ by
some per cent from each other on a shared machine; calls in turn do so by a few per mille. This version is copied twice:
how its copies differ is the error.
"""

import argparse
import importlib
import itertools
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ltp.data.lengths import synthetic_lengths
from ltp.data.sequences import make_batches, random_sequences

ROOT = Path(__file__).resolve().parents[1]
#: Form and batch size of each comparison.
CASES = (("packed", 1), ("deployed", 1), ("packed", 32), ("deployed", 32))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each form and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier version")
    parser.add_argument("--seconds", type=float, default=20, help="for each form and batch size")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        names = [copied(commit, Path(folder)) for commit in ("HEAD", options.commit, "HEAD")]
        for form, batch_size in CASES:
            ratios = measured(names, form, batch_size, options.seconds, options.seed)
            print(
                f"{form}, batch {batch_size}: this version ÷ {options.commit} {ratios[0]:.3f}, its copy {ratios[1]:.3f}"
            )


def copied(commit: str, folder: Path) -> str:
    """Copy the package of a commit under a new name, which is returned."""
    name = f"ltp_{len(list(folder.iterdir()))}"
    archive = subprocess.run(["git", "archive", commit, "ltp"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    for path in (folder / "ltp").rglob("*.py"):
        path.write_text(re.sub(r"\bltp\b", name, path.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "ltp").rename(folder / name)
    return name


def measured(names: Sequence[str], form: str, batch_size: int, seconds: float, seed: int) -> list[float]:
    """Return the median ratios of the first package's processor time to that of each of the others."""
    draw = random.Random(seed)
    dense = importlib.import_module(f"{names[0]}.benchmark.models").random_classifier("minilm")
    models = {name: built(name, dense, form) for name in draw.sample(names, len(names))}  # order decides their memory
    lengths = synthetic_lengths("mrpc", 8 * batch_size, seed)
    batches = make_batches(random_sequences(lengths, dense.config.vocab_size, seed), batch_size)
    times: dict[str, list[int]] = {name: [] for name in names}
    with torch.inference_mode():
        for name, batch in itertools.product(names, batches):  # the first calls prepare
            models[name](**batch)
        end = time.perf_counter() + seconds
        for batch in itertools.cycle(batches):
            for name in draw.sample(names, len(names)):
                start = time.process_time_ns()
                models[name](**batch)
                times[name].append(time.process_time_ns() - start)
            if time.perf_counter() > end:
                break
    own = times[names[0]]
    return [statistics.median(a / b for a, b in zip(own, times[name], strict=True)) for name in names[1:]]


def built(name: str, dense: Any, form: str) -> Callable[..., Any]:
    """Build the dense classifier of a package."""
    classifier = importlib.import_module(f"{name}.model.classifier").LTPForSequenceClassification
    model = classifier.from_dense(dense, prune_mode="none").eval()
    return model.deploy("float32") if form == "deployed" else model


if __name__ == "__main__":
    main()
