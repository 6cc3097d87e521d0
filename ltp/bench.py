"""``python -m ltp.bench``: benchmark pruned and dense engines. The measurement is in :mod:`ltp.benchmark`."""

import dataclasses
import datetime
import functools
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from ltp.command.cli import Command, command_line
from ltp.command.imports import fast_imports
from ltp.command.output import check_writable, step_progress
from ltp.errors import UserError, check_choice, check_range
from ltp.evaluation.samples import Sequences, validation_sequences
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.loading import (
    check_budget,
    check_of_texts,
    load_model,
    load_tokenizer,
    silence_libraries,
    stored_task,
    task_and_data,
)
from ltp.runs.plan import task_of
from ltp.runs.settings import TaskSettings, is_unset, override_of, unset_task

if TYPE_CHECKING:  # torch and transformers take seconds to import; report mistakes before that
    from ltp.model.pretrained import LTPPreTrainedModel


log = logging.getLogger("ltp")


@dataclass
class BenchOptions:
    """Settings under ``bench.…``; ``python -m ltp.bench --help`` explains the keys.

    ``batch_size`` (int), ``dtype`` and ``engines`` (str) are a value or a list: :func:`resolve` makes them lists.
    """

    shape: str | None = None
    relative_flops: float | None = None
    lengths: str | None = None
    sequences: int = MISSING
    batch_size: Any = MISSING
    order: str = MISSING
    dtype: Any = MISSING
    threads: int | None = None
    rounds: int = MISSING
    engines: Any = None
    baseline: str = MISSING
    train: bool = MISSING
    clock: str = MISSING
    device: str = MISSING
    output: str | None = None


@dataclass
class BenchSettings:
    """Settings of a benchmark."""

    bench: BenchOptions = field(default_factory=BenchOptions)
    task: TaskSettings | None = field(default_factory=unset_task)
    restore: str | None = None
    budget: float | None = None
    data_dir: str | None = None
    output_root: str = MISSING
    seed: int = MISSING


def main(settings: BenchSettings) -> None:
    """Run a benchmark, write its report and print its table."""
    settings, checkpoint = resolve(settings)
    output = output_path(settings, checkpoint)
    report = measure(settings, checkpoint)
    write_report(output, report)

    from ltp.benchmark.table import print_report

    print_report(report)
    print(f"report: {output}")


def fill(settings: BenchSettings) -> BenchSettings:
    """Fill the nulls of the settings."""
    return resolve(settings)[0]


def resolve(settings: BenchSettings) -> tuple[BenchSettings, Checkpoint | None]:
    """Check the settings and fill their nulls. Reads small files only.

    Returns:
        The settings, and the checkpoint to restore, or None for random weights.

    Raises:
        UserError: a value is out of range, keys contradict each other, or the checkpoint does not exist.
    """
    options = settings.bench
    if settings.task is not None and is_unset(settings.task):
        settings.task = None
    for key in ("batch_size", "dtype", "engines"):  # a single value may be given without brackets
        value = getattr(options, key)
        if value is not None and not isinstance(value, list):
            setattr(options, key, [value])
    check(settings)
    checkpoint = inspect_checkpoint(settings.restore) if settings.restore is not None else None
    if checkpoint is not None:
        check_budget(checkpoint, settings.budget)
        check_of_texts(checkpoint, "ltp.bench")
    if checkpoint is None:
        options.shape = options.shape or "bert-base"
        options.relative_flops = options.relative_flops if options.relative_flops is not None else 0.5
        if settings.task is not None:
            raise UserError(
                f"{override_of(settings.task)} needs restore=…, whose tokenizer reads its texts; "
                "bench.lengths=mrpc, sst2 or rte needs none"
            )
    elif options.lengths is None and ((stored := stored_task(checkpoint)) is not None or settings.task is not None):
        given = settings.task or unset_task()
        settings.task, settings.data_dir = task_and_data(str(settings.restore), given, settings.data_dir, stored)
    if settings.task is None and options.lengths is None:
        options.lengths = "mrpc"
    return settings, checkpoint


