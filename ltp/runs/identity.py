"""A run's identity: its settings, its data, the checkpoint and the parent that it starts from; never only their names.

It is stored in the run's ``config.yaml``, and compared when the run is started again or taken as a parent.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltp.data.tasks import Task
from ltp.errors import UserError
from ltp.runs.checkpoints import CONFIG_FILE, Checkpoint, is_finished, run_config
from ltp.runs.settings import FREE_KEYS, TrainSettings, as_plain, flatten, is_free
from ltp.runs.started import STARTED_BY

_PARENT = "parent.config."  # prefix of the parent's own identity, which may hold its parent's


@dataclass(frozen=True)
class Run:
    """A resolved run, ready to start.

    Attributes:
        settings: the configuration, with every null replaced by a value.
        task: the task; labels of a custom task are unknown until its file is read.
        method: name of the variant of the method, such as ``dense``, ``learned``, ``manual`` or ``topk``.
        directory: the run directory.
        parent: the checkpoint that the run starts from; None for a pretrained or randomly initialised encoder, and
            while the parent run is missing.
        parent_run: the parent that ``restore=auto`` takes, or trains first; None if a checkpoint is named.
        teacher: the dense teacher checkpoint; None where nothing needs one, and while the parent run is missing.
        deviations: settings that the published layout does not name and that differ from the published run's, by
            dotted key.
        data: fingerprints of the local data files, by split.
        checkpoint: fingerprint of the Hugging Face directory that the run starts from; None for a run, a hub id and
            random weights.
    """

    settings: TrainSettings
    task: Task
    method: str
    directory: Path
    parent: Checkpoint | None
    parent_run: "Run | None" = None
    teacher: Checkpoint | None = None
    deviations: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    checkpoint: str | None = None

    @property
    def stage(self) -> str:
        """Its training stage."""
        assert self.settings.stage is not None
        return self.settings.stage

    @property
    def missing(self) -> "Run | None":
        """The parent run that must be trained first."""
        return self.parent_run if self.parent is None else None

    @property
    def chain(self) -> "tuple[Run, ...]":
        """The runs that lead to this one, oldest first, and this one."""
        return (*(self.parent_run.chain if self.parent_run is not None else ()), self)

    @property
    def parent_name(self) -> str | None:
        """The parent's name in results: a run directory, a checkpoint's name or path, or None."""
        if self.parent is not None:
            return str(self.parent.run_dir or self.parent.source)
        return str(self.parent_run.directory) if self.parent_run is not None else self.settings.model.name_or_path


def stored_config(run: Run) -> dict[str, Any]:
    """Return the content of ``config.yaml``: the resolved configuration, and the rest of the run's identity."""
    results = (run.parent.results if run.parent is not None else None) or {}
    config: dict[str, Any] | None = None
    if run.parent_run is not None:
        config = stored_config(run.parent_run)
    elif run.parent is not None and run.parent.run_dir is not None:
        config = run_config(run.parent.run_dir)
    if config is not None:
        config = {key: value for key, value in config.items() if key not in (*FREE_KEYS, *STARTED_BY)}
    teacher = None if run.settings.distill.teacher == "auto" else run.teacher
    return {
        **as_plain(run.settings),
        "method": run.method,
        "data": run.data,
        "checkpoint": run.checkpoint,
        "teacher_run_id": (teacher.results or {}).get("run_id") if teacher is not None else None,
        "parent": {"name": run.parent_name, "run_id": results.get("run_id"), "config": config},
    }


def check_identity(
    run: Run, remedy: str = "Start it afresh with overwrite=true, or keep both with another output_root=…"
) -> None:
    """Check that a run directory was not written by another run.

    Args:
        run: the run.
        remedy: the end of the message.

    Raises:
        UserError: the identities differ; the message lists the differences.
    """
    path = run.directory / CONFIG_FILE
    if not path.is_file() or run.settings.overwrite:
        return
    content = run_config(run.directory)
    if not content:  # nothing could be compared
        raise UserError(
            f"{path} is damaged: it cannot be compared with this configuration. Restore it from a copy, or start the "
            "run afresh with overwrite=true"
        )
    if differing := differences(content, stored_config(run)):
        state = "a finished" if is_finished(run.directory) else "an unfinished"
        raise UserError(
            f"{run.directory} holds {state} run with another configuration:\n" + "\n".join(differing) + f"\n{remedy}"
        )


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Compare two contents of ``config.yaml``, and describe each difference in a line.

    Only keys that both have are compared: one may be of an earlier version.
    """
    there, now = flatten(stored), flatten(current)
    ignored = set()
    if now.get("parent.run_id") is None:
        # the parent was deleted or is not a run: the child's training is still valid
        ignored.add("parent.run_id")
    elif there.get("parent.run_id") == now["parent.run_id"]:  # the same run, possibly under another path
        ignored |= {key for key in there if key.startswith("parent.")}
    if any(key.startswith(_PARENT) or key == "checkpoint" for key in _known(there) & _known(now)):
        ignored.add("parent.name")  # its identity is compared instead
    ignored |= {key for key in there if key.startswith(_PARENT) and key.endswith(("parent.name", "parent.run_id"))}
    for prefix in (_PARENT * depth for depth in range(4)):
        has_parent = now.get(f"{prefix}parent.name") != now.get(f"{prefix}model.name_or_path")
        if has_parent or f"{prefix}checkpoint" in _known(there) & _known(now):
            # the parent or the fingerprint determines the model
            ignored |= {key for key in there if key.startswith(f"{prefix}model.")}
        if f"{prefix}data.train" in there.keys() & now.keys():  # content is compared, wherever the files are
            ignored |= {f"{prefix}{key}" for key in ("data_dir", "task.train_file", "task.validation_file")}
    return [
        f"  {key}: {there[key]} there, {now[key]} now"
        for key in sorted(there.keys() & now.keys() - ignored)
        if there[key] != now[key] and not is_free(key.replace(_PARENT, ""))
    ]


def _known(flat: dict[str, Any]) -> set[str]:
    return {key for key, value in flat.items() if value is not None}
