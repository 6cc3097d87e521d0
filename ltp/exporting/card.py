"""The model card of an export, from the ``results.json`` and ``config.yaml`` of its run."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ltp.data.tasks import TASKS
from ltp.data.tasks.glue import HUB_DATASET
from ltp.errors import DISTRIBUTION
from ltp.model import MODEL_CLASSES
from ltp.pruning import variants
from ltp.runs.summary import markdown

#: Names of metrics on the hub that differ from ltp's.
_HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}

_HUGGINGFACE = """\
```python
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
model = {auto_class}.from_pretrained(DIR, trust_remote_code=True)
output = model(**tokenizer(["a sentence", "another one"], padding=True, return_tensors="pt"))
output.logits, output.token_lengths  # and the tokens alive entering each layer and after the last
```

DIR is this directory or its id on the hub. The directory contains the model's code (`ltp_*.py`, Apache-2.0), so the
package ltp is not needed, but {requirements}. Pruned tokens are removed, at any batch size.{more}"""

_DEPLOYED = "\n`model.deploy()` gives a faster frozen copy for CPUs."
#: By the model's class: the hub's name of the task, what the model is, and the results of a graph.
_KINDS = {
    "LTPForSequenceClassification": ("text-classification", "A text classifier", ("logits",)),
    "LTPForTokenClassification": ("token-classification", "A token classifier", ("logits",)),
    "LTPForQuestionAnswering": ("question-answering", "A question answering model", ("start_logits", "end_logits")),
}

_ONNX = """\
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(DIR)
session = onnxruntime.InferenceSession(f"{{DIR}}/model.onnx")
names = [item.name for item in session.get_inputs()]
inputs = tokenizer(["a sentence", "another one"], padding=True, return_tensors="np")
{names} = session.run(None, {{name: inputs[name] for name in names}})"""

_OPENVINO = """\
import openvino
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(DIR)
exact = {{"INFERENCE_PRECISION_HINT": "f32"}}  # by default OpenVINO computes in bfloat16 where the CPU can
model = openvino.compile_model(f"{{DIR}}/openvino_model.xml", "CPU", exact)
names = [item.any_name for item in model.inputs]
inputs = tokenizer(["a sentence", "another one"], padding=True, return_tensors="np")
{names} = model({{name: inputs[name] for name in names}}).values()"""

_GRAPH = """\
```python
{code}
```

Inputs are int64, (batch, length), any batch size and length, padded on the right. `token_lengths` are the tokens alive
entering each layer and after the last. The graph removes pruned tokens. `config.json` contains the labels.

Compared with the model in float32, on {compared}. The results below are that model's."""
_CODE = {"onnx": _ONNX, "openvino": _OPENVINO}


def model_card(
    results: dict[str, Any],
    settings: dict[str, Any],
    config: dict[str, Any],
    *,
    base_model: str | None,
    form: str,
    compared: str = "",
) -> str:
    """Write the model card of a run in Markdown, with metadata for the hub. Missing facts are omitted.

    Args:
        results: ``results.json`` of the run.
        settings: ``config.yaml`` of the run; may be empty.
        config: ``config.json`` of the model.
        base_model: hub id of the pretrained model, if known.
        form: ``huggingface``, ``onnx`` or ``openvino``.
        compared: how a graph compares with the model.
    """
    task, model = results["task"], results["model"]
    architecture = (config.get("architectures") or [next(iter(_KINDS))])[0]
    pipeline, kind, graph_results = _KINDS[architecture]
    more = _DEPLOYED if pipeline == "text-classification" else ""
    if form == "huggingface":
        auto_class = MODEL_CLASSES[architecture][1]
        loading = _HUGGINGFACE.format(auto_class=auto_class, requirements=_requirements(), more=more)
    else:
        code = _CODE[form].format(names=", ".join([*graph_results, "token_lengths"]))
        loading = _GRAPH.format(code=code, compared=compared)
    sections = {
        "Use": loading,
        "Results": _results(results, settings, config, form),
        "Training": _training(results, settings),
    }
    found = variants().get(results.get("method", ""))
    method = "" if found is None else found.description
    version = (results.get("versions") or {}).get("ltp", "")
    intro = f"# {markdown(model)} on {markdown(task)}, token-pruned\n\n"
    intro += f"{kind} made with ltp {markdown(str(version))}. {method}"
    text = "\n\n".join([intro.strip(), *(f"## {title}\n\n{body}" for title, body in sections.items())])
    return f"---\n{_metadata(results, settings, base_model, form, pipeline)}\n---\n\n{text}\n"


