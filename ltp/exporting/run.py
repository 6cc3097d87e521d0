"""Export of a run to a Hugging Face directory or an ONNX graph."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ltp.data.hub import loading_from_hub
from ltp.data.sequences import Batch
from ltp.deploy.onnx import open_graph
from ltp.encoders import encoder_family
from ltp.exporting.agreement import Agreement, Infer, compare_results
from ltp.exporting.card import model_card
from ltp.exporting.exported_run import ExportedRun, check_weights
from ltp.exporting.flat import auto_map, flat_sources
from ltp.exporting.folders import new_folder
from ltp.exporting.graph import write_onnx
from ltp.model import model_class
from ltp.model.configuration import LTPConfig
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import method_class
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.summary import at_budget

GRAPH_FILE = "model.onnx"
CARD_FILE = "README.md"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def export_huggingface(
    run: str | Path | Checkpoint,
    target: str | Path,
    *,
    model: LTPPreTrainedModel | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run as a Hugging Face directory that loads without ltp, with ``trust_remote_code=True``.

    Args:
        run: directory or checkpoint of a finished run.
        target: the directory to write; it is written completely or not at all.
        model: the classifier of the run, if another budget is selected than in the files of the run.
        overwrite: whether to replace an earlier export.

    Returns:
        The directory.

    Raises:
        UserError: the run is missing or not finished, or ``target`` may not be replaced.
    """
    exported, target = _open(run), Path(target)
    check_weights(exported.model)
    with new_folder(target, overwrite=overwrite) as folder:
        ignored = None if model is None else shutil.ignore_patterns(*_WEIGHTS)
        shutil.copytree(exported.model, folder, dirs_exist_ok=True, ignore=ignored)
        if model is not None:
            model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (architecture,) = config["architectures"]
        config["auto_map"] = auto_map(architecture)
        _write(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        family = encoder_family(config["dense_config"]["model_type"])
        for name, source in flat_sources(architecture, method_class(config["prune_mode"]), family).items():
            _write(folder / name, source)
        _write(folder / CARD_FILE, _card(exported, config, "huggingface", model))
    return target


def export_onnx(
    run: str | Path | Checkpoint,
    target: str | Path,
    batches: Iterable[Batch],
    *,
    model: LTPPreTrainedModel | None = None,
    overwrite: bool = False,
) -> Agreement:
    """Write a run as an ONNX graph that removes pruned tokens, with its tokenizer.

    Args:
        run: directory or checkpoint of a finished run.
        target: the directory to write; it is written completely or not at all.
        batches: inputs on which the graph is compared with the model.
        model: the classifier of the run, if it is already loaded: float32, on the CPU, in evaluation mode. The graph
            uses the thresholds of its current budget.
        overwrite: whether to replace an earlier export.

    Returns:
        Result of the comparison.

    Raises:
        UserError: the run is missing or not finished, or ``target`` may not be replaced.
        DisagreementError: the results of the graph differ from those of the model.
        RunError: the exporter does not support an operation of the model.
    """
    exported, target = _open(run), Path(target)
    if model is None:
        config = json.loads((exported.model / "config.json").read_text(encoding="utf-8"))
        model = model_class(*config["architectures"]).from_pretrained(exported.model)
    with new_folder(target, overwrite=overwrite) as folder:
        shutil.copytree(exported.model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_WEIGHTS))
        write_onnx(model, folder / GRAPH_FILE)
        agreement = compare_results(model, graph_engine(folder / GRAPH_FILE), batches)
        _write(folder / CARD_FILE, _card(exported, model.config.to_dict(), "onnx", model))
    return agreement


def graph_engine(path: Path) -> Infer:
    """Load an exported graph as a function of a batch, with PyTorch's current number of threads."""
    session = open_graph(path)
    names = [item.name for item in session.get_inputs()]

    def run(batch: Batch) -> list[torch.Tensor]:
        return list(map(torch.from_numpy, session.run(None, {name: batch[name].numpy() for name in names})))

    return run


def _open(run: str | Path | Checkpoint) -> ExportedRun:
    checkpoint = run if isinstance(run, Checkpoint) else inspect_checkpoint(str(run))
    with loading_from_hub(f"restore={checkpoint.source}", "Train the run again.", source=checkpoint.path):
        LTPConfig.from_pretrained(checkpoint.path)
    return ExportedRun.from_checkpoint(checkpoint)


def _card(run: ExportedRun, config: dict[str, Any], form: str, model: LTPPreTrainedModel | None) -> str:
    results = run.results
    if model is not None and model.budget is not None:
        results = at_budget(results, model.budget)
    return model_card(results, run.settings, config, base_model=run.base_model, form=form)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
