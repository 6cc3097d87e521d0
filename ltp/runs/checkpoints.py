"""Inspect the checkpoint of ``restore=`` (run directory, Hugging Face directory or hub id) without its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ltp.data.hub import loading_from_hub
from ltp.encoders import known_families, unknown_family
from ltp.errors import UserError
from ltp.model import MODEL_CLASSES, MODEL_TYPE
from ltp.pruning import DENSE_MODE, all_methods, known_methods, setting_keys, variants
from ltp.pruning.method import is_number_type
from ltp.runs.results import RESULTS_FILE, DamagedError, is_number, read_json, read_results

CONFIG_FILE = "config.yaml"
MODEL_FOLDER = "model"
PREDICTIONS_FILE = "predictions.parquet"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """Metadata of a checkpoint.

    Attributes:
        source: the user's value, for messages.
        path: argument of ``from_pretrained``: a directory or a hub id.
        config: content of its ``config.json``.
        run_dir: the run directory that contains it; None outside a run.
        results: content of the run's ``results.json``; None outside a run.
    """

    source: str
    path: str
    config: dict[str, Any]
    run_dir: Path | None = None
    results: dict[str, Any] | None = None

    @property
    def is_ltp(self) -> bool:
        """Whether ltp wrote it, rather than Hugging Face's dense classes."""
        return self.config.get("model_type") == MODEL_TYPE

    @property
    def dense_config(self) -> dict[str, Any]:
        """Configuration of the underlying dense classifier."""
        return self.config["dense_config"] if self.is_ltp else self.config

    @property
    def model_class(self) -> str:
        """Name of the pruned model's class, one of :data:`ltp.model.MODEL_CLASSES`."""
        names = [name.removeprefix("LTP") for name in self.config.get("architectures") or ()]
        return next(
            (own for own in MODEL_CLASSES if any(name.endswith(own[3:]) for name in names)), next(iter(MODEL_CLASSES))
        )

    @property
    def num_labels(self) -> int:
        """Width of the classification head."""
        return len(self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the head's rows."""
        names = self.config.get("id2label")
        if not names:
            return tuple(f"LABEL_{index}" for index in range(int(self.config.get("num_labels", 2))))
        return tuple(str(names[key]) for key in sorted(names, key=int))

    @property
    def pruning(self) -> dict[str, Any]:
        """Its pruning keys; empty for an unpruned checkpoint of ltp, whose values have no effect."""
        mode = self.config.get("prune_mode")
        if self.is_ltp and mode == DENSE_MODE:
            return {}
        own = all_methods()[mode].config_keys() if mode in all_methods() else setting_keys()
        keys = ("prune_mode", *own, *(("masking_mode", "budgets") if self.is_ltp else ()))
        return {key: self.config[key] for key in keys if self.config.get(key) is not None}

    @property
    def prunes(self) -> bool:
        """Whether the classifier prunes tokens, rather than being dense."""
        return self.is_ltp and self.config.get("prune_mode") != DENSE_MODE

    def holds_learned(self, mode: str) -> bool:
        """Whether its weights include what a method has learned."""
        if not self.is_ltp or self.config.get("prune_mode") != mode or mode not in all_methods():
            return False
        found = variants().get((self.results or {}).get("method", ""))
        return all_methods()[mode].learns if found is None else found.learned

    @property
    def name(self) -> str:
        """Model name for run directories."""
        if self.results is not None:
            return str(self.results["model"])
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def has_thresholds(checkpoint: Checkpoint) -> bool:
    """Whether it prunes by thresholds of the layers, of which it can hold several sets."""
    mode = checkpoint.pruning.get("prune_mode", DENSE_MODE)
    return mode in all_methods() and all_methods()[mode].has_thresholds()


def inspect_checkpoint(source: str, key: str = "restore") -> Checkpoint:
    """Inspect the checkpoint that a restore value names, without loading weights.

    Args:
        source: run directory, Hugging Face directory or hub id.
        key: the configuration key, for messages.

    Raises:
        UserError: the checkpoint does not exist, belongs to an unfinished run, is not a classifier or has an
            architecture without adapter in ltp, or the hub is out of reach.
    """
    path = Path(source).expanduser()
    run_dir: Path | None = None
    results: dict[str, Any] | None = None
    location = source
    if path.is_dir():
        run_dir = next((folder for folder in (path, path.parent) if _is_run_directory(folder, path)), None)
        if run_dir is not None:
            if not (run_dir / RESULTS_FILE).is_file():
                raise UserError(
                    f"{key}={source} is an unfinished run: it has no {RESULTS_FILE}. "
                    "Start its command again to finish it, or name another checkpoint."
                )
            results = read_results(run_dir, required=("model",))
            path = run_dir / MODEL_FOLDER
        if not (path / "config.json").is_file():
            raise UserError(
                f"{key}={source} is neither a run directory ({RESULTS_FILE} and {MODEL_FOLDER}/) nor a "
                "Hugging Face directory (config.json); check the path."
            )
        config = read_config(path / "config.json", f"{key}={source}")
        location = str(path)
    elif path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1 or Path(path.parts[0]).is_dir():
        raise UserError(
            f"{key}={source}: no such directory. Give a run directory, a Hugging Face directory or a hub id."
        )
    else:
        config = _read_hub_config(source, key)
    checkpoint = Checkpoint(source=source, path=location, config=config, run_dir=run_dir, results=results)
    _check_classifier(checkpoint)
    return checkpoint


def _is_run_directory(folder: Path, path: Path) -> bool:
    """Whether a folder is a run directory, and the path is the folder or its model folder."""
    is_run = (folder / CONFIG_FILE).is_file() or (folder / RESULTS_FILE).is_file()
    return is_run and (folder == path or path.name == MODEL_FOLDER)


def _read_hub_config(source: str, key: str) -> dict[str, Any]:
    with loading_from_hub(
        f"{key}={source}", "Give a run directory or a Hugging Face directory that exists, or connect to the hub."
    ):
        from transformers.utils import CONFIG_NAME, cached_file

        file = cached_file(source, CONFIG_NAME)
    assert file is not None
    return read_config(Path(file), f"{key}={source}")


def is_finished(directory: Path) -> bool:
    """Whether a run directory contains results."""
    return (directory / RESULTS_FILE).is_file()


def has_checkpoint(directory: Path) -> bool:
    """Whether a training that was interrupted can go on."""
    names = (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
    return any((directory / CHECKPOINT_FOLDER / name).is_file() for name in names)


def run_config(run_dir: Path) -> dict[str, Any]:
    """Read a run's ``config.yaml``; empty if it is missing or unreadable."""
    try:
        content = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        json.dumps(content)  # an anchor may make it contain itself
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def read_config(path: Path, source: str) -> dict[str, Any]:
    """Read a ``config.json``.

    Args:
        path: the file.
        source: key and value that name the checkpoint, for the message.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        return read_json(path)
    except DamagedError as error:
        raise UserError(f"{source}: {path} is damaged: {error}. Download or save the checkpoint again.") from None


def _check_classifier(checkpoint: Checkpoint) -> None:
    if problem := _config_error(checkpoint.config):
        raise UserError(
            f"restore={checkpoint.source}: its config.json is damaged: {problem}. "
            "Download or save the checkpoint again."
        )
    mode = checkpoint.config.get("prune_mode")
    if mode is not None and mode not in all_methods():
        raise UserError(
            f"restore={checkpoint.source} prunes by {mode}, which is not installed; {known_methods(mode)}. A method "
            "from outside is found by its entry point, or in a module: plugins=[MODULE]"
        )
    model_type = checkpoint.dense_config.get("model_type")
    if model_type not in known_families():
        raise UserError(f"restore={checkpoint.source}: {unknown_family(model_type)}")
    architectures = checkpoint.config.get("architectures") or []
    heads = tuple(name.removeprefix("LTP") for name in MODEL_CLASSES)
    if not checkpoint.is_ltp and not any(name.endswith(heads) and "For" in name for name in architectures):
        raise UserError(
            f"restore={checkpoint.source} is not a classifier: config.json names {', '.join(architectures) or 'none'}. "
            f"Fine-tune it first: stage=finetune model.name_or_path={checkpoint.source}"
        )


def _config_error(config: dict[str, Any]) -> str | None:
    """Check the types of what commands read of a ``config.json`` themselves; return the first error, or None."""
    if config.get("model_type") == MODEL_TYPE and not isinstance(config.get("dense_config"), dict):
        return "dense_config is not an object"
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(str(key).isdecimal() for key in labels):
        return "id2label is not an object of numbered labels"
    for key in ("architectures", "budgets"):
        if not isinstance(config.get(key) or [], list):
            return f"{key} is not a list"
    for key in ("model_type", "prune_mode"):
        if not isinstance(config.get(key) or "", str):
            return f"{key} is not a string"
    for method in all_methods().values():
        hints = method.setting_types()
        for key, name in method.config_keys().items():
            if config.get(key) is not None and is_number_type(hints[name]) and not is_number(config[key]):
                return f"{key} is {json.dumps(config[key])[:40]}, not a number"
    if not isinstance(config.get("num_labels") or 0, int):
        return "num_labels is not an integer"
    return None
