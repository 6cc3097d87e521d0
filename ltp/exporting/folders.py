"""Folders that appear whole or not at all."""

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
    """A folder to write into, which becomes ``target`` at the end; after an error nothing of it is left.

    Args:
        target: where it will stand.
        overwrite: replace an earlier export that stands there.

    Yields:
        A folder beside ``target``.

    Raises:
        UserError: see :func:`check_target`.
    """
    check_target(target, overwrite=overwrite)
    partial, former = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"to={target}: cannot write {target.parent}: {error.strerror}") from error
    try:
        yield partial
        if target.exists():
            os.replace(target, former)
        os.replace(partial, target)
    finally:
        if former.exists() and not target.exists():
            os.replace(former, target)
        for leftover in (partial, former):
            shutil.rmtree(leftover, ignore_errors=True)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Check that an export may become this folder.

    Raises:
        UserError: something else stands there.
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
    """Whether a folder looks like an export, rather than like a run, a run's model or somebody's home."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_export = (folder / "model.onnx").is_file() or (isinstance(config, dict) and "auto_map" in config)
    return is_export and config.get("model_type") == MODEL_TYPE
