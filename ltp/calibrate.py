"""``python -m ltp.calibrate``: a finished run at another budget, without training, as a run of its own.

The searching is :mod:`ltp.calibration`'s, the measuring :mod:`ltp.recalibration`'s.
"""

import contextlib
import dataclasses
import difflib
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from ltp import cli
from ltp.checkpoints import CONFIG_FILE, MODEL_FOLDER, Checkpoint, inspect_checkpoint
from ltp.commands import progress
from ltp.config import RATE_MODES, TaskSettings, typed_as, unknown_key
from ltp.errors import RunError, UserError
from ltp.plan import number
from ltp.restored import StoredTask, load_model, load_tokenizer, on_device, quiet_libraries, stored_task
from ltp.runs import clear, is_finished, read_results, write_atomically, write_results

if TYPE_CHECKING:  # torch and transformers take seconds to import, and a mistake should not
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

    from ltp.modeling import LTPForSequenceClassification

log = logging.getLogger("ltp")

EXECUTIONS = ("deployed", "packed")
DTYPES = ("float32", "bfloat16", "int8")
FOLDER = "calibrated"  # inside the run that was calibrated
_BUDGETS = {
    "target_flops": "target_flops=0.4 (a share of the dense FLOPs)",
    "target_latency_ms": "target_latency_ms=12 (milliseconds a batch, measured on this machine)",
    "budgets": "budgets=[0.3,0.5,0.7] (several in one checkpoint)",
}
_OF_LATENCY = {"batch_size": 1, "execution": "deployed", "dtype": "float32"}


@dataclass
class CalibrateSettings:
    """One calibration; ``python -m ltp.calibrate --help`` says what each key means."""

    restore: str = MISSING
    target_flops: float | None = None
    target_latency_ms: float | None = None
    budgets: list[float] | None = None
    batch_size: int | None = None
    execution: str | None = None
    dtype: str | None = None
    task: TaskSettings | None = None
    data_dir: str | None = None
    examples: int = MISSING
    threads: int | None = None
    device: str = MISSING
    output_root: str | None = None
    to: str | None = None
    overwrite: bool = MISSING


ConfigStore.instance().store(name="calibrate_schema", node=CalibrateSettings)


def unknown(key: str) -> str:
    """The message for a key that the calibration does not have."""
    if key == "model":  # given, or asked for by task=demo, which brings a model to train
        return "unknown key model; what is calibrated is chosen by restore=… (a demo run brings its task)"
    return unknown_key(key, CalibrateSettings, "ltp.calibrate")


@dataclass(frozen=True)
class Request:
    """A checked calibration.

    Attributes:
        settings: nulls filled as far as small files tell; budgets ascend.
        checkpoint: what is calibrated.
        stored: what its run says about its data; None where it is no run that does.
        is_own: whether it is calibrated on its own task, so that its results compare with the new ones.
        directory: the new run.
    """

    settings: CalibrateSettings
    checkpoint: Checkpoint
    stored: StoredTask | None
    is_own: bool
    directory: Path

    @property
    def kind(self) -> str:
        """The key that says what is to be met."""
        return next(key for key in _BUDGETS if getattr(self.settings, key) is not None)

    @property
    def targets(self) -> list[float]:
        """Relative FLOPs to be met, ascending; empty for a latency."""
        settings = self.settings
        return [settings.target_flops] if settings.target_flops is not None else settings.budgets or []


def main(cfg: DictConfig) -> None:
    """Calibrate what a configuration describes, unless that is done already."""
    request = resolve(cfg)
    directory = request.directory
    if is_finished(directory) and not request.settings.overwrite:
        log.info("finished already, skipped: %s (overwrite=true calibrates afresh)", directory)
        results = read_results(directory)
    else:
        results = run(request)
    print_summary(results, directory)


def show(cfg: DictConfig) -> None:
    """Print the whole configuration, nulls filled; calibrate nothing."""
    request = resolve(cfg)
    filled = dataclasses.replace(request.settings, to=str(request.directory))
    print(yaml.safe_dump(dataclasses.asdict(filled), sort_keys=False, allow_unicode=True), end="")


# -- what is asked for ------------------------------------------------------------------------------------------