def check(settings: BenchSettings) -> None:
    """Check each value, and that the keys do not contradict each other.

    Raises:
        UserError: a check failed; names the key, its value and its range.
    """
    from ltp.benchmark.engines import DTYPES, ENGINES
    from ltp.benchmark.shapes import SHAPES
    from ltp.data.lengths import LENGTHS, parsed_range

    options = settings.bench

    check_choice("bench.shape", options.shape, list(SHAPES))
    if options.lengths is None or (given := parsed_range(options.lengths)) is None:
        check_choice("bench.lengths", options.lengths, list(LENGTHS))
    else:
        words = "a task's name, a number from 4 on, or a range of them as 384-512"
        check_range(4 <= given[0] <= given[1], "bench.lengths", options.lengths, words)
    check_choice("bench.order", options.order, ("random", "sorted"))
    check_choice("bench.clock", options.clock, ("wall", "processor"))
    check_choice("bench.device", options.device, ("auto", "cpu", "cuda"))
    for engine in options.engines or ():
        check_choice("bench.engines", engine, list(ENGINES))
    for dtype in options.dtype:
        check_choice("bench.dtype", dtype, DTYPES)
    check_choice("bench.baseline", options.baseline, list(ENGINES))
    relative_flops = options.relative_flops
    check_range(
        relative_flops is None or 0 < relative_flops <= 1,
        "bench.relative_flops",
        relative_flops,
        "above 0 and at most 1",
    )
    check_range(options.sequences >= 1, "bench.sequences", options.sequences, "1 or more")
    sizes = options.batch_size
    are_valid = all(isinstance(size, int) and size >= 1 for size in sizes)
    check_range(bool(sizes) and are_valid, "bench.batch_size", sizes, "one or more whole numbers from 1 on, as [1,32]")
    check_range(bool(options.dtype), "bench.dtype", options.dtype, f"one or more of {', '.join(DTYPES)}")
    check_range(options.engines != [], "bench.engines", options.engines, "one or more engines, or null for all")
    check_range(options.rounds >= 1, "bench.rounds", options.rounds, "1 or more")
    check_range(options.threads is None or options.threads >= 1, "bench.threads", options.threads, "1 or more, or null")
    check_range(0 <= settings.seed < 2**32, "seed", settings.seed, "in [0, 2^32)")

    if options.clock == "processor" and options.threads != 1:
        raise UserError(
            f"bench.clock=processor adds up the time of all threads; it needs bench.threads=1, not {options.threads}"
        )
    if settings.restore is not None and options.shape is not None:
        raise UserError(
            f"restore={settings.restore} and bench.shape={options.shape} contradict each other: give one of them"
        )
    if settings.budget is not None and settings.restore is None:
        raise UserError(f"budget={settings.budget:g} goes with restore=…, a checkpoint that holds it")
    if settings.budget is not None and relative_flops is not None:
        raise UserError(
            f"budget={settings.budget:g} and bench.relative_flops={relative_flops:g} contradict each other: "
            "give one of them"
        )
    if settings.task is not None and options.lengths is not None:
        raise UserError(
            f"{override_of(settings.task)} and bench.lengths={options.lengths} contradict each other: give one of them"
        )
    if settings.data_dir is not None and settings.task is None and settings.restore is None:
        raise UserError(f"data_dir={settings.data_dir} goes with task=…; synthetic lengths need no data")


def output_path(settings: BenchSettings, checkpoint: Checkpoint | None) -> Path:
    """The path of the report; creates its folder.

    Raises:
        UserError: the report cannot be written there.
    """
    options = settings.bench
    if options.output is not None:
        path, setting = Path(options.output).expanduser(), f"bench.output={options.output}"
    else:
        model = checkpoint.name if checkpoint is not None else options.shape
        lengths = settings.task.name if settings.task is not None else options.lengths
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = re.sub(r"[^\w.-]", "_", f"{model}_{lengths}_{now}.json")
        path, setting = Path(settings.output_root) / "bench" / name, f"output_root={settings.output_root}"
    check_writable(setting, path)
    return path


