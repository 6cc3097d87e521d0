"""Commands and configurations in this process: a new one takes some six seconds to import what it needs."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import memos
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from ltp import train
from ltp.command import cli, planning
from ltp.data import hub
from ltp.pruning.flops import CostModel
from ltp.pruning.importance import attention_sums, importance_of, read_by
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import EncoderShape, Tokens
from ltp.runs.started import COMMAND_VARIABLE

torch.set_num_threads(1)  # on models this small more of them get into each other's way

memos.install()

#: A demo run of half a second: four small layers, few rows, no bar.
SMALL = (
    "task.max_train_samples=96",
    "task.max_validation_samples=48",
    "model.architecture.num_hidden_layers=4",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=64",
    "batch_size=16",
    "epochs=1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)


def tokens_of(scores, alive, lengths=None, *, layer=1, num_layers=1, **seen):
    """Tokens whose importance is ``scores`` for a method with ``score_length=1``."""
    lengths = alive.sum(dim=1) if lengths is None else lengths
    return Tokens(layer, num_layers, 1, alive, lengths, attention={"received": scores}, **seen)


def importance(probs, alive, *, scoring_mode="mean", score_length=128):
    """The scores of attention probabilities, (B, H, N, N)."""
    sums = attention_sums(probs, torch.ones(*probs.shape[:3], 1), alive, read_by(scoring_mode))
    tokens = Tokens(1, 1, probs.shape[1], alive.bool(), alive.sum(dim=1), attention=sums)
    return importance_of(tokens, scoring_mode, score_length)


def attention_received(probs, presence):
    return attention_sums(probs, probs, presence, frozenset({"received"}))["received"]


def new_pruner(method, num_layers=12, num_budgets=0):
    """The pruner of a method with its settings, for an encoder of this many layers."""
    return Pruner(method, EncoderShape(num_layers, 8, 16, 2, 512), num_budgets)


def layer_flops(token_lengths, hidden_size, intermediate_size):
    """The FLOPs of each layer, of an encoder of these sizes."""
    return CostModel(token_lengths.shape[1] - 1, hidden_size, intermediate_size).layer_flops(token_lengths)


def dense_layer_flops(lengths, num_layers, hidden_size, intermediate_size):
    return CostModel(num_layers, hidden_size, intermediate_size).dense_layer_flops(lengths)


def relative_flops(token_lengths, hidden_size, intermediate_size):
    return CostModel(token_lengths.shape[1] - 1, hidden_size, intermediate_size).relative_flops(token_lengths)


def total_relative_flops(token_lengths, hidden_size, intermediate_size):
    cost, dense = flops_and_dense(token_lengths, hidden_size, intermediate_size)
    return cost.sum() / dense.sum()


def flops_and_dense(token_lengths, hidden_size, intermediate_size):
    return CostModel(token_lengths.shape[1] - 1, hidden_size, intermediate_size).flops_and_dense(token_lengths)


def lowest_relative_flops(lengths, num_layers, hidden_size, intermediate_size):
    return CostModel(num_layers, hidden_size, intermediate_size).lowest_relative_flops(lengths)


#: Ways to prune a small classifier that each lose tokens in several layers, and none.
METHODS = {
    "threshold": {"prune_mode": "absolute_threshold", "final_token_threshold": 0.012},
    "threshold, mean_norm": {
        "prune_mode": "absolute_threshold",
        "scoring_mode": "mean_norm",
        "final_token_threshold": 0.05,
    },
    "topk": {"prune_mode": "topk", "token_keep_rate": -0.2},
    "none": {},
}


def words(command):
    """A command line's words; a sequence of words as it is."""
    return shlex.split(command) if isinstance(command, str) else list(map(str, command))


def composed(*overrides, config_name="train"):
    """The configuration that a command line composes, with Hydra told about it as in a job."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=cli.config_dir(), version_base="1.3"):
        cfg = compose(config_name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def settings_of(command=""):
    """What a command line says, nulls included."""
    return train.COMMAND.settings(composed(*words(command)))


def plan_of(command=""):
    """The run that a command line describes."""
    return planning.plan(settings_of(command))


def directory_of(command=""):
    """The directory of that run."""
    return plan_of(command).directory


@dataclass
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


def ltp_train(command="", job=train.main):
    """``python -m ltp.train`` in this process, or another job under its command line."""
    return in_process("ltp.train", command, dataclasses.replace(train.COMMAND, run=job))


def in_process(program, command, run, *, stdin=b"", **environment):
    """A command in this process.

    Args:
        program: its name.
        command: its command line, or the words of it.
        run: what ``python -m`` would call.
        stdin: what it reads.
        environment: variables.
    """
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # absl's handler (NNCF imports it) closes another stderr than the one of the process when Hydra sets up logging
    logging._handlerList[:] = [ref for ref in logging._handlerList if type(ref()).__module__ != "absl.logging"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [program, *words(command)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: here it is unset again
        patch.setenv(COMMAND_VARIABLE, "")  # so that it is unset again
        patch.delenv(COMMAND_VARIABLE)
        for name, value in environment.items():
            patch.setenv(name, value)
        GlobalHydra.instance().clear()
        try:
            code = run()
        except SystemExit as exit_:  # argparse, --help
            code = exit_.code or 0
        finally:
            root.handlers[:] = handlers  # Hydra's write to a stream that is gone
            root.setLevel(level)
    return Finished(code, out.getvalue(), err.getvalue())


def run_in(folder, *words, **variables):
    """Start Python in a folder, whose modules it can import, without a network."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{root}", "HF_HUB_OFFLINE": "1"} | variables
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def install_stranger(folder, entry_points):
    """Install a distribution in a folder of modules, with the text of its ``entry_points.txt``."""
    metadata = folder / "stranger-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


MRPC_LABELS = {"0": "not_equivalent", "1": "equivalent"}


def dense_checkpoint(directory, **changes):
    """A Hugging Face directory of a dense BERT classifier, as far as planning reads it: ``config.json``."""
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "id2label": MRPC_LABELS,
    }
    write_json(directory / "config.json", config | changes)
    return directory


def finished_run(directory, *, model="bert-base", seed=0, run_id="0123456789ab", **changes):
    """A finished run's directory, as far as planning reads it. ``changes`` go into the model's ``config.json``."""
    config = {
        "model_type": "ltp",
        "architectures": ["LTPForSequenceClassification"],
        "dense_config": {"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768},
        "id2label": MRPC_LABELS,
        "prune_mode": "none",
        "scoring_mode": "mean",
        "score_length": 128,
        "final_token_threshold": 0.01,
        "token_keep_rate": 0.2,
        "masking_mode": "hard",
        "threshold_temperature": 1e-3,
        "lambda_threshold": 0.0,
    }
    write_json(directory / "model" / "config.json", config | changes)
    write_json(directory / "results.json", {"task": "mrpc", "model": model, "seed": seed, "run_id": run_id})
    return directory


@contextlib.contextmanager
def no_hub():
    """The Hugging Face hub out of reach, its cache empty of what is asked for, and nothing tried over a network."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for flag in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setattr(datasets.config, flag, True)  # restored afterwards: ltp.data.hub.go_offline sets it
        hub.hub_in_reach.cache_clear()
        yield
    hub.hub_in_reach.cache_clear()
