"""The server: answers, batches, refusals, the bound, the page, the metrics, and how it stops."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from helpers import in_process
from patience import limit, wait_until
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from ltp import predict, serve
from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.data.tasks import get_task
from ltp.errors import UserError
from ltp.model import model_class
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.serving.requests import Accepted, RequestError, read_request

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = [row["sentence"] for row in demo_rows("validation")][:12]
ONE = Accepted(("sentence",), needs_pair=False, max_texts=3, max_bytes=1000)
PAIR = Accepted(("question", "context"), needs_pair=True, max_texts=3, max_bytes=1000)
TEXTS = {
    "demo": SENTENCES,
    "demo-multilabel": SENTENCES,
    "demo-tokens": SENTENCES,
    "demo-span": [("what is good", sentence) for sentence in SENTENCES],
    "demo-ranking": [("good", sentence) for sentence in SENTENCES],
}
EITHER = Accepted(("text", "text_pair"), needs_pair=False, max_texts=3, max_bytes=1000)


def ltp_serve(*arguments):
    return in_process("ltp.serve", arguments[0] if len(arguments) == 1 else arguments, serve.COMMAND)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind of output as far as serving reads it, with random weights, by task."""
    tokenizer = demo_tokenizer()
    found = {}
    for name in TEXTS:
        task, run = get_task(name), tmp_path_factory.mktemp(name)
        labels = list(task.labels) if task.labels else ["start", "end"][: 2 if task.kind == "span" else 1]
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.3,  # so that not everything is predicted the same
            id2label=dict(enumerate(labels)),
            problem_type="multi_label_classification" if task.kind in ("multilabel", "ranking") else None,
        )
        torch.manual_seed(0)
        dense = {"tokens": BertForTokenClassification, "span": BertForQuestionAnswering}.get(
            task.kind, BertForSequenceClassification
        )(config)
        pruned = model_class(task.model_class).from_dense(dense, prune_mode="topk", token_keep_rate=-0.5)
        pruned.save_pretrained(run / "model")
        tokenizer.save_pretrained(run / "model")
        (run / "results.json").write_text(json.dumps({"model": "tiny"}), encoding="utf-8")
        stored = {"task": {"name": name, "max_length": 128}, "data_dir": None}
        (run / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
        found[name] = run
    return found


# -- the body of a request --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "fields", "texts"),
    [
        (ONE, {"text": "a film"}, [("a film",)]),
        (ONE, {"text": ["a", "b"], "text_pair": None}, [("a",), ("b",)]),
        (PAIR, {"text": "a", "text_pair": "b"}, [("a", "b")]),
        (PAIR, {"text": ["a", "b"], "text_pair": ["c", "d"]}, [("a", "c"), ("b", "d")]),
        (EITHER, {"text": "a", "text_pair": "b"}, [("a", "b")]),
        (EITHER, {"text": "a"}, [("a",)]),
    ],
)
def test_texts_of_a_request(accepted, fields, texts):
    assert read_request(json.dumps(fields).encode(), accepted) == (texts, False)
    assert read_request(b"\xef\xbb\xbf" + json.dumps(fields | {"trace": True}).encode(), accepted) == (texts, True)


