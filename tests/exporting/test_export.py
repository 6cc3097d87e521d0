"""Exports: loaded where ltp is not, graphs that prune, cards that say what the run says, and nothing half-written."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from helpers import SMALL, finished_run, in_process, ltp_train, write_json
from huggingface_hub import ModelCard
from patience import limit

from ltp import LTPForSequenceClassification, export
from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.data.sequences import make_batches
from ltp.deploy.agreement import DisagreementError, compare_results
from ltp.deploy.formats import GRAPHS
from ltp.deploy.graph import GraphForm, write_onnx
from ltp.deploy.requirements import missing_packages
from ltp.encoders import encoder_family
from ltp.errors import RunError, UserError
from ltp.evaluation.samples import own_sequences
from ltp.exporting.card import model_card
from ltp.exporting.flat import flat_sources
from ltp.exporting.folders import new_folder
from ltp.exporting.run import ExportedRun, export_graph, export_huggingface
from ltp.pruning import method_class
from ltp.runs.checkpoints import inspect_checkpoint

needs_onnx = pytest.mark.skipif(bool(missing_packages("onnx")), reason="needs the extra onnx")

THRESHOLD = {"prune_mode": "absolute_threshold", "final_token_threshold": 0.05, "score_length": 16}
NORM = {"prune_mode": "absolute_threshold", "final_token_threshold": 0.12, "scoring_mode": "mean_norm"}
TOPK = {"prune_mode": "topk", "token_keep_rate": -0.4}
TOME = {"prune_mode": "tome", "token_keep_rate": 0.4, "first_layer": 1}

RESULTS = {
    "task": "mrpc",
    "model": "bert-base",
    "method": "learned",
    "stage": "hard",
    "seed": 3,
    "hyperparameters": {"lr": 2e-5, "temperature": None},
    "thresholds": [0.001, 0.0025],
    "parent": "/home/me/outputs/bert-base/mrpc/soft",
    "versions": {"python": "3.11.7", "ltp": "0.1.0"},
    "metric": {"name": "f1", "value": 0.9},
    "metrics": {"f1": 0.9, "accuracy": 0.85},
    "relative_flops": 0.512,
    "gflops": 1.25,
    "dense_gflops": 2.5,
    "tokens_per_layer": [53.2, 40.0, 7.25],
    "flops_definition": "FLOPs = 2 MACs",
    "measured_speedup": {"speedup": {"median": 1.87}, "batch_size": 32, "device": "AMD EPYC", "threads": 1},
    "run_id": "0123456789ab",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_run(make_dense, tmp_path):
    """``make_run(family, **pruning)``: a finished run of a tiny classifier with random weights."""

    def make(family="bert", layers=4, **pruning):
        directory = tmp_path / "run"
        vocabulary = len(demo_tokenizer())
        dense = make_dense(family, vocab_size=vocabulary, num_hidden_layers=layers, pad_token_id=0)
        model = LTPForSequenceClassification.from_dense(dense, **(pruning or THRESHOLD))
        model.config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
        model.save_pretrained(directory / "model")
        demo_tokenizer().save_pretrained(directory / "model")
        (directory / "results.json").write_text(json.dumps(RESULTS))
        settings = {"task": {"name": "demo", "max_length": 32}, "parent": {"name": "bert-base-uncased"}}
        (directory / "config.yaml").write_text(yaml.safe_dump(settings))
        return directory

    return make


@pytest.fixture(scope="module")
def token_ids():
    texts = [row["sentence"] for row in demo_rows("validation")[:12]]
    return [*demo_tokenizer()(texts)["input_ids"], [2, 3], [2]]


# -- without ltp ------------------------------------------------------------------------------------------------


def test_flat_files_know_nothing_of_ltp():
    sources = flat_sources("LTPForSequenceClassification", method_class("topk"), encoder_family("bert"))
    assert {"ltp_model_classifier.py", "ltp_pruning_methods_topk.py", "ltp_encoders_bert.py"} <= sources.keys()
    assert "ltp_encoders_roberta.py" not in sources  # only the model's own family
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "ltp" for alias in node.names), name
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in {"ltp", "hydra", "omegaconf", "pytorch_lightning"}, name
                assert node.level == 0 or f"{node.module}.py" in sources, name


ISOLATED = """
import json, sys

class WithoutLTP:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ltp":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutLTP())
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

