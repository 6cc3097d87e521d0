"""``python -m ltp.predict``: classify new texts, and show which tokens were pruned in each layer."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from ltp import __version__
from ltp.command.cli import Command
from ltp.command.imports import fast_imports
from ltp.command.output import check_writable, progress
from ltp.command.overrides import quote_text
from ltp.data.files import CLASSIC_FOLDERS
from ltp.data.tasks import SpanTask
from ltp.data.tasks.spans import MAX_N_BEST
from ltp.data.texts import CHUNK_ROWS, STANDARD_INPUT, Texts, TextSource, given_texts, open_texts
from ltp.errors import UserError, check_choice, check_range, format_value
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.fingerprints import checkpoint_fingerprint
from ltp.runs.loading import (
    StoredTask,
    check_budget,
    check_length,
    kind_of_checkpoint,
    load_model,
    load_tokenizer,
    max_input_tokens,
    null_threshold,
    read_splits,
    read_test,
    select_device,
    set_threads,
    silence_libraries,
    stored_task,
    task_and_data,
)
from ltp.runs.plan import check_labels, task_of
from ltp.runs.settings import TaskSettings, is_unset, unset_task

if TYPE_CHECKING:  # transformers takes seconds to import; report mistakes before that
    from ltp.evaluation.parts import Parts
    from ltp.evaluation.prediction import Prediction
    from ltp.evaluation.prediction_output import OutputColumns

log = logging.getLogger("ltp")

SUFFIXES = (".csv", ".jsonl", ".parquet")

_POLL_SECONDS = 0.5

#: Predicts the texts of a chunk, and calls a function with the number of texts that are done.
Predict = Callable[[Texts, Callable[[int], None]], list["Prediction"]]


@dataclass
class ProcessSettings:
    """The processes of a prediction (group ``trainer``), with the names of Lightning's Trainer."""

    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"


@dataclass
class PredictSettings:
    """Settings of a prediction; ``python -m ltp.predict --help`` explains the keys."""

    restore: str = MISSING
    budget: float | None = None
    text: str | None = None
    text_pair: str | None = None
    input: str | None = None
    split: str | None = None
    task: TaskSettings = field(default_factory=unset_task)
    data_dir: str | None = None
    submission: str | None = None
    columns: list[str] | None = None
    output: str | None = None
    show: bool = MISSING
    html: str | None = None
    max_length: int | None = None
    n_best: int = MISSING
    batch_size: int = MISSING
    threads: int | None = None
    device: str = MISSING
    trainer: ProcessSettings = field(default_factory=ProcessSettings)
    resume: bool = MISSING

    @property
    def in_parts(self) -> str | None:
        """The key and value for which the output is written in parts; None if it is written at once."""
        processes = self.trainer
        for key in ("devices", "num_nodes"):
            if (value := getattr(processes, key)) != 1:
                return f"trainer.{key}={format_value(value)}"
        return "resume=true" if self.resume else None


def main(settings: PredictSettings) -> None:
    """Classify the texts that the settings name; print or write the predictions."""
    settings, checkpoint = resolve(settings)
    predict = predict_source if settings.in_parts is None else predict_in_parts
    with open_source(settings) as source:
        predict(settings, checkpoint, source)


