"""Calibrate a checkpoint on a file of texts, and write the pruned classifier as a Hugging Face directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ltp.calibration.request import CalibrateSettings
from ltp.calibration.texts import calibrate
from ltp.data.texts import open_texts
from ltp.errors import RunError, UserError
from ltp.evaluation.run import Progress
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import (
    load_model,
    load_tokenizer,
    select_device,
    set_threads,
    silence_libraries,
    stored_task,
)

_TYPICAL_TRIALS = 8  # for the progress bar


def calibrate_on_texts(
    settings: CalibrateSettings, checkpoint: Checkpoint, directory: Path, progress: Progress
) -> dict[str, Any]:
    """Calibrate, and write model and tokenizer.

    Args:
        settings: the checked settings; ``texts`` is given.
        checkpoint: the checkpoint to calibrate.
        directory: the new directory.
        progress: opens a progress bar of a given number of texts.

    Returns:
        The model's ``config.calibration``.

    Raises:
        UserError: the texts cannot be read, or the target cannot be reached. Nothing is written.
        RunError: the directory cannot be written.
    """
    silence_libraries()
    set_threads(settings.threads)
    stored = stored_task(checkpoint)
    assert settings.texts is not None
    with open_texts(settings.texts, settings.columns or ["text"], key="texts") as source:
        texts: list[Any] = list(source.read().texts)
    step = max(1, len(texts) // settings.examples)  # spread over the file, which may be sorted
    texts = texts[::step][: settings.examples]
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint, pairs=len(texts[0]) == 2)
    model.to(select_device(settings.device))
    with progress(_TYPICAL_TRIALS * len(texts)) as advance:
        try:
            calibrate(
                model,
                tokenizer,
                [pair[0] for pair in texts] if len(texts[0]) == 1 else texts,
                target_flops=settings.target_flops,
                agreement=settings.agreement,
                max_length=stored.task.max_length if stored is not None else None,
                tick=advance,
            )
        except ValueError as error:
            raise UserError(f"restore={settings.restore}: {error}") from error
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        model.cpu().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)
    except OSError as error:
        raise RunError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dict(model.config.calibration)