def found_in(folder, texts):
    try:
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
        refused = False
    except ValueError:
        refused = True
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        output = model(**batch)

    def lengths_at(budget):
        if budget is not None:
            model.use_budget(budget)
            chosen = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, budget=budget)
            assert chosen.thresholds.tolist() == model.thresholds.tolist()
        return model(**batch).token_lengths.tolist()

    classify = pipeline("text-classification", model=folder, trust_remote_code=True)
    model.save_pretrained(folder + "_again")
    again = AutoModelForSequenceClassification.from_pretrained(folder + "_again", trust_remote_code=True)
    return {
        "refused": refused,
        "ltp": "ltp" in sys.modules,
        "module": type(model).__module__,
        "execution": model.execution,
        "logits": output.logits.tolist(),
        "token_lengths": output.token_lengths.tolist(),
        "deployed": model.deploy()(**batch).logits.tolist(),
        "again": again(**batch).logits.tolist(),
        "labels": list(model.config.id2label.values()),
        "thresholds": None if model.thresholds is None else model.thresholds.tolist(),
        "label": classify(texts[0])[0]["label"],
        "budgets": {budget: lengths_at(budget) for budget in (None, *model.config.budgets)},
    }

texts, *folders = map(json.loads, sys.argv[1:])
print(json.dumps([found_in(folder, texts) for folder in folders]))
"""


@pytest.mark.slow
def test_a_hugging_face_export_prunes_where_there_is_no_ltp(make_run, tmp_path):
    """Exports of each family and method, in one process."""
    models, folders = [], []
    for family, pruning in (("bert", THRESHOLD), ("roberta", TOPK)):
        run = make_run(family, **pruning)
        model = LTPForSequenceClassification.from_pretrained(run)
        if has_thresholds := model.thresholds is not None:  # learned, not those of the schedule, and others for another
            model.set_budgets([0.3, 0.8])
            with torch.no_grad():
                model.thresholds.mul_(1.1)
            model.use_budget(0.8)
            with torch.no_grad():
                model.thresholds.mul_(0.5)
            model.save_pretrained(run / "model")
            model.use_budget(0.3)
        folders.append(export_huggingface(run, tmp_path / family, model=model if has_thresholds else None))
        models.append(model)
    texts = [row["sentence"] for row in demo_rows("validation")[:5]]
    (tmp_path / "elsewhere").mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ISOLATED, *map(json.dumps, [texts, *map(str, folders)])]
    process = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=limit(600)
    )
    assert process.returncode == 0, process.stderr
    batch = demo_tokenizer()(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids")
    for found, model in zip(json.loads(process.stdout.splitlines()[-1]), models, strict=True):
        has_thresholds = model.thresholds is not None
        with torch.no_grad():
            wanted = model(**batch)
        assert found["refused"]
        assert not found["ltp"]
        assert found["module"].startswith("transformers_modules.")
        assert found["execution"] == "packed"
        for form in ("logits", "deployed", "again"):
            torch.testing.assert_close(torch.tensor(found[form]), wanted.logits, atol=1e-5, rtol=0)
        assert found["token_lengths"] == wanted.token_lengths.tolist()
        assert found["token_lengths"][0][-1] < found["token_lengths"][0][0]
        assert found["labels"] == ["no", "perhaps", "yes"]
        assert found["label"] == found["labels"][int(wanted.logits[0].argmax())]
        assert found["thresholds"] == (model.thresholds.tolist() if has_thresholds else None)
        assert found["budgets"].pop("null") == wanted.token_lengths.tolist()
        assert list(found["budgets"]) == (["0.3", "0.8"] if has_thresholds else [])
        for budget, lengths in found["budgets"].items():
            model.use_budget(float(budget))
            with torch.no_grad():
                assert lengths == model(**batch).token_lengths.tolist()


def test_with_ltp_an_export_is_ltp_s_own_class(make_run, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = export_huggingface(make_run(), tmp_path / "exported")
    for arguments in ({}, {"trust_remote_code": True}):
        loaded = AutoModelForSequenceClassification.from_pretrained(folder, **arguments)
        assert type(loaded) is LTPForSequenceClassification


# -- the card ---------------------------------------------------------------------------------------------------


def card_of(results=RESULTS, settings=None, config=None, base_model=None, form="huggingface"):
    return ModelCard(model_card(results, settings or {}, config or {}, base_model=base_model, form=form))


def test_a_card_says_what_the_run_says():
    config = {"scoring_mode": "mean", "score_length": 128}
    card = card_of(config=config, settings={"output_root": "/home/me/outputs"}, base_model="bert-base-uncased")
    assert card.data.base_model == "bert-base-uncased"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.metrics == ["accuracy", "f1"]
    assert card.data.pipeline_tag == "text-classification"
    assert "token-pruning" in card.data.tags
    assert "license" not in card.data.to_dict()
    [evaluation] = card.data.eval_results
    assert (evaluation.dataset_config, evaluation.dataset_split) == ("mrpc", "validation")
    assert (evaluation.metric_type, evaluation.metric_value) == ("f1", 0.9)
    for fact in (
        "| f1, validation split | 0.9000 |",
        "| relative FLOPs (dense without padding: 1) | 0.512 |",
        "| GFLOPs an example | 1.25 of 2.5 dense |",
        "1.87× over its own weights without pruning, batch 32, AMD EPYC, 1 threads",
        "53.2 → 40.0 → 7.2",
        "| thresholds of the layers on importance (mean, Z = 128) | 0.001, 0.0025 |",
        "| parent | bert-base/mrpc/soft |",
        "| lr | 2e-05 |",
        "| versions | python 3.11.7, ltp 0.1.0 |",
        "trust_remote_code=True",
        "`transformers",
    ):
        assert fact in card.text, fact
    assert "/home/me" not in card.content
    assert "temperature" not in card.text  # null: it had none


def test_a_card_of_a_run_that_says_little():
    card = card_of({"task": "reviews", "model": "tiny"})
    assert card.data.eval_results is None
    assert card.data.datasets is None
    assert "None" not in card.text


def test_a_part_of_the_split_is_said_and_no_benchmark_result():
    card = card_of(settings={"task": {"max_validation_samples": 50}})
    assert card.data.eval_results is None
    assert "| f1, validation split, first 50 rows | 0.9000 |" in card.text


def test_the_base_model_is_found_through_the_line_of_runs(tmp_path):
    root = {"model": {"name_or_path": "google/bert"}, "parent": {"name": "google/bert", "run_id": None}}
    for name, settings in {"dense": root, "soft": {"parent": {"name": str(tmp_path / "dense")}}}.items():
        directory = finished_run(tmp_path / name)
        (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    assert ExportedRun.from_checkpoint(inspect_checkpoint(str(tmp_path / "soft"))).base_model == "google/bert"
    (tmp_path / "dense" / "config.yaml").write_text(yaml.safe_dump({"parent": {"name": "/somewhere/else"}}))
    assert ExportedRun.from_checkpoint(inspect_checkpoint(str(tmp_path / "soft"))).base_model is None
    (tmp_path / "dense" / "config.yaml").unlink()
    assert ExportedRun.from_checkpoint(inspect_checkpoint(str(tmp_path / "soft"))).base_model is None


# -- budgets ----------------------------------------------------------------------------------------------------

BUDGETS = [0.3, 0.5, 0.8]
MEASURED = [
    {
        "budget": budget,
        "metric": {"name": "f1", "value": metric},
        "metrics": {"f1": metric},
        "relative_flops": budget + 0.004,
        "gflops": 2.5 * budget,
        "tokens_per_layer": [53.2, 40.0, 10 * budget],
        "thresholds": [budget / 10, budget / 5],
    }
    for budget, metric in zip(BUDGETS, (0.81, 0.85, 0.89), strict=True)
]


@pytest.fixture
def several(make_run):
    return with_budgets(make_run())


def with_budgets(run):
    """A run that holds three budgets, the largest of them in use."""
    model = LTPForSequenceClassification.from_pretrained(run)
    model.set_budgets(BUDGETS)
    layers = model.config.num_hidden_layers
    for budget, last in zip(BUDGETS, (0.08, 0.05, 0.03), strict=True):
        model.use_budget(budget)
        with torch.no_grad():
            model.thresholds.copy_(last * torch.arange(1, layers + 1) / layers)
    model.save_pretrained(run / "model")
    results = RESULTS | {key: value for key, value in MEASURED[-1].items() if key != "budget"} | {"budgets": MEASURED}
    results["hyperparameters"] = {"lr": 2e-5, "target_flops": None, "budgets": BUDGETS}
    write_json(run / "results.json", results)
    return run


def test_a_hugging_face_export_has_the_chosen_budget_in_use_and_keeps_the_others(several, here, token_ids):
    finished = ltp_export(f"restore={several} to=cheap budget=0.3")
    assert finished.code == 0, finished.err
    assert ltp_export(f"restore={several} to=default").code == 0
    exported, default = map(LTPForSequenceClassification.from_pretrained, ("cheap", "default"))
    assert (exported.budget, default.budget) == (0.3, 0.8)
    assert exported.thresholds.tolist() == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert default.thresholds.tolist() == pytest.approx([0.0075, 0.015, 0.0225, 0.03])
    wanted = LTPForSequenceClassification.from_pretrained(several)
    (batch,) = make_batches(token_ids, len(token_ids))
    for budget in BUDGETS:
        for model in (wanted, exported, default):
            model.use_budget(budget)
        for model in (exported, default):
            assert torch.equal(model(**batch).logits, wanted(**batch).logits)
    files = {path.name for path in (here / "cheap").iterdir()}
    assert files == {path.name for path in (here / "default").iterdir()}
    config = json.loads((here / "cheap" / "config.json").read_text(encoding="utf-8"))
    assert config == json.loads((here / "default" / "config.json").read_text(encoding="utf-8"))
    assert config["budgets"] == BUDGETS


def test_the_card_is_that_of_the_budget(several, here):
    for options in ("to=default", "to=cheap budget=0.3"):
        assert ltp_export(f"restore={several} {options}").code == 0
    default, cheap = (ModelCard.load(here / name / "README.md") for name in ("default", "cheap"))
    assert (default.data.eval_results[0].metric_value, cheap.data.eval_results[0].metric_value) == (0.89, 0.81)
    for fact in (
        "| budget in use | 0.3 of the dense FLOPs |",
        "| relative FLOPs (dense without padding: 1) | 0.304 |",
        "| GFLOPs an example | 0.75 of 2.5 dense |",
        "53.2 → 40.0 → 3.0",
        "| thresholds of the layers on importance (mean, Z = 16) | 0.03, 0.06 |",
        "`model.use_budget(0.5)` prunes",
        "| 0.3 | 0.8100 | 0.304 |\n| 0.5 | 0.8500 | 0.504 |\n| 0.8 | 0.8900 | 0.804 |",
        "| target\\_flops | 0.3 |",
    ):
        assert fact in cheap.text, fact
    assert "measured speed-up" not in cheap.text  # of the largest
    assert "measured speed-up" in default.text
    assert "| budget in use | 0.8 of the dense FLOPs |" in default.text
    assert "`model.use_budget(0.3)` prunes" in default.text


def test_a_teachers_place_on_the_disk_is_no_part_of_the_card():
    hyper = {"distill_mode": "logits", "distill_teacher": "/home/me/outputs/bert-large/mrpc/finetune"}
    card = card_of(RESULTS | {"hyperparameters": hyper, "parent": None}, settings={"output_root": "/home/me/outputs"})
    assert "| distill\\_teacher | bert-large/mrpc/finetune |" in card.text
    assert "budget" not in card.text


@needs_onnx
@pytest.mark.slow
def test_a_graph_has_the_thresholds_of_the_chosen_budget(make_run, here, token_ids):
    from ltp.deploy.onnx import load

    several = with_budgets(make_run(layers=2))
    options = "format=onnx budget=0.3 sequences=8 batch_size=8 rounds=0 restore="
    finished = ltp_export(f"to=graph {options}{several}")
    assert finished.code == 0, finished.err
    (batch,) = make_batches(token_ids, len(token_ids))
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    logits, lengths = load(here / "graph" / "model.onnx")(batch)
    model = LTPForSequenceClassification.from_pretrained(several, budget=0.3)
    wanted = model(**batch)
    torch.testing.assert_close(logits, wanted.logits, atol=1e-5, rtol=0)
    assert torch.equal(lengths, wanted.token_lengths)
    model.use_budget(0.8)
    assert not torch.equal(lengths, model(**batch).token_lengths)
    card = (here / "graph" / "README.md").read_text(encoding="utf-8")
    assert "| budget in use | 0.3 of the dense FLOPs |" in card
    assert "use_budget" not in card


@pytest.mark.parametrize("form", ["huggingface", "onnx"])
def test_a_budget_that_the_run_does_not_hold(several, here, monkeypatch, form):
    monkeypatch.setattr(LTPForSequenceClassification, "from_pretrained", None)
    monkeypatch.setattr("ltp.export.missing_packages", lambda extra: [])
    finished = ltp_export(f"restore={several} to=new budget=0.4 format={form}")
    assert finished.code == 2
    assert finished.err.startswith(f"error: budget=0.4: restore={several} has no thresholds for it; it holds 0.3, 0.5")
    assert not (here / "new").exists()


# -- folders ----------------------------------------------------------------------------------------------------


def test_after_an_error_nothing_is_left(tmp_path):
    def fail():
        with new_folder(tmp_path / "new") as folder:
            (folder / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_a_killed_export_left_is_removed_and_a_live_ones_is_not(make_run, tmp_path):
    run, target = make_run(), tmp_path / "exported"
    export_huggingface(run, target)
    program = """
