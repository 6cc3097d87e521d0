"""The run that a calibration writes: where it goes, what may stand there, and how it gets there whole."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ltp.calibration.request import BUDGETS, LATENCY_DEFAULTS, CalibrateSettings, Request
from ltp.errors import UserError, format_number
from ltp.runs.checkpoints import CONFIG_FILE, MODEL_FOLDER, Checkpoint, run_config
from ltp.runs.directory import is_finished, remove_run_files, write_atomically, write_results

if TYPE_CHECKING:  # torch and transformers take seconds to import, and a mistake should not
    from transformers import PreTrainedTokenizerBase

    from ltp.model.classifier import LTPForSequenceClassification

FOLDER = "calibrated"  # inside the run that was calibrated


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
        return f"target_{format_number(settings.target_flops)}"
    if settings.budgets is not None:
        return "_".join(["budgets", *map(format_number, settings.budgets)])
    served = f"batch_{settings.batch_size}_{settings.execution}_{settings.dtype}"
    return f"latency_{format_number(settings.target_latency_ms)}ms_{served}"


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
    stored = run_config(directory)
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


def new_config(request: Request) -> dict[str, Any]:
    """The new run's ``config.yaml``: the calibrated run's, with its own task, parent and ``calibrate``."""
    settings, checkpoint = request.settings, request.checkpoint
    assert settings.task is not None
    inherited = run_config(checkpoint.run_dir) if checkpoint.run_dir is not None else {}
    results = checkpoint.results or {}
    calibrated: dict[str, Any] = {key: getattr(settings, key) for key in (*BUDGETS, "examples")}
    if request.kind == "target_latency_ms":
        calibrated |= {key: getattr(settings, key) for key in (*LATENCY_DEFAULTS, "threads", "device")}
    return {
        **inherited,
        "task": dataclasses.asdict(settings.task),
        "data_dir": settings.data_dir,
        "method": request.method,
        "parent": {"name": request.parent_name, "run_id": results.get("run_id")},
        "calibrate": calibrated,
    }


def check_can_write(request: Request) -> None:
    """Check that the run can be written, without making anything: who stops a calibration leaves nothing behind.

    Raises:
        UserError: it cannot.
    """
    directory = request.directory.absolute()
    there = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "Permission denied" if there.is_dir() else f"{there} is a file"
        raise UserError(f"cannot write {request.directory}: {why}; name another place with to=DIR")


def write_run(
    request: Request,
    model: "LTPForSequenceClassification",
    tokenizer: "PreTrainedTokenizerBase",
    results: dict[str, Any],
) -> None:
    """Write the run, its results last. An earlier one that stood there is removed, and after an error this one, too."""
    directory = request.directory
    try:
        remove_run_files(directory)
        config = yaml.safe_dump(new_config(request), sort_keys=False, allow_unicode=True)
        write_atomically(directory / CONFIG_FILE, config)
        model.save_pretrained(directory / MODEL_FOLDER)
        tokenizer.save_pretrained(directory / MODEL_FOLDER)
        write_results(directory, results)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_run_files(directory)
        raise
