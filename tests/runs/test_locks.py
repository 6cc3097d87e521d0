"""One writer a run directory."""

import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from ltp.errors import RunError
from ltp.runs.locks import HOLDER_FILE, run_lock

#: A process that holds a directory until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from ltp.runs.locks import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(tmp_path, holder):
    with (
        pytest.raises(RunError, match=f"{tmp_path} is being written by process {holder.pid} on .*: wait for it"),
        run_lock(tmp_path, wait=False),
    ):
        pass


@pytest.mark.slow
def test_a_second_writer_waits_and_goes_on_when_the_first_was_killed(tmp_path, holder, caplog):
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    threading.Timer(1.0, holder.kill).start()
    with run_lock(tmp_path):
        assert time.monotonic() - began > 0.9
        assert (tmp_path / HOLDER_FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert f"waiting for {tmp_path}, which is being written by process {holder.pid} on " in caplog.text
    assert not (tmp_path / HOLDER_FILE).exists()


def test_it_is_let_go_of_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path, wait=False):
        pass
