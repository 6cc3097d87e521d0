"""The report: what it reads and leaves out, its arithmetic on trees made by hand, its files, and the command."""

import csv
import io
import json
import re
import time

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import composed, in_process, words, write_json
from matplotlib.image import imread
from patience import limit

from ltp import report
from ltp.reporting.collect import collect
from ltp.reporting.documents import latex, summary_markdown, summary_tex, table_of_runs
from ltp.reporting.figures import STYLE, draw, thresholds, tradeoff
from ltp.reporting.predictions import UnreadableError, find_predictions, read_outcomes
from ltp.reporting.rows import Spread, compare
from ltp.reporting.table import MAX_ROWS, comparison, left_out, shown_rows
from ltp.reporting.text import number_of_runs, settings, spread, summary
from ltp.runs.summary import at_budget, describe_method, print_results

HYPERPARAMETERS = {"lr": 2e-5, "batch_size": 64, "max_length": 128}
TOKENS = [25.0, 25.0, 20.0, 10.0, 2.0]


def results_of(method="dense", stage=None, metric=0.9, flops=1.0, *, seed=0, hyper=None, **changes):
    mode = {"dense": "none", "topk": "topk"}.get(method, "absolute_threshold")
    content = {
        "task": "sst2",
        "model": "bert-base",
        "method": method,
        "prune_mode": mode,
        "stage": stage or ("finetune" if method == "dense" else "hard"),
        "seed": seed,
        "hyperparameters": HYPERPARAMETERS | (hyper or {}),
        "metric": {"name": "accuracy", "value": metric},
        "metrics": {"accuracy": metric},
        "relative_flops": flops,
        "gflops": flops * 4,
        "dense_gflops": 4.0,
        "tokens_per_layer": TOKENS,
        "thresholds": [0.003, 0.004, 0.005, 0.012] if mode == "absolute_threshold" else None,
        "parent": None,
        "versions": {"ltp": "0.1.0"},
        "device": "a machine",
        "duration_seconds": 1.0,
    }
    return {name: value for name, value in (content | changes).items() if value is not ...}


def write(directory, *args, **changes):
    write_json(directory / "results.json", results_of(*args, **changes))
    return directory


@pytest.fixture
def tree(tmp_path):
    """A dense run of two seeds, and one row of each method: the front is topk -0.4, learned 0.1 and dense."""
    root = tmp_path / "outputs"
    place = root / "bert-base" / "sst2"
    for seed, dense in ((0, 0.90), (1, 0.92)):
        at, leaf = {"seed": seed}, f"lr_2e-05/seed_{seed}"
        first = write(place / "finetune" / leaf, "dense", metric=dense, **at, run_id=f"dense{seed}")
        parent = {"parent": str(first), "parent_run_id": f"dense{seed}"}
        for weight, metric, flops in ((0.1, dense - 0.005, 0.6), (0.2, dense - 0.03, 0.5)):
            hyper = {"lambda_threshold": weight, "final_token_threshold": 0.01}
            soft = place / f"absolute_threshold/rate_0.01/temperature_0.001/lambda_{weight}" / leaf
            name = f"soft{weight}-{seed}"
            write(soft, "learned", "soft", metric - 0.02, flops - 0.01, hyper=hyper, run_id=name, **at, **parent)
            more = {"parent": str(soft), "parent_run_id": name, "measured_speedup": {"speedup": {"median": 1.5 + seed}}}
            write(soft / "hard/lr_2e-05", "learned", "hard", metric, flops, hyper=hyper, **at, **more)
        hyper = {"final_token_threshold": 0.008}
        write(
            place / "absolute_threshold/rate_0.008/hard" / leaf,
            "manual",
            None,
            dense - 0.01,
            0.7,
            hyper=hyper,
            **at,
            **parent,
        )
        write(
            place / "topk/rate_-0.4" / leaf,
            "topk",
            None,
            dense - 0.1,
            0.4,
            hyper={"token_keep_rate": -0.4},
            **at,
            **parent,
        )
    return root


def groups_of(*folders, points=1.0):
    return compare(collect(folders).runs, points)


def row_of(group, method, stage=None, **values):
    (row,) = [
        row
        for row in group.rows
        if row.method == method
        and stage in (None, row.stage)
        and all(row.settings[name] == value for name, value in values.items())
    ]
    return row


def reasons(collection):
    return {entry.path.name: f"{entry.why}: {entry.detail}" for entry in collection.left_out}


def ltp_report(command=""):
    """``python -m ltp.report`` in this process."""
    return in_process("ltp.report", words(command), report.COMMAND)


# -- reading ----------------------------------------------------------------------------------------------------


def test_every_run_is_found_also_inside_a_soft_run(tree):
    collection = collect([tree])
    assert len(collection.runs) == 14
    assert collection.left_out == []


def test_what_is_no_finished_run_is_named_with_its_reason(tree):
    place = tree / "bert-base" / "sst2"
    (place / "unfinished").mkdir()
    (place / "unfinished" / "config.yaml").write_text("stage: soft")
    (place / "unfinished" / "wandb" / "files").mkdir(parents=True)
    (place / "unfinished" / "wandb" / "files" / "config.yaml").write_text("a run's own business")
    (place / "damaged").mkdir()
    (place / "damaged" / "results.json").write_text('{"task": ')
    (place / "binary").mkdir()
    (place / "binary" / "results.json").write_bytes(b"\xff\xfe\x00")
    (place / "notes" / "2024" / "old").mkdir(parents=True)
    write(place / "newer", versions={"ltp": "7.1.0"})
    write(place / "patched", versions={"ltp": "0.1.9"}, hyper={"lr": 1e-5})
    write(place / "foreign", metric=None)
    write(place / "nan", metric=float("nan"))
    write(place / "keyless", stage=..., seed=...)
    write(place / "numbered", run_id=7)
    write_json(place / "list" / "results.json", [1, 2])
    write_json(place / "textual" / "results.json", results_of(flops="half"))
    (tree / "bench").mkdir()
    (tree / ".multirun" / "sweep").mkdir(parents=True)
    collection = collect([tree])
    assert len(collection.runs) == 15
    why = reasons(collection)
    assert set(why) == {
        *("unfinished", "damaged", "binary", "notes", "newer", "foreign", "nan", "keyless", "list", "textual"),
        "numbered",
    }
    assert "unfinished" in why["unfinished"]
    assert "cannot be read: not valid JSON" in why["damaged"]
    assert "cannot be read: not valid JSON" in why["binary"]
    assert "no run" in why["notes"]
    assert "newer version of ltp than this one (0.1.0): 7.1.0" in why["newer"]
    assert "the metric is undefined: accuracy" in why["foreign"]
    assert "the metric is undefined: accuracy" in why["nan"]
    assert "no key" in why["keyless"]
    assert "run_id is not a string" in why["numbered"]
    assert "not a JSON object" in why["list"]
    assert 'relative_flops is "half"' in why["textual"]
    lines = left_out(collection.left_out)
    assert any(line.startswith("left out, unfinished") and ": 1: " in line for line in lines)


