"""The leaderboard: its errors and differences by hand, its trainings, and a small one from start to end."""

import csv
import json
import math

import pytest
import torch
from helpers import SMALL, in_process

from ltp import leaderboard
from ltp.comparison.measuring import Measured
from ltp.comparison.output import cells, figure, markdown
from ltp.comparison.request import LeaderboardSettings, check
from ltp.comparison.standings import Candidate, rank
from ltp.comparison.sweeps import dense_sweep, method_sweep, shallow_sweep
from ltp.data.tasks import get_task
from ltp.errors import UserError
from ltp.evaluation.scoring import Outcome
from ltp.leaderboard import arguments_of_trainings


def settings(**changes):
    defaults = {
        "budgets": [0.5, 0.3],
        "seeds": [0, 1],
        "layers": True,
        "int8": True,
        "speed_batch_size": 32,
        "train": [],
    }
    return LeaderboardSettings(**defaults | changes)


def measured(right, wrong, speedup=2.0):
    """An outcome with this many examples right, then wrong."""
    labels = torch.zeros(right + wrong, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0]] * right + [[0.0, 1.0]] * wrong)
    return Measured(Outcome(get_task("demo"), labels, logits, torch.ones(right + wrong, 3)), speedup, (1.9, 2.1))


def candidate(name, target, *runs):
    return Candidate(name, name, target, runs, [target or 1.0] * len(runs), [10.0] * len(runs))


def test_errors_and_differences_are_those_of_the_examples():
    rows = rank(
        [
            candidate("dense", None, measured(360, 40)),
            candidate("b", 0.5, measured(200, 200)),
            candidate("a", 0.5, measured(300, 100)),
            candidate("c", 0.5, measured(299, 101)),
        ],
        get_task("sst2"),
    )
    assert [row.name for row in rows] == ["dense", "a", "c", "b"]
    dense, best, near, far = rows
    assert dense.metric == pytest.approx(0.9)
    assert dense.error == pytest.approx(math.sqrt(0.9 * 0.1 / 400), rel=0.2)  # binomial
    assert (best.behind, best.is_behind) == (None, False)
    # paired: they differ in one example of 400, so that the error is that of one example
    assert near.behind == pytest.approx(1 / 400)
    assert near.behind_error == pytest.approx(1 / 400, rel=0.3)
    assert not near.is_behind
    # and 100 examples of 400: p = 1/4
    assert far.behind == pytest.approx(0.25)
    assert far.behind_error == pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.2)
    assert far.is_behind


def test_seeds_add_their_own_error():
    row, *_ = rank([candidate("dense", None, measured(80, 20), measured(90, 10))], get_task("sst2"))
    assert (row.metric, row.seeds) == (pytest.approx(0.85), 2)
    assert row.error > 0.05  # the standard error of 0.8 and 0.9 is 0.05


def test_the_table():
    rows = rank([candidate("a", 0.5, measured(300, 100)), candidate("b", 0.5, measured(200, 200))], get_task("sst2"))
    assert cells(rows[0])[:2] == ("a", "0.5")
    assert cells(rows[0])[5] == "best"
    assert cells(rows[1])[5].startswith("25.0 ± 2.")
    assert cells(rows[1])[5].endswith(" *")
    text = markdown("title", rows, ["a note"], "the command")
    assert text.startswith("# title\n\n| method | target |")
    assert "- a note\n" in text
    assert figure("title", rows, "accuracy").keys() == {"png", "pdf"}
    several = rank([candidate("a", 0.5, measured(300, 100)), candidate("a", 0.7, measured(320, 80))], get_task("sst2"))
    assert figure("title", several, "accuracy").keys() == {"png", "pdf"}


def test_the_trainings():
    wanted = check(settings(methods=["topk", "threshold"], train=["task=mrpc"]))
    assert wanted.budgets == [0.3, 0.5]
    assert dense_sweep(wanted) == ["stage=finetune", "seed=0,1", "task=mrpc"]
    assert shallow_sweep(wanted, 6) == [*dense_sweep(wanted), "model.num_layers=2,3"]
    assert method_sweep(wanted) == [
        *("stage=hard", "prune=topk,threshold", "prune.target_flops=0.3,0.5", "seed=0,1", "task=mrpc"),
    ]


def test_other_keys_go_to_the_trainings():
    words = ["methods=[topk]", "task=mrpc", "--cfg", "job", "hard.epochs=2", "task.text_columns=['a b']"]
    assert arguments_of_trainings(words) == [
        *("methods=[topk]", "--cfg", "job"),
        "train=['task=mrpc','hard.epochs=2','task.text_columns=[\\'a b\\']']",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["topc"]}, "methods: there is no method topc; did you mean top or topk?"),
        ({"methods": ["none"]}, "methods: none cannot be compared at equal cost: it has no setting that sets its cost"),
        (
            {"methods": ["threshold", "absolute_threshold"]},
            "methods: threshold and absolute_threshold are the same; name it once",
        ),
        ({"methods": [["topk"]]}, "methods=[[topk]] is out of range: it must be names, as [threshold,topk]"),
        ({"methods": []}, "methods=[] is out of range: it must be names, as [threshold,topk]"),
        ({"methods": ["topk", "topk"]}, "methods: topk is given twice; name it once"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is given twice; name it once"),
        ({"budgets": [1.5]}, "budgets=[1.5] is out of range: it must be in (0, 1] (of the dense FLOPs)"),
        ({"seeds": []}, "seeds=[] is out of range: it must be one or more whole numbers from 0 on, as [0,1,2]"),
        ({"train": ["seed=3"]}, "seed=3: the leaderboard sets it; choose with methods=, budgets= and seeds="),
    ],
)
def test_what_it_refuses(changes, message):
    with pytest.raises(UserError) as raised:
        check(settings(**changes))
    assert str(raised.value) == message


@pytest.mark.slow
def test_a_small_leaderboard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = [word for word in SMALL if word != "trainer=cpu"]
    command = ["methods=[topk,threshold]", "budgets=[0.5]", "threads=1", "trainer=cpu", *small]
    finished = in_process("ltp.leaderboard", command, leaderboard.COMMAND)
    assert finished.code == 0, finished.err
    folder = tmp_path / "outputs/tiny/demo/leaderboard"
    assert {path.suffix for path in folder.iterdir()} == {".md", ".csv", ".png", ".pdf"}
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    assert [row["name"] for row in rows[:3]] == ["dense", "int8", "fewer layers"]
    assert {row["name"] for row in rows[3:]} == {"topk", "learned"}
    results = [json.loads(path.read_text()) for path in (tmp_path / "outputs").rglob("results.json")]
    shallow = next(result for result in results if len(result["tokens_per_layer"]) == 3)
    assert float(rows[2]["relative_flops"]) == pytest.approx(0.5)
    assert float(rows[2]["metric"]) == pytest.approx(shallow["metric"]["value"])
    learned = next(row for row in rows if row["name"] == "learned")
    run = next(result for result in results if (result["method"], result["stage"]) == ("learned", "hard"))
    assert float(learned["relative_flops"]) == pytest.approx(run["relative_flops"])
    assert float(learned["metric"]) == pytest.approx(
        run["metric"]["value"]
    )  # deployed predicts what training evaluated
    again = in_process("ltp.leaderboard", command, leaderboard.COMMAND)
    assert again.code == 0
    assert len(list((tmp_path / "outputs").rglob("results.json"))) == len(results)
