"""``python -m ltp.predict``: classify new texts, and show which tokens were pruned in each layer."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltp import __version__
from ltp.command.cli import Command
from ltp.command.imports import fast_imports
from ltp.command.output import check_writable, progress
from ltp.command.overrides import quote_text
from ltp.data.texts import CHUNK_ROWS, Texts, TextSource, given_texts, open_texts
from ltp.evaluation.prediction_request import PredictSettings, resolve, threshold_of
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.fingerprints import checkpoint_fingerprint
from ltp.runs.loading import (
    check_length,
    kind_of_checkpoint,
    load_model,
    load_tokenizer,
    max_input_tokens,
    read_splits,
    read_test,
    select_device,
    set_threads,
    silence_libraries,
)
from ltp.runs.plan import task_of

if TYPE_CHECKING:  # transformers takes seconds to import; report mistakes before that
    from ltp.evaluation.parts import Parts
    from ltp.evaluation.prediction import Prediction
    from ltp.evaluation.prediction_output import OutputColumns

log = logging.getLogger("ltp")

_POLL_SECONDS = 0.5

#: Predicts the texts of a chunk, and calls a function with the number of texts that are done.
Predict = Callable[[Texts, Callable[[int], None]], list["Prediction"]]


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


def fill(settings: PredictSettings) -> PredictSettings:
    """Fill the nulls of the settings."""
    return resolve(settings)[0]


def submission_path(settings: PredictSettings) -> Path:
    """Return the path of the submission file."""
    from ltp.evaluation.submission import submission_name

    task = task_of(settings.task)
    split = task.test_splits[0] if settings.split == "test" else str(settings.split)
    return Path(str(settings.submission)).expanduser() / submission_name(task, split)


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
