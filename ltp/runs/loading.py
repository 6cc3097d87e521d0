"""Load a checkpoint's task, splits, tokenizer and model, and check inputs against the model's limits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from ltp.data.hub import loading_from_hub
from ltp.data.tasks import SpanTask, kind_of
from ltp.errors import UserError
from ltp.model import MODEL_CLASSES, model_class
from ltp.runs.checkpoints import Checkpoint, has_thresholds, run_config
from ltp.runs.settings import TaskSettings, check_shares, fill_task

if TYPE_CHECKING:  # transformers takes seconds to import, and a mistake should not
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ltp.data.sources import Splits
    from ltp.data.tasks import Task
    from ltp.model.pretrained import LTPPreTrainedModel

_REMEDY = "Give a run directory or a Hugging Face directory that exists."


@dataclass(frozen=True)
class StoredTask:
    """Task and data settings from a run's ``config.yaml``.

    Attributes:
        task: the task, with its files and limits.
        data_dir: folder of its splits; None if there was none.
        precision: the Lightning precision of its training.
    """

    task: TaskSettings
    data_dir: str | None
    precision: str

    @property
    def evaluation_dtype(self) -> str:
        """The dtype of evaluation during training; using it reproduces the metrics of the results."""
        return "bfloat16" if self.precision == "bf16-mixed" else "float32"


def kind_of_checkpoint(checkpoint: Checkpoint) -> "type[Task]":
    """Return the kind of a checkpoint's outputs.

    Raises:
        UserError: it predicts nothing.
    """
    try:
        return kind_of(checkpoint.model_class, checkpoint.config.get("problem_type"), checkpoint.num_labels)
    except ValueError:
        source = f"restore={checkpoint.source}"
        raise UserError(f"{source} is a {checkpoint.model_class}: it predicts nothing") from None


def null_threshold(task: TaskSettings | None) -> float | None:
    """Return the threshold by which an evaluation of a task predicts no answer; None if it always predicts one."""
    from ltp.runs.plan import task_of

    known = None if task is None else task_of(task)
    return known.null_threshold if isinstance(known, SpanTask) else None


def stored_task(checkpoint: Checkpoint) -> StoredTask | None:
    """Return the task of the checkpoint's run; None if there is no run or no readable configuration."""
    if checkpoint.run_dir is None:
        return None
    try:
        stored = run_config(checkpoint.run_dir)
        precision = stored.get("trainer", {}).get("precision", "32-true")
        return StoredTask(TaskSettings(**stored["task"]), stored.get("data_dir"), precision)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # another version or another program wrote it


def task_and_data(
    restore: str, task: TaskSettings, data_dir: str | None, stored: StoredTask | None
) -> tuple[TaskSettings, str | None]:
    """Fill a command's task and data with those of the restored run.

    Args:
        restore: the key's value, for the message.
        task, data_dir: as given; see :func:`ltp.runs.settings.unset_task`.
        stored: the run's.

    Raises:
        UserError: no task is named, and none is stored.
    """
    filled = fill_task(task, stored.task if stored is not None else None)
    if filled is None:
        raise UserError(f"restore={restore} is not a run directory that names its task: give task=… (and data_dir=…)")
    if stored is not None and task.name == MISSING:
        data_dir = data_dir or stored.data_dir
    return filled, data_dir


def read_splits(task: TaskSettings, data_dir: str | None) -> "Splits":
    """Load and check a task's splits.

    Raises:
        UserError: there is no such task, or its data are missing or invalid.
    """
    from ltp.data.sources import load_splits
    from ltp.runs.plan import task_of

    return load_splits(
        task_of(task),
        data_dir=data_dir,
        train_file=task.train_file,
        validation_file=task.validation_file,
        max_train_samples=task.max_train_samples,
        max_validation_samples=task.max_validation_samples,
    )


def read_test(task: "Task", settings: TaskSettings, split: str, data_dir: str | None) -> "Dataset":
    """Load and check a test split; see :func:`ltp.data.sources.load_test`.

    Args:
        task: the task of the settings; a custom task's labels are known once its training file was read.
        settings: its settings.
        split: name of the split.
        data_dir: folder of the task's files.
    """
    from ltp.data.sources import load_test

    rows = load_test(task, split, data_dir=data_dir, test_file=settings.test_file)
    limit = settings.max_validation_samples
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def check_of_texts(checkpoint: Checkpoint, what: str) -> None:
    """Check that a checkpoint predicts one result for a text.

    Raises:
        UserError: it labels tokens or finds spans, which ``what`` does not support.
    """
    if checkpoint.model_class != next(iter(MODEL_CLASSES)):
        raise UserError(
            f"restore={checkpoint.source} is a {checkpoint.model_class}; {what} is for classifiers of texts"
        )