def test_many_left_out_are_counted_and_the_first_named(tmp_path):
    for number in range(12):
        write_json(tmp_path / f"run{number:02}" / "results.json", {})
    (line,) = left_out(collect([tmp_path]).left_out)
    assert ": 12: " in line
    assert "run00 (no key task)" in line
    assert line.endswith("and 7 more")


def test_a_run_counts_once(tree):
    place = tree / "bert-base" / "sst2"
    write(tree / "copy", "dense", metric=0.9, run_id="dense0")
    (tree / "link").symlink_to(place, target_is_directory=True)
    collection = collect([place, tree, place / "finetune"])
    assert len(collection.runs) == 14
    assert "copies of a run: of" in reasons(collection)["copy"]


@pytest.mark.parametrize(
    ("method", "stage", "hyper"),
    [
        ("dense", "finetune", {}),
        ("learned", "soft", {"lambda_threshold": 0.1}),
        ("learned", "hard", {"lambda_threshold": 0.1}),
        ("manual", "hard", {"lambda_threshold": None}),
        ("topk", "hard", {}),
    ],
)
def test_results_of_the_first_versions_are_read(tmp_path, method, stage, hyper):
    missing = dict.fromkeys(["method", "gflops", "metrics", "versions", "tokens_per_layer", "thresholds"], ...)
    content = results_of(method, stage, hyper=hyper) | missing
    write_json(tmp_path / "run" / "results.json", {name: value for name, value in content.items() if value is not ...})
    (run,) = collect([tmp_path]).runs
    assert run.method == method
    (group,) = compare([run])
    assert comparison(group).row_count == 1
    assert not any("tokens" in name for name in draw(group)[0])


# -- rows -------------------------------------------------------------------------------------------------------


def test_seeds_are_one_row_with_mean_and_standard_deviation(tree):
    (group,) = groups_of(tree)
    dense = row_of(group, "dense")
    assert [run.seed for run in dense.runs] == [0, 1]
    assert dense.metric.mean == pytest.approx(0.91)
    assert dense.metric.deviation == pytest.approx(0.02 / 2**0.5)
    assert group.dense == dense
    learned = row_of(group, "learned", "hard", lambda_threshold=0.1)
    assert learned.difference.mean == pytest.approx(-0.005)
    assert learned.difference.deviation == pytest.approx(0, abs=1e-12)
    assert learned.speedup.mean == pytest.approx(2.0)
    assert row_of(group, "manual").speedup is None
    assert Spread.from_values([0.5]) == Spread(0.5)


def test_the_front_and_the_summary(tree):
    (group,) = groups_of(tree)
    front = {(row.method, row.stage, row.settings.get("lambda_threshold")) for row in group.rows if row.on_front}
    # manual is dominated by learned 0.1; a soft stage is passed on to its hard one
    expected = {("dense", "finetune", None), ("learned", "hard", 0.1), ("learned", "hard", 0.2), ("topk", "hard", None)}
    assert front == expected
    assert group.cheapest() is row_of(group, "learned", "hard", lambda_threshold=0.1)
    assert group.cheapest("manual") is row_of(group, "manual")  # exactly one point
    assert group.cheapest("topk") is None
    assert summary(group).startswith("Cheapest within 1 point of dense (91.00 ± 1.41): learned threshold, hard, lambda")
    assert "at 0.600 ± 0.000 of the FLOPs" in summary(group)
    assert summary(group, "topk") == "No top-k run within 1 point of dense (91.00 ± 1.41)."
    (generous,) = groups_of(tree, points=20)
    assert generous.cheapest() is row_of(generous, "topk")
    assert [row.relative_flops.mean for row in group.front_of("learned")] == pytest.approx([0.5, 0.6])


def test_equal_rows_share_the_front_and_a_soft_stage_alone_counts(tmp_path):
    write(tmp_path / "a", "topk", None, 0.8, 0.5, hyper={"token_keep_rate": 0.1})
    write(tmp_path / "b", "topk", None, 0.8, 0.5, hyper={"token_keep_rate": 0.2})
    write(tmp_path / "c", "topk", None, 0.8, 0.6, hyper={"token_keep_rate": 0.3})
    write(tmp_path / "d", "learned", "soft", 0.9, 0.7)
    (group,) = groups_of(tmp_path)
    assert [row.on_front for row in group.rows] == [True, False, True, True]
    assert group.dense is None
    assert all(row.difference is None for row in group.rows)
    assert summary(group) == "No dense run here to compare with."


@pytest.mark.parametrize(
    "change",
    [
        {"task": "rte"},
        {"model": "bert-large"},
        {"hyper": {"max_length": 64}},
        {"validation_examples": 100},
        {"tokens_per_layer": [24.0, 20.0, 10.0]},
        {"dense_gflops": 5.0},
        {"metric": {"name": "f1", "value": 0.9}},
    ],
)
def test_what_cannot_be_compared_is_not_mixed(tmp_path, change):
    write(tmp_path / "a", validation_examples=872)
    changes = {"validation_examples": 872} | change
    if isinstance(changes.get("metric"), dict):
        content = results_of(validation_examples=872) | change
        write_json(tmp_path / "b" / "results.json", content)
    else:
        write(tmp_path / "b", **changes)
    groups = groups_of(tmp_path)
    assert [len(group.rows) for group in groups] == [1, 1]
    assert len({group.slug for group in groups}) == 2


def test_results_without_the_number_of_examples_join_the_only_split_that_fits(tmp_path):
    write(tmp_path / "a", "dense", validation_examples=872)
    write(tmp_path / "b", "topk", None, 0.8, 0.5)
    (group,) = groups_of(tmp_path)
    assert len(group.rows) == 2
    write(tmp_path / "c", "dense", validation_examples=100)
    assert len(groups_of(tmp_path)) == 3


