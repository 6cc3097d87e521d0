"""A finished run, or another checkpoint, made ready for use: its task, its tokenizer and its model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from ltp.checkpoints import CONFIG_FILE, Checkpoint
from ltp.config import TaskSettings
from ltp.errors import UserError
from ltp.hub import loading_from_hub

if TYPE_CHECKING:  # transformers takes seconds to import, and a mistake should not
    from transformers import PreTrainedTokenizerBase

    from ltp.modeling import LTPForSequenceClassification

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


def stored_task(checkpoint: Checkpoint) -> StoredTask | None:
    """The task that a run was trained for; None without a run, or without its configuration."""
    if checkpoint.run_dir is None:
        return None
    try:
        stored = yaml.safe_load((checkpoint.run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        precision = stored.get("trainer", {}).get("precision", "32-true")
        return StoredTask(TaskSettings(**stored["task"]), stored.get("data_dir"), precision)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None  # a run from elsewhere


def load_model(checkpoint: Checkpoint) -> "LTPForSequenceClassification":
    """The classifier: float32, on the CPU, in evaluation mode.

    Raises:
        UserError: it cannot be loaded.
    """
    from ltp.modeling import LTPForSequenceClassification

    with loading_from_hub(f"restore={checkpoint.source}", _REMEDY, source=checkpoint.path):
        return LTPForSequenceClassification.from_pretrained(checkpoint.path).eval()


def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with loading_from_hub(f"the tokenizer of restore={checkpoint.source}", _REMEDY, source=checkpoint.path):
        return AutoTokenizer.from_pretrained(checkpoint.path)


def longest_input(model: "LTPForSequenceClassification", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that the model can read at once, special ones included."""
    positions = model.config.max_position_embeddings
    if model.config.backbone_type == "roberta":
        positions -= 2  # positions start after the padding index
    return min(positions, tokenizer.model_max_length)


def check_tokens(largest: int, model: "LTPForSequenceClassification") -> None:
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


def quiet_libraries() -> None:
    """Keep what transformers says while loading out of a command's output."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def on_device(key: str) -> Any:
    """The device that ``auto``, ``cpu`` or ``cuda`` names.

    Raises:
        UserError: there is no GPU.
    """
    import torch

    if key == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no GPU found; use device=cpu")
    return torch.device("cuda" if torch.cuda.is_available() and key != "cpu" else "cpu")