@pytest.mark.parametrize(
    ("accepted", "body", "status", "line"),
    [
        (ONE, b" ", 400, 'the body is empty: send {"text": "…"}'),
        (ONE, b'{"text": "\xff"}', 400, "the body is not UTF-8, from byte 11 on: encode it as UTF-8"),
        (
            *(ONE, b"text=good", 400),
            'the body is not JSON: Expecting value, line 1, column 1; send {"text": "…"}',
        ),
        (ONE, b"[" * 100_000, 400, 'the body is JSON that cannot be read; send {"text": "…"}'),
        (ONE, b'["good"]', 422, 'the body is a list: send an object, {"text": "…"}'),
        (ONE, b"{}", 422, 'text is missing: send {"text": "…"}'),
        (ONE, b'{"text": null}', 422, 'text is missing: send {"text": "…"}'),
        (ONE, b'{"txt": "good"}', 422, "txt: no such field. Did you mean text? Fields: text, text_pair, trace"),
        (ONE, b'{"text": 3}', 422, "text is a number: give a string, or a list of strings"),
        (ONE, b'{"text": ["a", {}]}', 422, "text[1] is an object: give a string, or a list of strings"),
        (ONE, b'{"text": ["a", " \\n"]}', 422, "text[1] is blank: give a text"),
        (ONE, b'{"text": []}', 422, "text is an empty list: give at least one text"),
        (ONE, b'{"text": ["a", "a", "a", "a"]}', 413, "text has 4 texts: send at most 3 a request"),
        (
            *(ONE, b'{"text": "\\ud83d"}', 422),
            "text holds half of a surrogate pair (\\ud800 to \\udfff): send whole characters",
        ),
        (ONE, b'{"text": "a", "trace": 1}', 422, "trace is a number: give true or false"),
        (
            *(ONE, b'{"text": "a", "text_pair": "b"}', 422),
            "text_pair: the model reads one text; leave text_pair out",
        ),
        (
            *(PAIR, b'{"text": "a"}', 422),
            "text_pair is missing: the model reads a pair of texts (question, context)",
        ),
        (
            *(PAIR, b'{"text": ["a", "b"], "text_pair": "c"}', 422),
            "text_pair: there are 2 in text and 1 in text_pair; give one for each text",
        ),
    ],
)
def test_what_a_request_lacks_is_said_in_one_line(accepted, body, status, line):
    with pytest.raises(RequestError) as refused:
        read_request(body, accepted)
    assert (refused.value.status, refused.value.line) == (status, line)


# -- predictions ------------------------------------------------------------------------------------------------


def by_predict(run, texts, tmp_path):
    """The records that ``ltp.predict`` writes."""
    rows = [(text,) if isinstance(text, str) else text for text in texts]
    names = ["text", "text_pair"][: len(rows[0])]
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = [f"restore={run}", f"input={tmp_path}/texts.jsonl", f"columns=[{','.join(names)}]"]
    finished = in_process("ltp.predict", [*words, f"output={tmp_path}/out.jsonl"], predict.COMMAND)
    assert finished.code == 0, finished.err
    records = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in record.items() if name not in ("row", *names)} for record in records]


