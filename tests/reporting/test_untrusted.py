"""Names and values of other people's runs steer nothing: no terminal, no path, no formula, no end of a report."""

import contextlib
import copy
import csv
import io
import json
import logging
import warnings

import pytest
from helpers import directory_of, finished_run, in_process, write_json
from rich.console import Console

from ltp import list as list_command
from ltp import report
from ltp.calibration.directory import new_directory
from ltp.calibration.request import CalibrateSettings
from ltp.command.output import PrintableFormatter
from ltp.data.texts import Texts
from ltp.errors import printable
from ltp.evaluation.prediction import Prediction
from ltp.evaluation.prediction_output import OutputColumns, prediction_writer
from ltp.reporting.collect import collect
from ltp.reporting.documents import latex, summary_markdown, table_of_runs
from ltp.reporting.figures import draw
from ltp.reporting.listing import list_runs, print_runs
from ltp.reporting.rows import compare
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.runs.layout import folder_name
from ltp.runs.summary import markdown

RESULTS = {
    "task": "sst2",
    "model": "bert-base",
    "method": "topk",
    "prune_mode": "topk",
    "stage": "hard",
    "seed": 0,
    "hyperparameters": {"lr": 1e-5, "token_keep_rate": -0.2, "max_length": 128},
    "metric": {"name": "accuracy", "value": 0.9},
    "metrics": {"accuracy": 0.9, "f1": 0.8},
    "relative_flops": 0.5,
    "dense_gflops": 2.0,
    "tokens_per_layer": [20, 10, 5],
    "thresholds": None,
    "parent": None,
    "versions": {"ltp": "0.1.0"},
    "validation_examples": 100,
    "label_counts": [40, 60],
    "measured_speedup": {"speedup": {"median": 1.5}},
    "run_id": "odd",
    "budgets": [],
}
DENSE = RESULTS | {"method": "dense", "prune_mode": "none", "run_id": "dense"}
ODD = [
    *(None, True, -1, 1e308, 10**400, "", "x" * 5000, "$\\frac{", "[/bold]", "\x1b[31m", "..", "../../x", "\n", "=1+1"),
    *([], [None], [[]], {}, {"a": 1}, {"speedup": {"median": 10**400}}, [0, 0, 0], ["a"], {"": None}),
    [{"budget": 0.5, "metric": {"name": "accuracy", "value": 0.5}, "relative_flops": 0.5, "tokens_per_layer": [0, 0]}],
]
PATHS = [
    *((key,) for key in RESULTS),
    *(("hyperparameters", key) for key in RESULTS["hyperparameters"]),
    *(("metric", key) for key in RESULTS["metric"]),
    ("versions", "ltp"),
    ("measured_speedup", "speedup"),
]


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_one_odd_run_does_not_end_a_report(tmp_path, path):
    write_json(tmp_path / "dense" / "results.json", DENSE)
    for number, value in enumerate(ODD):
        results = copy.deepcopy(RESULTS) | {"run_id": f"odd{number}"}
        target = results
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        write_json(tmp_path / f"odd{number}" / "results.json", results)
    collection = collect([tmp_path])
    groups = compare(collection.runs)
    assert any(group.dense is not None for group in groups)
    files, _ = report.build_files(groups, collection.left_out, figures=False)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        report.print_report(groups, collection.left_out)
        print_runs(list_runs([tmp_path]), Console(width=1000))
    assert "\x1b" not in shown.getvalue()
    assert b"\x1b" not in files["summary.md"] + files["summary.tex"]


def hostile(tmp_path, name):
    write_json(tmp_path / "dense" / "results.json", DENSE | {"model": name})
    write_json(tmp_path / "odd" / "results.json", RESULTS | {"model": name})
    (group,) = compare(collect([tmp_path]).runs)
    return group


