"""What users of Hugging Face expect of the classifier: its loss, its settings by name, the Trainer."""

import re

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from ltp import LTPForSequenceClassification, prune


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        (None, 3, torch.tensor([0, 2, 1, 1])),
        (None, 3, torch.tensor([[0], [2], [1], [1]])),
        (None, 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
        (None, 1, torch.tensor([0.5, -1, 2, 0])),
        (None, 1, torch.tensor([[0.5], [-1], [2], [0]])),
        ("regression", 3, torch.randn(4, 3, generator=torch.Generator().manual_seed(0))),
        ("multi_label_classification", 1, torch.tensor([[1.0], [0], [1], [1]])),
        ("single_label_classification", 3, torch.tensor([0, 2, 1, 1])),
    ],
)
def test_the_loss_is_hugging_faces(make_dense, make_batch, sentences, problem_type, num_labels, labels):
    dense = make_dense("bert", num_labels=num_labels)
    dense.config.problem_type = problem_type
    model = LTPForSequenceClassification.from_dense(dense)
    batch = make_batch(dense, sentences)
    loss = model(**batch, labels=labels).loss
    torch.testing.assert_close(loss, dense(**batch, labels=labels).loss)


def test_the_method_has_its_name_of_the_command_line(make_dense):
    assert prune(make_dense("bert"), "threshold").config.prune_mode == "absolute_threshold"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("final_threshold", "unknown pruning setting final_threshold; did you mean final_token_threshold"),
        ("colour", "unknown pruning setting colour; the settings are prune_mode, "),
        ("target_flops", "target_flops needs training or calibration: python -m ltp.train prune=threshold "),
    ],
)
def test_an_unknown_setting_is_refused(make_dense, setting, message):
    dense = make_dense("bert")
    for model in (dense, prune(dense)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            prune(model, **{setting: 0.5})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        LTPForSequenceClassification.from_dense(dense, **{setting: 0.5})


def test_the_trainer_computes_metrics_of_logits(make_dense, sentences, tmp_path):
    model = prune(make_dense("bert"), "topk", token_keep_rate=0.2)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": len(ids) % 3} for ids in sentences]

    def collate(rows):
        return {
            name: torch.tensor([row[name][:3] if name != "labels" else row[name] for row in rows]) for name in rows[0]
        }

    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}

    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=2, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments, eval_dataset=rows, data_collator=collate, compute_metrics=compute_metrics)
    assert "eval_accuracy" in trainer.evaluate()
    assert seen[0].shape == (4, 3)
