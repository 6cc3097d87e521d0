"""Export of a run to a Hugging Face directory or a graph."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltp.data.hub import loading_from_hub
from ltp.data.sequences import Batch
from ltp.deploy.agreement import Agreement, compare_results
from ltp.deploy.formats import GRAPHS
from ltp.deploy.graph import write_onnx
from ltp.encoders import encoder_family
from ltp.exporting.card import model_card
from ltp.exporting.exported_run import ExportedRun, check_weights
from ltp.exporting.flat import auto_map, flat_sources
from ltp.exporting.folders import PRUNING_KEY, new_folder
from ltp.model import model_class
from ltp.model.configuration import LTPConfig
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import method_class
from ltp.runs.checkpoints import Checkpoint, inspect_checkpoint
from ltp.runs.summary import at_budget

log = logging.getLogger("ltp")

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
        _write_json(folder / "config.json", config)
        family = encoder_family(config["dense_config"]["model_type"])
        for name, source in flat_sources(architecture, method_class(config["prune_mode"]), family).items():
            (folder / name).write_text(source, encoding="utf-8")
        card = _card(exported, config, "huggingface", model)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return target


def export_graph(
    run: str | Path | Checkpoint,
    target: str | Path,
    batches: Sequence[Batch],
    *,
    form: str = "onnx",
    dtype: str = "float32",
    model: LTPPreTrainedModel | None = None,
    overwrite: bool = False,
) -> Agreement:
    """Write a run as a graph that removes pruned tokens, with its tokenizer, after a comparison with the model.

    ``config.json`` is the dense model's, as servers of such graphs read it, with the labels and, under
    ``token_pruning``, the settings of the method.

    Args:
        run: directory or checkpoint of a finished run.
        target: the directory to write; it is written completely or not at all.
        batches: inputs on which the graph is compared with the model. OpenVINO's int8 is calibrated on them, too.
        form: a key of :data:`~ltp.deploy.formats.GRAPHS`: ``onnx`` or ``openvino``.
        dtype: ``float32``, or ``int8``: products of matrices in 8 bits.
        model: the classifier of the run, if it is already loaded: float32, on the CPU, in evaluation mode. The graph
            uses the thresholds of its current budget.
        overwrite: whether to replace an earlier export.

    Returns:
        Result of the comparison.

    Raises:
        UserError: the run is missing or not finished, or ``target`` may not be replaced.
        DisagreementError: the results of the graph differ from those of the model by more than its type allows.
        RunError: the exporter or the format does not support an operation of the model.
    """
    exported, target = _open(run), Path(target)
    graph = GRAPHS[form]
    if model is None:
        config = json.loads((exported.model / "config.json").read_text(encoding="utf-8"))
        model = model_class(*config["architectures"]).from_pretrained(exported.model)
    with new_folder(target, overwrite=overwrite) as folder:
        shutil.copytree(exported.model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_WEIGHTS))
        _write_json(folder / "config.json", _served_config(model))
        _name_known_tokenizer(folder / "tokenizer_config.json")
        traced, path = folder / "traced.onnx", folder / graph.file
        log.info("tracing %d layers, some seconds each", model.config.num_hidden_layers)
        write_onnx(model, traced)
        if (form, dtype) != ("onnx", "float32"):
            log.info("writing the graph in %s, %s", graph.title, dtype)
        graph.runtime.convert(traced, path, dtype, batches)
        traced.unlink(missing_ok=True)
        log.info("comparing it with the model")
        agreement = compare_results(model, graph.runtime.load(path), batches, dtype=dtype)
        compared = f"{agreement.sequences} sequences: {agreement} ({dtype})"
        card = _card(exported, model.config.to_dict(), form, model, compared)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return agreement


def _served_config(model: LTPPreTrainedModel) -> dict[str, Any]:
    """Return the configuration of the dense model with the labels, and the settings of the method."""
    pruned, dense = model.config.to_dict(), model.dense.config.to_dict()
    own = {"prune_mode", "budget"} | set(method_class(model.config.prune_mode).defaults())
    settings = {key: pruned[key] for key in sorted(own) if key in pruned}
    labels = {key: pruned[key] for key in ("id2label", "label2id", "problem_type") if pruned.get(key) is not None}
    config = dense | labels | {"architectures": [type(model.dense).__name__], PRUNING_KEY: settings}
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def _open(run: str | Path | Checkpoint) -> ExportedRun:
    checkpoint = run if isinstance(run, Checkpoint) else inspect_checkpoint(str(run))
    with loading_from_hub(f"restore={checkpoint.source}", "Train the run again.", source=checkpoint.path):
        LTPConfig.from_pretrained(checkpoint.path)
    return ExportedRun.from_checkpoint(checkpoint)


def _card(
    run: ExportedRun, config: dict[str, Any], form: str, model: LTPPreTrainedModel | None, compared: str = ""
) -> str:
    results = run.results
    if model is not None and model.budget is not None:
        results = at_budget(results, model.budget)
    return model_card(results, run.settings, config, base_model=run.base_model, form=form, compared=compared)


def _name_known_tokenizer(path: Path) -> None:
    """Replace transformers 5's name of any fast tokenizer by that which transformers 4 knows, too."""
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("tokenizer_class") == "TokenizersBackend":
            _write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
