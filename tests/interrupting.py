"""Runs that are interrupted, and the check that they end as if they had not been."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from helpers import ltp_train
from patience import limit
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from ltp import train
from ltp.training import resuming
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


#: Found by every Python process on its path: breaks a rank of a run, or makes its steps slow, where a test asks for it.
FAULTS = """
import os, sys
if "ltp.train" in sys.orig_argv and not {"-m", "--multirun"} & set(sys.orig_argv[3:]):
    import time
    import ltp.training.module
    step = ltp.training.module.LTPModule.training_step
    def training_step(self, batch, batch_idx):
        if os.environ.get("BREAK", "never") in sys.orig_argv and self.global_rank == 1 and self.global_step == 2:
            raise RuntimeError("rank 1 broke")
        time.sleep(float(os.environ.get("SLOW", 0)))
        return step(self, batch, batch_idx)
    ltp.training.module.LTPModule.training_step = training_step
"""


def with_faults(folder, **faults):
    """Variables for processes whose runs are disturbed by :data:`FAULTS`, which are written to a folder.

    Args:
        folder: it need not exist.
        faults: ``BREAK``, an override of the run whose second rank fails; ``SLOW``, the seconds that each step waits.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(FAULTS)
    paths = [str(folder.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), **{name: str(value) for name, value in faults.items()}}


class Started:
    """``python -m ltp.train`` in a session of its own."""

    def __init__(self, words, **environment):
        self.errors = _new_errors()
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
        return self.process.wait(limit(600))

    def told(self):
        """What it has written to standard error."""
        return self.errors.read_text()


# -- processes that need not import anything ------------------------------------------------------------------


def forked(function, *arguments):
    """Start ``function(*arguments)`` in a process that has imported everything before it begins.

    A new interpreter takes some six seconds for that, and where its start is not what is tested, shows no more.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ltp.train", "ltp.training.run", __name__])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def exit_code(function, *arguments):
    """The exit code of ``function(*arguments)`` in a process of its own; -9 where it was killed."""
    process = forked(function, *arguments)
    process.join(limit(300))
    return process.exitcode


class Forked:
    """The command of ``python -m ltp.train``, as :class:`Started`, in a forked process."""

    def __init__(self, words, *, step_seconds=0.0, **environment):
        self.errors = _new_errors()
        self.errors.touch()
        self.process = forked(_command, list(words), str(self.errors.absolute()), step_seconds, environment)

    def code(self):
        """Its exit code."""
        self.process.join(limit(600))
        return self.process.exitcode

    def told(self):
        """What it has written to standard error."""
        return self.errors.read_text()


def forked_ranks(words, count=2):
    """Ranks of one run, as torchrun and srun start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common["TORCHELASTIC_RUN_ID"] = "1"
    return [Forked(words, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(count)]


def trained_by_two(*words):
    """Train with two ranks: what they wrote to standard error."""
    ranks = forked_ranks([*words, "trainer.devices=2", "trainer.strategy=ddp"])
    codes = [rank.code() for rank in ranks]
    told = [rank.told() for rank in ranks]
    assert codes == [0, 0], told
    return told


def _command(words, errors, step_seconds, environment):
    os.setsid()
    os.environ.update(environment)
    with open(errors, "w") as told:
        os.dup2(told.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if step_seconds:
        step = LTPModule.training_step

        def slow_step(self, batch, batch_idx):
            time.sleep(step_seconds)
            return step(self, batch, batch_idx)

        LTPModule.training_step = slow_step
    sys.argv = ["ltp.train", *words]
    sys.exit(train.COMMAND())


def _new_errors():
    return Path(f"errors_{len(list(Path().glob('errors_*')))}")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_step(words, step):
    """Train, and be killed in the middle of an optimiser step."""
    update = LTPModule.optimizer_step

    def killed(self, *arguments, **more):
        if self.global_step == step:
            kill()
        update(self, *arguments, **more)

    LTPModule.optimizer_step = killed
    ltp_train(words)


def killed_while_saving(words, step, renamed):
    """Train, and be killed in the middle of a checkpoint's file, or between the names it goes through."""
    save, replace = torch.save, os.replace

    def half(checkpoint, file):
        content = io.BytesIO()
        save(checkpoint, content)
        whole = checkpoint["global_step"] != step or renamed
        file.write(content.getvalue() if whole else content.getvalue()[: content.tell() // 2])
        if not whole:
            file.flush()
            kill()

    def killed(source, target):
        if Path(target).name == "last.ckpt" and torch.load(source, weights_only=True)["global_step"] == step:
            kill()
        replace(source, target)

    resuming.torch = SimpleNamespace(save=half)
    if renamed:
        os.replace = killed
    ltp_train(words)
