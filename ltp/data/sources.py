"""Load a task's splits from the hub, a local folder, the user's own files or a generator."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ltp.data import tables
from ltp.data.files import (
    MRPC_DEV_IDS,
    MRPC_TEST,
    MRPC_TRAIN,
    classic_file,
    find_mrpc_corpus,
    find_split,
    task_folders,
)
from ltp.data.hub import loading_from_hub
from ltp.data.tasks import Task
from ltp.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """A task's training and validation examples.

    Attributes:
        task: The task, including its labels.
        train: Training split: the task's text columns, and `label` as `Task.check_labels` returns it.
        validation: Validation splits by name, the main one first; columns as in `train`.
    """

    task: Task
    train: datasets.Dataset
    validation: dict[str, datasets.Dataset]

    @property
    def by_name(self) -> dict[str, datasets.Dataset]:
        """Every split by the names that commands take; `validation` is the main validation split."""
        return {"validation": next(iter(self.validation.values())), **self.validation, "train": self.train}


@dataclass(frozen=True)
class _ClassicLayout:
    """Column names of a task in the classic GLUE download.

    Attributes:
        columns: Column names by the hub's names, for those that differ.
        header: All column names, for files without a header line.
    """

    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    header: tuple[str, ...] | None = None


#: The tasks whose classic files differ from the hub's.
_CLASSIC = {
    "mrpc": _ClassicLayout({"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}),
    "stsb": _ClassicLayout({"label": "score"}),
    "cola": _ClassicLayout(header=("source", "label", "star", "sentence")),
    "qqp": _ClassicLayout({"label": "is_duplicate"}),
    "mnli": _ClassicLayout({"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}),
}
_MRPC_IDS = ("#1 ID", "#2 ID")
_HUB_COLUMNS = "Use the hub's column names."
_CUSTOM_COLUMNS = "Name the file's columns with task.text_columns and task.label_column."


def load_splits(
    task: Task,
    *,
    data_dir: str | Path | None = None,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    max_train_samples: int | None = None,
    max_validation_samples: int | None = None,
) -> Splits:
    """Read and check a task's training and validation splits.

    Args:
        task: A task of `ltp.data.tasks.TASKS`, or a custom task.
        data_dir: Folder that contains `<task>/{train,validation}.{parquet,jsonl,csv,tsv}` with the hub's column
            names, or the classic GLUE download. None loads GLUE from the hub.
        train_file: Training file of a custom task; the task's labels are inferred from it.
        validation_file: Validation file of a custom task.
        max_train_samples: Keep only this many training rows, from the start.
        max_validation_samples: Keep only this many rows of each validation split, from the start.

    Raises:
        UserError: A file, column, text or label is missing or invalid, or the hub is out of reach.
    """
    limits = {"max_train_samples": max_train_samples, "max_validation_samples": max_validation_samples}
    for key, limit in limits.items():
        if limit is not None and limit < 1:
            raise UserError(f"task.{key}={limit}: must be at least 1, or null for all rows.")
    _check_sources(task, data_dir, train_file, validation_file)
    if task.generate is not None:
        splits = {split: _generated(task, split) for split in ("train", *task.validation_splits)}
    elif task.is_custom:
        task, splits = _load_custom(task, Path(train_file or ""), Path(validation_file or ""))
    elif data_dir is not None:
        splits = _load_local(task, Path(data_dir).expanduser())
    else:
        splits = _load_from_hub(task)
    return Splits(
        task,
        _to_dataset(splits.pop("train"), max_train_samples),
        {name: _to_dataset(table, max_validation_samples) for name, table in splits.items()},
    )


def load_test(
    task: Task, split: str, *, data_dir: str | Path | None = None, test_file: str | Path | None = None
) -> datasets.Dataset:
    """Read and check a task's test split.

    Args:
        task: A task of `ltp.data.tasks.TASKS`, or a custom task; its labels, if the split is to have any.
        split: One of the task's test splits; "test" stands for the main one.
        data_dir: See `load_splits`.
        test_file: Test file of a custom task.

    Returns:
        The task's text columns, and `label` if the split is labelled and the task's labels are known.

    Raises:
        UserError: There is no such split, or a column, text or label is missing or invalid.
    """
    if split == "test":
        split = task.test_splits[0]
    if split not in task.test_splits:
        raise UserError(
            f"split={split}: task={task.name} has no such split. Test splits: {', '.join(task.test_splits)}"
        )
    blank_is_missing = False
    if task.generate is not None:
        return _to_dataset(_generated(task, split), None)
    if task.is_custom:
        if test_file is None:
            raise UserError(f"split={split}: task.test_file is missing: task={task.name} needs it")
        path = Path(test_file).expanduser()
        table, source = _read_unlabelled(path, task, _CUSTOM_COLUMNS), str(path)
    elif data_dir is not None:
        table, source = _local_test(task, split, Path(data_dir).expanduser())
    else:
        name = _hub_name(task)
        with loading_from_hub(f"the dataset {name}", "Connect, or give a folder with data_dir=DIR."):
            table = datasets.load_dataset(*_hub(task), split=split).with_format("arrow")[:]
        source = f"{name}, split {split}"
    is_labelled = task.label_column in table.column_names and not task.is_unlabelled(table)
    check = task.check_rows if is_labelled and task.knows_labels else task.check_texts
    return _to_dataset(check(table, source, blank_is_missing=blank_is_missing), None)


def _generated(task: Task, split: str) -> pa.Table:
    """Generate a split, and check it like any other."""
    assert task.generate is not None
    return task.check_rows(pa.Table.from_pylist(task.generate(split)), f"task={task.name}", blank_is_missing=False)


def _hub(task: Task) -> tuple[str, str | None]:
    """Return the data set of a task on the hub, and its configuration.

    Raises:
        UserError: it is not there.
    """
    if task.hub is None:
        raise UserError(f"task={task.name} is not on the hub: give a folder with data_dir=DIR.")
    return task.hub


def _hub_name(task: Task) -> str:
    name, configuration = _hub(task)
    return name if configuration is None else f"{name} ({configuration})"


def _local_test(task: Task, split: str, data_dir: Path) -> tuple[pa.Table, str]:
    folders = task_folders(task, data_dir)
    path = find_split(folders, split, task.suffixes)
    classic = _CLASSIC.get(task.name, _ClassicLayout())
    if path is None and task.name == "mrpc" and (corpus := find_mrpc_corpus(folders)):
        path = corpus / MRPC_TEST
        if not path.is_file():
            path = None
    if path is None:
        wanted = f"{split}.{{{','.join(suffix[1:] for suffix in task.suffixes)}}} or {classic_file(split)}"
        raise UserError(f"data_dir={data_dir}: no {wanted} in {' or '.join(map(str, folders))}.")
    if path.suffix not in (".tsv", ".txt"):
        return _read_unlabelled(path, task, _HUB_COLUMNS), str(path)
    names = tables.header(path)
    found = {column: name for column in task.columns if (name := _name_in(names, column, classic)) is not None}
    tables.require_columns(path, task.text_columns, list(found), _HUB_COLUMNS)
    # no row may be left out: a submission numbers them
    table = tables.read_separated(path, list(found.values()))
    return table.select(list(found.values())).rename_columns(list(found)), str(path)


def _name_in(names: list[str], column: str, classic: _ClassicLayout) -> str | None:
    """Return the name of a column in a file: the hub's or that of the classic download."""
    return next((name for name in (column, classic.columns.get(column)) if name in names), None)


