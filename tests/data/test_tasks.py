"""The task table, custom tasks, and GLUE's metrics against values worked out by hand."""

import dataclasses
import math
import multiprocessing

import pytest
import torch
from patience import limit

from ltp.data.tasks import TASKS, custom_task, get_task
from ltp.errors import UserError


def custom(**changes):
    arguments = {"text_columns": ["text"], "label_column": "label", "metric": "accuracy", "size": "small"}
    return custom_task("mine", **arguments | changes)


def test_the_table_has_glue_and_the_demo():
    own = {name: task for name, task in TASKS.items() if task.kind == "single"}
    assert set(own) == {"rte", "mrpc", "stsb", "cola", "sst2", "qnli", "qqp", "mnli", "demo"}
    small = {name for name, task in own.items() if task.size == "small"}
    assert small == {"rte", "mrpc", "stsb", "cola", "demo"}
    assert {name: task.metrics for name, task in own.items()} == {
        "rte": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "qnli": ("accuracy",),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "demo": ("accuracy",),
    }
    assert {name: task.num_labels for name, task in own.items() if task.num_labels != 2} == {
        "stsb": 1,
        "mnli": 3,
    }
    assert [name for name, task in TASKS.items() if task.is_regression] == ["stsb"]
    assert TASKS["mnli"].validation_splits == ("validation_matched", "validation_mismatched")
    assert all(2e-5 <= task.lr <= 5e-5 for name, task in TASKS.items() if task.generate is None)


def test_get_task():
    assert get_task("rte") is TASKS["rte"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sst-2", " Did you mean sst2?"),
        ("SST2", " Did you mean sst2?"),
        ("mnil", " Did you mean mnli?"),
        ("nli", " Did you mean qnli or mnli?"),
        ("xyz", ""),
    ],
)
def test_an_unknown_task_names_near_matches_and_all_tasks(name, hint):
    with pytest.raises(UserError) as caught:
        get_task(name)
    tasks = ", ".join([*TASKS, "custom"])
    assert str(caught.value) == f"task={name}: no such task.{hint} Tasks: {tasks}."


def test_custom_task():
    task = custom(text_columns=["question", "answer"], label_column="verdict", metric="f1", size="large")
    assert (task.name, task.text_columns, task.label_column) == ("mine", ("question", "answer"), "verdict")
    assert (task.metrics, task.size, task.labels) == (("f1", "accuracy"), "large", None)
    with pytest.raises(ValueError, match="task mine: labels are known only once the training file was read"):
        _ = task.num_labels
    regression = custom(metric="spearman")
    assert (regression.metrics, regression.num_labels) == (("spearman", "pearson"), 1)
    assert regression.is_regression


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_columns": []},
            "task.text_columns=[]: name one or two text columns,"
            " for example task.text_columns=[sentence] or task.text_columns=[question,answer].",
        ),
        (
            {"text_columns": ["a", "b", "c"]},
            "task.text_columns=['a', 'b', 'c']: name one or two text columns,"
            " for example task.text_columns=[sentence] or task.text_columns=[question,answer].",
        ),
        ({"label_column": ""}, "task.label_column is empty: name the column that holds the label."),
        (
            {"label_column": "text"},
            "task.text_columns=['text'], task.label_column=text: a column can be named only once.",
        ),
        (
            {"text_columns": ["label"], "label_column": "y"},
            "task.text_columns=['label']: a text column cannot be called 'label'; rename it.",
        ),
        (
            {"metric": "acc"},
            "task.metric=acc: no such metric. Classification: accuracy, f1, matthews; regression: pearson, spearman.",
        ),
        ({"size": "medium"}, "task.size=medium: must be small or large."),
    ],
)
def test_custom_task_errors(changes, message):
    with pytest.raises(UserError) as caught:
        custom(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "task.name=a/b: use letters, digits, '_', '-' and '.' only: it names a directory."),
        ("rte", "task.name=rte: this is a built-in task; give the custom task another name."),
    ],
)
def test_custom_task_names(name, message):
    with pytest.raises(UserError) as caught:
        custom_task(name, text_columns=["text"], label_column="label", metric="accuracy", size="small")
    assert str(caught.value) == message


