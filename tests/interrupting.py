"""Runs that are interrupted, and the check that they end as if they had not been."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from helpers import ltp_train
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from ltp.training.module import LTPModule


def trained(*words):
    """Train in this process: the run's directory."""
    finished = ltp_train(words)
    assert finished.code == 0, finished.err
    return Path(finished.out.split("run directory: ")[1].strip())


def run_directory(output_root="outputs"):
    (config,) = Path(output_root).rglob("config.yaml")
    return config.parent


def results_of(directory):
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def lines_of(directory):
    """``metrics.jsonl``. A run whose last epoch was over when it was resumed has another number of it at the end."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "epoch"} for line in lines]


def assert_the_same(directory, wanted):
    """Check that a run learned what another one did, bit by bit, and logged each step once."""
    weights, wanted_weights = (load_file(place / "model" / "model.safetensors") for place in (directory, wanted))
    assert weights.keys() == wanted_weights.keys()
    for name, weight in wanted_weights.items():
        assert torch.equal(weights[name], weight), name
    results, wanted_results = results_of(directory), results_of(wanted)
    for key in ("metrics", "relative_flops", "thresholds", "tokens_per_layer", "train_steps"):
        assert results[key] == wanted_results[key], key
    assert lines_of(directory) == lines_of(wanted)
    files = {path.name for path in (directory / "checkpoints").iterdir() if not path.name.endswith(".damaged")}
    assert files == {"last.ckpt"}


class PowerCutError(Exception):
    """Something that nobody expects."""


def interrupted(words, step, monkeypatch, *, hook="on_train_batch_start", cause=PowerCutError, saves=True):
    """Train until a hook of the module is called at a step; there an error is raised, or a signal sent.

    Returns:
        The exit code; None after an error.
    """
    original = getattr(LTPModule, hook)
    sent = []

    def disturbed(self, *arguments, **more):
        if self.global_step == step and not sent:
            sent.append(cause)
            if cause is PowerCutError:
                raise PowerCutError
            signal.raise_signal(cause)
        return original(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LTPModule, hook, disturbed)
        if not saves:
            patch.setattr(ModelCheckpoint, "on_exception", lambda *_: None)
        with contextlib.suppress(PowerCutError):
            return ltp_train(words).code


class Started:
    """``python -m ltp.train`` in a session of its own."""

    def __init__(self, words, **environment):
        self.errors = Path(f"errors_{len(list(Path().glob('errors_*')))}")
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ltp.train", *words],
                stderr=errors,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                start_new_session=True,
            )

    def code(self):
        """Its exit code."""
        return self.process.wait(200)

    def told(self):
        """What it has written to standard error."""
        return self.errors.read_text()
