"""Encoders of every family from random weights, through the command line."""

import json

import pytest
from helpers import SMALL, ltp_train

from ltp import LTPForSequenceClassification
from ltp.encoders import known_families

#: XLM-RoBERTa and CamemBERT have RoBERTa's layers; other tests train BERT.
FAMILIES = [name for name in known_families() if name not in ("bert", "xlm-roberta", "camembert")]
#: Settings of ``model=tiny`` by the names of the family.
SIZES = {"modernbert": ["+model.architecture.local_attention=8"]}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_to_a_budget(family, tmp_path):
    words = [*SMALL, f"output_root={tmp_path}", f"model.architecture.model_type={family}", *SIZES.get(family, [])]
    done = ltp_train([*words, "prune=threshold", "stage=hard", "prune.target_flops=0.7"])
    assert done.code == 0, done.err
    runs = {path.parent: json.loads(path.read_text()) for path in tmp_path.rglob("results.json")}
    assert sorted(results["stage"] for results in runs.values()) == ["finetune", "hard", "soft"]
    (hard,) = [(path, results) for path, results in runs.items() if results["stage"] == "hard"]
    assert hard[1]["relative_flops"] == pytest.approx(0.7, abs=0.05)
    assert len(hard[1]["tokens_per_layer"]) == 5
    model = LTPForSequenceClassification.from_pretrained(hard[0])
    assert model.config.dense_model_type == family
    assert (model.config.hidden_size, model.config.intermediate_size) == (32, 64)


@pytest.mark.slow
def test_what_layers_with_a_window_decide_is_a_setting(tmp_path):
    words = [*SMALL, f"output_root={tmp_path}", "prune=topk", "prune.target_flops=0.8", "prune.sliding_layers=scale"]
    done = ltp_train([*words, "model.architecture.model_type=modernbert", *SIZES["modernbert"]])
    assert done.code == 0, done.err
    (path,) = [path for path in tmp_path.rglob("results.json") if "topk" in str(path)]
    assert "sliding_layers_scale" in str(path)
    results = json.loads(path.read_text())
    assert results["hyperparameters"]["sliding_layers"] == "scale"
    tokens = results["tokens_per_layer"]
    assert tokens[1] > tokens[2] > tokens[3] > tokens[4]  # layers 2 and 3 have a window
    assert LTPForSequenceClassification.from_pretrained(path.parent).config.sliding_layers == "scale"
    refused = ltp_train(words)
    assert refused.code == 2
    assert "prune.sliding_layers=scale: a bert model has no layers with a sliding window; leave it out" in refused.err
