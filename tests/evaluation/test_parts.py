"""Predictions in parts, by one process and several: the same file, what is killed goes on, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from lightning_fabric.accelerators import cuda
from patience import limit, wait_until
from predicting import SENTENCES, TOPK, ltp_predict, make_run

from ltp.data import texts as texts_module
from ltp.errors import UserError
from ltp.evaluation import prediction
from ltp.evaluation.processes import build_fabric
from ltp.runs.locks import run_lock

#: Rows of which some are skipped, and others cut at the 32 tokens of the run.
ROWS = [*SENTENCES, "", *(f"{text} {text} {text} {text}" for text in SENTENCES[:4]), *SENTENCES]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), **TOPK)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 5)
    lines = (json.dumps({"id": number, "sentence": text, "odd\nname": []}) for number, text in enumerate(ROWS))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def predicted_whole(run, suffix):
    """What one process writes at once."""
    finished = ltp_predict(f"restore={run} input=rows.jsonl output=whole.{suffix} batch_size=3")
    assert finished.code == 0, finished.err
    return finished


def content(path):
    """The bytes of a file; of parquet the table, since one that was read back names the values of lists otherwise."""
    return pq.read_table(path) if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_parts_are_joined_to_the_file_that_is_written_at_once(run, here, suffix):
    whole = predicted_whole(run, suffix)
    assert "skipped, no text: row 13\n" in whole.err
    assert "truncated: rows " in whole.err
    parts = ltp_predict(f"restore={run} input=rows.jsonl output=out.{suffix} batch_size=3 resume=true")
    assert (parts.code, parts.err) == (0, whole.err)
    assert parts.out == f"28 texts: out.{suffix}\n"
    assert content(here / f"out.{suffix}") == content(here / f"whole.{suffix}")
    assert {path.name for path in here.iterdir()} == {"rows.jsonl", f"whole.{suffix}", f"out.{suffix}"}


def stopped(run, monkeypatch, chunks, words="input=rows.jsonl batch_size=3"):
    """Predict in parts, and be stopped after some chunks."""
    encode, calls = prediction.encode, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) > chunks:
            raise KeyboardInterrupt
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "encode", counted)
        finished = ltp_predict(f"restore={run} output=out.csv resume=true {words}")
    return finished, len(calls)


def test_what_was_stopped_goes_on(run, here, monkeypatch):
    whole = predicted_whole(run, "csv")
    assert stopped(run, monkeypatch, 2)[0].code == 130
    assert not (here / "out.csv").exists()
    finished, chunks = stopped(run, monkeypatch, 99)
    assert (finished.code, chunks) == (0, 4)
    assert "going on: 10 of 28 rows are done" in finished.err
    assert finished.err.endswith(whole.err)
    assert (here / "out.csv").read_bytes() == (here / "whole.csv").read_bytes()
    assert not (here / "out.csv.parts").exists()


def test_what_was_stopped_before_it_joined_only_joins(run, here, monkeypatch):
    predicted_whole(run, "csv")
    with monkeypatch.context() as patch:
        patch.setattr("ltp.evaluation.parts.join_files", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert stopped(run, monkeypatch, 99)[0].code == 130
    finished, chunks = stopped(run, monkeypatch, 99)
    assert (finished.code, chunks) == (0, 0)
    assert (here / "out.csv").read_bytes() == (here / "whole.csv").read_bytes()


def test_parts_of_something_else_are_not_mixed(run, here, tmp_path_factory, monkeypatch):
    stopped(run, monkeypatch, 1)
    before = sorted(path.name for path in (here / "out.csv.parts").iterdir())

    def refused(other):
        finished = ltp_predict(f"output=out.csv resume=true {other}")
        assert finished.code == 2
        message = (
            "error: output=out.csv: the parts in out.csv.parts are of another (.*). Give the former command again, "
        )
        message += "name another output, or remove the folder to start over\n"
        return re.fullmatch(message, finished.err)[1]

    assert refused(f"restore={run} input=rows.jsonl batch_size=4 max_length=16") == "max_length, batch_size"
    (here / "others.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    assert refused(f"restore={run} input=others.txt batch_size=3") == "input"
    again = make_run(tmp_path_factory.mktemp("again"), prune_mode="topk", token_keep_rate=-0.4)
    assert refused(f"restore={again} input=rows.jsonl batch_size=3") == "restore"
    monkeypatch.setattr(texts_module, "CHUNK_ROWS", 6)
    assert refused(f"restore={run} input=rows.jsonl batch_size=3") == "input"
    assert sorted(path.name for path in (here / "out.csv.parts").iterdir()) == before


def test_a_folder_without_parts_is_started_over(run, here, monkeypatch):
    stopped(run, monkeypatch, 0)
    assert (here / "out.csv.parts" / "about.json").is_file()
    assert stopped(run, monkeypatch, 99, "input=rows.jsonl batch_size=4")[0].code == 0


def test_folders_that_hold_something_else(run, here, monkeypatch):
    command = f"restore={run} input=rows.jsonl output=out.csv resume=true"
    folder = here / "out.csv.parts"
    folder.write_text("")
    assert ltp_predict(command).err == "error: output=out.csv: cannot write out.csv.parts: File exists\n"
    folder.unlink()
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    message = "error: output=out.csv: out.csv.parts holds something else than parts: name another output\n"
    assert ltp_predict(command).err == message
    (folder / "mine.txt").unlink()
    with run_lock(folder):
        assert "out.csv.parts is being written by process" in ltp_predict(command).err
    stopped(run, monkeypatch, 1)
    (folder / "about.json").write_text("{")
    assert "about.json is damaged" in ltp_predict(command).err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("input=rows.jsonl resume=true", "resume=true needs output=FILE, beside which the parts are written"),
        ("input=rows.jsonl trainer.devices=2", "trainer.devices=2 needs output=FILE, beside which the parts are "
         "written"),
        ("input=rows.jsonl trainer.num_nodes=2", "trainer.num_nodes=2 needs output=FILE, beside which the parts are "
         "written"),
        ("text=a output=o.csv trainer.devices=2", "trainer.devices=2 is for files of many rows, written to "
         "output=FILE alone: leave out text=…"),
        ("input=rows.jsonl output=o.csv html=o.html trainer.devices=[0,1]", "trainer.devices=[0,1] is for files of "
         "many rows, written to output=FILE alone: leave out html=…"),
        ("input=rows.jsonl output=o.csv show=true resume=true", "resume=true is for files of many rows, written to "
         "output=FILE alone: leave out show=…"),
        ("input=- output=o.csv trainer.devices=2", "trainer.devices=2: only one process can read standard input: "
         "give input=FILE"),
        ("input=rows.jsonl output=o.csv trainer.devices=0 device=cpu", "trainer.devices=0 on device=cpu: "
         "`Fabric(devices=0)` value is not a valid input using cpu accelerator."),
        ("input=rows.jsonl output=rows.jsonl/o.csv trainer.devices=2 device=cpu", "output=rows.jsonl/o.csv: cannot "
         "write rows.jsonl/o.csv: File exists"),
        ("input=none.csv output=o.csv trainer.devices=2 device=cpu", "input=none.csv: no such file"),
        ("input=rows.jsonl trainer.num_nodes=0", "trainer.num_nodes=0 is out of range: it must be 1 or more"),
        ("input=rows.jsonl trainer.strategy=fsdp", "trainer.strategy=fsdp: no such option. Options: auto, ddp"),
        ("input=rows.jsonl trainer.accelerator=gpu", "trainer.accelerator is device=auto|cpu|cuda here"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(run, here, options, message):
    finished = ltp_predict(f"restore={run} {options}")
    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "num_cuda_devices", lambda: 1)
    message = r"trainer\.devices=2 on device=cuda: You requested gpu: \[0, 1\] But your machine only has: \[0\]"
    with pytest.raises(UserError, match=message):
        build_fabric("cuda", 2, 1)


# -- several processes ----------------------------------------------------------------------------------------


#: Found by every Python process on its path: small chunks, and a line for each that is written; slow where asked for.
SMALL_CHUNKS = """
import os, sys
if "ltp.predict" in sys.orig_argv:
    import time
    import ltp.data.texts
    from ltp.evaluation.parts import Parts
    ltp.data.texts.CHUNK_ROWS = 5
    write = Parts.write
    def slow_write(self, number, chunk, predictions):
        write(self, number, chunk, predictions)
        with open("written.txt", "a") as file:
            print(os.environ.get("LOCAL_RANK"), number, file=file)
        time.sleep(float(os.environ.get("SLOW", 0)))
    Parts.write = slow_write