import os, sys, time
from pathlib import Path
from ltp.exporting.folders import new_folder
from ltp.deploy.formats import GRAPHS
with new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("")
    os.replace(sys.argv[1], folder.with_name(".exported.former"))
    print("ready", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(UserError, match=r"exported is being written by another process"):
        export_huggingface(run, target)
    process.kill()
    process.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".exported.former", ".exported.partial", "run"]
    with pytest.raises(UserError, match=r"exported is not empty"):  # the former export is back
        export_huggingface(run, target)
    export_huggingface(run, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "run"]
    assert not (target / "half").exists()


def test_an_export_replaces_an_export_only(make_run, tmp_path):
    run, target = make_run(), tmp_path / "exported"
    target.mkdir()  # an empty one is as good as none
    export_huggingface(run, target)
    (target / "old").touch()
    with pytest.raises(UserError, match="is not empty; name another directory, or replace an export with"):
        export_huggingface(run, target)
    with pytest.raises(RuntimeError), new_folder(target, overwrite=True):
        raise RuntimeError
    assert (target / "old").exists()
    export_huggingface(run, target, overwrite=True)
    assert not (target / "old").exists()
    for other in (run, run / "model"):
        with pytest.raises(UserError, match="holds something else than an export, which overwrite=true does not del"):
            export_huggingface(run, other, overwrite=True)
    with pytest.raises(UserError, match=r"results\.json is a file; name a directory"):
        export_huggingface(run, run / "results.json", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "run"]