def test_hard_runs_of_different_soft_runs_are_different_rows(tmp_path):
    for lr in (1e-5, 2e-5):
        for seed in (0, 1):
            name = f"{lr}-{seed}"
            write(tmp_path / "soft" / name, "learned", "soft", 0.8, 0.5, seed=seed, hyper={"lr": lr}, run_id=name)
            write(tmp_path / "hard" / name, "learned", "hard", 0.8, 0.5, seed=seed, parent_run_id=name)
    (group,) = groups_of(tmp_path)
    shown_settings = {settings(row) for row in group.rows if row.stage == "hard"}
    assert shown_settings == {"soft lr 1e-05", "soft lr 2e-05"}
    assert {len(row.runs) for row in group.rows} == {2}


def test_parents_are_found_by_path_in_a_tree_that_was_moved(tmp_path):
    place = tmp_path / "moved" / "bert-base" / "sst2"
    for lr, metric in ((1e-5, 0.9), (5e-5, 0.8)):
        write(place / "finetune" / f"lr_{lr:g}" / "seed_0", "dense", metric=metric, hyper={"lr": lr})
    parent = "outputs/bert-base/sst2/finetune/lr_5e-05/seed_0"
    write(place / "topk/rate_0/lr_2e-05/seed_0", "topk", None, 0.79, 0.5, parent=parent)
    (group,) = groups_of(tmp_path)
    assert row_of(group, "topk").difference.mean == pytest.approx(-0.01)


def test_without_its_parent_a_run_is_compared_with_the_best_dense_row(tmp_path):
    write(tmp_path / "a", "dense", metric=0.9)
    write(tmp_path / "b", "dense", metric=0.8, hyper={"lr": 1e-5})
    write(tmp_path / "c", "topk", None, 0.88, 0.5, parent="textattack/bert-base-uncased-SST-2")
    (group,) = groups_of(tmp_path)
    assert row_of(group, "topk").difference.mean == pytest.approx(-0.02)
    # scored on other examples, the parent is none
    write(tmp_path / "d", "dense", metric=0.5, run_id="other", validation_examples=9)
    write(tmp_path / "e", "topk", None, 0.88, 0.4, parent_run_id="other", validation_examples=872)
    write(tmp_path / "f", "dense", metric=0.9, validation_examples=872, run_id="same")
    other = next(group for group in groups_of(tmp_path) if group.split.examples == 872)
    assert row_of(other, "topk").difference.mean == pytest.approx(-0.02)


def test_a_seed_that_stands_twice_is_told(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / name, "dense", seed=seed, run_id=name)
    (group,) = groups_of(tmp_path)
    assert number_of_runs(group.rows[0]) == "3 (2 seeds)"


def test_a_circle_of_parents_ends(tmp_path):
    write(tmp_path / "a", "topk", run_id="a", parent_run_id="b")
    write(tmp_path / "b", "topk", run_id="b", parent_run_id="a", hyper={"lr": 1e-5})
    assert len(groups_of(tmp_path)[0].rows) == 2


def test_numbers_in_words():
    assert spread(Spread(0.7819, 0.003), 2, times=100) == "78.19 ± 0.30"
    assert spread(Spread(-0.01), 2, times=100, sign="+") == "−1.00"
    assert spread(Spread(-1e-9), 2, times=100, sign="+") == "+0.00"
    assert spread(None, 2) == ""


def test_settings_say_what_varies_and_what_sets_the_cost(tree):
    (group,) = groups_of(tree)
    assert [settings(row) for row in group.rows] == [
        *("", "lambda 0.1", "lambda 0.2", "lambda 0.1", "lambda 0.2", "threshold 0.008", "rate -0.4")
    ]


# -- budgets, distillation, calibration ---------------------------------------------------------------------------


def budgets_of(**by_budget):
    """``budgets`` of results: of each budget (``b30`` is 0.3) the metric; the relative FLOPs are a hundredth more."""
    entries = []
    for name, metric in by_budget.items():
        budget = int(name[1:]) / 100
        tokens = [25.0, 25.0, 40 * budget, 20 * budget, 2.0]
        measured = {
            "metric": {"name": "accuracy", "value": metric},
            "relative_flops": budget + 0.01,
            "gflops": 4 * budget,
        }
        entries.append({"budget": budget, **measured, "tokens_per_layer": tokens, "thresholds": [budget / 100] * 4})
    return entries


#: What training writes of a method's numbers where a budget decides them.
DECIDED = {"lambda_threshold": None, "final_token_threshold": None, "token_keep_rate": None, "budgets": None}


def write_several(directory, stage="hard", *, metrics=(0.85, 0.88, 0.895), hyper=None, **changes):
    """A run with budgets 0.3, 0.5 and 0.7: what it says at the top is of the largest."""
    entries = budgets_of(b30=metrics[0], b50=metrics[1], b70=metrics[2])
    top = {"tokens_per_layer": entries[-1]["tokens_per_layer"], "thresholds": entries[-1]["thresholds"]}
    hyper = DECIDED | {"target_flops": None, "budgets": [0.7, 0.3, 0.5]} | (hyper or {})
    write(directory, "learned", stage, metrics[2], 0.71, hyper=hyper, budgets=entries, **{**top, **changes})


def write_target(directory, target, metric, method="learned", stage="hard", *, hyper=None, **changes):
    hyper = DECIDED | {"target_flops": target} | (hyper or {})
    entries = budgets_of(**{f"b{100 * target:.0f}": metric})
    write(directory, method, stage, metric, target + 0.01, hyper=hyper, budgets=entries, **changes)


def test_a_run_with_several_budgets_is_a_row_for_each(tmp_path):
    write(tmp_path / "dense", "dense", metric=0.9)
    speedup = {"measured_speedup": {"speedup": {"median": 1.4}}}
    for seed in (0, 1):
        metrics = (0.85 + seed / 100, 0.88 + seed / 100, 0.895)
        write_several(tmp_path / f"several{seed}", metrics=metrics, seed=seed, run_id=f"s{seed}", **speedup)
    (group,) = groups_of(tmp_path)
    rows = [row for row in group.rows if row.method == "learned"]
    assert [settings(row) for row in rows] == [f"target {budget}, of budgets 0.3/0.5/0.7" for budget in (0.7, 0.5, 0.3)]
    assert [len(row.runs) for row in rows] == [2, 2, 2]
    assert [row.metric.mean for row in rows] == pytest.approx([0.895, 0.885, 0.855])
    assert [row.relative_flops.mean for row in rows] == pytest.approx([0.71, 0.51, 0.31])
    assert [row.difference.mean for row in rows] == pytest.approx([-0.005, -0.015, -0.045])
    assert rows[2].tokens == pytest.approx([25, 25, 12, 6, 2])
    assert rows[1].thresholds == pytest.approx([0.005] * 4)
    assert [row.speedup for row in rows] == [Spread(1.4, 0.0), None, None]  # measured with the largest in use
    assert group.cheapest() is rows[0]
    assert "target 0.7, of budgets 0.3/0.5/0.7" in summary(group)


