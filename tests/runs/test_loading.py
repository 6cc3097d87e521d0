"""Weights that cannot be used: one message each, for every command that loads a checkpoint."""

import pytest
import torch
from helpers import finished_run, write_json
from safetensors.torch import load_file, save_file

from ltp import LTPForSequenceClassification
from ltp.errors import UserError
from ltp.exporting.run import export_huggingface
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.runs.loading import load_model


@pytest.fixture
def run(make_dense, tmp_path):
    directory = finished_run(tmp_path / "run")
    write_json(directory / "results.json", {"task": "mrpc", "model": "bert-base"})
    LTPForSequenceClassification.from_dense(make_dense("bert", num_labels=2)).save_pretrained(directory / "model")
    return directory


@pytest.fixture
def weights(run):
    return run / "model" / "model.safetensors"


def load(run):
    return load_model(inspect_checkpoint(str(run)))


def export(run):
    return export_huggingface(run, run.with_name("exported"))


def test_whole_weights_are_loaded(run):
    assert load(run).config.prune_mode == "none"
    export(run)


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_cut_weights(run, weights, size):
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(UserError, match=r"^Cannot load restore="):
        load(run)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: "):
        export(run)


def test_missing_weights(run, weights):
    weights.unlink()
    with pytest.raises(UserError, match=r"^Cannot load restore="):
        load(run)
    with pytest.raises(UserError, match=r"holds no model\.safetensors: train the run again$"):
        export(run)


def test_pickled_weights_are_not_unpickled(run, weights):
    weights.unlink()
    torch.save({"weight": print}, weights.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"^Cannot load restore="):
        load(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(run, weights, value):
    tensors = load_file(weights)
    tensors["dense.classifier.bias"][1] = value
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"dense\.classifier\.bias holds weights that are not finite numbers\."):
        load(run)