def predict_source(settings: PredictSettings, checkpoint: Checkpoint, source: TextSource) -> None:
    """Classify the texts of a source; print or write the predictions."""
    for key in ("output", "html"):
        if (path := getattr(settings, key)) is not None:
            check_writable(f"{key}={path}", Path(path))
    submitted = submission_path(settings) if settings.submission is not None else None
    if submitted is not None:
        check_writable(f"submission={settings.submission}", submitted)
    with fast_imports():
        from ltp.evaluation import prediction_output

    output = Path(settings.output) if settings.output is not None else None
    columns = output_columns(settings, checkpoint)
    overview = source.check(columns.look)
    texts, predictions = Texts(), list["Prediction"]()  # what is shown is kept; what is only written is not
    notes = prediction_output.Notes(overview.skipped)
    is_written_only = output is not None and not settings.show and settings.html is None and submitted is None
    with contextlib.ExitStack() as stack:
        write = None
        if output is not None:
            write = stack.enter_context(prediction_output.prediction_writer(output, columns))
        predict, thresholds = load_predictor(settings, checkpoint, source, select_device(settings.device))
        started = time.monotonic()
        advance = stack.enter_context(progress(overview.count))
        for chunk in source.chunks():
            of_chunk = predict(chunk, advance)
            notes.add(chunk.rows, [prediction.note for prediction in of_chunk])
            if write is not None:
                write(columns.records(chunk, of_chunk))
            if not is_written_only:
                texts.rows += chunk.rows
                texts.texts += chunk.texts
                predictions += of_chunk
        seconds = time.monotonic() - started
    notes.print()
    if settings.html is not None:
        from ltp.runs.summary import describe_checkpoint

        title = describe_checkpoint(checkpoint, settings.budget)
        prediction_output.write_page(Path(settings.html), title, texts, predictions, thresholds)
    if submitted is not None:
        from ltp.evaluation.submission import submission
        from ltp.runs.directory import write_atomically

        write_atomically(submitted, submission(task_of(settings.task), checkpoint.labels, predictions))
    if settings.show:
        prediction_output.print_layers(texts, predictions)
    elif settings.output is None and settings.html is None and submitted is None:
        prediction_output.print_table(texts, predictions)
    for path in (settings.output, settings.html, submitted):
        if path is not None:
            print(f"{overview.count} texts{pace(overview.count, seconds)}: {path}")


def predict_in_parts(settings: PredictSettings, checkpoint: Checkpoint, source: TextSource) -> None:
    """Write the predictions chunk by chunk, by one process or several, and join them; goes on where it was killed."""
    with fast_imports():
        from ltp.evaluation.parts import Parts
        from ltp.evaluation.processes import build_fabric, launch

    assert settings.output is not None  # by check()
    device = select_device(settings.device)
    fabric = build_fabric(device.type, settings.trainer.devices, settings.trainer.num_nodes)
    with contextlib.ExitStack() as stack:
        shared: tuple[Parts, list[int]] | None = None
        if fabric.is_global_zero:  # before others are started: a mistake is told once
            check_writable(f"output={settings.output}", Path(settings.output))
            columns, facts = output_columns(settings, checkpoint), facts_of(settings, checkpoint, device.type)
            parts = Parts.of(source, Path(settings.output), columns, facts)
            stack.enter_context(parts.opened())
            shared = parts, (missing := parts.missing())
            if len(missing) < len(parts.sizes):
                done = parts.overview.count - parts.rows_of(missing)
                log.info("going on: %s of %s rows are done", f"{done:,}", f"{parts.overview.count:,}")
        parts, missing = launch(fabric, shared)
        mine = set(missing[fabric.global_rank :: fabric.world_size])
        predict, _ = load_predictor(settings, checkpoint, source, fabric.device)
        if not fabric.is_global_zero:
            write_parts(parts, mine, source, predict, lambda _: None, lambda: None)
            return
        started = time.monotonic()
        with progress(parts.rows_of(missing)) as advance:
            others = set(missing) - mine

            def look_at_others() -> None:
                done = others - set(parts.missing())
                others.difference_update(done)
                advance(parts.rows_of(list(done)))

            write_parts(parts, mine, source, predict, advance, look_at_others)
            while others:
                time.sleep(_POLL_SECONDS)
                look_at_others()
        seconds = time.monotonic() - started
        parts.join().print()
    print(f"{parts.overview.count} texts{pace(parts.rows_of(missing), seconds)}: {settings.output}")