def _read_unlabelled(path: Path, task: Task, remedy: str) -> pa.Table:
    """Read the text columns of a file, and its labels if it has any."""
    labels = [task.label_column] if task.is_labelled_file(path) else []
    return task.read_file(path, (*task.text_columns, *labels), remedy=remedy)


def _check_sources(task: Task, data_dir: object, train_file: object, validation_file: object) -> None:
    """Check that every key that the task needs is given, and no key that it ignores."""
    files = {"task.train_file": train_file, "task.validation_file": validation_file}
    if not task.is_custom:
        for key, value in files.items():
            if value is not None:
                raise UserError(f"{key}={value}: goes with task=custom, not task={task.name}.")
        if task.generate is not None and data_dir is not None:
            raise UserError(f"data_dir={data_dir}: task={task.name} is generated; leave data_dir out.")
        return
    if data_dir is not None:
        raise UserError(f"data_dir={data_dir}: task={task.name} takes {' and '.join(files)} instead.")
    for key, value in files.items():
        if value is None:
            formats = ", ".join(task.suffixes)
            raise UserError(f"{key} is missing: task={task.name} needs {' and '.join(files)} ({formats}).")


def _to_dataset(table: pa.Table, limit: int | None) -> datasets.Dataset:
    # in memory, so that nothing is written to the user's cache
    return datasets.Dataset(datasets.table.InMemoryTable(table.slice(0, limit).combine_chunks()))


def _load_from_hub(task: Task) -> dict[str, pa.Table]:
    remedy = "Connect, or give a folder with data_dir=DIR, or try task=demo, which needs neither."
    name = _hub_name(task)
    with loading_from_hub(f"the dataset {name}", remedy):
        dataset = datasets.load_dataset(*_hub(task))
    splits = {}
    for split in ("train", *task.validation_splits):
        table = dataset[split].with_format("arrow")[:]
        splits[split] = task.check_rows(table, f"{name}, split {split}", blank_is_missing=False)
    return splits


def _load_custom(task: Task, train_file: Path, validation_file: Path) -> tuple[Task, dict[str, pa.Table]]:
    files = {"train": train_file.expanduser(), "validation": validation_file.expanduser()}
    raw = {split: task.read_file(path, task.columns, remedy=_CUSTOM_COLUMNS) for split, path in files.items()}
    if not task.is_regression and task.has_names:
        task = task.with_labels(task.infer_labels(raw["train"], files["train"]))
    return task, {
        split: task.check_rows(raw[split], path, blank_is_missing=_blank_is_missing(path))
        for split, path in files.items()
    }


