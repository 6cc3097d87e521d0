"""Atomic creation of export directories."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltp.errors import UserError
from ltp.model import MODEL_TYPE


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Create a temporary folder that is renamed to ``target`` on exit, or deleted after an error.

    Args:
        target: the folder to create.
        overwrite: whether to replace an earlier export at ``target``.

    Yields:
        The temporary folder, in the same parent folder as ``target``.

    Raises:
        UserError: see :func:`check_target`.
    """
    check_target(target, overwrite=overwrite)
    partial, previous = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"to={target}: cannot write {target.parent}: {error.strerror}") from error
    try:
        yield partial
        if target.exists():
            os.replace(target, previous)
        os.replace(partial, target)
    finally:
        if previous.exists() and not target.exists():
            os.replace(previous, target)
        for leftover in (partial, previous):
            shutil.rmtree(leftover, ignore_errors=True)


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
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_export = (folder / "model.onnx").is_file() or (isinstance(config, dict) and "auto_map" in config)
    return is_export and config.get("model_type") == MODEL_TYPE