"""


@pytest.mark.slow
def test_two_processes_killed_in_the_middle(run, here):
    predicted_whole(run, "parquet")
    (here / "faults").mkdir()
    (here / "faults" / "sitecustomize.py").write_text(SMALL_CHUNKS)
    paths = [str(here / "faults"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    words = f"restore={run} input=rows.jsonl output=out.parquet batch_size=3 device=cpu trainer.devices=2".split()
    command = [sys.executable, "-m", "ltp.predict", *words]
    written = here / "written.txt"

    killed = subprocess.Popen(command, env=environment | {"SLOW": "600"}, start_new_session=True)
    wait_until(lambda: written.is_file() and len(written.read_text().splitlines()) == 2, 300)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert sorted(written.read_text().splitlines()) == ["0 0", "1 1"]
    assert not (here / "out.parquet").exists()

    written.unlink()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit(300))
    assert finished.returncode == 0, finished.stderr
    assert re.fullmatch(r"28 texts \(\d+ rows a second\): out\.parquet\n", finished.stdout)
    assert "going on: 10 of 28 rows are done" in finished.stderr
    assert sorted(written.read_text().splitlines()) == ["0 2", "0 4", "1 3", "1 5"]
    assert content(here / "out.parquet") == content(here / "whole.parquet")
    assert not (here / "out.parquet.parts").exists()