# -- graphs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruning", [THRESHOLD, NORM, TOPK, {"prune_mode": "none"}])
def test_the_graph_form_equals_the_packed_form_and_removes_tokens(make_dense, make_batch, sentences, family, pruning):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **pruning)
    rows = []
    for layer in model.family.layers(model.dense):
        layer.output.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    batch = make_batch(model, sentences, 20)
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    with torch.no_grad():
        logits, lengths = GraphForm(model)(**batch)
        of_graph = rows.copy()
        wanted = model(**batch)
    torch.testing.assert_close(logits, wanted.logits, atol=1e-5, rtol=0)
    assert torch.equal(lengths, wanted.token_lengths)
    assert of_graph[:-1] == lengths.sum(dim=0)[1:-1].tolist()
    assert of_graph[-1] == len(sentences)


@pytest.mark.parametrize("pruning", [THRESHOLD, NORM, TOPK, {"prune_mode": "none"}])
def test_padding_on_the_left_and_rows_of_padding_change_no_other_row(
    make_dense, make_batch, sentences, family, pruning
):
    model = LTPForSequenceClassification.from_dense(make_dense(family), **pruning)
    batch = make_batch(model, sentences, 20)
    batch["token_type_ids"] = (torch.arange(20) > 4).long().expand(4, 20) * (family == "bert")
    with torch.no_grad():
        wanted = model(**batch)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        left = {
            name: torch.stack([row.roll(20 - n) for row, n in zip(rows, lengths, strict=True)])
            for name, rows in batch.items()
        }
        both = {
            name: torch.cat([left[name][:2], torch.zeros(2, 20, dtype=torch.int64), left[name][2:]]) for name in left
        }
        logits, token_lengths = GraphForm(model)(**both)
        one = model(both["input_ids"][2:4, :1]).logits
    real = [0, 1, 4, 5]
    torch.testing.assert_close(logits[real], wanted.logits, atol=1e-5, rtol=0)
    assert torch.equal(token_lengths[real], wanted.token_lengths)
    torch.testing.assert_close(logits[2:4], one, atol=1e-5, rtol=0)
    assert (token_lengths[2:4] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "dtype", "family", "pruning"),
    [
        ("onnx", "float32", "bert", THRESHOLD),
        ("onnx", "int8", "roberta", NORM),
        ("openvino", "float32", "roberta", TOME),
        ("openvino", "int8", "bert", THRESHOLD),
    ],
)
def test_a_graph_computes_what_the_model_does(make_run, token_ids, tmp_path, form, dtype, family, pruning):
    if missing := missing_packages(form):
        pytest.skip(f"needs {', '.join(missing)}")
    run = make_run(family, layers=2, **pruning)
    batches = graph_batches(token_ids)
    agreement = export_graph(run, tmp_path / "exported", batches, form=form, dtype=dtype)
    check_graph(tmp_path / "exported", run, batches, agreement, form)
    assert str(agreement) in (tmp_path / "exported" / "README.md").read_text()