def resolve(cfg: DictConfig) -> Request:
    """Check the configuration and fill its nulls. Reads small files only.

    Raises:
        UserError: a value is out of range, keys contradict each other, the checkpoint is not there or does not prune,
            or something else stands where the run would go.
    """
    settings = typed_as(CalibrateSettings, cfg, unknown)
    check(settings)
    if settings.budgets is not None:
        settings.budgets = sorted(settings.budgets)
    if settings.target_latency_ms is not None:
        for key, default in _OF_LATENCY.items():
            if getattr(settings, key) is None:
                setattr(settings, key, default)
    checkpoint = inspect_checkpoint(settings.restore)
    check_method(settings, checkpoint)
    stored = stored_task(checkpoint)
    is_own = settings.task is None and settings.data_dir is None and stored is not None
    if settings.task is None:
        if stored is None:
            raise UserError(f"restore={settings.restore} is no run that names its task: give task=… (and data_dir=…)")
        settings.task = stored.task
        settings.data_dir = settings.data_dir or stored.data_dir
    request = Request(settings, checkpoint, stored, is_own, new_directory(settings, checkpoint))
    check_directory(request)
    return request


def check(settings: CalibrateSettings) -> None:
    """Check every value.

    Raises:
        UserError: names the key, its value and its range, or the keys of which one must be given.
    """

    def require(ok: bool, key: str, range_: str) -> None:
        if not ok:
            raise UserError(f"{key}={_text(getattr(settings, key))} is out of range: it must be {range_}")

    def one_of(key: str, known: Sequence[str]) -> None:
        value = getattr(settings, key)
        if value is not None and value not in known:
            near = difflib.get_close_matches(str(value), known, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"{key}={value}: no such option.{hint} Options: {', '.join(known)}")

    given = [f"{key}={_text(getattr(settings, key))}" for key in _BUDGETS if getattr(settings, key) is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given" if given else "no budget is given"
        raise UserError(f"{what}: give exactly one of {', '.join(_BUDGETS.values())}")
    for key, targets in (("target_flops", [settings.target_flops]), ("budgets", settings.budgets or [])):
        in_range = all(0 < target <= 1 for target in targets if target is not None)
        require(in_range, key, "in (0, 1] (of the dense FLOPs)")
    if settings.budgets is not None:
        distinct = len(set(settings.budgets)) == len(settings.budgets) > 0
        require(distinct, "budgets", "one or more different shares of the dense FLOPs")
    latency = settings.target_latency_ms
    require(latency is None or 0 < latency < math.inf, "target_latency_ms", "above 0 (milliseconds)")
    one_of("execution", EXECUTIONS)
    one_of("dtype", DTYPES)
    one_of("device", ("auto", "cpu", "cuda"))
    require(settings.batch_size is None or settings.batch_size >= 1, "batch_size", "1 or more")
    require(settings.examples >= 1, "examples", "1 or more")
    require(settings.threads is None or settings.threads >= 1, "threads", "1 or more")
    for key in _OF_LATENCY:
        if latency is None and getattr(settings, key) is not None:
            raise UserError(
                f"{key}={getattr(settings, key)} goes with target_latency_ms, not with {given[0]}: FLOPs are counted, "
                "and the same however the model is served"
            )
    if settings.dtype == "int8" and settings.execution == "packed":
        raise UserError("dtype=int8 goes with execution=deployed, not execution=packed")
    if latency is not None and settings.device == "cuda" and settings.execution != "packed":
        raise UserError("execution=deployed is for CPUs: use device=cpu, or execution=packed")
    if settings.to is not None and settings.output_root is not None:
        raise UserError(
            f"to={settings.to} and output_root={settings.output_root} are two answers to one question: give one of them"
        )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return number(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def check_method(settings: CalibrateSettings, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint prunes by something that can be turned.

    Raises:
        UserError: it does not prune, or holds one keep rate where thresholds for several budgets are asked for.
    """
    mode = checkpoint.pruning.get("prune_mode", "none")
    if mode == "none":
        raise UserError(
            f"restore={settings.restore} is dense: it prunes nothing that could be calibrated. Train a run that does: "
            f"python -m ltp.train prune=threshold restore={settings.restore} (learned thresholds; prune=manual, "
            "prune=topk: the baselines)"
        )
    if settings.budgets is not None and mode in RATE_MODES:
        raise UserError(
            f"budgets={_text(settings.budgets)}: restore={settings.restore} prunes by one keep rate ({mode}), and "
            "several budgets are several thresholds a layer. Use target_flops=…, once for each"
        )


def new_directory(settings: CalibrateSettings, checkpoint: Checkpoint) -> Path:
    """Where the new run goes: ``to``, else inside the run that is calibrated, or at its place below ``output_root``.

    Raises:
        UserError: there is no such place.
    """
    if settings.to is not None:
        return Path(settings.to).expanduser()
    assert settings.task is not None
    leaf = Path(FOLDER) / _leaf(settings)
    if settings.output_root is not None:
        root = Path(settings.output_root).expanduser() / checkpoint.name / settings.task.name
        parts = checkpoint.run_dir.resolve().parts if checkpoint.run_dir is not None else ()
        behind = [  # where the run stands below its own output_root
            parts[start + 2 :]
            for start in range(len(parts) - 1)
            if parts[start : start + 2] == (checkpoint.name, settings.task.name)
        ]
        return root.joinpath(*(behind[-1] if behind else ())) / leaf
    if checkpoint.run_dir is None:
        raise UserError(f"restore={settings.restore} is no run directory: say where the new run goes with to=DIR")
    return checkpoint.run_dir / leaf


def _leaf(settings: CalibrateSettings) -> str:
    if settings.target_flops is not None:
        return f"target_{number(settings.target_flops)}"
    if settings.budgets is not None:
        return "_".join(["budgets", *map(number, settings.budgets)])
    served = f"batch_{settings.batch_size}_{settings.execution}_{settings.dtype}"
    return f"latency_{number(settings.target_latency_ms)}ms_{served}"


def check_directory(request: Request) -> None:
    """Check that the run may be written where it would go.

    Raises:
        UserError: something else stands there, or a calibration with another configuration; shows the difference.
    """
    directory, settings, restored = request.directory, request.settings, request.checkpoint.run_dir
    if not directory.exists():
        return
    if restored is not None and directory.samefile(restored):
        raise UserError(f"to={settings.to} is the run that is calibrated: name another directory")
    what = f"to={settings.to}" if settings.to is not None else str(directory)
    if not directory.is_dir():
        raise UserError(f"{what} is a file; name a directory with to=DIR")
    stored = _read_config(directory)
    if "calibrate" not in stored:
        if stored or any(not path.name.startswith(".") for path in directory.iterdir()):
            raise UserError(
                f"{what} holds something else than a run of ltp.calibrate, which is never overwritten: name another "
                "directory with to=DIR"
            )
        return
    if settings.overwrite or not is_finished(directory):
        return
    there, now = _identity(stored), _identity(new_config(request))
    if now["parent.run_id"] is not None and there["parent.run_id"] == now["parent.run_id"]:
        del there["parent.name"]  # the same run, perhaps under another path
    differing = [f"  {key}: {there[key]} there, {now[key]} now" for key in there if there[key] != now.get(key)]
    if differing:
        raise UserError(
            f"{directory} holds a finished calibration with another configuration:\n"
            + "\n".join(differing)
            + "\nStart it afresh with overwrite=true, or keep both with another to=DIR"
        )


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What two calibrations must share to be the same."""
    parts = {"task": config["task"], "parent": config["parent"], "": config["calibrate"]}
    flat = {f"{name}.{key}".lstrip("."): value for name, part in parts.items() for key, value in part.items()}
    return {"data_dir": config["data_dir"], **flat}


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def new_config(request: Request) -> dict[str, Any]:
    """The new run's ``config.yaml``: the calibrated run's, with its own task, parent and ``calibrate``."""
    settings, checkpoint = request.settings, request.checkpoint
    assert settings.task is not None
    inherited = _read_config(checkpoint.run_dir) if checkpoint.run_dir is not None else {}
    results = checkpoint.results or {}
    calibrated: dict[str, Any] = {key: getattr(settings, key) for key in (*_BUDGETS, "examples")}
    if request.kind == "target_latency_ms":
        calibrated |= {key: getattr(settings, key) for key in (*_OF_LATENCY, "threads", "device")}
    return {
        **inherited,
        "task": dataclasses.asdict(settings.task),
        "data_dir": settings.data_dir,
        "method": _method(checkpoint),
        "parent": {"name": _parent_name(checkpoint), "run_id": results.get("run_id")},
        "calibrate": calibrated,
    }


def _parent_name(checkpoint: Checkpoint) -> str:
    return str(checkpoint.run_dir or checkpoint.source)


def _method(checkpoint: Checkpoint) -> str:
    mode = checkpoint.pruning["prune_mode"]
    stored = (checkpoint.results or {}).get("method")
    return str(stored or (mode if mode in RATE_MODES else "learned" if checkpoint.holds_thresholds else "manual"))


# -- doing it ---------------------------------------------------------------------------------------------------


def run(request: Request) -> dict[str, Any]:
    """Calibrate, score and write the run.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: model, data or device do not fit, or the budget cannot be met. Nothing is left then.
        RunError: a latency could not be measured, or the run not be written.
    """
    import torch

    from ltp.locks import only_writer

    started = time.monotonic()
    quiet_libraries()
    settings, directory = request.settings, request.directory
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    check_room(request)
    model, tokenizer = load_model(request.checkpoint), load_tokenizer(request.checkpoint)
    measured = measure(request, model, tokenizer)
    results = {**describe(request, model), **measured, "duration_seconds": round(time.monotonic() - started, 1)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with only_writer(directory):
            if is_finished(directory) and not settings.overwrite:
                log.info("another process has calibrated it meanwhile: %s", directory)
                check_directory(request)
            else:
                write(request, model, tokenizer, results)
    except OSError as error:
        raise RunError(f"cannot write {directory}: {error.strerror or error}") from error
    return read_results(directory)


def check_room(request: Request) -> None:
    """Check that the run can be written, without making anything: who stops a calibration leaves nothing behind.

    Raises:
        UserError: it cannot.
    """
    directory = request.directory.absolute()
    there = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "Permission denied" if there.is_dir() else f"{there} is a file"
        raise UserError(f"cannot write {request.directory}: {why}; name another place with to=DIR")


def write(
    request: Request,
    model: "LTPForSequenceClassification",
    tokenizer: "PreTrainedTokenizerBase",
    results: dict[str, Any],
) -> None:
    """Write the run, its results last. An earlier one that stood there is removed, and after an error this one, too."""
    directory = request.directory
    try:
        clear(directory)
        config = yaml.safe_dump(new_config(request), sort_keys=False, allow_unicode=True)
        write_atomically(directory / CONFIG_FILE, config)
        model.save_pretrained(directory / MODEL_FOLDER)
        tokenizer.save_pretrained(directory / MODEL_FOLDER)
        write_results(directory, results)
    except BaseException:
        with contextlib.suppress(OSError):
            clear(directory)
        raise


def measure(
    request: Request, model: "LTPForSequenceClassification", tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """Turn the model to its budget, and score it on its validation splits.

    Returns:
        What ``results.json`` says of both. The model is left at its largest budget.

    Raises:
        UserError, RunError: see :func:`run`.
    """
    from ltp.benchmark.report import device_name
    from ltp.calibration import UnreachableError, keep_schedule
    from ltp.flops import DEFINITION
    from ltp.recalibration import Sample, Wish, meet, read_data

    settings, results = request.settings, request.checkpoint.results or {}
    assert settings.task is not None
    device = on_device(settings.device)
    dtype = request.stored.evaluation_dtype if request.stored is not None else "float32"
    data = read_data(request.checkpoint, settings.task, settings.data_dir, tokenizer, model)
    split, main_data = next(iter(data.items()))
    sample = Sample.of(main_data, settings.examples, model)
    of_latency = {key: getattr(settings, key) for key in _OF_LATENCY if getattr(settings, key) is not None}
    wish = Wish(request.targets, settings.target_latency_ms, **of_latency)
    try:
        measured = meet(wish, model, data, sample, dtype=dtype, device=device, shown=progress)
    except UnreachableError as error:
        raise UserError(_unreachable(settings, error, len(sample))) from error
    calibrated = measured["calibrated"]
    if request.kind != "budgets":
        calibrated |= {key: value[0] for key, value in calibrated.items() if isinstance(value, list)}
    own = results if request.is_own else {}
    calibrated["before"] |= {key: own[key] for key in ("relative_flops", "metric") if key in own}
    if _method(request.checkpoint) == "manual":
        keep_schedule(model)
    return {
        **measured,
        "calibrated": {request.kind: getattr(settings, request.kind), **of_latency, **calibrated},
        "flops_definition": DEFINITION,
        "train_examples": results.get("train_examples"),
        "validation_examples": len(main_data.splits.validation[split]),
        "train_steps": 0,
        "device": device_name(device),
        "devices": 1,
    }


def _unreachable(settings: CalibrateSettings, error: Any, examples: int) -> str:
    key = "target_flops" if settings.target_flops is not None else "budgets"
    given = f"{key}={_text(getattr(settings, key))}"
    if settings.budgets is not None:
        given += f": {error.target:g}"
    if error.highest is not None:
        return (
            f"{given} cannot be reached on {examples} examples: their cost falls from {error.highest:.3f} to "
            f"{error.lowest:.3f} of the dense FLOPs at once. More of them (examples=…) have finer steps."
        )
    return (
        f"{given} cannot be reached: the hardest pruning of this model costs {error.lowest:.3f} of the dense FLOPs on "
        f"{examples} examples. Ask for more than that."
    )


def describe(request: Request, model: "LTPForSequenceClassification") -> dict[str, Any]:
    """What ``results.json`` says of the run besides what was measured, in the keys of a training."""
    from ltp.provenance import GIT_STATE, versions

    settings, checkpoint = request.settings, request.checkpoint
    assert settings.task is not None
    parent = checkpoint.results or {}
    rate = "token_keep_rate" if model.config.prune_mode in RATE_MODES else "final_token_threshold"
    defaults = {key: getattr(model.config, key) for key in ("scoring_mode", "score_length", rate)}
    hyperparameters: dict[str, Any] = {**(parent.get("hyperparameters") or defaults)}
    trained_for = hyperparameters.get("budgets") or hyperparameters.get("target_flops")
    if trained_for is not None and "calibrated" not in parent:
        hyperparameters["trained_for"] = trained_for
    hyperparameters |= {"target_flops": settings.target_flops, "budgets": settings.budgets}
    hyperparameters["max_length"] = settings.task.max_length
    of_latency = {"target_latency_ms": settings.target_latency_ms}
    of_latency |= {f"latency_{key}": getattr(settings, key) for key in _OF_LATENCY}
    for key, value in of_latency.items():
        hyperparameters.pop(key, None)  # an earlier calibration's
        if value is not None:
            hyperparameters[key] = value
    return {
        "task": settings.task.name,
        "model": checkpoint.name,
        "method": _method(checkpoint),
        "prune_mode": model.config.prune_mode,
        "stage": parent.get("stage", "hard"),
        "seed": parent.get("seed", 0),
        "hyperparameters": hyperparameters,
        "parent": _parent_name(checkpoint),
        "parent_run_id": parent.get("run_id"),
        "config": new_config(request),
        "git": GIT_STATE,
        "versions": versions(),
    }


# -- what is said about it --------------------------------------------------------------------------------------


def print_summary(results: dict[str, Any], directory: Path) -> None:
    """Print what the model cost and scored before and after, and where the new run is."""
    from rich.console import Console

    console = Console()
    calibrated = results["calibrated"]
    title = f"{results['task']} · {results['model']} · {results['method']}, {results['stage']} · {_wish(calibrated)}"
    console.print(title, soft_wrap=True, highlight=False, markup=False, style="italic")
    console.print(summary_table(results))
    lines = [
        f"sample: {calibrated['examples']} training examples; validation: {results['validation_examples']} examples",
        f"run directory: {directory}",
    ]
    if "target_latency_ms" in calibrated:
        served = f"batches of {calibrated['batch_size']}, {calibrated['execution']} {calibrated['dtype']}"
        threads = f", {calibrated['threads']} threads" if "threads" in calibrated else ""
        span = f"{calibrated['dense_ms']:.3g} ms without pruning, {calibrated['lowest_ms']:.3g} ms with the hardest"
        lines.insert(1, f"milliseconds: median, {served}, on {calibrated['processor']}{threads}; {span}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def summary_table(results: dict[str, Any]) -> "Table":
    """Before and after, a column a budget."""
    from rich import box
    from rich.table import Table

    calibrated, before = results["calibrated"], results["calibrated"]["before"]
    several = "budgets" in calibrated
    after = results["budgets"] if several else [results]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("before", *(f"budget {one['budget']:g}" if several else "after" for one in after)):
        table.add_column(name, justify="right")

    def add(name: str, digits: str, *values: float | None) -> None:
        table.add_row(name, *("–" if value is None else format(value, digits) for value in values))

    if "target_latency_ms" in calibrated:
        add("milliseconds a batch", ".3g", before["latency_ms"], calibrated["reached"])
    costs = calibrated["relative_flops"]
    add("relative FLOPs, sample", ".3f", before["sample_relative_flops"], *(costs if several else [costs]))
    add("relative FLOPs, validation", ".3f", before.get("relative_flops"), *(one["relative_flops"] for one in after))
    was = before.get("metric") or {}
    name = f"{results['metric']['name']}, validation"
    add(name, ".4f", was.get("value"), *(one["metric"]["value"] for one in after))
    return table


def _wish(calibrated: dict[str, Any]) -> str:
    if "target_latency_ms" in calibrated:
        return f"calibrated to {calibrated['target_latency_ms']:g} ms"
    targets = calibrated["budgets"] if "budgets" in calibrated else [calibrated["target_flops"]]
    return f"calibrated to {', '.join(f'{target:g}' for target in targets)} of the FLOPs"


if __name__ == "__main__":
    sys.exit(cli.run_command("calibrate", main, show, unknown))