def test_budgets_in_the_files(tmp_path):
    write(tmp_path / "dense", "dense", metric=0.9)
    write_several(tmp_path / "several", run_id="s")
    write_target(tmp_path / "one", 0.5, 0.89, run_id="t")
    (group,) = groups_of(tmp_path)
    runs = list(csv.DictReader(io.StringIO(table_of_runs([group]))))
    found = {(run["run_id"], run["budget"]): run for run in runs if run["method"] == "learned"}
    assert set(found) == {("s", "0.3"), ("s", "0.5"), ("s", "0.7"), ("t", "0.5")}
    assert float(found["s", "0.3"]["metric.value"]) == 0.85
    assert float(found["s", "0.3"]["gflops"]) == pytest.approx(1.2)
    assert json.loads(found["s", "0.5"]["thresholds"]) == [0.005] * 4
    assert found["s", "0.3"]["hyperparameters.target_flops"] == "0.3"
    assert "budgets" not in runs[0]
    assert len({run["row"] for run in runs}) == 5
    markdown, tex = summary_markdown([group], [], {}), summary_tex([group])
    assert (
        "| ● | learned threshold, hard | target 0.3, of budgets 0.3/0.5/0.7 | 1 | 85.00 | −5.00 | 0.310 |" in markdown
    )
    assert "| ● | learned threshold, hard | target 0.5 | 1 | 89.00 | −1.00 | 0.510 |" in markdown.replace("✓", "")
    assert "target 0.3, of budgets 0.3/0.5/0.7 & 1 & 85.00" in tex
    assert any("of budgets" in cell for column in comparison(group).columns for cell in column.cells)


def test_what_a_run_was_led_to_and_what_taught_it_is_said(tmp_path):
    taught = {"distill_mode": "logits", "distill_weight": 0.5, "distill_temperature": 2.0, "distill_teacher": "auto"}
    rate = {"lr_threshold": 2e-5, "final_token_threshold": 0.01, "temperature": 1e-3}
    led = {"lr_threshold": 1e-2, "temperature": 2e-4}  # the recipe's own for a budget
    write(tmp_path / "a", "learned", "soft", 0.89, 0.6, hyper={"lambda_threshold": 0.1, **rate})
    write(tmp_path / "b", "learned", "soft", 0.89, 0.6, hyper={"lambda_threshold": 0.1, **rate, **taught})
    write_target(tmp_path / "c", 0.5, 0.88, stage="soft", hyper=led)
    write_target(tmp_path / "d", 0.5, 0.88, stage="soft", hyper={**led, **taught})
    write_target(tmp_path / "e", 0.5, 0.88, stage="soft", hyper={**led, **taught, "distill_weight": 0.9})
    (group,) = groups_of(tmp_path)
    assert {settings(row) for row in group.rows} == {
        "lambda 0.1",
        "lambda 0.1, distill logits, distill_weight 0.5",
        "target 0.5",
        "target 0.5, distill logits, distill_weight 0.5",
        "target 0.5, distill logits, distill_weight 0.9",
    }
    assert [len(row.runs) for row in group.rows] == [1] * 5
    assert {row.variant for row in group.rows} == {(), ("distilled",), ("target",), ("target", "distilled")}


def test_a_lone_distilled_row_says_so(tmp_path):
    write(tmp_path / "a", "learned", "hard", 0.89, 0.6, hyper={"distill_mode": "hidden", "distill_weight": 0.5})
    (group,) = groups_of(tmp_path)
    assert [settings(row) for row in group.rows] == ["distill hidden"]


@pytest.mark.parametrize("key", ["target_flops", "distill_mode", "distill_weight", "distill_temperature", "budgets"])
def test_runs_of_other_budgets_and_teachers_are_not_averaged(tmp_path, key):
    taught = {"distill_mode": "logits", "distill_weight": 0.5, "distill_temperature": 2.0}
    for seed, other in ((0, False), (1, True)):
        if key == "budgets":
            target = {"hyper": {"budgets": [0.3, 0.5, 0.7]}, "metrics": (0.8, 0.8, 0.8)}
            write_several(tmp_path / str(seed), **target, seed=seed) if other else write_target(
                tmp_path / str(seed), 0.7, 0.8, seed=seed
            )
        else:
            changed = {"target_flops": 0.4, "distill_mode": "hidden", "distill_weight": 0.9, "distill_temperature": 4.0}
            hyper = taught | ({key: changed[key]} if other and key != "target_flops" else {})
            target = changed["target_flops"] if other and key == "target_flops" else 0.5
            write_target(tmp_path / str(seed), target, 0.8, hyper=hyper, seed=seed)
    (group,) = groups_of(tmp_path)
    assert {len(row.runs) for row in group.rows} == {1}
    assert len({settings(row) for row in group.rows}) == len(group.rows) == (4 if key == "budgets" else 2)


def test_results_with_nulls_join_those_of_before_the_keys(tmp_path):
    hyper = {"lambda_threshold": 0.1, "final_token_threshold": 0.01}
    write(tmp_path / "old", "learned", "hard", 0.8, 0.5, hyper=hyper)
    write(tmp_path / "new", "learned", "hard", 0.9, 0.5, seed=1, hyper={**hyper, "target_flops": None}, budgets=[])
    (group,) = groups_of(tmp_path)
    (row,) = group.rows
    assert row.metric.mean == pytest.approx(0.85)
    assert (row.variant, settings(row)) == ((), "")


@pytest.mark.parametrize(
    ("method", "found", "teacher"),
    [("manual", "final_token_threshold", "auto"), ("topk", "token_keep_rate", "runs/seed_{}")],
)
def test_what_was_found_for_a_budget_does_not_part_seeds(tmp_path, method, found, teacher):
    for seed in (0, 1):
        hyper = {found: 0.011 + seed / 1000, "distill_mode": "logits", "distill_teacher": teacher.format(seed)}
        write_target(tmp_path / str(seed), 0.5, 0.8, method, seed=seed, hyper=hyper)
    (group,) = groups_of(tmp_path)
    (row,) = group.rows
    assert len(row.runs) == 2
    assert settings(row) == "target 0.5, distill logits"