def _blank_is_missing(path: Path) -> bool:
    return path.suffix in (".csv", ".tsv", ".txt")  # parquet and JSONL distinguish "" from a missing text


def _load_local(task: Task, data_dir: Path) -> dict[str, pa.Table]:
    """Load the splits under `data_dir`, in the hub's layout or that of the classic download."""
    folders = task_folders(task, data_dir)
    files = {}
    for split in ("train", *task.validation_splits):
        path = find_split(folders, split, task.suffixes)
        if path is not None:
            files[split] = path
        elif split == "validation_mismatched":
            log.warning("data_dir=%s: no validation_mismatched; mnli is evaluated on matched only", data_dir)
        elif task.name == "mrpc" and (corpus := find_mrpc_corpus(folders)):
            return _load_mrpc_corpus(task, corpus)
        else:
            wanted = f"{split}.{{{','.join(suffix[1:] for suffix in task.suffixes)}}}"
            if split != "train":
                wanted += f" or {classic_file(split)}"
            raise UserError(f"data_dir={data_dir}: no {wanted} in {' or '.join(map(str, folders))}.")
    return {split: _read_glue(task, path) for split, path in files.items()}


def _read_glue(task: Task, path: Path) -> pa.Table:
    """Read one split of a GLUE task, with the hub's column names or those of the classic download."""
    classic = _CLASSIC.get(task.name, _ClassicLayout())
    wanted = task.columns
    if path.suffix != ".tsv":
        table = task.read_file(path, wanted, remedy=_HUB_COLUMNS)
    else:
        table = _read_glue_tsv(path, wanted, classic)
    blank_is_missing = _blank_is_missing(path) and task.name != "qqp"  # QQP has a few empty questions
    return task.check_rows(table, path, blank_is_missing=blank_is_missing)


def _read_glue_tsv(path: Path, wanted: tuple[str, ...], classic: _ClassicLayout) -> pa.Table:
    header = tables.header(path)
    if set(wanted) <= set(header):
        return tables.read_separated(path, wanted, skip_broken=True)
    if classic.header:  # no header line: the first line is an example
        if len(header) != len(classic.header):
            tables.require_columns(path, wanted, header, _HUB_COLUMNS)
        return tables.read_separated(path, wanted, names=classic.header, skip_broken=True)
    names = {column: classic.columns.get(column, column) for column in wanted}
    if not set(names.values()) <= set(header):
        remedy = _HUB_COLUMNS
        if classic.columns:
            remedy = f"{_HUB_COLUMNS[:-1]}, or the classic download's: {', '.join(names.values())}."
        tables.require_columns(path, wanted, header, remedy)
    table = tables.read_separated(path, list(names.values()), skip_broken=True)
    return table.select(list(names.values())).rename_columns(list(names))


def _load_mrpc_corpus(task: Task, folder: Path) -> dict[str, pa.Table]:
    """Load MRPC from the original corpus, which GLUE splits by the id pairs in dev_ids.tsv."""
    classic = _CLASSIC["mrpc"].columns
    splits = {}
    for split, name in (("train", MRPC_TRAIN), ("validation", MRPC_TEST)):
        path = folder / name
        if not path.is_file():
            continue
        columns = [*classic.values(), *_MRPC_IDS]
        tables.require_columns(path, columns, tables.header(path), "Take MRPC's original files.")
        table = tables.read_separated(path, columns).rename_columns([*classic, *_MRPC_IDS])
        checked = task.check_rows(table.select(list(classic)), path, blank_is_missing=True)
        pairs = list(zip(*(table[name].to_pylist() for name in _MRPC_IDS), strict=True))
        splits[split] = checked, pairs
    train, pairs = splits["train"]
    ids_file = next((path for name in MRPC_DEV_IDS if (path := folder / name).is_file()), None)
    if ids_file is not None:
        dev_pairs = {tuple(line.split("\t")) for line in ids_file.read_text(errors="replace").splitlines()}
        in_dev = pa.array([pair in dev_pairs for pair in pairs])
        held_out = train.filter(in_dev)
        if held_out.num_rows in (0, train.num_rows):
            raise UserError(
                f"{ids_file}: its id pairs name {held_out.num_rows} of the {train.num_rows} rows of"
                " msr_paraphrase_train.txt; take GLUE's dev_ids.tsv."
            )
        return {"train": train.filter(pc.invert(in_dev)), "validation": held_out}
    if "validation" not in splits:
        raise UserError(
            f"{folder}: msr_paraphrase_train.txt alone has no validation split;"
            " put GLUE's dev_ids.tsv or msr_paraphrase_test.txt beside it."
        )
    log.warning(
        "%s: no dev_ids.tsv: training on all of MRPC's training corpus and validating on its test set,"
        " which is not GLUE's split",
        folder,
    )
    return {"train": train, "validation": splits["validation"][0]}
