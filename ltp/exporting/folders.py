"""Atomic creation of export directories."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltp.deploy.formats import GRAPHS
from ltp.errors import UserError
from ltp.model import MODEL_TYPE
from ltp.runs.results import DamagedError, read_json

#: Key of ``config.json`` beside a graph: how the model prunes. The rest is the dense model's, which servers read.
PRUNING_KEY = "token_pruning"


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Create a temporary folder that is renamed to ``target`` on exit, or deleted after an error.

    What a killed process has left behind is removed.

    Args:
        target: the folder to create.
        overwrite: whether to replace an earlier export at ``target``.

    Yields:
        The temporary folder, in the same parent folder as ``target``.

    Raises:
        UserError: see :func:`check_target`; or another process writes to ``target``.
    """
    partial, previous = (target.with_name(f".{target.name}.{word}") for word in ("partial", "former"))
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"to={target}: cannot write {target.parent}: {error.strerror}") from error
    with _locked(partial, target):
        if previous.exists() and not target.exists():  # a killed process was about to replace it
            os.replace(previous, target)
        try:
            check_target(target, overwrite=overwrite)
            _clear(partial)
            yield partial
            if target.exists():
                os.replace(target, previous)
            os.replace(partial, target)
        finally:
            if previous.exists() and not target.exists():
                os.replace(previous, target)
            for leftover in (partial, previous):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(partial: Path, target: Path) -> Iterator[None]:
    """Lock a folder; the operating system releases the lock of a process that is killed."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"to={target} is being written by another process; wait for it, or stop it") from None
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_target(target: Path, *, overwrite: bool) -> None:
    """Check that an export may be written to a folder.

    Raises:
        UserError: the target is a file, or a folder that is not empty and may not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise UserError(f"to={target} is a file; name a directory")
    if not overwrite:
        raise UserError(f"to={target} is not empty; name another directory, or replace an export with overwrite=true")
    if not _is_export(target):
        raise UserError(f"to={target} holds something else than an export, which overwrite=true does not delete")


def _is_export(folder: Path) -> bool:
    """Whether a folder is an export, and not a run, the model of a run or another folder."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, DamagedError):
        return False
    has_graph = any((folder / graph.file).is_file() for graph in GRAPHS.values())
    is_pruned = config.get("model_type") == MODEL_TYPE  # graphs of 0.1, too
    return (has_graph and (is_pruned or PRUNING_KEY in config)) or ("auto_map" in config and is_pruned)