def test_hard_runs_at_their_parents_budgets(tmp_path):
    for seed in (0, 1):
        write_several(tmp_path / f"soft{seed}", "soft", seed=seed, run_id=f"soft{seed}")
        hard = {"seed": seed, "run_id": f"hard{seed}", "parent_run_id": f"soft{seed}"}
        write_several(tmp_path / f"soft{seed}" / "hard" / "lr_2e-05", **hard)
        write_target(tmp_path / f"one{seed}", 0.5, 0.8, stage="soft", seed=seed, run_id=f"one{seed}")
        at = tmp_path / f"one{seed}" / "hard" / "lr_2e-05"
        write_target(at, 0.5, 0.8, seed=seed, run_id=f"onehard{seed}", parent_run_id=f"one{seed}")
    (group,) = groups_of(tmp_path)
    several = [f"target {budget}, of budgets 0.3/0.5/0.7" for budget in (0.7, 0.5, 0.3)]
    for stage, is_superseded in (("soft", True), ("hard", False)):
        rows = [row for row in group.rows if row.stage == stage]
        assert sorted(settings(row) for row in rows) == sorted([*several, "target 0.5"])
        assert {row.is_superseded for row in rows} == {is_superseded}
        assert {len(row.runs) for row in rows} == {2}


def write_calibrated(run, leaf, metric, **hyper):
    """What ``python -m ltp.calibrate`` leaves inside a run: its hyper-parameters, but for the budget."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    given = results["hyperparameters"]
    if "calibrated" not in results and (trained_for := given.get("budgets") or given.get("target_flops")):
        hyper["trained_for"] = trained_for
    targets = hyper.get("budgets") or [hyper[key] for key in ("target_flops",) if hyper.get(key)]
    entries = budgets_of(**{f"b{100 * target:.0f}": metric for target in targets})
    top = entries[-1] if entries else {"metric": {"name": "accuracy", "value": metric}, "relative_flops": 0.45}
    results |= {name: value for name, value in top.items() if name != "budget"}
    results["hyperparameters"] = {**given, "target_flops": None, "budgets": None, **hyper}
    # what was found is other for every seed
    results |= {"budgets": entries, "calibrated": {"strength": 1 + results["seed"] / 7}}
    results |= {"parent": str(run), "parent_run_id": results["run_id"], "run_id": f"{results['run_id']}/{leaf}"}
    write_json(run / "calibrated" / leaf / "results.json", results)
    return run / "calibrated" / leaf


def test_calibrated_runs_are_found_inside_their_run_and_named(tmp_path):
    fixed = {"lambda_threshold": 0.1, "final_token_threshold": 0.01, "token_keep_rate": None}
    for seed in (0, 1):
        soft, top, given = (tmp_path / f"{name}{seed}" for name in ("soft", "topk", "manual"))
        write(soft, "learned", "soft", 0.89, 0.6, hyper=fixed, seed=seed, run_id=f"soft{seed}")
        write_calibrated(soft, "target_0.5", 0.88, target_flops=0.5)
        write_calibrated(soft, "budgets_0.2_0.3", 0.8, budgets=[0.2, 0.3])
        write_calibrated(soft, "latency_12ms", 0.85, target_latency_ms=12.0, latency_execution="deployed")
        write(top, "topk", None, 0.8, 0.6, hyper={"token_keep_rate": -0.4}, seed=seed, run_id=f"topk{seed}")
        write_calibrated(write_calibrated(top, "target_0.4", 0.7, target_flops=0.4), "again", 0.6, target_flops=0.3)
        hyper = {"final_token_threshold": 0.008}
        write(given, "manual", None, 0.8, 0.7, hyper=hyper, seed=seed, run_id=f"manual{seed}")
        write_calibrated(given, "latency_12ms", 0.7, target_latency_ms=12.0, latency_execution="packed")
    collection = collect([tmp_path])
    assert len(collection.runs) == 18
    assert collection.left_out == []
    (group,) = compare(collection.runs)
    calibrated = ("calibrated",)
    assert [(settings(row), row.variant, len(row.runs)) for row in group.rows] == [
        ("", (), 2),
        ("target 0.5, calibrated", calibrated, 2),
        ("latency 12 ms, calibrated", calibrated, 2),
        ("target 0.3, of budgets 0.2/0.3, calibrated", calibrated, 2),
        ("target 0.2, of budgets 0.2/0.3, calibrated", calibrated, 2),
        ("threshold 0.008", (), 2),
        ("latency 12 ms, calibrated from threshold 0.008", calibrated, 2),
        ("rate -0.4", (), 2),
        ("target 0.4, calibrated from rate -0.4", calibrated, 2),
        ("target 0.3, calibrated from rate -0.4", calibrated, 2),
    ]
    assert not any(row.is_superseded for row in group.rows)  # a calibration is no hard stage
    write(tmp_path / "other", "learned", "soft", 0.89, 0.5, hyper={**fixed, "lambda_threshold": 0.2})
    (group,) = groups_of(tmp_path)
    assert {"lambda 0.1", "lambda 0.2", "target 0.5, lambda 0.1, calibrated"} <= {settings(row) for row in group.rows}


def test_calibrations_of_other_trainings_are_other_rows(tmp_path):
    for target in (0.5, 0.7):
        write_target(tmp_path / str(target), target, 0.88, run_id=str(target))
        write_calibrated(tmp_path / str(target), "target_0.4", 0.8, target_flops=0.4)
    write_several(tmp_path / "several", run_id="s")
    write_calibrated(tmp_path / "several", "target_0.4", 0.8, target_flops=0.4)
    (group,) = groups_of(tmp_path)
    assert {settings(row) for row in group.rows if row.variant == ("calibrated",)} == {
        "target 0.4, calibrated from target 0.5",
        "target 0.4, calibrated from target 0.7",
        "target 0.4, calibrated from budgets 0.3/0.5/0.7",
    }


def test_a_calibration_leaves_the_words_of_other_rows_alone(tmp_path):
    write_several(tmp_path / "soft", "soft", run_id="soft")
    write_several(tmp_path / "soft" / "hard", run_id="hard", parent_run_id="soft")
    write_calibrated(tmp_path / "soft" / "hard", "target_0.4", 0.8, target_flops=0.4)
    write_target(tmp_path / "elsewhere", 0.6, 0.8, run_id="elsewhere", parent_run_id="soft")
    (group,) = groups_of(tmp_path)
    assert {settings(row) for row in group.rows if row.stage == "hard"} == {
        *(f"target {budget}, of budgets 0.3/0.5/0.7" for budget in (0.3, 0.5, 0.7)),
        "target 0.4, calibrated from budgets 0.3/0.5/0.7",
        "target 0.6, soft of budgets 0.3/0.5/0.7",
    }


def test_a_calibrated_hard_run_descends_from_the_calibrated_runs_soft_run(tmp_path):
    write(tmp_path / "dense", "dense", metric=0.9, run_id="dense")
    soft = {"stage": "soft", "run_id": "soft", "parent_run_id": "dense", "hyper": {"lr": 1e-5, "lambda_threshold": 0.1}}
    write(tmp_path / "soft", "learned", metric=0.85, flops=0.6, **soft)
    write(tmp_path / "soft" / "hard", "learned", "hard", 0.88, 0.6, run_id="hard", parent_run_id="soft")
    at = write_calibrated(tmp_path / "soft" / "hard", "target_0.4", 0.86, target_flops=0.4)
    write(tmp_path / "alone", "dense", metric=0.5, hyper={"lr": 1e-3})
    (group,) = groups_of(tmp_path)
    (row,) = [row for row in group.rows if row.runs[0].directory == at]
    assert settings(row) == "target 0.4, calibrated"
    assert row.settings["soft lr"] == 1e-5
    assert not [name for name in row.settings if name.startswith("hard ")]
    assert row.difference.mean == pytest.approx(-0.04)
    assert [row.is_superseded for row in group.rows if row.stage == "soft"] == [True]


def test_the_figures_tell_variants_apart(tmp_path):
    write(tmp_path / "dense", "dense", metric=0.9)
    write(
        tmp_path / "fixed", "learned", "hard", 0.89, 0.6, hyper={"lambda_threshold": 0.1, "final_token_threshold": 0.01}
    )
    write_several(tmp_path / "several", run_id="s")
    write_target(tmp_path / "one", 0.5, 0.89, hyper={"distill_mode": "logits"})
    write_target(tmp_path / "calibrated", 0.4, 0.86, calibrated={"strength": 2})
    (group,) = groups_of(tmp_path)
    (axes,) = tradeoff(group).axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert list(curves["learned threshold"].get_xdata()) == pytest.approx([0.6])
    assert list(curves["learned threshold, budgets"].get_xdata()) == pytest.approx([0.31, 0.51, 0.71])
    assert list(curves["learned threshold, target, distilled"].get_xdata()) == pytest.approx([0.51])
    assert list(curves["learned threshold, calibrated"].get_xdata()) == pytest.approx([0.41])
    drawn = [curve for name, curve in curves.items() if name.startswith("learned")]
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 4
    (axes,) = thresholds(group).axes
    labels = [line.get_label() for line in axes.get_lines()]
    # the front; of the fixed lambda alone is known where its thresholds began, but it is not cheaper than target 0.5
    assert labels == [
        "0.31, target 0.3",
        "0.41, target 0.4, calibrated",
        "0.51, target 0.5, distilled",
        "0.71, target 0.7",
    ]
    files, _ = draw(group)
    assert all(is_drawn(content) for name, content in files.items() if name.endswith(".png"))
    with matplotlib.rc_context(STYLE):
        figure = tradeoff(group)
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width  # long names are not cut


def test_thresholds_of_two_methods_have_a_panel_each(tmp_path):
    """Their units differ."""
    write_target(tmp_path / "learned", 0.5, 0.88)
    hyper = {"prune_mode": "adapler", "initial_share": 0.25, "scoring_mode": None, "score_length": None}
    write_target(tmp_path / "adapler", 0.5, 0.89, method="adapler", prune_mode="adapler", hyper=hyper)
    (group,) = groups_of(tmp_path)
    panels = thresholds(group).axes
    assert [axes.get_title() for axes in panels] == ["learned threshold", "AdapLeR"]
    assert [len(axes.get_lines()) for axes in panels] == [1, 2]  # AdapLeR's with the thresholds before learning


def test_predictions_are_those_of_the_budget_in_use(tmp_path):
    write_several(tmp_path / "several")
    predictions(tmp_path / "several", [[8, 8, 4, 2, 1]])
    (group,) = groups_of(tmp_path)
    found = {row.settings["target_flops"]: find_predictions(row) for row in group.rows}
    assert found == {0.3: None, 0.5: None, 0.7: tmp_path / "several" / "predictions.parquet"}


@pytest.mark.parametrize("budgets", [{}, [0.3], [{"budget": 0.3}], [{**budgets_of(b30=0.9)[0], "thresholds": ["x"]}]])
def test_budgets_that_are_no_results_are_left_out(tmp_path, budgets):
    write(tmp_path / "a", "learned", budgets=budgets)
    (entry,) = collect([tmp_path]).left_out
    assert entry.detail == "budgets is not a list of results"


def test_a_long_table_shows_the_fronts_only(tmp_path):
    for number in range(MAX_ROWS + 1):
        write(tmp_path / str(number), "topk", None, 0.5, 0.3 + number / 100, hyper={"token_keep_rate": number / 100})
    (group,) = groups_of(tmp_path)
    assert len(group.rows) == MAX_ROWS + 1
    assert len(shown_rows(group)) == 1


# -- one run ----------------------------------------------------------------------------------------------------


def printed(capsys, monkeypatch, *args, **changes):
    """What a training prints of its results, cells with single spaces."""
    monkeypatch.setenv("COLUMNS", "200")
    print_results(results_of(*args, **changes), "outputs/run")
    return re.sub(r"[ │]+", " ", capsys.readouterr().out)


def test_a_training_shows_its_budgets_and_its_teacher(capsys, monkeypatch):
    hyper = DECIDED | {"target_flops": None, "budgets": [0.3, 0.7], "distill_mode": "logits", "distill_teacher": "auto"}
    text = printed(
        *(capsys, monkeypatch, "learned", "soft", 0.89, 0.71), hyper=hyper, budgets=budgets_of(b30=0.85, b70=0.89)
    )
    assert "relative FLOPs 0.710 (target 0.7, the largest and the one in use)" in text
    assert "budget 0.3 accuracy 0.8500, relative FLOPs 0.310" in text
    assert "budget 0.7 accuracy 0.8900, relative FLOPs 0.710" in text
    assert "distilled logits, from the dense parent" in text


def test_a_training_shows_its_target(capsys, monkeypatch):
    hyper = DECIDED | {"target_flops": 0.5, "distill_mode": "hidden", "distill_teacher": "runs/[a]"}
    text = printed(capsys, monkeypatch, "topk", None, 0.89, 0.498, hyper=hyper, budgets=budgets_of(b50=0.89))
    assert "relative FLOPs 0.498 (target 0.5)" in text
    assert "budget 0.5" not in text
    assert "distilled hidden, from runs/[a]" in text


def test_a_training_without_a_budget_shows_none(capsys, monkeypatch):
    for changes in ({}, {"hyper": DECIDED | {"target_flops": None}, "budgets": []}):
        text = printed(capsys, monkeypatch, "learned", "soft", 0.89, 0.6, **changes)
        assert "relative FLOPs 0.600 \n" in text
        assert not re.search("target|budget|distil", text)


@pytest.mark.parametrize(
    ("method", "hyper", "words"),
    [
        ("dense", {}, "dense"),
        ("dense", {"distill_mode": "logits"}, "dense, distilled"),
        ("manual", {"final_token_threshold": 0.02}, "manual, 0.02"),
        ("manual", {"final_token_threshold": 0.02, "target_flops": 0.5}, "manual, target 0.5"),
        ("topk", {"token_keep_rate": -0.5}, "top-k, rate -0.5"),
        ("topk", {"token_keep_rate": -0.5, "target_latency_ms": 12.0}, "top-k, 12 ms"),
        ("learned", {"lambda_threshold": 0.1}, "learned, hard"),
        ("learned", {"budgets": [0.5, 0.3], "distill_mode": "hidden"}, "learned, hard, budgets 0.3/0.5, distilled"),
    ],
)
def test_a_run_in_words(method, hyper, words):
    run = results_of(method, hyper=hyper)
    assert describe_method(run) == words
    assert describe_method(run, 0.3) == words.replace("budgets", "budget 0.3 of")
    assert describe_method(run | {"calibrated": {"strength": 1}}) == f"{words}, calibrated"


def test_results_at_a_budget():
    results = results_of(
        "learned", metric=0.89, flops=0.71, budgets=budgets_of(b30=0.85, b70=0.89), gflops_per_layer=[1]
    )
    results["measured_speedup"] = {"speedup": {"median": 1.4}}
    cheap, dear, other = (at_budget(results, budget) for budget in (0.3, 0.7, 0.5))
    assert (cheap["metric"]["value"], dear["metric"]["value"]) == (0.85, 0.89)
    assert (cheap["budget"], cheap["hyperparameters"]["target_flops"]) == (0.3, 0.3)
    assert "measured_speedup" not in cheap
    assert "gflops_per_layer" not in cheap  # nobody measured it
    assert (dear["measured_speedup"], dear["gflops_per_layer"]) == (results["measured_speedup"], [1])
    assert not {"metric", "relative_flops", "thresholds"} & set(other)
    assert results["hyperparameters"] == HYPERPARAMETERS


# -- files ------------------------------------------------------------------------------------------------------


def test_csv_holds_every_run_with_all_that_its_results_say(tree):
    runs = list(csv.DictReader(io.StringIO(table_of_runs(groups_of(tree)))))
    assert len(runs) == 14
    hard = [run for run in runs if run["stage"] == "hard" and run["hyperparameters.lambda_threshold"] == "0.1"]
    assert [run["seed"] for run in hard] == ["0", "1"]
    assert len({run["row"] for run in hard}) == 1
    assert float(hard[0]["metric.value"]) == pytest.approx(0.895)
    assert float(hard[0]["difference"]) == pytest.approx(-0.005)
    assert json.loads(hard[0]["tokens_per_layer"]) == TOKENS
    assert hard[1]["measured_speedup.speedup.median"] == "2.5"
    assert {"task", "model", "method", "on_front", "directory", "duration_seconds", "versions.ltp"} <= set(hard[0])


def test_markdown(tree):
    place = tree / "bert-base" / "sst2"
    write(place / "other", "topk", None, 0.5, 0.5, hyper={"token_keep_rate": 0.2, "note": "a|b_c"})
    (tree / "empty").mkdir()
    collection = collect([tree])
    (group,) = compare(collection.runs)
    text = summary_markdown([group], collection.left_out, {group.slug: ["picture.png"]})
    assert "| ●✓ | learned threshold, hard | lambda 0.1 | 2 | 90.50 ± 1.41 | −0.50 ± 0.00 | 0.600 ± 0.000 |" in text
    assert r"note a\|b\_c" in text
    assert "![picture.png](picture.png)" in text
    assert "## Left out" in text
    assert "empty" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1


def test_latex(tree):
    (group,) = groups_of(tree)
    text = summary_tex([group])
    assert r"\usepackage{booktabs}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 4, 1]
    assert r"accuracy, \%" in text
    assert r"max\_length 128" in text
    assert r"90.50 $\pm$ 1.41 & $-$0.50 $\pm$ 0.00" in text
    assert text.isascii()
    columns = {line.count("&") for line in text.splitlines() if line.endswith(r"\\")}
    assert len(columns) == 1
    assert latex("50% of a_b & {c} # $ ~ ^ \\") == (
        r"50\% of a\_b \& \{c\} \# \$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def is_drawn(content):
    pixels = imread(io.BytesIO(content), format="png")[..., :3]
    return min(pixels.shape[:2]) > 300 and 0.005 < (pixels.min(axis=2) < 0.8).mean() < 0.5


@pytest.mark.slow
def test_figures_are_drawn_as_png_and_pdf(tree):
    (group,) = groups_of(tree)
    files, left = draw(group)
    assert left == []
    names = [
        f"sst2_bert-base_{name}.{form}" for name in ("tradeoff", "tokens", "thresholds") for form in ("png", "pdf")
    ]
    assert list(files) == names
    for name, content in files.items():
        assert is_drawn(content) if name.endswith(".png") else content.startswith(b"%PDF"), name
    assert draw(group)[0] == files  # the same runs, the same bytes


def test_the_tradeoff_has_a_curve_a_method_and_tells_what_it_cuts(tree):
    write(tree / "collapsed", "topk", None, 0.1, 0.9, hyper={"token_keep_rate": 0.9})
    (group,) = groups_of(tree)
    (axes,) = tradeoff(group).axes
    curves = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    assert list(curves["learned threshold"]) == pytest.approx([0.5, 0.6])
    assert list(curves["top-k"]) == pytest.approx([0.4])
    assert "dense, 91.0" in curves
    assert [text.get_text() for text in axes.texts] == ["1 below the axis"]
    assert axes.get_ylim()[0] > 50
    assert STYLE["font.family"] == "sans-serif"


def test_every_budget_is_on_the_curve(tmp_path):
    write(tmp_path / "dense", "dense", metric=0.9)
    write_target(tmp_path / "low", 0.3, 0.89)  # by chance better than the dearer one
    write_target(tmp_path / "high", 0.5, 0.88)
    write_target(tmp_path / "high_lr", 0.5, 0.87, hyper={"lr": 1e-3})
    (group,) = groups_of(tmp_path)
    (axes,) = tradeoff(group).axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert list(curves["learned threshold, target"].get_ydata()) == pytest.approx([89, 88])


def test_a_method_of_somebody_else_is_drawn_too(tmp_path):
    write(tmp_path / "a", "dense")
    write(tmp_path / "b", "magic", None, 0.8, 0.5)
    (group,) = groups_of(tmp_path)
    assert any("tradeoff" in name for name in draw(group)[0])
    assert row_of(group, "magic").on_front


def test_a_lone_dense_run_has_no_figure(tmp_path):
    write(tmp_path / "a", "dense")
    assert draw(groups_of(tmp_path)[0]) == ({}, [])


def predictions(directory, lengths, **columns):
    table = {"label": [0] * len(lengths), "prediction": [0] * len(lengths), "token_lengths": lengths, **columns}
    pq.write_table(pa.table(table), directory / "predictions.parquet")


@pytest.mark.slow
def test_predictions_give_two_more_figures(tree):
    place = tree / "bert-base" / "sst2"
    lengths = [[n, n, n // 2, n // 4 + 1, 1] for n in range(4, 60)]
    predictions(place / "topk/rate_-0.4/lr_2e-05/seed_1", lengths)
    predictions(place / "absolute_threshold/rate_0.008/hard/lr_2e-05/seed_0", lengths)
    files, left = draw(groups_of(tree)[0])
    assert left == []
    assert is_drawn(files["sst2_bert-base_lengths.png"])
    assert is_drawn(files["sst2_bert-base_examples.png"])
    assert "sst2_bert-base_labels.png" not in files


@pytest.mark.slow
def test_labels_of_tokens_give_another_figure(tree):
    lengths, layers = [[3, 2, 2, 1, 1], [2, 2, 1, 1, 1]], [[0, 4], []]
    place = tree / "bert-base" / "sst2" / "topk/rate_-0.4/lr_2e-05/seed_1"
    predictions(place, lengths, token_layers=layers, token_is_right=[[True, False], []])
    assert is_drawn(draw(groups_of(tree)[0])[0]["sst2_bert-base_labels.png"])


@pytest.mark.slow
def test_predictions_that_cannot_be_read_are_named(tree):
    directory = tree / "bert-base" / "sst2" / "topk/rate_-0.4/lr_2e-05/seed_0"
    (directory / "predictions.parquet").write_bytes(b"PAR1 no")
    files, (entry,) = draw(groups_of(tree)[0])
    assert entry.path == directory / "predictions.parquet"
    assert not any("lengths" in name for name in files)


@pytest.mark.parametrize("content", [b"PAR1 no", {"label": [1]}, [], [[3, 2], [3]], ["a", "b"], [[3, None]]])
def test_what_is_no_table_of_predictions(tmp_path, content):
    path = tmp_path / "predictions.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        predictions(tmp_path, content)
    with pytest.raises(UnreadableError, match=r"\w"):
        read_outcomes(path)


# -- the command ------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_files(tree):
    (tree / "odd").mkdir()
    (tree / "odd" / "config.yaml").write_text("")
    done = ltp_report(["figures=true", str(tree)])
    assert done.code == 0, done.err
    assert "sst2 · bert-base · max_length 128" in done.out
    assert "90.50 ± 1.41" in done.out
    assert "Cheapest within 1 point of dense" in done.out
    assert f"left out, unfinished (config.yaml without results.json): 1: {tree / 'odd'}" in done.out
    names = {path.name for path in (tree / "report").iterdir()}
    assert {"results.csv", "summary.md", "summary.tex", "sst2_bert-base_tradeoff.pdf"} <= names
    assert not [name for name in names if name.startswith(".")]
    again = ltp_report([str(tree), "figures=false"])
    assert again.code == 0
    assert "report/" not in again.out.replace(f"report: {tree / 'report'}", "")  # is no run, and nobody asks


def test_folders_may_be_several_and_elsewhere(tree, tmp_path, monkeypatch):
    odd = tmp_path / "it's, [odd] "
    write(odd / "a", "dense", task="rte")
    monkeypatch.chdir(tmp_path)
    done = ltp_report(["outputs", str(odd), "to=there", "figures=false"])
    assert done.code == 0, done.err
    assert "rte · bert-base" in done.out
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"results.csv", "summary.md", "summary.tex"}
    assert not (tree / "report").exists()
    assert ltp_report("output_root=outputs/bert-base figures=false").code == 0
    assert (tree / "bert-base" / "report" / "results.csv").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("missing", "missing: no such folder"),
        ("empty", "no finished run (results.json) under empty"),
        ("output_root=missing", "missing: no such folder"),
        ("unfinished", "left out, unfinished (config.yaml without results.json): 1: unfinished"),
        ("file", "file: no such folder"),
        ("good to=file", "to=file is a file"),
        ("good points=-1", "points=-1.0 is out of range"),
        ("good fugures=false", "unknown key fugures; did you mean figures?"),
        ("folders=[]", "folders=[] names no folder"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch, command, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").touch()
    write(tmp_path / "good" / "run")
    monkeypatch.chdir(tmp_path)
    done = ltp_report(command)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_words_become_the_key():
    assert report.folders_as_key(["--cfg", "job", "a b", "to=x", "c"]) == [
        "--cfg",
        "job",
        "to=x",
        "folders=['a b','c']",
    ]
    assert report.folders_as_key(["to=x"]) == ["to=x"]


def test_the_configuration_resolves(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    settings = report.fill(report.COMMAND.settings(composed(config_name="report")))
    assert (settings.folders, settings.to, settings.points) == (["outputs"], "outputs/report", 1.0)


@pytest.mark.slow
def test_two_thousand_runs_take_seconds(tmp_path):
    random = np.random.default_rng(0)
    for number in range(2000):
        task, row, seed = ("sst2", "rte")[number % 2], number // 10, number // 2 % 5
        flops = float(random.uniform(0.3, 1))
        hyper = {"lambda_threshold": row / 1000, "final_token_threshold": 0.01}
        write(
            tmp_path / task / f"lambda_{row}" / f"seed_{seed}",
            "learned",
            "hard",
            0.7 + flops / 5,
            flops,
            seed=seed,
            hyper=hyper,
            task=task,
        )
    started = time.process_time()
    done = ltp_report([str(tmp_path)])
    assert done.code == 0, done.err
    assert time.process_time() - started < limit(10)
    assert "2000" not in done.err
    with open(tmp_path / "report" / "results.csv", encoding="utf-8") as file:
        assert sum(1 for _ in file) == 2001
