"""Find the files of a task's splits under `data_dir`.

Imports neither datasets nor pyarrow, so that a run's data can be identified before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltp.data import TABLE_SUFFIXES
from ltp.data.tasks import Task
from ltp.errors import UserError

#: A task's folder in the classic GLUE download.
CLASSIC_FOLDERS = {
    **{"rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA"},
    **{"sst2": "SST-2", "qnli": "QNLI", "qqp": "QQP", "mnli": "MNLI"},
}
MRPC_TRAIN, MRPC_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"
MRPC_DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")


def task_folders(task: Task, data_dir: Path) -> list[Path]:
    """Return the folders that hold a task's splits: those of the hub's name and of the classic download's.

    Raises:
        UserError: `data_dir` does not exist, or has no such folder.
    """
    if not data_dir.is_dir():
        raise UserError(f"data_dir={data_dir}: no such directory.")
    names = _folder_names(task)
    folders = [data_dir / name for name in names if (data_dir / name).is_dir()]
    if not folders:
        raise UserError(f"data_dir={data_dir}: holds no folder {' or '.join(names)}.")
    return folders


def _folder_names(task: Task) -> tuple[str, ...]:
    return tuple(dict.fromkeys((task.name, CLASSIC_FOLDERS.get(task.name, task.name))))


def find_split(folders: list[Path], split: str, suffixes: Sequence[str] = TABLE_SUFFIXES) -> Path | None:
    """Return the file of a split with one of the suffixes; None if there is none.

    Raises:
        UserError: Several files of one folder match.
    """
    stems = [split, "validation"] if split == "validation_matched" else [split]
    for folder in folders:
        for stem in stems:
            paths = [path for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()]
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                raise UserError(f"{folder}: {names} all claim to be the split {split}; keep one.")
            if paths:
                return paths[0]
        if (classic := folder / classic_file(split)).is_file():
            return classic
    return None


def classic_file(split: str) -> str:
    """Return the name of a split's file in the classic GLUE download."""
    return f"{split.replace('validation', 'dev')}.tsv"


def find_mrpc_corpus(folders: list[Path]) -> Path | None:
    """Return the folder of MRPC's original corpus, which GLUE's download leaves to be split by the user."""
    return next((folder for folder in folders if (folder / MRPC_TRAIN).is_file()), None)


def source_files(
    task: Task, data_dir: str | None, train_file: str | None, validation_file: str | None
) -> dict[str, Path]:
    """Return the local files that a task's splits are read from, by split; those that exist.

    Returns:
        Nothing for a task from the hub, and for the demo.

    Raises:
        UserError: Several files claim to be one split.
    """
    if data_dir is None:
        named = {"train": train_file, "validation": validation_file}
        files = {split: Path(path).expanduser() for split, path in named.items() if path is not None}
        files = {split: path for split, path in files.items() if path.is_file()}
        beside = {split: task.files_beside(path) for split, path in files.items()}
        return files | {f"{split}_{name}": path for split, found in beside.items() for name, path in found.items()}
    root = Path(data_dir).expanduser()
    if task.is_custom or task.generate is not None or not root.is_dir():
        return {}
    folders = [root / name for name in _folder_names(task) if (root / name).is_dir()]
    found = {split: find_split(folders, split, task.suffixes) for split in ("train", *task.validation_splits)}
    if found["train"] is None and task.name == "mrpc" and (corpus := find_mrpc_corpus(folders)):
        ids = next((corpus / name for name in MRPC_DEV_IDS if (corpus / name).is_file()), corpus / MRPC_TEST)
        return {"train": corpus / MRPC_TRAIN, "validation": ids}
    return {split: path for split, path in found.items() if path is not None}