def _requirements() -> str:
    """Return ``torch>=… and transformers>=…``, as required by this version of ltp."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        project = Path(__file__).parents[2] / "pyproject.toml"
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return " and ".join(f"`{line}`" for line in lines if re.match(r"(torch|transformers)\b", line))


def _metadata(
    results: dict[str, Any], settings: dict[str, Any], base_model: str | None, form: str, pipeline: str
) -> str:
    task, metric = results["task"], results.get("metric") or {}
    is_glue = task in TASKS and TASKS[task].hub == (HUB_DATASET, task)
    evaluations = None
    is_whole = not _validation_limit(settings)  # results on a part of the split are not comparable
    if is_glue and is_whole and metric.get("value") is not None:
        evaluations = [
            EvalResult(
                task_type="text-classification",
                dataset_type=HUB_DATASET,
                dataset_name=f"GLUE {task}",
                dataset_config=task,
                dataset_split=TASKS[task].validation_splits[0],
                metric_type=_hub_metric(metric["name"]),
                metric_value=metric["value"],
            )
        ]
    names = {name.rsplit("/", 1)[-1] for name in results.get("metrics") or {}} | {metric.get("name", "")} - {""}
    return ModelCardData(
        base_model=base_model,
        datasets=[HUB_DATASET] if is_glue else None,
        eval_results=evaluations,
        library_name="transformers" if form == "huggingface" else form,
        metrics=sorted(map(_hub_metric, names)) or None,
        model_name=f"{results['model']}-{task}-{results.get('method', 'pruned')}",
        pipeline_tag=pipeline,
        tags=["token-pruning", "ltp"],
    ).to_yaml()


def _validation_limit(settings: dict[str, Any]) -> int | None:
    """Return the number of validation rows that the run was evaluated on; None for all."""
    task = settings.get("task")
    return task.get("max_validation_samples") if isinstance(task, dict) else None


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _hub_metric(name: str) -> str:
    return _HUB_METRICS.get(name, name)


def _results(results: dict[str, Any], settings: dict[str, Any], config: dict[str, Any], form: str) -> str:
    limit = _validation_limit(settings)
    split = f"validation split, first {limit} rows" if limit else "validation split"
    metrics = results.get("metrics") or {}
    rows = [(f"{name}, {split}", _or_dash(value)) for name, value in metrics.items()]
    budgets = results.get("budgets") or []
    in_use = results.get("budget", budgets[-1]["budget"] if budgets else None)  # by default the last
    if in_use is not None:
        rows.append(("budget in use", f"{in_use:g} of the dense FLOPs"))
    if "relative_flops" in results:
        rows.append(("relative FLOPs (dense without padding: 1)", f"{results['relative_flops']:.3f}"))
    if "gflops" in results:
        dense = f" of {results['dense_gflops']:.4g} dense" if "dense_gflops" in results else ""
        rows.append(("GFLOPs an example", f"{results['gflops']:.4g}{dense}"))
    if measured := results.get("measured_speedup"):
        rows.append(("measured speed-up", _speedup(measured)))
    if tokens := results.get("tokens_per_layer"):
        alive = " → ".join(f"{count:.1f}" for count in tokens)
        rows.append(("tokens alive entering each layer, and after the last", alive))
    if thresholds := results.get("thresholds"):
        mode, length = config.get("scoring_mode"), config.get("score_length")
        scoring = f" on importance ({mode}, Z = {length})" if mode is not None else ""
        values = ", ".join(f"{value:.5g}" for value in thresholds)
        rows.append((f"thresholds of the layers{scoring}", values))
    definition = f"\n\n{results['flops_definition']}." if results.get("flops_definition") else ""
    others = f"\n\n{_budgets(budgets, in_use)}" if len(budgets) > 1 and form == "huggingface" else ""
    return _table(("", ""), rows) + definition + others


def _budgets(budgets: Sequence[dict[str, Any]], in_use: float | None) -> str:
    """Write a table of the model's results at each budget, and how to select one."""
    other = next(item for item in budgets if item["budget"] != in_use)
    rows = [
        (f"{item['budget']:g}", _or_dash(item["metric"]["value"]), f"{item['relative_flops']:.3f}") for item in budgets
    ]
    return (
        f"The model holds thresholds for several budgets; `model.use_budget({other['budget']:g})` prunes with those "
        f"of another one.\n\n{_table(('budget', other['metric']['name'], 'relative FLOPs'), rows)}"
    )


def _speedup(measured: dict[str, Any]) -> str:
    parts = [f"{measured['speedup']['median']:.2f}× over its own weights without pruning"]
    if "batch_size" in measured:
        parts.append(f"batch {measured['batch_size']}")
    if "device" in measured:
        parts.append(f"{measured['device']}, {measured.get('threads', '?')} threads")
    return ", ".join(parts)


def _training(results: dict[str, Any], settings: dict[str, Any]) -> str:
    root, hyperparameters = settings.get("output_root"), dict(results.get("hyperparameters") or {})
    if "distill_teacher" in hyperparameters:
        hyperparameters["distill_teacher"] = _parent(hyperparameters["distill_teacher"], root)
    facts: list[tuple[str, Any]] = [
        *((key, results.get(key)) for key in ("stage", "seed")),
        ("parent", _parent(results.get("parent"), root)),
        ("training examples", results.get("train_examples")),
        ("optimiser steps", results.get("train_steps")),
        *hyperparameters.items(),
        ("device", results.get("device")),
        ("seconds", results.get("duration_seconds")),
        ("versions", ", ".join(f"{name} {number}" for name, number in (results.get("versions") or {}).items())),
        ("run", results.get("run_id")),
    ]
    return _table(("setting", "value"), [(name, str(value)) for name, value in facts if value not in (None, "")])


def _parent(parent: str | None, root: str | None) -> str | None:
    """Return the name of a parent; the path of a run below the output root is made relative to it."""
    if parent is None or root is None or not Path(parent).is_relative_to(root):
        return parent
    return str(Path(parent).relative_to(root))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rule = ("---",) * len(header)
    lines = [tuple(map(markdown, header)), rule, *(tuple(map(markdown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