@pytest.mark.parametrize("name", ["..", "a/../../b", "$\\frac{1}{", "\x1b[31m", "é" * 60])
def test_files_stay_in_their_folder_and_figures_are_drawn(tmp_path, name):
    group = hostile(tmp_path, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files, _ = draw(group)
    assert files
    assert all("/" not in file and file.startswith("sst2_") for file in files)
    folder = folder_name(name)
    assert "/" not in folder
    assert folder.strip(".")


def test_no_formula_is_left_live(tmp_path):
    group = hostile(tmp_path, "=HYPERLINK(1)")
    rows = list(csv.DictReader(io.StringIO(table_of_runs([group]))))
    assert {row["model"] for row in rows} == {"'=HYPERLINK(1)"}
    assert rows[1]["hyperparameters.token_keep_rate"] == "-0.2"  # a number is none


def test_a_label_of_a_model_is_no_formula(tmp_path):
    columns = OutputColumns(("row", "label", "probability"), typed=False)
    chunk = Texts([1], [("a",)], [{"text": "-a"}])
    columns.look(chunk)
    with prediction_writer(tmp_path / "out.csv", columns) as write:
        write(columns.records(chunk, [Prediction({"label": "=HYPERLINK(1)", "probability": 0.5}, "", "", 1.0, [])]))
    assert (tmp_path / "out.csv").read_text() == "row,text,label,probability\n1,-a,'=HYPERLINK(1),0.5\n"


def test_columns_of_the_input_never_share_a_name():
    columns = OutputColumns(("row", "label", "probability"), typed=False)
    columns.look(Texts([1], [("a",)], [{"label": 1, "input_label": 2, "row": 3}]))
    assert columns.names == ["row", "input_label", "input_input_label", "input_row", "label", "probability"]


def test_no_markup_is_left(tmp_path):
    assert markdown("# a [b](c) <i> $x$ `d` *e* &lt;") == "\\# a \\[b\\](c) \\<i\\> \\$x\\$ \\`d\\` \\*e\\* \\&lt;"
    assert "[b](c)" not in summary_markdown([hostile(tmp_path, "[b](c)")], [], {})
    assert latex("\\input{x}\x1b$") == "\\textbackslash{}input\\{x\\} \\$"


def test_run_directories_stay_below_their_root(tmp_path):
    run = finished_run(tmp_path / "run", model="../../escaped")
    write_json(run / "results.json", {"model": "..", "seed": 0, "run_id": "x", "method": "topk"})
    assert directory_of(f"task=mrpc restore={run} prune=topk output_root=root model.name=..").parts[:2] == ("root", "_")
    settings = CalibrateSettings(restore=str(run), target_flops=0.5, output_root="root")
    settings.task.name = "../.."
    assert new_directory(settings, inspect_checkpoint(str(run))).parts[:3] == ("root", "_", ".._..")


def test_messages_and_the_log_hold_no_control_characters(tmp_path, capsys):
    finished = in_process("ltp.report", ["folders=[\x1b[31mx]"], report.COMMAND)
    assert finished.code == 2
    assert "\x1b" not in finished.err
    record = logging.LogRecord("ltp", logging.INFO, "", 0, "a\x1b[31m\nb\tc", (), None)
    assert PrintableFormatter().format(record) == "a [31m\nb       c"
    assert printable("a\x9b\u202eb") == "a  b"


# -- the listing ------------------------------------------------------------------------------------------------


def test_the_listing_says_what_is_finished_and_how_to_go_on_with_the_rest(tmp_path, monkeypatch):
    write_json(tmp_path / "outputs" / "dense" / "results.json", DENSE)
    half = tmp_path / "outputs" / "half"
    (half / "checkpoints").mkdir(parents=True)
    (half / "checkpoints" / "last.ckpt").touch()
    config = {"task": {"name": "rte"}, "model": {"name": "tiny"}, "method": "topk", "stage": "hard"}
    command = {"command": "python -m ltp.train -m lr=1,2", "working_directory": str(tmp_path)}
    (half / "config.yaml").write_text(json.dumps(config | command))
    (half / "metrics.jsonl").write_text('{"step": 9}\n{"step": 12, "val/accuracy": 0.5}\n{"st')
    old = tmp_path / "outputs" / "old"
    old.mkdir()
    (old / "config.yaml").write_text(json.dumps(config))
    write_json(tmp_path / "outputs" / "broken" / "results.json", {})
    monkeypatch.chdir(tmp_path)
    finished = in_process("ltp.list", "", list_command.COMMAND)
    assert (finished.code, finished.err) == (0, "")
    lines = [line.rstrip() for line in finished.out.splitlines()]
    assert "sst2  bert-base  dense   0.9000  0.500  outputs/dense" in lines
    assert "rte   tiny   topk, hard    13  outputs/half" in lines
    assert "rte   tiny   topk, hard     –  outputs/old" in lines
    assert "  python -m ltp.train -m lr=1,2" in lines
    assert "1 unfinished runs of an earlier version: start the command again that began them" in lines
    monkeypatch.chdir(tmp_path / "outputs")
    listed = json.loads(in_process("ltp.list", ". output=-", list_command.COMMAND).out)
    by_state = {
        state: [run["directory"] for run in listed if run["state"] == state] for state in ("finished", "unusable")
    }
    assert by_state == {"finished": ["dense"], "unusable": ["broken"]}
    (half,) = (run for run in listed if run["directory"] == "half")
    assert half["resume"] == f"cd {tmp_path} && python -m ltp.train -m lr=1,2"
    assert half["note"] == "from its last checkpoint"


# -- what tables and figures say of classes and of learning -------------------------------------------------------


def test_the_larger_class_and_other_metrics_are_in_the_tables(tmp_path):
    group = hostile(tmp_path, "m")
    text = summary_markdown([group], [], {})
    head, _, majority, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert head.startswith("|  | method | settings | n | accuracy, % | f1, % |")
    assert majority.startswith("|  | the larger class, always |  |  | 60.00 | 75.00 |")
    assert len(rows) == 2
    write_json(tmp_path / "odd" / "results.json", RESULTS | {"model": "m", "label_counts": [70, 30]})
    write_json(tmp_path / "dense" / "results.json", DENSE | {"model": "m", "label_counts": None})
    (group,) = compare(collect([tmp_path]).runs)
    assert group.majority == {"accuracy": 0.7, "matthews": 0.0, "f1": 0.0}


def test_learning_curves_are_drawn(tmp_path):
    group = hostile(tmp_path, "m")
    assert not any("learning" in name for name in draw(group)[0])
    lines = [{"step": 9, "train/loss": 1.0}, *({"step": 10 * k, "val/accuracy": 0.5 + 0.1 * k} for k in (1, 2, 3))]
    content = "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n"
    for name in ("dense", "odd"):
        (tmp_path / name / "metrics.jsonl").write_text(content)
    from ltp.reporting.figures import learning

    panels = learning(group).axes
    assert [axes.get_title() for axes in panels] == ["dense", "top-k"]
    for axes in panels:
        assert list(axes.get_lines()[0].get_xdata()) == [10, 20, 30]
        assert list(axes.get_lines()[0].get_ydata()) == pytest.approx([60, 70, 80])
    assert any(name.endswith("_learning.png") for name in draw(group)[0])