def graph_batches(token_ids):
    return [batch for size in (1, 5, 14) for batch in make_batches(token_ids, size)]


def check_graph(folder, run, batches, agreement, form="onnx"):
    """Check an exported graph, and what a comparison with the run's model on the batches has found."""
    model = LTPForSequenceClassification.from_pretrained(run)
    exact = agreement.dtype == "float32"
    assert agreement.sequences == 3 * 14
    assert agreement.tolerated == 0
    assert agreement.difference <= (1e-5 if exact else 0.3)
    assert agreement.error <= (1e-5 if exact else 0.1)
    assert agreement.tokens <= (0 if exact else 0.05)
    lengths = model(**batches[0]).token_lengths[0]
    assert lengths[-1] < lengths[0]
    graph = GRAPHS[form]
    files = {path.name for path in folder.iterdir()}
    weights = {"openvino_model.bin"} if form == "openvino" else set()
    assert files == {graph.file, *weights, "config.json", "README.md", "tokenizer.json", "tokenizer_config.json"}

    infer = graph.runtime.load(folder / graph.file)
    ids, mask = batches[-1]["input_ids"][:2].clone(), batches[-1]["attention_mask"][:2].clone()
    mask[1] = 0  # as servers fill up a batch
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    with_padding, alone = (infer({name: rows[:count] for name, rows in inputs.items()})[0] for count in (2, 1))
    torch.testing.assert_close(with_padding[0], alone[0], atol=1e-5 if exact else 0.3, rtol=0)
    card = (folder / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    scope = {"DIR": str(folder)}
    exec(snippet, scope)
    assert scope["token_lengths"].shape == (2, model.config.num_hidden_layers + 1)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    "pruning",
    [
        {"prune_mode": "none"},
        TOME,
        {"prune_mode": "ltc", "pool_layer": 1},
        {"prune_mode": "transkimmer"},
        {"prune_mode": "adapler"},
        {"prune_mode": "tr_bert"},
    ],
    ids=lambda pruning: pruning["prune_mode"],
)
def test_shapes_of_a_graph_can_be_inferred(make_dense, here, pruning):
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = LTPForSequenceClassification.from_dense(make_dense("bert", num_hidden_layers=2), **pruning)
    write_onnx(model, here / "model.onnx")
    quant_pre_process(here / "model.onnx", here / "shaped.onnx")  # fails where shapes cannot be inferred


