"""A leaderboard from start to end: the trainings, the measurements, the ranking and the files."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltp.comparison.measuring import Bench
from ltp.comparison.output import csv_table, figure, markdown, notes
from ltp.comparison.request import LeaderboardSettings, value_of
from ltp.comparison.standings import Candidate, Row, rank
from ltp.comparison.sweeps import Jobs, dense_sweep, method_sweep, run_sweep, shallow_sweep
from ltp.errors import RunError
from ltp.pruning import DENSE, label_of
from ltp.runs.directory import open_atomically
from ltp.runs.loading import set_threads, silence_libraries
from ltp.runs.provenance import hardware
from ltp.runs.results import RESULTS_FILE, read_results

log = logging.getLogger("ltp")


def run(settings: LeaderboardSettings, command: str) -> Path:
    """Train what is missing, measure all runs side by side, rank them and write the files.

    Returns:
        The folder of the files.

    Raises:
        RunError: a dense parent could not be trained, or no run of a method is finished.
    """
    silence_libraries()
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every glyph that it embeds in a PDF
    set_threads(settings.threads)
    output_root = Path(value_of(settings.train, "output_root", "outputs"))
    dense = run_sweep(dense_sweep(settings), output_root)
    if dense.failed or not dense.directories:
        raise RunError("the dense parents could not be trained: see the messages above")
    num_layers = len(read_results(dense.directories[0])["tokens_per_layer"]) - 1
    shallow = run_sweep(shallow_sweep(settings, num_layers), output_root) if settings.layers else Jobs([], [])
    methods = run_sweep(method_sweep(settings), output_root)
    if not methods.directories:
        raise RunError("no run of a method is finished: see the messages above")

    bench = Bench(dense.directories[0], settings.speed_batch_size)
    dense_gflops = read_results(dense.directories[0])["gflops"]
    candidates = [_candidate(bench, DENSE, "dense", None, dense.directories, dense_gflops)]
    if settings.int8:
        candidates.append(_candidate(bench, "int8", "dense, int8", None, dense.directories, dense_gflops, "int8"))
    for depth, directories in _grouped(shallow.directories, lambda results: len(results["tokens_per_layer"]) - 1):
        label = f"dense, {depth} layers"
        candidates.append(_candidate(bench, "fewer layers", label, None, directories, dense_gflops))
    for (name, target), directories in _grouped(
        methods.directories, lambda results: (results["method"], results["hyperparameters"]["target_flops"])
    ):
        log.info("measuring %s at %g", label_of(name), target)
        candidates.append(_candidate(bench, name, label_of(name), target, directories, dense_gflops))
    rows = rank(candidates, bench.data.task)
    results = read_results(dense.directories[0])
    title = f"{results['task']}, {results['model']}"
    to = Path(settings.to or _folder(dense.directories[0]) / "leaderboard")
    metric = results["metric"]["name"]
    facts = hardware(bench.dense_device)
    lines = notes(metric, f"{facts['device']}, {facts['threads']} threads", settings.speed_batch_size)
    failed = [f"Not trained: {overrides}: {message}" for overrides, message in (*methods.failed, *shallow.failed)]
    write(to, title, rows, [*lines, *failed], metric, command)
    return to


def write(folder: Path, title: str, rows: Sequence[Row], lines: Sequence[str], metric: str, command: str) -> None:
    """Write the leaderboard's files, each atomically."""
    files = {f"leaderboard.{form}": content for form, content in figure(title, rows, metric).items()}
    files["leaderboard.md"] = markdown(title, rows, lines, command).encode()
    files["leaderboard.csv"] = csv_table(rows).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with open_atomically(folder / name) as file:
            file.write(content)


def _candidate(
    bench: Bench, name: str, label: str, target: float | None, directories: Sequence[Path], dense_gflops: float,
    dtype: str = "float32",
) -> Candidate:  # fmt: skip
    results = [read_results(directory) for directory in directories]
    return Candidate(
        name,
        label,
        target,
        [bench.measure(directory, dtype) for directory in directories],
        [result["gflops"] / dense_gflops for result in results],
        [sum(_stage_seconds(directory)) for directory in directories],
    )


def _stage_seconds(directory: Path) -> list[float]:
    """Return the seconds of a run and of its parents that prune."""
    results = read_results(directory)
    seconds = [float(results["duration_seconds"])]
    parent = results.get("parent")
    if parent is None or not (Path(parent) / RESULTS_FILE).is_file():
        return seconds
    return seconds if read_results(Path(parent))["method"] == DENSE else seconds + _stage_seconds(Path(parent))


def _grouped(directories: Sequence[Path], key: Any) -> list[tuple[Any, list[Path]]]:
    """Group run directories by a key of their results, in the order of the keys."""
    groups: dict[Any, list[Path]] = defaultdict(list)
    for directory in directories:
        groups[key(read_results(directory))].append(directory)
    return sorted(groups.items(), key=lambda item: str(item[0]))


def _folder(dense: Path) -> Path:
    """Return the folder of the task: that of ``finetune/…``."""
    return next(folder.parent for folder in dense.parents if folder.name == "finetune")
