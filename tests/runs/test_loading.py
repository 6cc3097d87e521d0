"""Weights that cannot be used: one message each, for every command that loads a checkpoint."""

import importlib
import json

import pytest
import torch
from helpers import finished_run, in_process, write_json
from safetensors.torch import load_file, save_file

from ltp import LTPForSequenceClassification
from ltp.data.demo import demo_tokenizer
from ltp.errors import UserError
from ltp.exporting.run import export_huggingface
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.runs.loading import load_model, load_tokenizer


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
    tensors["dense_model.classifier.bias"][1] = value
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"dense_model\.classifier\.bias holds weights that are not finite numbers\."):
        load(run)


# -- tokenizers ----------------------------------------------------------------------------------------------


def classifier(directory, make_dense, tokenizer=None, **sizes):
    """A Hugging Face directory of a classifier with two labels."""
    make_dense("bert", num_labels=2, max_position_embeddings=128, **sizes).save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory


def commands(directory, pairs):
    """A command line of each command that tokenises with the classifier in a directory."""
    data = "mrpc data_dir=glue" if pairs else "sst2 data_dir=glue"
    texts = "text=a text_pair=b" if pairs else "text=a"
    return {
        "train": f"task={data} prune=topk restore={directory} trainer=cpu",
        "evaluate": f"restore={directory} task={data}",
        "predict": f"restore={directory} {texts}",
        "calibrate": f"restore={directory} task={data} target_flops=0.5 to=new",
    }


def refusals(directory, pairs=False):
    """What each command answers."""
    return {
        name: in_process(f"ltp.{name}", command, importlib.import_module(f"ltp.{name}").COMMAND)
        for name, command in commands(directory, pairs).items()
    }


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """Two tasks in the current directory."""
    monkeypatch.chdir(tmp_path)
    labels = {"sst2": ("sentence",), "mrpc": ("sentence1", "sentence2")}
    for task, columns in labels.items():
        for split in ("train", "validation"):
            path = tmp_path / "glue" / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{**dict.fromkeys(columns, "a good film"), "label": label} for label in (0, 1)] * 8
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("case", ["no files", "too large", "token types"])
def test_a_tokenizer_that_does_not_belong_to_the_model_is_found_before_anything_is_written(glue, make_dense, case):
    size = len(demo_tokenizer())
    if case == "no files":
        classifier(glue / "hf", make_dense)
        message = "restore=hf holds no vocabulary: every word would be unknown."
    elif case == "too large":
        classifier(glue / "hf", make_dense, demo_tokenizer(), vocab_size=size - 1)
        message = f"restore=hf: its tokenizer makes token ids up to {size - 1}, its model knows {size - 1} tokens: "
    else:
        classifier(glue / "hf", make_dense, demo_tokenizer(), vocab_size=size, type_vocab_size=1)
        message = "restore=hf: its tokenizer numbers the second text of a pair 1, its model knows 1 token types: "
    for name, finished in refusals("hf", pairs=case == "token types").items():
        assert finished.code == 2, (name, finished.err)
        assert finished.err.splitlines()[-1].startswith(f"error: {message}"), (name, finished.err)
        assert "Traceback" not in finished.err
    assert sorted(path.name for path in glue.iterdir()) == ["glue", "hf"]


def test_one_token_type_is_enough_for_single_texts(glue, make_dense):
    classifier(glue / "hf", make_dense, demo_tokenizer(), vocab_size=len(demo_tokenizer()), type_vocab_size=1)
    assert load_tokenizer(inspect_checkpoint("hf")).vocab_size == len(demo_tokenizer())


def test_a_pretrained_encoder_without_tokenizer(glue, make_dense):
    classifier(glue / "hf", make_dense)
    finished = in_process(
        "ltp.train",
        "task=sst2 data_dir=glue stage=finetune model.name_or_path=hf trainer=cpu",
        importlib.import_module("ltp.train").COMMAND,
    )
    assert finished.code == 2
    assert finished.err.startswith("error: model.name_or_path=hf holds no vocabulary: every word would be unknown.")
    assert not (glue / "outputs").exists()