def measure(settings: BenchSettings, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Load or create the model and the sequences, and compare the engines on them.

    Returns:
        The report of :func:`ltp.benchmark.compare.run_benchmark`, with ``created``, ``command``, ``settings``,
        ``model``, ``pruning``, ``lengths`` and ``metric`` (that of the rows; None without labels).

    Raises:
        UserError: model, data and device do not fit together.
        RunError: the results of an engine are wrong.
    """
    with fast_imports():
        import torch

        from ltp.benchmark.compare import Plan, run_benchmark
        from ltp.benchmark.engines import DEFAULT_ENGINES

    silence_libraries()
    options = settings.bench
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("bench.device=cuda: no GPU found; use bench.device=cpu")
    on_gpu = torch.cuda.is_available() and options.device != "cpu"
    if on_gpu and options.clock == "processor":
        raise UserError("bench.clock=processor does not see a GPU's time; use bench.clock=wall or bench.device=cpu")
    device = torch.device("cuda" if on_gpu else "cpu")
    with _num_threads(options.threads):
        model = build_model(settings, checkpoint)
        baseline = options.baseline
        if baseline == "hf_sdpa" and not model.dense._supports_sdpa:
            baseline = "hf_eager"
            log.info("%s has no sdpa attention: speed-ups are over hf_eager", type(model.dense).__name__)
        plan = Plan(
            engines=options.engines or DEFAULT_ENGINES,
            dtypes=options.dtype,
            batch_sizes=options.batch_size,
            rounds=options.rounds,
            baseline=baseline,
            train=options.train,
            clock=options.clock,
        )
        sequences = read_sequences(settings, checkpoint, model)
        if options.order == "sorted":
            sequences = sequences.longest_first()
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides self from mypy
        batches = functools.partial(sequences.batches, model)
        if options.relative_flops is not None:
            _set_relative_flops(model, batches(len(sequences.ids))[0], options.relative_flops)
        with step_progress() as progress:
            report = run_benchmark(model, batches, plan, progress, sequences.score)
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    name = checkpoint.name if checkpoint is not None else f"{options.shape}, random weights"
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line("bench"),
        "settings": dataclasses.asdict(settings),
        "model": {"name": name, "restore": settings.restore, **{key: getattr(model.config, key) for key in sizes}},
        "pruning": model.config.prune_mode,
        "lengths": sequences.source,
        "metric": None if sequences.task is None else sequences.task.main_metric,
        **report,
    }


@contextmanager
def _num_threads(count: int | None) -> Iterator[None]:
    """Set the number of PyTorch's threads (None: leave it), and restore the previous number on exit."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set_relative_flops(model: "LTPPreTrainedModel", batch: dict[str, Any], target: float) -> None:
    from ltp.benchmark.profiles import set_profile_thresholds

    try:
        set_profile_thresholds(model, batch, target)
    except ValueError as error:
        raise UserError(f"bench.relative_flops={target} cannot be reached: {error}") from error


def build_model(settings: BenchSettings, checkpoint: Checkpoint | None) -> "LTPPreTrainedModel":
    """Load the checkpoint, or create a classifier with random weights; float32, in evaluation mode.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    from ltp.benchmark.models import random_classifier
    from ltp.model.classifier import LTPForSequenceClassification

    if checkpoint is not None:
        return load_model(checkpoint, settings.budget)
    assert settings.bench.shape is not None
    return LTPForSequenceClassification.from_dense(random_classifier(settings.bench.shape, settings.seed))


def read_sequences(settings: BenchSettings, checkpoint: Checkpoint | None, model: "LTPPreTrainedModel") -> Sequences:
    """A sample of a task's validation split, tokenised with the checkpoint's tokenizer, or synthetic sequences.

    Raises:
        UserError: the data or the tokenizer do not exist, or do not fit the model.
    """
    from ltp.data.lengths import LENGTHS, parsed_range, synthetic_lengths, uniform_lengths
    from ltp.data.sequences import random_sequences

    options = settings.bench
    if settings.task is None:
        assert options.lengths is not None
        if (given := parsed_range(options.lengths)) is not None:
            most = model.config.max_input_tokens
            check_range(given[1] <= most, "bench.lengths", options.lengths, f"at most {most} tokens for this model")
            lengths = uniform_lengths(*given, options.sequences, settings.seed)
            source = f"synthetic, {options.lengths} tokens" + (" each" if given[0] == given[1] else ", evenly spread")
            return Sequences(source, random_sequences(lengths, model.config.vocab_size, settings.seed))
        lengths = synthetic_lengths(options.lengths, options.sequences, settings.seed)
        mean = LENGTHS[options.lengths].mean
        source = f"synthetic, like {options.lengths} (log-normal, mean {mean:g}, 4 to 128 tokens)"
        return Sequences(source, random_sequences(lengths, model.config.vocab_size, settings.seed))
    assert checkpoint is not None  # checked by resolve()
    tokenizer = load_tokenizer(checkpoint, task_of(settings.task))
    return validation_sequences(settings.task, settings.data_dir, tokenizer, options.sequences, settings.seed)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the report atomically as JSON."""
    from ltp.runs.directory import write_atomically

    write_atomically(path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


COMMAND = Command(
    "bench",
    BenchSettings,
    main,
    fill,
    hints={
        # users may give it, and task=demo adds it, because it selects the model to train
        "model": "unknown key model; a benchmark's is chosen by restore=… (a demo run brings its task) or bench.shape=…"
    },
)

if __name__ == "__main__":
    sys.exit(COMMAND())
