"""A process for each run: what it inherits, how it ends, and that nothing outlives its starter."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from patience import wait_until

from ltp.errors import RunError, TerminatedError, UserError
from ltp.sweeps import processes

#: In the place of ltp.train: keeps what it is given, says what is wrong, ends with its first argument.
CHILD = """
import json, os, sys, time
from ltp.sweeps import processes
with open("seen.partial", "w") as file:
    json.dump({"argv": sys.argv[1:], "environ": dict(os.environ)}, file)
os.replace("seen.partial", "seen.json")
if "sleep" in sys.argv:
    time.sleep(3600)
if "message" in sys.argv:
    assert processes.report_to_parent(processes.RunError("the loss is nan"))
    assert processes.report_to_parent(ConnectionError("the other rank is gone"))
if "kill" in sys.argv:
    os.kill(os.getpid(), 9)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """``ltp.train`` replaced by :data:`CHILD`; the file in which it keeps what it is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(processes, "TRAIN_MODULE", "child")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
    return tmp_path / "seen.json"


def is_alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def signalled(number, when):
    """Send this process a signal as soon as a file is there."""

    def send():
        wait_until(when.exists)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_what_a_run_inherits(child, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "12345")
    monkeypatch.setenv("HOME", "/home")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    processes.start_run(["0", "lr=1e-5"])
    seen = json.loads(child.read_text())
    assert seen["argv"] == ["0", "lr=1e-5", "hydra.mode=RUN"]
    assert seen["environ"]["HOME"] == "/home"
    assert seen["environ"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert not {"LOCAL_RANK", "MASTER_PORT"} & set(seen["environ"])
    processes.start_run(["0"], gpus="1")
    assert json.loads(child.read_text())["environ"]["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("1", RunError, "its process ended with exit code 1"),
        ("2", UserError, "its process ended with exit code 2"),
        ("1 message", RunError, "the loss is nan"),
        ("0 kill", RunError, "its process was killed by SIGKILL"),
        # not by a signal to the sweep: Lightning terminates a main process whose other ranks failed
        ("143", RunError, "its process ended with exit code 143"),
    ],
)
def test_how_a_run_fails(child, words, error, message):
    with pytest.raises(error) as caught:
        processes.start_run(words.split())
    assert str(caught.value) == message


def test_nobody_to_hand_over_to():
    assert not processes.report_to_parent(RunError("the loss is nan"))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, TerminatedError), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_reach_a_run(child, number, error):
    # where the tests were started in the background, SIGINT is ignored, and a child would inherit that
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(error), signalled(number, child):
            processes.start_run(["0", "sleep"])
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_somebody_else_s_signal_ends_the_run_too(child):
    """A cluster's handler requeues the job and leaves: the run must not stay behind."""

    def leave(number, frame):
        sys.exit(-1)

    before = signal.signal(signal.SIGUSR2, leave)
    try:
        with pytest.raises(SystemExit), signalled(signal.SIGUSR2, child):
            processes.start_run(["0", "sleep"])
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert subprocess.run(["pgrep", "-f", "-m child 0 slee[p]"], capture_output=True).stdout == b""


FAMILY = """
import os, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"])
else:
    from ltp.sweeps.processes import exit_with_parent
    exit_with_parent()
    exit_with_parent()  # a worker calls it for each of its jobs
    import threading
    assert sum(thread.name == "exit-with-parent" for thread in threading.enumerate()) == 1
    print(os.getpid(), flush=True)
time.sleep(3600)
"""


def test_a_process_ends_after_the_one_that_started_it(tmp_path):
    (tmp_path / "family.py").write_text(FAMILY)
    parent_process = subprocess.Popen([sys.executable, tmp_path / "family.py"], stdout=subprocess.PIPE, text=True)
    with parent_process:
        pid = int(parent_process.stdout.readline())
        assert is_alive(pid)
        parent_process.kill()
    wait_until(lambda: not is_alive(pid))