def write_parts(
    parts: "Parts",
    mine: Collection[int],
    source: TextSource,
    predict: Predict,
    advance: Callable[[int], None],
    after_each: Callable[[], None],
) -> None:
    """Write the parts of one process, and call a function after each."""
    # the input is read up to the last part only
    for number, chunk in zip(range(max(mine, default=-1) + 1), source.chunks(), strict=False):
        if number in mine:
            parts.write(number, chunk, predict(chunk, advance))
            after_each()


def pace(count: int, seconds: float) -> str:
    """The rows a second in words, of more than a chunk of them: for a few texts it is no measurement."""
    return f" ({count / seconds:,.0f} rows a second)" if count > CHUNK_ROWS else ""


def output_columns(settings: PredictSettings, checkpoint: Checkpoint) -> "OutputColumns":
    """Return the columns of the output; those of the input are added later."""
    from ltp.evaluation.prediction_output import OutputColumns

    own = ("row", *kind_of_checkpoint(checkpoint).prediction_columns(checkpoint.num_labels))
    if settings.n_best > 1:
        own = (*own, "n_best")
    return OutputColumns(own, typed=settings.output is not None and Path(settings.output).suffix == ".parquet")


def facts_of(settings: PredictSettings, checkpoint: Checkpoint, device: str) -> dict[str, Any]:
    """Return what decides the predictions of a text; parts of other facts are not joined."""
    return {
        "restore": checkpoint_fingerprint(checkpoint.path) or checkpoint.path,
        "version of ltp": __version__,
        "device": device,
        "null_threshold": threshold_of(settings, checkpoint),
        **{key: getattr(settings, key) for key in ("budget", "max_length", "n_best", "batch_size")},
    }


def threshold_of(settings: PredictSettings, checkpoint: Checkpoint) -> float | None:
    """Return the threshold by which no answer is predicted, of the task that is known; None without one."""
    stored = stored_task(checkpoint)
    named = settings.task if settings.split is not None else None if stored is None else stored.task
    return null_threshold(named)


def fill(settings: PredictSettings) -> PredictSettings:
    """Fill the nulls of the settings."""
    return resolve(settings)[0]


def resolve(settings: PredictSettings) -> tuple[PredictSettings, Checkpoint]:
    """Check the settings and fill their nulls. Reads small files only.

    Returns:
        The settings, and the checkpoint to predict with.

    Raises:
        UserError: a value is out of range, keys contradict each other, or the checkpoint does not exist.
    """
    check(settings)
    checkpoint = inspect_checkpoint(settings.restore)
    check_budget(checkpoint, settings.budget)
    kind = kind_of_checkpoint(checkpoint)
    if settings.n_best > 1 and not issubclass(kind, SpanTask):
        raise UserError(f"n_best={settings.n_best} is for answers to questions; restore={settings.restore} gives none")
    stored = stored_task(checkpoint)
    if settings.split is not None:
        settings.task, settings.data_dir = task_and_data(settings.restore, settings.task, settings.data_dir, stored)
        check_split(settings, checkpoint)
        if settings.max_length is None:
            settings.max_length = settings.task.max_length
        return settings, checkpoint
    expected = _text_columns(stored)
    if settings.columns is None and settings.input is not None:
        settings.columns = list(expected or ("text",))
    least, most = (len(expected),) * 2 if expected is not None else (kind.min_texts, kind.max_texts)
    if not least <= _texts_per_row(settings) <= most:
        raise UserError(_wrong_text_count_message(settings, most))
    if settings.max_length is None and stored is not None:
        settings.max_length = stored.task.max_length
    return settings, checkpoint


