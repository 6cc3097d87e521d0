"""``python -m ltp.predict`` in this process, small runs for it, and texts."""

import json

import torch
import yaml
from helpers import in_process
from transformers import BertConfig, BertForSequenceClassification

from ltp import LTPForSequenceClassification, predict
from ltp.data.demo import demo_rows, demo_tokenizer

SENTENCES = [row["sentence"] for row in demo_rows("validation") if len(row["sentence"].split()) < 28][:12]


def ltp_predict(*arguments, stdin=b""):
    """``python -m ltp.predict`` in this process; one argument is a whole command line."""
    command = arguments[0] if len(arguments) == 1 else arguments
    return in_process("ltp.predict", command, predict.COMMAND, stdin=stdin, COLUMNS="120")


def make_run(folder, *, columns=("sentence",), labels=("negative", "positive"), **pruning):
    """A finished run as far as predicting reads it: weights, tokenizer, its configuration."""
    tokenizer = demo_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    # a head that does not call everything the same
    dense = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), num_labels=len(labels) or 1, initializer_range=0.3, **sizes)
    )
    model = LTPForSequenceClassification.from_dense(dense, **pruning)
    if labels:
        model.config.id2label = dict(enumerate(labels))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    task = {"name": "demo", "max_length": 32}
    if columns != ("sentence",):
        task = {"name": "pairs", "max_length": 32, "text_columns": list(columns)}
    task |= {} if labels else {"name": "scores", "metric": "pearson", "text_columns": list(columns)}
    (folder / "results.json").write_text(json.dumps({"model": "tiny"}), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": task, "data_dir": None}), encoding="utf-8")
    return folder


TOPK = {"prune_mode": "topk", "token_keep_rate": -0.5}
