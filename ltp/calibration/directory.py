"""The run directory of a calibration: its path, checks for conflicts, and writing it."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ltp.calibration.request import BUDGETS, LATENCY_DEFAULTS, CalibrateSettings, Request
from ltp.errors import UserError, format_number
from ltp.pruning import untrained
from ltp.runs.checkpoints import CONFIG_FILE, MODEL_FOLDER, Checkpoint, is_finished, read_config, run_config
from ltp.runs.directory import remove_run_files, write_atomically, write_results
from ltp.runs.layout import checkpoint_folder, folder_name

if TYPE_CHECKING:  # torch and transformers take seconds to import; configuration errors should be fast
    from transformers import PreTrainedTokenizerBase

    from ltp.model.pretrained import LTPPreTrainedModel

FOLDER = "calibrated"  # inside the calibrated run


def new_directory(settings: CalibrateSettings, checkpoint: Checkpoint) -> Path:
    """Return the new run's directory: ``to``, else inside the calibrated run or its counterpart in ``output_root``.

    Raises:
        UserError: neither ``to`` nor ``output_root`` is given, and the checkpoint is no run.
    """
    if settings.to is not None:
        return Path(settings.to).expanduser()
    leaf = Path(FOLDER) / _leaf(settings)
    if settings.texts is not None:
        leaf = leaf.with_name(f"texts_{leaf.name}")
        if checkpoint.run_dir is None:
            return Path(settings.output_root or "outputs").expanduser() / checkpoint_folder(checkpoint.path) / leaf
    if settings.texts is not None:
        assert checkpoint.run_dir is not None
        return checkpoint.run_dir / leaf
    if settings.output_root is not None:
        model = folder_name(checkpoint.name)
        root = Path(settings.output_root).expanduser() / model / folder_name(settings.task.name)
        parts = checkpoint.run_dir.resolve().parts if checkpoint.run_dir is not None else ()
        suffixes = [  # the run's path below <output_root>/<model>/<task>
            parts[start + 2 :]
            for start in range(len(parts) - 1)
            if parts[start : start + 2] == (model, settings.task.name)
        ]
        return root.joinpath(*(suffixes[-1] if suffixes else ())) / leaf
    if checkpoint.run_dir is None:
        raise UserError(f"restore={settings.restore} is no run directory: say where the new run goes with to=DIR")
    return checkpoint.run_dir / leaf


def _leaf(settings: CalibrateSettings) -> str:
    if settings.target_flops is not None:
        searched = f"_{settings.search}_{settings.generations}" if settings.search == "evolution" else ""
        return f"target_{format_number(settings.target_flops)}{searched}"
    if settings.budgets is not None:
        return "_".join(["budgets", *map(format_number, settings.budgets)])
    if settings.agreement is not None:
        return f"agreement_{format_number(settings.agreement)}"
    served = f"batch_{settings.batch_size}_{settings.execution}_{settings.dtype}"
    return f"latency_{format_number(settings.target_latency_ms)}ms_{served}"


def check_directory(request: Request) -> None:
    """Check that the new run would not overwrite anything else.

    Raises:
        UserError: the directory is the calibrated run, holds other files, or holds a finished calibration with another
            configuration (the message lists the differences).
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
    old, new = _identity(stored), _identity(new_config(request))
    if new["parent.run_id"] is not None and old["parent.run_id"] == new["parent.run_id"]:
        del old["parent.name"]  # the same run, possibly under another path
    differing = [f"  {key}: {value} there, {new[key]} now" for key, value in old.items() if value != new.get(key)]
    if differing:
        raise UserError(
            f"{directory} holds a finished calibration with another configuration:\n"
            + "\n".join(differing)
            + "\nStart it afresh with overwrite=true, or keep both with another to=DIR"
        )


def check_model_directory(settings: CalibrateSettings, directory: Path) -> None:
    """Check that the new directory overwrites nothing but an earlier calibration, and that only where it is asked to.

    Raises:
        UserError: it would.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    what = f"to={settings.to}" if settings.to is not None else str(directory)
    is_own = (directory / "config.json").is_file() and "calibration" in read_config(directory / "config.json", what)
    if not is_own:
        raise UserError(f"{what} holds something else than a calibrated model: name another directory with to=DIR")
    if not settings.overwrite:
        raise UserError(f"{what} holds a calibrated model already: overwrite=true replaces it, to=DIR keeps both")


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are equal in two runs of the same calibration."""
    nested = {f"{name}.{key}": value for name in ("task", "parent") for key, value in config[name].items()}
    return {"data_dir": config["data_dir"], **nested, **config["calibrate"]}


def new_config(request: Request) -> dict[str, Any]:
    """Return the new run's ``config.yaml``: the calibrated run's, with new ``task``, ``parent`` and ``calibrate``."""
    settings, checkpoint = request.settings, request.checkpoint
    inherited = run_config(checkpoint.run_dir) if checkpoint.run_dir is not None else {}
    results = checkpoint.results or {}
    calibrate: dict[str, Any] = {key: getattr(settings, key) for key in (*BUDGETS, "examples")}
    if request.kind == "target_latency_ms":
        calibrate |= {key: getattr(settings, key) for key in (*LATENCY_DEFAULTS, "threads", "device")}
    return {
        **inherited,
        "task": dataclasses.asdict(settings.task),
        "data_dir": settings.data_dir,
        **({"prune": untrained()} if request.is_dense else {}),
        "method": request.method,
        "parent": {"name": request.parent_name, "run_id": results.get("run_id")},
        "calibrate": calibrate,
    }


def check_can_write(request: Request) -> None:
    """Check that the run can be written, without creating it: an interrupted calibration must leave nothing behind.

    Raises:
        UserError: the nearest existing parent is a file or not writable.
    """
    directory = request.directory.absolute()
    existing = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "Permission denied" if existing.is_dir() else f"{existing} is a file"
        raise UserError(f"cannot write {request.directory}: {reason}; name another place with to=DIR")


def write_run(
    request: Request,
    model: "LTPPreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    results: dict[str, Any],
) -> None:
    """Write the run, results last. Remove an earlier calibration before, and a partly written one after an error."""
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
