"""``python -m ltp.export``: a finished run for use elsewhere. What is written is :mod:`ltp.exporting`'s."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from ltp.command.cli import Command
from ltp.command.imports import fast_imports
from ltp.errors import UserError, check_range, install_hint, suggest
from ltp.evaluation.samples import Sequences, validation_sequences
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.loading import check_budget, load_model, load_tokenizer, silence_libraries, stored_task

if TYPE_CHECKING:  # torch and transformers take seconds to import, and a mistake should not
    from ltp.model.classifier import LTPForSequenceClassification

FORMATS = ("huggingface", "onnx")


@dataclass
class ExportSettings:
    """One export; ``python -m ltp.export --help`` says what each key means.

    ``batch_size`` (int) is one or a list: :func:`resolve` makes it a list.
    """

    restore: str = MISSING
    budget: float | None = None
    to: str = MISSING
    format: str = MISSING
    overwrite: bool = MISSING
    data_dir: str | None = None
    sequences: int = MISSING
    batch_size: Any = MISSING
    rounds: int = MISSING


def main(settings: ExportSettings) -> None:
    """Export what a configuration describes."""
    settings, checkpoint = resolve(settings)

    with fast_imports():
        from ltp.exporting.run import export_huggingface

    silence_libraries()
    target = Path(settings.to).expanduser()
    if settings.format == "onnx":
        to_onnx(settings, checkpoint, target)
    else:
        model = None if settings.budget is None else load_model(checkpoint, settings.budget)
        export_huggingface(checkpoint, target, model=model, overwrite=settings.overwrite)
        print("AutoModelForSequenceClassification.from_pretrained(…, trust_remote_code=True) loads it, without ltp")
    print(f"exported: {target}")


def fill(settings: ExportSettings) -> ExportSettings:
    """The settings, checked."""
    return resolve(settings)[0]


def resolve(settings: ExportSettings) -> tuple[ExportSettings, Checkpoint]:
    """Check the configuration. Reads small files only.

    Returns:
        The settings, and the run that is exported.

    Raises:
        UserError: a value is out of range, a package is missing, the run is not there or not finished, or something
            stands where the export should go.
    """
    if not isinstance(settings.batch_size, list):  # one may be written without brackets
        settings.batch_size = [settings.batch_size]
    check(settings)
    from ltp.exporting.exported_run import ExportedRun
    from ltp.exporting.folders import check_target

    checkpoint = inspect_checkpoint(settings.restore)
    ExportedRun.of(checkpoint)
    check_budget(checkpoint, settings.budget)
    check_target(Path(settings.to).expanduser(), overwrite=settings.overwrite)
    return settings, checkpoint


def check(settings: ExportSettings) -> None:
    """Check every value.

    Raises:
        UserError: names the key, its value and its range, or the packages that are missing.
    """
    if settings.format not in FORMATS:
        hint = suggest(settings.format, FORMATS)
        raise UserError(f"format={settings.format}: no such format.{hint} Formats: {', '.join(FORMATS)}")
    sizes = settings.batch_size
    whole = all(isinstance(size, int) and size >= 1 for size in sizes)
    check_range(bool(sizes) and whole, "batch_size", sizes, "one or more whole numbers from 1 on, as [1,32]")
    check_range(settings.sequences >= 1, "sequences", settings.sequences, "1 or more")
    check_range(settings.rounds >= 0, "rounds", settings.rounds, "0 or more")
    if settings.format == "onnx":
        from ltp.deploy.requirements import missing_onnx_packages

        if missing := missing_onnx_packages():
            raise UserError(f"format=onnx needs {', '.join(missing)}: {install_hint('onnx')}")


def to_onnx(settings: ExportSettings, checkpoint: Checkpoint, target: Path) -> None:
    """Write the graph, checked on real sequences, and time it beside a dense one."""
    from ltp.data.sequences import make_batches
    from ltp.exporting.run import GRAPH_FILE, export_onnx, graph_engine
    from ltp.exporting.speed import compare_speed

    model = load_model(checkpoint, settings.budget)
    sequences = read_sequences(settings, checkpoint, model)
    padding = model.config.dense_config.get("pad_token_id") or 0
    batches = {
        size: make_batches(sequences.ids, size, pad_token_id=padding, token_types=sequences.types)
        for size in settings.batch_size
    }
    checked = itertools.chain.from_iterable(batches.values())
    agreement = export_onnx(checkpoint, target, checked, model=model, overwrite=settings.overwrite)
    tolerated = f"; {agreement.tolerated} decided otherwise by rounding" if agreement.tolerated else ""
    print(f"checked on {sequences.source}: logits differ from the model's by {agreement.difference:.1g}{tolerated}")
    if settings.rounds:
        for size, speed in compare_speed(model, graph_engine(target / GRAPH_FILE), batches, settings.rounds).items():
            print(
                f"batch {size}: {speed.milliseconds.median:.3g} ms a sequence, the dense graph "
                f"{speed.dense_milliseconds.median:.3g} ms: {speed.speedup.median:.2f} times as fast "
                f"({speed.speedup.low:.2f}–{speed.speedup.high:.2f})"
            )


def read_sequences(
    settings: ExportSettings, checkpoint: Checkpoint, model: "LTPForSequenceClassification"
) -> Sequences:
    """A sample of the run's own validation split; random tokens where it is out of reach.

    Raises:
        UserError: it is not in the ``data_dir`` that was given.
    """
    from ltp.data.lengths import synthetic_lengths
    from ltp.data.sequences import random_sequences

    stored = stored_task(checkpoint)
    try:
        if stored is None:
            raise UserError("its config.yaml is missing")
        data_dir = settings.data_dir or stored.data_dir
        return validation_sequences(stored.task, data_dir, load_tokenizer(checkpoint), model, settings.sequences)
    except UserError as error:
        if settings.data_dir is not None:
            raise
        print(f"the run's own validation split is out of reach: {error}")
    longest = model.config.max_input_tokens
    lengths = [min(length, longest) for length in synthetic_lengths("sst2", settings.sequences)]
    return Sequences("random tokens", random_sequences(lengths, model.config.vocab_size))


COMMAND = Command("export", ExportSettings, main, fill)

if __name__ == "__main__":
    sys.exit(COMMAND())