def check_budget(checkpoint: Checkpoint, budget: float | None) -> None:
    """Check that a checkpoint has thresholds for a budget, from its ``config.json``, without loading weights.

    Args:
        checkpoint: the checkpoint.
        budget: relative FLOPs; None for the checkpoint's default thresholds, which always exist.

    Raises:
        UserError: there are none; the message lists the available budgets and a command that creates this one.
    """
    held = checkpoint.pruning.get("budgets", [])
    if budget is None or budget in held:
        return
    restore = f"restore={checkpoint.source}"
    to = "" if checkpoint.run_dir is not None else " to=DIR"
    check_shares("budget", budget)
    if not checkpoint.prunes:
        raise UserError(
            f"budget={budget:g}: {restore} is dense and holds no budgets. python -m ltp.train prune=threshold "
            f"{restore} prune.target_flops={budget:g} trains it for this budget."
        )
    if not has_thresholds(checkpoint):
        raise UserError(
            f"budget={budget:g}: {restore} has no thresholds and holds no budgets. "
            f"python -m ltp.calibrate {restore} target_flops={budget:g}{to} makes a run at this one, without training."
        )
    known = f"it holds {', '.join(f'{value:g}' for value in held)}" if held else "it holds no budgets"
    wanted = ",".join(f"{value:g}" for value in sorted({*held, budget}))
    raise UserError(
        f"budget={budget:g}: {restore} has no thresholds for it; {known}. "
        f"python -m ltp.calibrate {restore} budgets=[{wanted}]{to} makes a run that does, without training."
    )


def load_model(checkpoint: Checkpoint, budget: float | None = None) -> "LTPPreTrainedModel":
    """Load the model: float32, on the CPU, in evaluation mode.

    Args:
        checkpoint: the checkpoint.
        budget: use the thresholds of this budget; None keeps the default ones.

    Raises:
        UserError: it cannot be loaded, or has no thresholds for the budget.
    """
    check_budget(checkpoint, budget)
    pruned = model_class(checkpoint.model_class)
    with loading_from_hub(f"restore={checkpoint.source}", _REMEDY, source=checkpoint.path):
        model = pruned.from_pretrained(checkpoint.path, budget=budget).eval()
    for name, weight in model.named_parameters():
        if not math.isfinite(weight.detach().numpy().sum()):  # NumPy: no threads to start for each small tensor
            raise UserError(
                f"restore={checkpoint.source}: {name} holds weights that are not finite numbers. The training that "
                "wrote them diverged, or the file is damaged: restore another checkpoint."
            )
    return model


def load_tokenizer(
    checkpoint: Checkpoint, task: "Task | None" = None, *, pairs: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the checkpoint's tokenizer, for a task or for texts or pairs of texts; see :func:`read_tokenizer`."""
    source = f"restore={checkpoint.source}"
    return read_tokenizer(checkpoint.path, checkpoint.dense_config, source, task=task, pairs=pairs)


def read_tokenizer(
    name_or_path: str,
    config: Mapping[str, Any],
    source: str,
    *,
    task: "Task | None" = None,
    pairs: bool = False,
    remedy: str = _REMEDY,
) -> "PreTrainedTokenizerBase":
    """Load a tokenizer, and check that it belongs to a model.

    Args:
        name_or_path: a directory or a hub id.
        config: the dense model's ``config.json``.
        source: the configuration key and its value, for messages.
        task: what it will tokenise.
        pairs: without a task, whether it will tokenise pairs of texts.
        remedy: the end of the message if it cannot be loaded.

    Raises:
        UserError: it cannot be loaded, has no words, or makes token ids or types that the model does not know.
    """
    from transformers import AutoTokenizer

    is_pair = pairs if task is None else task.is_pair
    with loading_from_hub(f"the tokenizer of {source}", remedy, source=name_or_path):
        # RoBERTa's words begin with their space, also where they are given one by one
        words: dict[str, bool] = {"add_prefix_space": True} if task is not None and task.reads_words else {}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **words)
    ids = set(tokenizer.get_vocab().values())
    if not ids - set(tokenizer.all_special_ids):  # transformers makes up an empty one where the files are missing
        raise UserError(
            f"{source} holds no vocabulary: every word would be unknown. Copy the tokenizer's files "
            "(tokenizer.json, or vocab.txt) beside its config.json."
        )
    if (known := config.get("vocab_size")) is not None and max(ids) >= known:
        raise UserError(
            f"{source}: its tokenizer makes token ids up to {max(ids)}, its model knows {known} tokens: they do not "
            "belong together. Copy the model's own tokenizer, or resize the model's embeddings."
        )
    types = max(tokenizer("a", "a").get("token_type_ids") or [0]) if is_pair else 0
    if (known := config.get("type_vocab_size")) and types >= known:  # 0 types: the model reads none
        raise UserError(
            f"{source}: its tokenizer numbers the second text of a pair {types}, its model knows {known} token "
            "types: they do not belong together"
        )
    return tokenizer


def max_input_tokens(model: "LTPPreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the maximum tokens of an input that model and tokenizer support, special tokens included."""
    return min(model.config.max_input_tokens, tokenizer.model_max_length)


def check_length(key: str, wanted: int, model: "LTPPreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that the model supports an input length.

    Args:
        key: the configuration key of the length, for the message.
        wanted: tokens, special tokens included.
        model: the classifier.
        tokenizer: its tokenizer.

    Raises:
        UserError: the length exceeds the limit; the message names both.
    """
    if wanted > (limit := max_input_tokens(model, tokenizer)):
        raise UserError(f"{key}={wanted}: the model reads at most {limit} tokens")


def silence_libraries() -> None:
    """Silence the warnings and progress bars of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def set_threads(threads: int | None) -> None:
    """Set PyTorch's number of CPU threads; None keeps PyTorch's default."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def select_device(key: str) -> Any:
    """Return the torch device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: ``cuda`` was requested and there is no GPU.
    """
    import torch

    if key == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no GPU found; use device=cpu")
    return torch.device("cuda" if torch.cuda.is_available() and key != "cpu" else "cpu")
