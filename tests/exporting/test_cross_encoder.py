"""Rankers and sentence-transformers' `CrossEncoder`: each loads what the other has saved, with the same scores."""

import json

import pytest
import torch
import yaml
from helpers import in_process, plan_of
from transformers import BertConfig, BertForSequenceClassification

from ltp import LTPForSequenceClassification, export
from ltp.data.demo import demo_ranking_rows, demo_tokenizer
from ltp.evaluation.prediction import predict
from ltp.training.building import build_model, build_tokenizer

sentence_transformers = pytest.importorskip("sentence_transformers")

LENGTH = 32
PAIRS = [(row["query"], row["passage"]) for row in demo_ranking_rows("validation")[:12]]


def dense_ranker():
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(demo_tokenizer()), num_labels=1, initializer_range=0.3, **sizes)
    return BertForSequenceClassification(config).eval()


def scores_of(model, tokenizer):
    options = {"max_length": LENGTH, "batch_size": 4, "trace": False, "advance": lambda count: None}
    scores = torch.tensor([found.columns["score"] for found in predict(model, tokenizer, PAIRS, **options)])
    assert scores.std() > 0.01  # pairs that are told apart
    return scores


def test_a_cross_encoder_loads_an_export(tmp_path):
    run = tmp_path / "run"
    model = LTPForSequenceClassification.from_dense(dense_ranker(), prune_mode="topk", token_keep_rate=-0.5).eval()
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(run / "model")
    demo_tokenizer().save_pretrained(run / "model")
    facts = {"task": "demo-ranking", "model": "tiny", "method": "topk", "stage": "hard", "seed": 0}
    metric = {"metric": {"name": "mrr_10", "value": 0.5}, "metrics": {"mrr_10": 0.5}}
    (run / "results.json").write_text(json.dumps(facts | metric | {"hyperparameters": {}, "versions": {}}))
    (run / "config.yaml").write_text(yaml.safe_dump({"task": {"name": "demo-ranking", "max_length": LENGTH}}))
    done = in_process("ltp.export", [f"restore={run}", f"to={tmp_path / 'export'}"], export.COMMAND)
    assert done.code == 0, done.err
    encoder = sentence_transformers.CrossEncoder(str(tmp_path / "export"), trust_remote_code=True, max_length=LENGTH)
    torch.testing.assert_close(
        torch.tensor(encoder.predict(PAIRS)), scores_of(model, demo_tokenizer()), atol=1e-5, rtol=0
    )


def test_a_cross_encoder_is_trained_further(tmp_path):
    dense_ranker().save_pretrained(tmp_path / "bert")
    demo_tokenizer().save_pretrained(tmp_path / "bert")
    encoder = sentence_transformers.CrossEncoder(str(tmp_path / "bert"), max_length=LENGTH)
    encoder.save_pretrained(str(tmp_path / "saved"))
    run = plan_of(f"task=demo-ranking model=bert-base model.name_or_path={tmp_path / 'saved'}")
    tokenizer = build_tokenizer(run)
    model = build_model(run, run.task, tokenizer).eval()
    torch.testing.assert_close(torch.tensor(encoder.predict(PAIRS)), scores_of(model, tokenizer), atol=1e-5, rtol=0)