def score(task, batches):
    """Metrics over batches of (predictions, targets), as floats."""
    metrics = task.build_metrics()
    for predictions, targets in batches:
        metrics.update(torch.tensor(predictions), torch.tensor(targets))
    return {name: value.item() for name, value in metrics.compute().items()}


def test_accuracy_and_f1_over_batches():
    # 3 true and 1 false positives, 2 true and 1 false negatives: accuracy 5/7, F1 2*3/(2*3 + 1 + 1)
    values = score(TASKS["mrpc"], [([1, 1], [1, 1]), ([1, 1, 0, 0, 0], [1, 0, 0, 0, 1])])
    assert values == pytest.approx({"accuracy": 5 / 7, "f1": 6 / 8})


def test_macro_f1_of_three_classes():
    three = dataclasses.replace(TASKS["mnli"], metrics=("f1",))
    # F1 by class: 2*2/(4+1+0), 2*1/(2+0+1), 2*1/(2+0+0)
    values = score(three, [([0, 0, 0, 1], [0, 0, 1, 1]), ([2], [2])])
    assert values["f1"] == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)


def test_matthews_of_two_classes():
    # tp 3, tn 2, fp 1, fn 2
    values = score(TASKS["cola"], [([1, 1, 1, 1], [1, 1, 1, 0]), ([0, 0, 0, 0], [0, 0, 1, 1])])
    assert values["matthews"] == pytest.approx((3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4))


def test_matthews_of_three_classes():
    three = dataclasses.replace(TASKS["mnli"], metrics=("matthews",))
    # 6 rows, 4 right; targets 2, 2, 2; predictions 3, 2, 1: (4*6 - 12) / sqrt((36 - 14) * (36 - 12))
    values = score(three, [([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2])])
    assert values["matthews"] == pytest.approx(12 / math.sqrt(22 * 24))


@pytest.mark.parametrize("targets", [[1] * 7 + [0] * 3, [1] * 10])
def test_matthews_of_a_constant_prediction_is_zero(targets):
    assert score(TASKS["cola"], [([1] * 10, targets)])["matthews"] == 0.0


PREDICTED = [1.0, 2.0, 4.0, 0.5, 2.0]
ACTUAL = [1.0, 3.0, 2.0, 5.0, 0.0]


def pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def test_pearson_and_spearman_over_batches():
    values = score(TASKS["stsb"], [(PREDICTED[:3], ACTUAL[:3]), (PREDICTED[3:], ACTUAL[3:])])
    ranks = pearson([2, 3.5, 5, 1, 3.5], [2, 4, 3, 5, 1])  # the two 2.0 share ranks 3 and 4
    assert values == pytest.approx({"pearson": pearson(PREDICTED, ACTUAL), "spearman": ranks}, abs=1e-6)


def test_equal_states_in_the_first_batch_do_not_couple_metrics():
    # all right and all positive: accuracy and F1 then hold the same counts
    values = score(TASKS["mrpc"], [([1, 1], [1, 1]), ([0, 0], [0, 1])])
    assert values == pytest.approx({"accuracy": 3 / 4, "f1": 4 / 5})


def _rank(rank, store, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    classes = dataclasses.replace(TASKS["mrpc"], metrics=("f1", "matthews")).build_metrics()
    numbers = TASKS["stsb"].build_metrics()
    shard = slice(rank, None, 2)  # three rows on one rank, two on the other
    classes.update(torch.tensor([1, 1, 0, 0, 1][shard]), torch.tensor([1, 0, 0, 1, 1][shard]))
    numbers.update(torch.tensor(PREDICTED[shard]), torch.tensor(ACTUAL[shard]))
    queue.put({name: value.item() for name, value in {**classes.compute(), **numbers.compute()}.items()})
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_metrics_are_exact_over_uneven_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    results = [queue.get(timeout=limit(120)) for _ in ranks]
    for process in ranks:
        process.join()
    expected = {
        "f1": 4 / 6,  # tp 2, fp 1, fn 1, tn 1
        "matthews": (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2),
        "pearson": pearson(PREDICTED, ACTUAL),
        "spearman": pearson([2, 3.5, 5, 1, 3.5], [2, 4, 3, 5, 1]),
    }
    assert results[0] == pytest.approx(expected, abs=1e-6)
    assert results[1] == results[0]