def close(value):
    """A value that numbers equal to 1e-5."""
    if isinstance(value, dict):
        return {name: close(one) for name, one in value.items()}
    if isinstance(value, list):
        return [close(one) for one in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.mark.parametrize("task", TEXTS)
def test_each_kind_of_output_is_predicted_as_by_ltp_predict(runs, tmp_path, task):
    from ltp.serving.predictor import Predictor, Served, as_record

    checkpoint = inspect_checkpoint(str(runs[task]))
    names, needs_pair = serve.expected_texts(checkpoint)
    predictor = Predictor(Served(checkpoint, None, "float32", "cpu", 128, 4, pairs=needs_pair))
    texts = [(text,) if isinstance(text, str) else text for text in TEXTS[task]]
    assert len(names) == len(texts[0])
    together = [as_record(prediction) for prediction in predictor(texts)]
    for record, wanted in zip(together, by_predict(runs[task], TEXTS[task], tmp_path), strict=True):
        assert 0 < record.pop("relative_flops") < 1
        assert record == close(wanted)
    (alone,) = (as_record(prediction) for prediction in predictor(texts[:1], trace=True))
    assert alone["tokens"][0]["pruned_at"] is None
    assert {"text", "token", "joined", "scores", "pruned_at", "mark"} == set(alone["tokens"][0])
    assert close(together[0]).items() <= alone.items()
    odd = [tuple("\u200b" for _ in names), tuple("a\x00\u0301🎬" for _ in names)]  # no tokens, or unknown ones
    assert len(predictor(odd)) == 2


def test_the_fastest_form_is_served(runs, tmp_path, monkeypatch):
    from ltp.deploy import fastest
    from ltp.serving.predictor import Predictor, Served, as_record

    monkeypatch.setattr(fastest, "FORMS", (fastest.Form("pytorch", "float32"),))
    checkpoint = inspect_checkpoint(str(runs["demo"]))
    predictor = Predictor(Served(checkpoint, None, "auto", "cpu", 128, 4, pairs=False))
    assert predictor.forms == {1: "PyTorch float32", 4: "PyTorch float32"}
    (record,) = (as_record(prediction) for prediction in predictor([("a great film",)]))
    (wanted,) = by_predict(runs["demo"], ["a great film"], tmp_path)
    assert record == close(wanted | {"relative_flops": record["relative_flops"]})


@pytest.mark.parametrize(
    ("accepted", "fields"),
    [
        (ONE, [("sentence", "text", True)]),
        (PAIR, [("question", "text", True), ("context", "text_pair", True)]),
        (EITHER, [("text", "text", True), ("text_pair", "text_pair", False)]),
    ],
)
def test_the_page_asks_for_each_text(accepted, fields):
    pytest.importorskip("litserve")
    from ltp.serving.run import form

    found = re.findall(r'<label>(\w+) <textarea name="(\w+)" rows="2"( required)?></textarea></label>', form(accepted))
    assert [(name, field, bool(required)) for name, field, required in found] == fields


# -- a server ---------------------------------------------------------------------------------------------------


class Server:
    """A server in a process of its own."""

    def __init__(self, run, folder, *arguments, port=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port or free.getsockname()[1]
        words = [f"restore={run}", f"port={self.port}", "threads=1", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        self.log = folder / f"{self.port}.log"
        with self.log.open("w") as file:
            command = [sys.executable, "-m", "ltp.serve", *words]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        wait_until(lambda: self.is_healthy() or self.process.poll() is not None, what="it does not start")
        assert self.process.poll() is None, self.log.read_text()

    def is_healthy(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/health")[0] == 200

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit(60))
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode(), dict(response.getheaders())

    def get(self, path):
        return self.request("GET", path)[:2]

    def post(self, fields):
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        status, text, _ = self.request("POST", "/predict", body)
        return status, json.loads(text)

    def children(self):
        """Its processes, the main one left out."""
        files = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [child for file in files for child in file.read_text().split()]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit(60))


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    started = Server(runs["demo"], tmp_path_factory.mktemp("server"), "max_request_bytes=50000", "queue_size=12")
    yield started
    assert started.stop() == 0


@pytest.fixture
def start(runs, tmp_path):
    """Starts servers, which end with the test."""
    started = []

    def start(*arguments, **options):
        started.append(Server(runs["demo"], tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.slow
def test_answers_in_batches_are_those_of_each_alone(runs, server, tmp_path):
    wanted = by_predict(runs["demo"], SENTENCES, tmp_path)
    alone = [server.post({"text": text}) for text in SENTENCES]
    assert [status for status, _ in alone] == [200] * len(SENTENCES)
    with ThreadPoolExecutor(len(SENTENCES)) as threads:
        together = list(threads.map(lambda text: server.post({"text": text}), SENTENCES))
    (status, listed) = server.post({"text": SENTENCES})
    assert status == 200
    for number, record in enumerate(wanted):
        for answer in (alone[number][1], together[number][1], {"predictions": [listed["predictions"][number]]}):
            (prediction,) = answer["predictions"]
            assert prediction.pop("relative_flops") < 1
            assert prediction == close(record)


@pytest.mark.slow
def test_a_long_text_is_truncated_with_a_note(server):
    status, answer = server.post({"text": "good " * 1000})
    assert (status, answer["predictions"][0]["note"]) == (200, "truncated: the first 128 of 1002 tokens were read")


@pytest.mark.slow
def test_refusals(server):
    line = "the body is larger than 50000 bytes: send several requests"
    assert server.post(b'{"text": "%s"}' % (b"a" * 60_000)) == (413, {"detail": line})
    assert server.post(b"x" * 5_000_000) == (413, {"detail": line})
    assert server.post(b"\xff")[0] == 400
    assert server.post({"text": ["good", ""]}) == (422, {"detail": "text[1] is blank: give a text"})
    assert server.request("POST", "/predictions", b"{}")[0] == 404
    assert server.get("/predict")[0] == 405
    assert server.post({"text": "good"})[0] == 200
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_metrics_health_and_info(server):
    def value(name):
        lines = server.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = value('ltp_requests_total{status="200"}'), value("ltp_batch_texts_sum"), value("ltp_relative_flops_count")
    assert server.post({"text": ["good", "bad", "good " * 500]})[0] == 200
    assert (
        *(value('ltp_requests_total{status="200"}'), value("ltp_batch_texts_sum")),
        value("ltp_relative_flops_count"),
    ) == (before[0] + 1, before[1] + 3, before[2] + 3)
    assert value("ltp_truncated_texts_total") >= 1
    assert value("ltp_requests_in_flight") == 0
    status, _, headers = server.request("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert server.get("/health") == (200, "ok")
    model = json.loads(server.get("/info")[1])["model"]
    assert (model["labels"], model["texts"], model["max_length"]) == (["negative", "positive"], ["sentence"], 128)


@pytest.mark.slow
def test_the_page(server):
    status, page = server.get("/")
    assert status == 200
    assert '<label>sentence <textarea name="text" rows="2" required></textarea></label>' in page
    assert "default-src 'none'; connect-src 'self';" in page
    assert "{{" not in page
    assert not [word for word in ("src=", "href=", "http:", "https:", "@import") if word in page]
    status, answer = server.post({"text": "a good film", "trace": True})
    assert answer["predictions"][0]["tokens"][0]["text"] == "[CLS]"
    assert answer["predictions"][0]["shown"].startswith(answer["predictions"][0]["label"])


LONG = {"text": ["good " * 200] * 32}


@pytest.mark.slow
def test_beyond_its_bound_every_request_is_answered(server):
    with ThreadPoolExecutor(48) as threads:
        answers = list(threads.map(lambda _: server.post(LONG), range(96)))
    assert {status for status, _ in answers} == {200, 429}
    assert [status for status, _ in answers].count(200) >= 12
    refused = next(answer for status, answer in answers if status == 429)
    assert refused == {"detail": "12 requests are in flight, the most: try again later"}
    assert all(len(answer["predictions"]) == 32 for status, answer in answers if status == 200)
    assert server.post(LONG)[0] == 200


@pytest.mark.slow
def test_requests_in_flight_are_answered_before_it_stops(start):
    server = start()
    children = server.children()
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(server.post, LONG | {"trace": True}) for _ in range(4)]
        wait_until(lambda: "ltp_requests_in_flight 4.0" in server.get("/metrics")[1], poll=0.01)
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result()[0] for answer in answers] == [200] * 4
    assert server.process.wait(limit(60)) == 0
    assert server.log.read_text().count("\n") == 1, server.log.read_text()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


@pytest.mark.slow
def test_a_request_that_waits_too_long_is_told_so_and_ctrl_c_stops(start):
    server = start("timeout=0.01", "batch_size=1", "batch_wait_ms=0")
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: server.post(LONG), range(32)))
    assert {status for status, _ in answers} <= {200, 504}
    assert (504, {"detail": "Request timed out"}) in answers
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(limit(60)) == 0


@pytest.mark.slow
def test_processes_that_are_killed_are_replaced_and_leave_nothing_in_the_way(start):
    server = start()
    children = server.children()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    again = start(port=server.port)
    children = again.children()
    # the worker has the most data: the model
    worker = max(children, key=lambda child: int(Path(f"/proc/{child}/statm").read_text().split()[5]))
    os.kill(int(worker), signal.SIGKILL)
    wait_until(lambda: set(again.children()) - set(children), what="no other worker")
    wait_until(lambda: again.is_healthy() and again.post({"text": "good"})[0] == 200)
    front = next(child for child in again.children() if "ltp.serve" in Path(f"/proc/{child}/cmdline").read_text())
    os.kill(int(front), signal.SIGKILL)
    assert again.process.wait(limit(60)) == 1
    assert again.log.read_text().endswith("error: the process that takes requests ended; start the command again\n")


# -- before it starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("port=80", "port=80 is out of range: it must be 1024 to 65535"),
        ("host=localhost", "host=localhost: no such option."),
        ("dtype=float16", "dtype=float16: no such option. Did you mean"),
        ("batch_size=0", "batch_size=0 is out of range: it must be 1 or more"),
        ("timeout=0", "timeout=0 is out of range: it must be more than 0 (seconds)"),
        ("batch_wait_ms=40000", "batch_wait_ms=40000 is out of range: it must be 0 or more, and less than the timeout"),
        ("budget=0.5", "budget=0.5: restore="),
        ("max_lenght=3", "unknown key max_lenght; did you mean max_length?"),
    ],
)
def test_mistakes_on_the_command_line(runs, arguments, message):
    finished = ltp_serve(f"restore={runs['demo']}", *arguments.split())
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith(f"error: {message}")


def test_the_extra_that_is_missing_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litserve" else find(name))
    finished = ltp_serve("restore=nowhere")
    assert finished.code == 2
    assert finished.err == "error: ltp.serve needs litserve: pip install 'learned-token-pruning[serve]'\n"


def test_a_port_in_use():
    pytest.importorskip("litserve")
    from ltp.serving.server import Address

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: cannot listen at 127.0.0.1: Address already in use; choose"):
            Address("127.0.0.1", port).check()