@needs_onnx
@pytest.mark.slow
def test_a_graph_is_what_its_servers_read(make_run, token_ids, tmp_path):
    """Optimum, text-embeddings-inference and sentence-transformers read these files, names and outputs."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from transformers import AutoConfig, AutoTokenizer, BertConfig

    run, folder = make_run(layers=2), tmp_path / "exported"
    export_graph(run, folder, graph_batches(token_ids))
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is BertConfig
    assert config.architectures == ["BertForSequenceClassification"]
    assert config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    assert config.token_pruning["final_token_threshold"] == 0.05
    assert {"max_position_embeddings", "hidden_size", "label2id"} <= json.loads(
        (folder / "config.json").read_text()
    ).keys()
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == config.pad_token_id
    quant_pre_process(folder / "model.onnx", tmp_path / "shaped.onnx")  # which fails where shapes cannot be inferred
    graph = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(version.domain, version.version) for version in graph.opset_import] == [("", 18)]
    assert [item.name for item in graph.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [item.name for item in graph.graph.output] == ["logits", "token_lengths"]

    optimum = pytest.importorskip("optimum.onnxruntime", exc_type=ImportError)
    (batch,) = make_batches(token_ids, len(token_ids))
    expected = LTPForSequenceClassification.from_pretrained(run)(**batch).logits
    served = optimum.ORTModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(served(**batch).logits, expected, atol=1e-5, rtol=0)


@needs_onnx
@pytest.mark.slow
def test_equals_are_decided_as_by_torch(tmp_path):
    from ltp.deploy.onnx import load, trace_graph

    class Order(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids.argsort(dim=1, descending=True, stable=True), input_ids.argsort(dim=1, stable=True)

    trace_graph(Order(), tmp_path / "order.onnx", inputs=("input_ids",), outputs=("down", "up"))
    values = torch.randint(0, 3, (3, 50))
    found = load(tmp_path / "order.onnx")({"input_ids": values})
    assert all(torch.equal(order, wanted) for order, wanted in zip(found, Order()(values), strict=True))


def test_a_wrong_graph_is_refused(make_run, token_ids):
    model = LTPForSequenceClassification.from_pretrained(make_run())
    batches = make_batches(token_ids, 5)

    def graph(logit=0.0, length=0, rows=14):
        def run(batch):
            output = model(**batch)
            first = torch.arange(len(output.logits)) < rows
            return output.logits.detach() + logit * first[:, None], output.token_lengths + length * first[:, None]

        return run

    assert compare_results(model, graph(5e-5), batches).tolerated == 0
    message = r"^the float32 form is wrong for \d+ of 14 sequences: logits differ"
    for wrong in (graph(2e-4), graph(length=1), graph(float("nan")), graph(1.0, rows=1)):
        with pytest.raises(DisagreementError, match=message):
            compare_results(model, wrong, batches)
    many = make_batches(token_ids[:1] * 200, 100)
    assert compare_results(model, graph(1.0, rows=1), many).tolerated == 2


def test_an_int8_graph_may_differ_a_little(make_run, token_ids):
    model = LTPForSequenceClassification.from_pretrained(make_run())
    batches = make_batches(token_ids, 5)

    def graph(noise=0.0, fewer=0):
        def run(batch):
            output = model(**batch)
            return output.logits.detach() + noise * torch.randn_like(output.logits), output.token_lengths - fewer

        return run

    agreement = compare_results(model, graph(noise=1e-3), batches, dtype="int8")
    assert (agreement.answers, agreement.tokens, agreement.has_few_answers) == (1, 0, False)
    assert compare_results(model, graph(noise=0.01), batches, dtype="int8").error > agreement.error
    assert str(agreement).startswith("100.0% of the answers are the model's; tokens alive differ by 0.0%, logits by")
    for wrong in (graph(noise=10), graph(fewer=3), graph(noise=float("nan"))):
        with pytest.raises(DisagreementError, match=r"^the int8 form computes something else than the model: \d"):
            compare_results(model, wrong, batches, dtype="int8")


@pytest.mark.parametrize("breakage", ["wrong", "unknown"])
def test_a_graph_that_fails_leaves_nothing(make_run, token_ids, tmp_path, monkeypatch, breakage):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")

    def write(*args, **kwargs):
        if breakage == "unknown":
            raise torch.onnx.OnnxExporterError("long words") from ValueError("no ONNX function for aten.foo\nmore")

    monkeypatch.setattr("torch.onnx.export", write)
    zeros = torch.zeros(5, 3), torch.zeros(5, 5, dtype=torch.int64)
    monkeypatch.setattr("ltp.deploy.onnx.convert", lambda *args: None)
    monkeypatch.setattr("ltp.deploy.onnx.load", lambda path: lambda batch: zeros)
    message = {"wrong": "form is wrong for 5 of 5", "unknown": "has no ONNX graph: no ONNX function for aten.foo$"}
    with pytest.raises(RunError, match=message[breakage]):
        export_graph(make_run(), tmp_path / "exported", make_batches(token_ids[:5], 5))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -- the command ------------------------------------------------------------------------------------------------


def ltp_export(command):
    """``python -m ltp.export`` in this process."""
    return in_process("ltp.export", command, export.COMMAND)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("restore=run", "to has no value; give it on the command line: to=…"),
        ("to=new", "restore has no value; give it on the command line: restore=…"),
        ("restore=run to=new form=onnx", "unknown key form; did you mean format?"),
        (
            "restore=run to=new format=onx",
            "format=onx: no such format. Did you mean onnx? Formats: huggingface, onnx, openvino",
        ),
        (
            "restore=run to=new format=onnx dtype=int4",
            "dtype=int4: no such option. Did you mean int8? Options: float32, int8",
        ),
        (
            "restore=run to=new dtype=int8",
            "dtype=int8 needs format=onnx or openvino; a Hugging Face directory keeps flo",
        ),
        ("restore=run to=new rounds=-1", "rounds=-1 is out of range: it must be 0 or more"),
        ("restore=run to=new batch_size=[]", "batch_size=[] is out of range: it must be one or more whole numbers"),
        ("restore=run to=run", "to=run is not empty; name another directory, or replace an export with overwrite=true"),
        ("restore=half to=new", "restore=half is an unfinished run: it has no results.json"),
        ("restore=./nowhere to=new", "restore=./nowhere: no such directory"),
        ("restore=run/model/copy to=new", "restore=run/model/copy is no run directory: it has no results.json."),
    ],
)
def test_mistakes_are_told_in_one_line(here, command, message):
    finished_run(here / "run")
    finished_run(here / "run" / "model" / "copy")
    for directory in (here / "run" / "model" / "copy", here / "half"):
        directory.mkdir(exist_ok=True)
    (here / "run" / "model" / "copy" / "config.json").write_text((here / "run" / "model" / "config.json").read_text())
    (here / "run" / "model" / "copy" / "results.json").unlink()
    (here / "half" / "config.yaml").touch()
    finished = ltp_export(command)
    assert finished.code == 2
    assert finished.err.startswith(f"error: {message}"), finished.err
    assert not (here / "new").exists()


@pytest.mark.parametrize("form", GRAPHS)
def test_a_missing_package_names_the_extra(here, monkeypatch, form):
    finished_run(here / "run")
    monkeypatch.setattr("ltp.export.missing_packages", lambda extra: ["onnxscript"])
    finished = ltp_export(f"restore=run to=new format={form}")
    assert finished.code == 2
    assert finished.err == f"error: format={form} needs onnxscript: pip install 'learned-token-pruning[{form}]'\n"


def test_cfg_shows_the_settings(make_run, here):
    make_run()
    shown = yaml.safe_load(ltp_export("restore=run to=new batch_size=4 --cfg job").out)
    assert shown["batch_size"] == [4]
    assert shown["format"] == "huggingface"
    assert not (here / "new").exists()


@pytest.mark.slow
def test_a_trained_run_is_exported(here, token_ids):
    """Of RoBERTa with top-k, whose graph computes what the model does."""
    family = ("model.architecture.model_type=roberta", "++model.architecture.type_vocab_size=1")
    trained = ltp_train([*SMALL, *family, "prune=topk", "prune.token_keep_rate=-0.4"])
    assert trained.code == 0, trained.err
    run = trained.out.split("run directory: ")[-1].strip()
    finished = ltp_export(["restore=" + run, "to=exports/hf"])
    assert finished.code == 0, finished.err
    assert finished.out.endswith("exported: exports/hf\n")
    card = ModelCard.load(here / "exports" / "hf" / "README.md")
    assert "(top-k" in card.text
    assert "| task |" not in card.text
    if missing_packages("onnx"):
        return
    finished = ltp_export(f"restore={run} to=exports/onnx format=onnx sequences=20 batch_size=[1,8] rounds=2")
    assert finished.code == 0, finished.err
    lines = finished.out.splitlines()
    assert lines[0].startswith("checked on demo, validation split, 20 of 48 rows: logits differ from the model's by ")
    assert lines[1].startswith("batch 1: ")
    assert lines[2].startswith("batch 8: ")
    assert lines[3] == "exported: exports/onnx"

    from ltp.deploy.onnx import load

    model, batches = LTPForSequenceClassification.from_pretrained(run), graph_batches(token_ids)
    agreement = compare_results(model, load(here / "exports" / "onnx" / "model.onnx"), batches)
    assert model.config.dense_model_type == "roberta"
    check_graph(here / "exports" / "onnx", run, batches, agreement)
    moved = ltp_export(f"restore={run} to=exports/other format=onnx data_dir=nowhere")
    assert moved.code == 2
    assert not (here / "exports" / "other").exists()


def test_without_its_data_a_run_is_checked_on_random_tokens(make_run, here, caplog):
    run = make_run()
    (run / "config.yaml").unlink()
    checkpoint = inspect_checkpoint(str(run))
    with caplog.at_level("INFO", logger="ltp"):
        sequences = own_sequences(checkpoint, LTPForSequenceClassification.from_pretrained(run), 7)
    assert len(sequences.ids) == 7
    assert caplog.messages == ["the run's own validation split is out of reach: its config.yaml is missing"]