def check_split(settings: PredictSettings, checkpoint: Checkpoint) -> None:
    """Check that a split can be labelled, and written as a submission.

    Raises:
        UserError: the head does not fit the task, there is no such split, or GLUE takes no submission for it.
    """
    task = task_of(settings.task)
    if task.knows_labels:
        check_labels(checkpoint, task)
    splits = ("train", "validation", *task.validation_splits, "test", *task.test_splits)
    if settings.split not in splits:
        names = ", ".join(dict.fromkeys(splits))
        raise UserError(f"split={settings.split}: task={task.name} has no such split. Splits: {names}")
    if settings.submission is None:
        return
    if task.name not in CLASSIC_FOLDERS:
        raise UserError(f"submission={settings.submission}: GLUE has no task {task.name}; write output=FILE")
    if settings.split not in ("test", *task.test_splits):
        raise UserError(f"submission={settings.submission} is for split=test, not split={settings.split}")
    if settings.task.max_validation_samples is not None:
        raise UserError(
            f"submission={settings.submission} needs the whole split: give task.max_validation_samples=null"
        )


def submission_path(settings: PredictSettings) -> Path:
    """Return the path of the submission file."""
    from ltp.evaluation.submission import submission_name

    task = task_of(settings.task)
    split = task.test_splits[0] if settings.split == "test" else str(settings.split)
    return Path(str(settings.submission)).expanduser() / submission_name(task, split)


def _text_columns(stored: StoredTask | None) -> tuple[str, ...] | None:
    """The text columns of a run's task; None if the task is unknown."""
    return None if stored is None else task_of(stored.task).text_columns


def _texts_per_row(settings: PredictSettings) -> int:
    if settings.text is not None:
        return 1 if settings.text_pair is None else 2
    assert settings.input is not None and settings.columns is not None  # by check() and resolve()
    has_columns = settings.input != "-" and Path(settings.input).suffix != ".txt"
    return len(settings.columns) if has_columns else 1


def _wrong_text_count_message(settings: PredictSettings, expected: int) -> str:
    reads = f"restore={settings.restore} reads {'a pair of texts' if expected == 2 else 'one text'}"
    if settings.text is not None:
        return f"{reads}: {'give text_pair=… too' if expected == 2 else 'leave text_pair out'}"
    if expected == 2:
        return f"{reads}: give a .csv, .tsv or .jsonl file with two columns, columns=[first,second]"
    return f"{reads}: name one column, columns=[…]"


def check(settings: PredictSettings) -> None:
    """Check each value, and that the keys do not contradict each other.

    Raises:
        UserError: a check failed; names the key, its value and its range.
    """
    if sum(value is not None for value in (settings.text, settings.input, settings.split)) != 1:
        raise UserError(
            "give what is to be classified: either text=… or input=FILE (input=- reads standard input), or split=test"
        )
    if settings.split is None:
        for key, is_given in {
            "submission": settings.submission is not None,
            "data_dir": settings.data_dir is not None,
            "task": not is_unset(settings.task),
        }.items():
            if is_given:
                raise UserError(f"{key} goes with split=…, a split of the run's task")
    if settings.text is None and settings.text_pair is not None:
        raise UserError("text_pair=… goes with text=…; of a file, name two columns: columns=[first,second]")
    if settings.columns is not None and settings.input is None:
        raise UserError(f"columns={format_value(settings.columns)} goes with input=FILE")
    if settings.columns is not None:
        distinct = 1 <= len(set(settings.columns)) == len(settings.columns) <= 2
        check_range(distinct, "columns", settings.columns, "one or two column names")
    if settings.output is not None and Path(settings.output).suffix not in SUFFIXES:
        raise UserError(f"output={settings.output}: unknown format; use one of {', '.join(SUFFIXES)}")
    if settings.html is not None and Path(settings.html).suffix not in (".html", ".htm"):
        raise UserError(f"html={settings.html} is a page: its name must end in .html")
    max_length = settings.max_length
    check_range(max_length is None or max_length >= 4, "max_length", max_length, "4 or more (tokens)")
    check_range(1 <= settings.n_best <= MAX_N_BEST, "n_best", settings.n_best, f"from 1 to {MAX_N_BEST}")
    check_range(settings.batch_size >= 1, "batch_size", settings.batch_size, "1 or more")
    check_range(settings.threads is None or settings.threads >= 1, "threads", settings.threads, "1 or more")
    check_choice("device", settings.device, ("auto", "cpu", "cuda"))
    check_choice("trainer.strategy", settings.trainer.strategy, ("auto", "ddp"))
    check_range(settings.trainer.num_nodes >= 1, "trainer.num_nodes", settings.trainer.num_nodes, "1 or more")
    if settings.in_parts is not None:
        check_parts(settings, settings.in_parts)


