"""A finished run, or another checkpoint, made ready for use: its task, its tokenizer and its model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltp.data.hub import loading_from_hub
from ltp.errors import UserError
from ltp.runs.checkpoints import Checkpoint, run_config
from ltp.runs.settings import TaskSettings, check_shares

if TYPE_CHECKING:  # transformers takes seconds to import, and a mistake should not
    from transformers import PreTrainedTokenizerBase

    from ltp.data.sources import Splits
    from ltp.model.classifier import LTPForSequenceClassification

_REMEDY = "Give a run directory or a Hugging Face directory that exists."


@dataclass(frozen=True)
class StoredTask:
    """What a run says in its ``config.yaml`` about its data.

    Attributes:
        task: the task, with its files and limits.
        data_dir: where its splits were.
        precision: Lightning's, of the training.
    """

    task: TaskSettings
    data_dir: str | None
    precision: str

    @property
    def evaluation_dtype(self) -> str:
        """The type in which the run was evaluated while it trained, so that metrics equal those of its results."""
        return "bfloat16" if self.precision == "bf16-mixed" else "float32"


def stored_task(checkpoint: Checkpoint) -> StoredTask | None:
    """The task that a run was trained for; None without a run, or without its configuration."""
    if checkpoint.run_dir is None:
        return None
    try:
        stored = run_config(checkpoint.run_dir)
        precision = stored.get("trainer", {}).get("precision", "32-true")
        return StoredTask(TaskSettings(**stored["task"]), stored.get("data_dir"), precision)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # a run from elsewhere


def read_splits(task: TaskSettings, data_dir: str | None) -> "Splits":
    """A task's examples, checked.

    Raises:
        UserError: there is no such task, or its data are missing or wrong.
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


def check_budget(checkpoint: Checkpoint, budget: float | None) -> None:
    """Check that a checkpoint holds thresholds for a budget. Reads no weights.

    Args:
        checkpoint: its ``config.json`` says which budgets it holds.
        budget: relative FLOPs; None for how the checkpoint prunes as it stands, which is always there.

    Raises:
        UserError: it does not hold it; says which it does, and what makes it.
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
            f"{restore} prune.target_flops={budget:g} leads it to one."
        )
    if checkpoint.config.get("prune_mode") != "absolute_threshold":
        raise UserError(
            f"budget={budget:g}: {restore} prunes by one keep rate and holds no budgets. "
            f"python -m ltp.calibrate {restore} target_flops={budget:g}{to} makes a run at this one, without training."
        )
    known = f"it holds {', '.join(f'{value:g}' for value in held)}" if held else "it holds no budgets"
    wanted = ",".join(f"{value:g}" for value in sorted({*held, budget}))
    raise UserError(
        f"budget={budget:g}: {restore} has no thresholds for it; {known}. "
        f"python -m ltp.calibrate {restore} budgets=[{wanted}]{to} makes a run that does, without training."
    )


def load_model(checkpoint: Checkpoint, budget: float | None = None) -> "LTPForSequenceClassification":
    """The classifier: float32, on the CPU, in evaluation mode.

    Args:
        checkpoint: what is loaded.
        budget: prune with the thresholds of this one of its budgets; None leaves it as it stands.

    Raises:
        UserError: it cannot be loaded, or does not hold the budget.
    """
    check_budget(checkpoint, budget)

    from ltp.model.classifier import LTPForSequenceClassification

    with loading_from_hub(f"restore={checkpoint.source}", _REMEDY, source=checkpoint.path):
        return LTPForSequenceClassification.from_pretrained(checkpoint.path, budget=budget).eval()


def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with loading_from_hub(f"the tokenizer of restore={checkpoint.source}", _REMEDY, source=checkpoint.path):
        return AutoTokenizer.from_pretrained(checkpoint.path)


def max_input_tokens(model: "LTPForSequenceClassification", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that a model can read at once and its tokenizer makes, special ones included."""
    return min(model.config.max_input_tokens, tokenizer.model_max_length)


def check_length(
    key: str, wanted: int, model: "LTPForSequenceClassification", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Check that inputs of a length can be read.

    Args:
        key: what gave the length.
        wanted: tokens, special ones included.
        model: the classifier.
        tokenizer: its tokenizer.

    Raises:
        UserError: they cannot; names the key and the limit.
    """
    if wanted > (limit := max_input_tokens(model, tokenizer)):
        raise UserError(f"{key}={wanted}: the model reads at most {limit} tokens")


def check_token_ids(largest: int, model: "LTPForSequenceClassification") -> None:
    """Check that the tokenizer made no token that the model does not know.

    Args:
        largest: the largest token id it made.
        model: the classifier.

    Raises:
        UserError: it did.
    """
    if largest >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer makes the token {largest}, the model knows {model.config.vocab_size} tokens: "
            "they do not belong together"
        )


def silence_libraries() -> None:
    """Keep what transformers says while loading out of a command's output."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def set_threads(threads: int | None) -> None:
    """Compute on so many threads of the processor from now on; None leaves the choice to PyTorch."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def select_device(key: str) -> Any:
    """The device that ``auto``, ``cpu`` or ``cuda`` names.

    Raises:
        UserError: there is no GPU.
    """
    import torch

    if key == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no GPU found; use device=cpu")
    return torch.device("cuda" if torch.cuda.is_available() and key != "cpu" else "cpu")
