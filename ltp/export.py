"""``python -m ltp.export``: export a finished run to Hugging Face, ONNX or OpenVINO; see :mod:`ltp.exporting`."""

import itertools
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ltp.command.cli import Command
from ltp.command.imports import fast_imports
from ltp.deploy.formats import DTYPES, GRAPHS
from ltp.deploy.requirements import missing_packages
from ltp.errors import UserError, check_range, install_hint, suggest, unknown_option
from ltp.evaluation.samples import own_sequences
from ltp.model import MODEL_CLASSES
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.loading import check_budget, load_model, load_tokenizer, silence_libraries

log = logging.getLogger("ltp")

FORMATS = ("huggingface", *GRAPHS)


@dataclass
class ExportSettings:
    """Settings of an export; ``python -m ltp.export --help`` explains the keys.

    ``batch_size`` is an int or a list of ints: :func:`resolve` makes it a list.
    """

    restore: str = MISSING
    budget: float | None = None
    to: str = MISSING
    format: str = MISSING
    dtype: str = MISSING
    overwrite: bool = MISSING
    data_dir: str | None = None
    sequences: int = MISSING
    batch_size: Any = MISSING
    rounds: int = MISSING


def main(settings: ExportSettings) -> None:
    """Export a run."""
    settings, checkpoint = resolve(settings)

    with fast_imports():
        from ltp.exporting.run import export_huggingface

    silence_libraries()
    load_tokenizer(checkpoint)  # which a directory is useless without
    target = Path(settings.to).expanduser()
    if settings.format in GRAPHS:
        to_graph(settings, checkpoint, target)
    else:
        model = None if settings.budget is None else load_model(checkpoint, settings.budget)
        export_huggingface(checkpoint, target, model=model, overwrite=settings.overwrite)
        auto_class = MODEL_CLASSES[checkpoint.model_class][1]
        print(f"{auto_class}.from_pretrained(…, trust_remote_code=True) loads it, without ltp")
    print(f"exported: {target}")


def fill(settings: ExportSettings) -> ExportSettings:
    """Check the settings."""
    return resolve(settings)[0]


def resolve(settings: ExportSettings) -> tuple[ExportSettings, Checkpoint]:
    """Check the settings. Reads small files only.

    Returns:
        The settings, and the checkpoint of the run to export.

    Raises:
        UserError: a value is out of range, a package is missing, the run does not exist or is not finished, or the
            target directory is in use.
    """
    if not isinstance(settings.batch_size, list):  # a single value may be given without brackets
        settings.batch_size = [settings.batch_size]
    check(settings)
    from ltp.exporting.exported_run import ExportedRun
    from ltp.exporting.folders import check_target

    checkpoint = inspect_checkpoint(settings.restore)
    ExportedRun.from_checkpoint(checkpoint)
    check_budget(checkpoint, settings.budget)
    check_target(Path(settings.to).expanduser(), overwrite=settings.overwrite)
    return settings, checkpoint


def check(settings: ExportSettings) -> None:
    """Check each value, and that the packages for the format are installed.

    Raises:
        UserError: a check failed; names the key, its value and its range, or the missing packages.
    """
    if settings.format not in FORMATS:
        hint = suggest(settings.format, FORMATS)
        raise UserError(f"format={settings.format}: no such format.{hint} Formats: {', '.join(FORMATS)}")
    if settings.dtype not in DTYPES:
        raise UserError(unknown_option("dtype", settings.dtype, DTYPES))
    sizes = settings.batch_size
    are_valid = all(isinstance(size, int) and size >= 1 for size in sizes)
    check_range(bool(sizes) and are_valid, "batch_size", sizes, "one or more whole numbers from 1 on, as [1,32]")
    check_range(settings.sequences >= 1, "sequences", settings.sequences, "1 or more")
    check_range(settings.rounds >= 0, "rounds", settings.rounds, "0 or more")
    if settings.format not in GRAPHS:
        if settings.dtype != "float32":
            raise UserError(
                f"dtype={settings.dtype} needs format={' or '.join(GRAPHS)}; a Hugging Face directory keeps float32 "
                "weights, which deploy() quantises in the process that serves"
            )
        return
    extra = GRAPHS[settings.format].extra
    if missing := missing_packages(extra):
        raise UserError(f"format={settings.format} needs {', '.join(missing)}: {install_hint(extra)}")


def to_graph(settings: ExportSettings, checkpoint: Checkpoint, target: Path) -> None:
    """Write the graph, check it against the model, and time it against a dense graph."""
    from ltp.exporting.run import export_graph
    from ltp.exporting.speed import compare_speed

    model = load_model(checkpoint, settings.budget)
    sequences = own_sequences(checkpoint, model, settings.sequences, settings.data_dir)
    batches = {size: sequences.batches(model, size) for size in settings.batch_size}
    kind = {"form": settings.format, "dtype": settings.dtype}
    all_batches = list(itertools.chain.from_iterable(batches.values()))
    agreement = export_graph(checkpoint, target, all_batches, model=model, overwrite=settings.overwrite, **kind)
    print(f"checked on {sequences.source}: {agreement}")
    if agreement.has_few_answers:
        log.warning("1 answer in %.0f changes: score the graph before you serve it", 1 / (1 - (agreement.answers or 0)))
    if settings.rounds:
        log.info("timing it beside the dense graph; rounds=0 leaves this out")
        path = target / GRAPHS[settings.format].file
        for size, speed in compare_speed(model, path, batches, settings.rounds, **kind).items():
            print(
                f"batch {size}: {speed.milliseconds.median:.3g} ms a sequence, the dense graph "
                f"{speed.dense_milliseconds.median:.3g} ms: {speed.speedup.median:.2f} times as fast "
                f"({speed.speedup.low:.2f}–{speed.speedup.high:.2f})"
            )


COMMAND = Command("export", ExportSettings, main, fill)

if __name__ == "__main__":
    sys.exit(COMMAND())