def check_parts(settings: PredictSettings, key: str) -> None:
    """Check that an output can be written in parts.

    Raises:
        UserError: there is none, there are others beside it, or the processes cannot all read the input.
    """
    if settings.output is None:
        raise UserError(f"{key} needs output=FILE, beside which the parts are written")
    for other, is_given in {
        "text": settings.text is not None,
        "show": settings.show,
        "html": settings.html is not None,
        "submission": settings.submission is not None,
    }.items():
        if is_given:
            raise UserError(f"{key} is for files of many rows, written to output=FILE alone: leave out {other}=…")
    if settings.input == STANDARD_INPUT and key != "resume=true":
        raise UserError(f"{key}: only one process can read standard input: give input=FILE")


def open_source(settings: PredictSettings) -> TextSource:
    """Open the texts that the settings name.

    Raises:
        UserError: they cannot be read.
    """
    if settings.split is not None:
        return split_texts(settings)
    if settings.text is None:
        assert settings.input is not None and settings.columns is not None
        return open_texts(settings.input, settings.columns)
    return given_texts(settings.text, *(() if settings.text_pair is None else (settings.text_pair,)))


def split_texts(settings: PredictSettings) -> TextSource:
    """Return the texts of a split of the task; none is left out, because a submission numbers them.

    Raises:
        UserError: the data are missing or invalid.
    """
    task = task_of(settings.task)
    if settings.split in ("test", *task.test_splits):
        rows = read_test(task, settings.task, str(settings.split), settings.data_dir)
    else:
        rows = read_splits(settings.task, settings.data_dir).by_name[str(settings.split)]
    columns = task.text_columns
    records = rows.select_columns(list(columns))
    return TextSource(f"split={settings.split}", columns, lambda: iter(records), skips_blank=False)


def load_predictor(
    settings: PredictSettings, checkpoint: Checkpoint, source: TextSource, device: Any
) -> tuple[Predict, list[float] | None]:
    """Load the model on a device, to classify the texts chunk by chunk: memory does not grow with their number.

    Returns:
        The function that predicts a chunk, and the model's L thresholds, or None if it has none.

    Raises:
        UserError: model and tokenizer do not fit together.
    """
    with fast_imports():
        from ltp.evaluation.prediction import predict

    silence_libraries()
    set_threads(settings.threads)
    model = load_model(checkpoint, settings.budget)
    tokenizer = load_tokenizer(checkpoint, pairs=len(source.columns) == 2)
    if settings.max_length is not None:
        check_length("max_length", settings.max_length, model, tokenizer)
    model.to(device)
    threshold = threshold_of(settings, checkpoint)

    def predicted(chunk: Texts, advance: Callable[[int], None]) -> list["Prediction"]:
        return predict(
            *(model, tokenizer, chunk.texts),
            max_length=settings.max_length or max_input_tokens(model, tokenizer),
            batch_size=settings.batch_size,
            trace=settings.show or settings.html is not None,
            advance=advance,
            n_best=settings.n_best,
            null_threshold=threshold,
        )

    return predicted, None if model.thresholds is None else model.thresholds.tolist()


COMMAND = Command(
    "predict",
    PredictSettings,
    main,
    fill,
    hints={"trainer.accelerator": "trainer.accelerator is device=auto|cpu|cuda here"},
    prepare=lambda arguments: list(map(quote_text, arguments)),
)

if __name__ == "__main__":
    sys.exit(COMMAND())
