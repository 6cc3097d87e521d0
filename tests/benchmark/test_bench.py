"""The benchmark: its arithmetic, its models and sequences, what it refuses, and the command once from end to end."""

import importlib.util
import json

import pytest
import torch
import yaml
from helpers import composed, in_process, total_relative_flops

from ltp import LTPForSequenceClassification, bench
from ltp.benchmark.checks import WrongResultsError, check_logits
from ltp.benchmark.compare import Plan, measured_speedup, run_benchmark
from ltp.benchmark.engines import DEFAULT_ENGINES, ENGINES, Engine, UnavailableError
from ltp.benchmark.models import random_classifier
from ltp.benchmark.products import bare_products, linear_tokens
from ltp.benchmark.profiles import lowest_reachable_flops, set_profile_thresholds, split_point
from ltp.benchmark.report import Check, Facts, Key, Limit, inference_rows, training_rows
from ltp.benchmark.shapes import SHAPES
from ltp.benchmark.table import left_out
from ltp.command import cli
from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.data.lengths import LENGTHS, parsed_range, synthetic_lengths, uniform_lengths
from ltp.data.sequences import make_batches, random_sequences
from ltp.deploy.timing import Spread, interleaved, peak_memory, ratio

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning")

ROW_KEYS = {
    *("kind", "engine", "title", "dtype", "batch_size", "pruned", "milliseconds_per_sequence", "sequences_per_second"),
    *("speedup", "flops_ratio", "efficiency", "limit", "peak_memory_mb", "score", "logits_difference"),
}


@pytest.fixture(scope="module")
def sequences():
    return random_sequences(synthetic_lengths("sst2", 12), SHAPES["tiny"]["vocab_size"])


@pytest.fixture(scope="module")
def model(sequences):
    pruned = LTPForSequenceClassification.from_dense(random_classifier("tiny"))
    set_profile_thresholds(pruned, make_batches(sequences, len(sequences))[0], 0.5)
    return pruned


# -- sequences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("count", [10, 500])
def test_synthetic_lengths_have_the_mean_they_promise(name, count):
    lengths = synthetic_lengths(name, count)
    assert sum(lengths) / count == pytest.approx(LENGTHS[name].mean, abs=0.5)
    assert 4 <= min(lengths) < max(lengths) <= 128
    assert lengths != sorted(lengths)
    assert lengths == synthetic_lengths(name, count)
    assert lengths != synthetic_lengths(name, count, seed=1)
    assert sorted(lengths) == sorted(synthetic_lengths(name, count, seed=1))


def test_a_range_of_lengths():
    assert parsed_range("128") == (128, 128)
    assert parsed_range("384-512") == (384, 512)
    assert [parsed_range(text) for text in ("mrpc", "-5", "4-", "1.5")] == [None] * 4
    lengths = uniform_lengths(384, 512, 5)
    assert sorted(lengths) == [384, 416, 448, 480, 512]
    assert lengths == uniform_lengths(384, 512, 5)
    assert uniform_lengths(7, 7, 3) == [7, 7, 7]


def test_batches_are_padded_to_their_longest_sequence():
    first, second = make_batches([[7, 8], [5, 6, 9], [7]], 2, pad_token_id=1, token_types=[[0, 1], [0, 0, 1], [0]])
    assert first["input_ids"].tolist() == [[7, 8, 1], [5, 6, 9]]
    assert first["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert first["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert second["input_ids"].tolist() == [[7]]
    by_length = make_batches([[7, 8], [5, 6, 9], [7]], 2, order="sorted")
    assert by_length[0]["input_ids"].tolist() == [[5, 6, 9], [7, 8, 0]]


def test_shapes_are_those_that_the_trainer_knows():
    paths = {path.stem: path for path in (bench.Path(cli.config_dir()) / "model").glob("*.yaml")}
    assert SHAPES.keys() - {"minilm"} <= paths.keys()
    for path in (paths[name] for name in SHAPES if name != "minilm"):
        wanted = yaml.safe_load(path.read_text(encoding="utf-8"))["architecture"]
        config = random_shape(path.stem)
        for key in (key for key in wanted if "dropout" not in key):
            assert getattr(config, key) == wanted[key], path
        assert config.hidden_size % config.num_attention_heads == 0


def random_shape(name):
    from transformers import AutoConfig

    return AutoConfig.for_model(**SHAPES[name])


# -- keep profiles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("prune_mode", ["none", "absolute_threshold", "topk"])
def test_a_profile_has_the_wished_cost(wanted, prune_mode):
    ids = random_sequences(synthetic_lengths("mrpc", 60), 1000)
    pruned = LTPForSequenceClassification.from_dense(random_classifier("tiny"), prune_mode=prune_mode)
    batches = make_batches(ids, 20)
    reached = set_profile_thresholds(pruned, make_batches(ids, 60)[0], wanted)
    assert reached == pytest.approx(wanted, abs=0.02)
    with torch.no_grad():
        lengths = torch.cat([pruned(**batch).token_lengths for batch in batches])
    assert total_relative_flops(lengths, 96, 384).item() == pytest.approx(reached, abs=1e-4)
    assert pruned.config.prune_mode == "absolute_threshold"


def test_a_cost_that_no_profile_has_is_refused(sequences):
    pruned = LTPForSequenceClassification.from_dense(random_classifier("tiny"))
    batch = make_batches(sequences, 12)[0]
    lowest = lowest_reachable_flops(pruned, batch["attention_mask"].sum(dim=1))
    assert 0 < lowest < 0.2
    with pytest.raises(ValueError, match=r"relative_flops is 0\.001; it must be in \[0\.\d+, 1\]"):
        set_profile_thresholds(pruned, batch, 0.001)


def test_a_split_point_stands_in_a_gap():
    scores = torch.tensor([0.3, 0.9, 0.4, 0.7])
    assert split_point(scores, 2) == pytest.approx(0.55)
    assert split_point(scores, 3) == pytest.approx(0.55)  # a wider gap than that between 0.3 and 0.4, one further
    assert split_point(scores, 4) == 0
    assert split_point(scores, 0) > 0.9


# -- timing -----------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_every_other_goes_backwards():
    order, now = [], [0.0]

    def engine(name, cost):
        def run():
            order.append(name)
            now[0] += cost

        return run

    waited = []
    seconds = interleaved(
        {"a": engine("a", 1.0), "b": engine("b", 0.25)},
        3,
        clock=lambda: now[0],
        synchronise=lambda: waited.append(len(order)),
        after=lambda name: order.append(f"after {name}"),
    )
    ran = ["a", "b", "b", "a", "a", "b"]
    assert order == [word for name in ran for word in (name, f"after {name}")]
    assert seconds == {"a": [1.0] * 3, "b": [0.25] * 3}
    assert len(waited) == 2 * len(ran)  # before and after each


def test_ratios_are_taken_round_by_round():
    # the second round was four times as slow for both: the ratio does not see it
    assert ratio([2.0, 8.0, 3.0], [1.0, 4.0, 1.0]) == Spread(2.0, 2.0, 3.0)


def test_speedup_efficiency_and_limit_by_hand():
    seconds = {
        Key("hf_sdpa", "float32"): [6.0, 12.0, 6.0],
        Key("packed_dense", "float32"): [3.0, 6.0, 3.0],
        Key("packed_pruned", "float32"): [2.0, 4.0, 2.0],
        Key("deployed_pruned", "int8"): [1.0, 2.0, 1.0],
        Limit("plain", "float32", True): [1.0, 2.0, 1.0],
    }
    checks = {key: Check(0.0, None) for key in seconds if isinstance(key, Key)}
    rows = inference_rows(seconds, checks, 32, Facts(sequences=4, relative_flops=0.5, baseline="hf_sdpa"))
    by_name = {row["engine"]: row for row in rows}
    assert all(set(row) == ROW_KEYS for row in rows)

    pruned = by_name["packed_pruned"]
    assert pruned["milliseconds_per_sequence"] == {"median": 500, "min": 500, "max": 1000}
    assert pruned["sequences_per_second"] == 2
    assert pruned["speedup"] == {"over": "hf_sdpa float32", "median": 3, "min": 3, "max": 3}
    assert pruned["flops_ratio"] == 2
    assert pruned["efficiency"] == 0.75  # 1.5 times as fast as dense, at half the FLOPs
    assert pruned["limit"] == 0.5

    assert by_name["packed_dense"]["flops_ratio"] == 1
    assert by_name["packed_dense"]["efficiency"] is None
    assert by_name["packed_dense"]["limit"] is None  # the dense products were not timed
    assert by_name["deployed_pruned"]["speedup"]["over"] == "hf_sdpa float32"  # Hugging Face has no int8
    assert by_name["deployed_pruned"]["speedup"]["median"] == 6
    assert by_name["deployed_pruned"]["efficiency"] is None
    assert by_name["products_plain_pruned"]["kind"] == "products"
    assert by_name["products_plain_pruned"]["milliseconds_per_sequence"]["median"] == 250


def test_training_rows_are_over_the_masked_form():
    seconds = {Key("train_masked", "float32"): [4.0, 4.0], Key("train_packed", "float32"): [2.0, 1.0]}
    masked, packed = training_rows(seconds, 8, Facts(1, 0.5, "hf_sdpa"))
    assert masked["speedup"]["median"] == 1
    assert packed["speedup"] == {"over": "train_masked float32", "median": 3, "min": 2, "max": 4}
    assert set(packed) == ROW_KEYS


def test_products_do_what_survives():
    lengths = torch.tensor([[5, 4, 2], [3, 3, 1]])
    assert linear_tokens(lengths) == [(8, 7), (7, 2)]  # the last layer goes on with two classification tokens


def test_bare_products_run(model):
    lengths = [torch.tensor([[5, 5, 4, 4, 3, 3, 2]]), torch.tensor([[9] * 7])]
    for dtype, backend in [("float32", "plain"), ("bfloat16", "plain"), ("float32", "deployed")]:
        bare_products(model.config, lengths, dtype, backend, torch.device("cpu"))()


def test_peak_memory_sees_what_a_pass_allocates():
    found = peak_memory(lambda: torch.ones(64 * 2**18), torch.device("cpu"))  # 64 MiB
    assert found is None or 60 < found < 200


# -- wrong results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 2e-4), ("bfloat16", 1.0), ("int8", 1.0)])
def test_wrong_logits_are_refused(dtype, noise):
    reference = torch.tensor([[0.5, -0.5], [1.0, 0.0]])
    assert check_logits("x", dtype, [reference[:1], reference[1:]], reference, "y") == 0
    with pytest.raises(WrongResultsError, match=rf"^x, {dtype}: the logits of \d of 2 sequences differ"):
        check_logits("x", dtype, [reference + noise], reference, "y")
    with pytest.raises(WrongResultsError):
        check_logits("x", dtype, [reference * float("nan")], reference, "y")


def test_nothing_is_timed_where_an_engine_is_wrong(model, sequences, monkeypatch):
    def build(models, dtype):
        return lambda batch: models.pruned(**batch).logits + 1

    monkeypatch.setitem(ENGINES, "packed_pruned", Engine("broken", True, ("float32",), build))
    monkeypatch.setattr("ltp.benchmark.compare.interleaved", lambda *args, **kwargs: pytest.fail("timed"))
    plan = Plan(engines=("packed_dense", "packed_pruned"), batch_sizes=(4,), rounds=1)
    with pytest.raises(WrongResultsError) as failure:
        run_benchmark(model, lambda size: make_batches(sequences, size), plan)
    assert str(failure.value).startswith(
        "broken, float32: the logits of 12 of 12 sequences differ from those of the masked form by up to 1 "
        "(allowed: 0.0001), so nothing was timed."
    )


def test_wrong_gradients_are_refused(model, sequences, monkeypatch):
    monkeypatch.setattr(
        "ltp.benchmark.training._gradients", lambda model, batch: torch.ones(3) * (1 + (model.execution == "packed"))
    )
    plan = Plan(engines=("packed_pruned",), batch_sizes=(4,), rounds=1, train=True)
    with pytest.raises(WrongResultsError, match=r"packed training: its gradients differ .* by 1 of their norm"):
        run_benchmark(model, lambda size: make_batches(sequences, size), plan)


# -- the comparison ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_engine_runs_and_the_model_stays_as_it_was(model, sequences, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # ONNX Runtime may be installed here
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = []
    plan = Plan(dtypes=("float32", "bfloat16", "int8"), batch_sizes=(1, 12), rounds=2, train=True)
    report = run_benchmark(
        model, lambda size: make_batches(sequences, size), plan, lambda done, total, what: told.append((done, total))
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.execution, model.training, model.config.prune_mode) == ("packed", False, "absolute_threshold")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert told == [(done, told[-1][1]) for done in range(told[-1][1] + 1)]  # the bar reaches its end

    assert left_out(report["left_out"]) == [
        "left out: onnx: onnx, onnxruntime, onnxscript not installed: pip install 'learned-token-pruning[onnx]'"
    ]
    timed = {(row["engine"], row["dtype"], row["batch_size"]) for row in report["results"]}
    for size in (1, 12):
        expected = {(name, dtype, size) for name in DEFAULT_ENGINES for dtype in ENGINES[name].dtypes if name != "onnx"}
        assert {entry for entry in timed if entry[2] == size and entry[0] in ENGINES} == expected
        assert ("train_packed", "bfloat16", size) in timed
    for row in report["results"]:
        assert set(row) == ROW_KEYS
        assert row["milliseconds_per_sequence"]["min"] > 0
        if row["engine"].endswith("_pruned") and row["kind"] == "inference":
            assert row["efficiency"] > 0
            assert row["flops_ratio"] == pytest.approx(1 / report["relative_flops"])
            assert row["limit"] > 0
    assert report["relative_flops"] == pytest.approx(0.5, abs=0.03)
    assert len(report["tokens_per_layer"]) == 7
    json.dumps(report)


def test_a_model_that_does_not_prune_is_measured_dense(sequences):
    dense = LTPForSequenceClassification.from_dense(random_classifier("tiny"))
    plan = Plan(engines=("packed_dense", "packed_pruned"), batch_sizes=(12,), rounds=1, train=True)
    report = run_benchmark(dense, lambda size: make_batches(sequences, size), plan)
    assert left_out(report["left_out"]) == [
        "left out: packed_pruned: this model does not prune; bench.relative_flops=0.5 gives it thresholds"
    ]
    assert [row["engine"] for row in report["results"]] == ["packed_dense", "products_plain_dense"]


def test_onnx_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(
        UnavailableError, match=r"^onnxscript not installed: pip install 'learned-token-pruning\[onnx\]'$"
    ):
        ENGINES["onnx"].build(None, "float32")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the extra onnx",
)
def test_graphs_compute_the_logits(model, sequences):
    engines = ("onnx", "onnx_pruned")
    plan = Plan(engines=engines, dtypes=("float32", "int8"), batch_sizes=(5,), rounds=1)
    report = run_benchmark(model, lambda size: make_batches(sequences, size), plan)
    rows = {(row["engine"], row["dtype"]) for row in report["results"]}
    assert rows == {(engine, dtype) for engine in engines for dtype in ("float32", "int8")}


@pytest.mark.parametrize("with_dense", [False, True])
def test_measured_speedup(model, sequences, with_dense):
    batches = [{**batch, "labels": torch.zeros(len(batch["input_ids"]))} for batch in make_batches(sequences, 5)]
    dense = LTPForSequenceClassification.from_dense(model.dense) if with_dense else None
    model.train()
    model.execution = "masked"
    found = measured_speedup(model, dense, batches, rounds=2)
    assert model.training
    assert model.execution == "masked"
    model.eval()
    model.execution = "packed"
    assert found["sequences"] == 12
    assert found["batch_size"] == 5
    assert found["rounds"] == 2
    assert found["relative_flops"] == pytest.approx(0.5, abs=0.03)
    assert found["efficiency"] == found["speedup"]["median"] * found["relative_flops"]
    assert found["speedup"]["min"] <= found["speedup"]["median"] <= found["speedup"]["max"]
    json.dumps(found)


# -- the command ------------------------------------------------------------------------------------------------


def ltp_bench(command):
    """``python -m ltp.bench`` in this process."""
    return in_process("ltp.bench", command, bench.COMMAND)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL_ENGINES = ", ".join(ENGINES)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bench.enginess=[onnx]", "unknown key bench.enginess; did you mean bench.engines?"),
        ("shape=tiny", "unknown key shape; did you mean bench.shape?"),
        ("+bench.foo=1", "unknown key bench.foo; see python -m ltp.bench --cfg job for every key"),
        (
            "model=tiny",
            "unknown key model; a benchmark's is chosen by restore=… (a demo run brings its task) or bench.shape=…",
        ),
        (
            "bench.engines=[hf_sdp]",
            f"bench.engines=hf_sdp: no such option. Did you mean hf_sdpa? Options: {ALL_ENGINES}",
        ),
        ("bench.engines=[]", "bench.engines=[] is out of range: it must be one or more engines, or null for all"),
        ("bench.dtype=float16", "bench.dtype=float16: no such option. Did you mean bfloat16 or float32? Options: "
         "float32, bfloat16, int8"),
        ("bench.rounds=0", "bench.rounds=0 is out of range: it must be 1 or more"),
        ("bench.rounds=x", "bench.rounds=x: Value 'x' of type 'str' could not be converted to Integer"),
        (
            "bench.batch_size=[1,0]",
            "bench.batch_size=[1,0] is out of range: it must be one or more whole numbers from 1 on, as [1,32]",
        ),
        ("bench.relative_flops=0", "bench.relative_flops=0 is out of range: it must be above 0 and at most 1"),
        (
            "bench.lengths=512-384",
            "bench.lengths=512-384 is out of range: it must be a task's name, a number from 4 on, or a range of them "
            "as 384-512",
        ),
        ("bench.order=longest", "bench.order=longest: no such option. Options: random, sorted"),
        (
            "restore=./nowhere",
            "restore=./nowhere: no such directory. Give a run directory, a Hugging Face directory or a hub id.",
        ),
        (
            "restore=./nowhere bench.shape=tiny",
            "restore=./nowhere and bench.shape=tiny contradict each other: give one of them",
        ),
        ("task=rte bench.lengths=rte", "task=rte and bench.lengths=rte contradict each other: give one of them"),
        (
            "task=rte",
            "task=rte needs restore=…, whose tokenizer reads its texts; bench.lengths=mrpc, sst2 or rte "
            "needs none",
        ),
        (
            "bench.clock=processor bench.threads=2",
            "bench.clock=processor adds up the time of all threads; it needs bench.threads=1, not 2",
        ),
        ("data_dir=glue", "data_dir=glue goes with task=…; synthetic lengths need no data"),
        ("bench.shape=tiny bench.output=.", "bench.output=. is a directory; give a file"),
        ("budget=0.5", "budget=0.5 goes with restore=…, a checkpoint that holds it"),
        (
            "restore=./nowhere budget=0.5 bench.relative_flops=0.4",
            "budget=0.5 and bench.relative_flops=0.4 contradict each other: give one of them",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(here, command, message):
    finished = ltp_bench(command)
    assert finished.err == f"error: {message}\n"
    assert finished.code == 2
    assert finished.out == ""
    assert list(here.iterdir()) == []


def test_a_cost_out_of_reach_is_told_with_the_range(here):
    finished = ltp_bench("bench.shape=tiny bench.sequences=4 bench.relative_flops=0.001")
    assert finished.code == 2
    assert finished.err.startswith(
        "error: bench.relative_flops=0.001 cannot be reached: relative_flops is 0.001; it must be in [0."
    )


def test_lengths_beyond_the_positions_of_the_model(here):
    finished = ltp_bench("bench.shape=tiny bench.lengths=384-513")
    assert finished.code == 2
    assert finished.err == (
        "error: bench.lengths=384-513 is out of range: it must be at most 512 tokens for this model\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(here):
    finished = ltp_bench("bench.shape=tiny bench.device=cuda")
    assert (finished.code, finished.err) == (2, "error: bench.device=cuda: no GPU found; use bench.device=cpu\n")


def test_help_explains_every_key(here):
    text = ltp_bench("--help").out
    for key in bench.BenchOptions.__dataclass_fields__:
        assert f"bench.{key}" in text
    for name in ENGINES:
        assert name in text


def test_cfg_job_fills_nulls_and_measures_nothing(here):
    finished = ltp_bench("--cfg job bench.batch_size=8")
    shown = yaml.safe_load(finished.out)
    assert finished.code == 0
    assert shown["bench"]["shape"] == "bert-base"
    assert shown["bench"]["relative_flops"] == 0.5
    assert shown["bench"]["lengths"] == "mrpc"
    assert shown["bench"]["batch_size"] == [8]
    assert list(here.iterdir()) == []


def test_the_command_prints_a_table_and_writes_a_report(here):
    finished = ltp_bench(
        "bench.shape=tiny bench.lengths=sst2 bench.sequences=8 bench.batch_size=4 bench.rounds=2 bench.train=true "
        "bench.engines=[hf_sdpa,packed_dense,packed_pruned] bench.output=reports/tiny.json"
    )
    assert finished.code == 0, finished.err
    assert "tiny, random weights · synthetic, like sst2" in finished.out
    for title in ("HF sdpa", "ltp packed, pruned", "bare products, plain, dense", "training step, packed"):
        assert title in finished.out
    assert finished.out.endswith("report: reports/tiny.json\n")
    report = json.loads((here / "reports" / "tiny.json").read_text(encoding="utf-8"))
    assert set(report) == {
        *("created", "command", "settings", "model", "pruning", "lengths", "metric", "hardware", "versions"),
        *("definitions", "sequences", "tokens", "relative_flops", "tokens_per_layer", "left_out", "results", "plan"),
    }
    assert report["metric"] is None
    assert set(report["hardware"]) >= {"processor", "cores", "threads", "device"}
    assert report["hardware"]["threads"] == 1
    assert report["sequences"] == 8
    assert report["relative_flops"] == pytest.approx(0.5, abs=0.05)
    assert [path.name for path in (here / "reports").iterdir()] == ["tiny.json"]  # nothing half written beside it


def test_a_checkpoint_is_measured_on_a_tasks_real_texts(here, make_demo_checkpoint):
    finished = ltp_bench(
        f"restore={make_demo_checkpoint(here)} bench.sequences=6 bench.batch_size=[3] bench.rounds=1 "
        "bench.engines=[packed_dense,packed_pruned] bench.baseline=packed_dense"
    )
    assert finished.code == 0, finished.err
    (path,) = (here / "outputs" / "bench").iterdir()
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["lengths"] == "demo, validation split, 6 of 1000 rows"
    assert report["model"]["restore"].endswith("run")
    assert report["settings"]["task"]["name"] == "demo"
    speedup = next(row for row in report["results"] if row["engine"] == "packed_pruned")["speedup"]
    assert speedup["over"] == "packed_dense float32"


def test_rows_have_the_metric_of_the_texts(here, make_demo_checkpoint):
    run = make_demo_checkpoint(here)
    finished = ltp_bench(
        f"restore={run} bench.sequences=1000 bench.batch_size=50 bench.order=sorted bench.rounds=1 "
        "bench.engines=[masked,packed_pruned] bench.baseline=masked bench.output=report.json"
    )
    assert finished.code == 0, finished.err
    report = json.loads((here / "report.json").read_text(encoding="utf-8"))
    predictor = LTPForSequenceClassification.from_pretrained(run)
    rows = demo_rows("validation")
    encoded = demo_tokenizer()([row["sentence"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = predictor(encoded["input_ids"], encoded["attention_mask"]).logits.argmax(dim=1)
    wanted = (found == torch.tensor([row["label"] for row in rows])).double().mean().item()
    assert report["metric"] == "accuracy"
    assert {round(row["score"], 6) for row in report["results"] if row["kind"] == "inference"} == {round(wanted, 6)}
    assert f"{wanted:.4f}" in finished.out


def test_a_budget_of_a_checkpoint_is_measured(here, make_demo_checkpoint):
    run = make_demo_checkpoint(here)
    model = LTPForSequenceClassification.from_pretrained(run, prune_mode="absolute_threshold")
    model.set_budgets([0.2, 0.9])
    with torch.no_grad():
        model.thresholds.fill_(0.9)  # nothing but the classification tokens
    model.use_budget(0.9)
    with torch.no_grad():
        model.thresholds.zero_()
    model.save_pretrained(run / "model")
    command = (
        f"restore={run} bench.sequences=6 bench.batch_size=3 bench.rounds=1 bench.output=report.json "
        "bench.engines=[packed_dense,masked,packed_pruned,deployed_pruned] bench.baseline=packed_dense"
    )
    costs = []
    for budget in (0.2, 0.9, None):
        finished = ltp_bench(f"{command} budget={budget or 'null'}")
        assert finished.code == 0, finished.err
        report = json.loads((here / "report.json").read_text(encoding="utf-8"))
        assert report["settings"]["budget"] == budget
        costs.append(report["relative_flops"])
    assert costs[0] < 0.5
    assert costs[1:] == [1, 1]
    finished = ltp_bench(f"{command} budget=0.5")
    assert finished.code == 2
    assert finished.err.startswith(f"error: budget=0.5: restore={run} has no thresholds for it; it holds 0.2, 0.9.")


@pytest.fixture
def make_demo_checkpoint():
    """A finished demo run, as far as the benchmark reads it: weights, tokenizer, its configuration."""

    def make(folder):
        from transformers import BertConfig, BertForSequenceClassification

        tokenizer = demo_tokenizer()
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
        )
        dense = BertForSequenceClassification(config)
        pruned = LTPForSequenceClassification.from_dense(dense, prune_mode="topk", token_keep_rate=0.5)
        run = folder / "run"
        pruned.save_pretrained(run / "model")
        tokenizer.save_pretrained(run / "model")
        (run / "results.json").write_text(json.dumps({"model": "tiny"}), encoding="utf-8")
        stored = {"task": {"name": "demo", "max_length": 64}, "data_dir": None}
        (run / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
        return run

    return make


def test_the_configuration_composes_with_every_task_but_the_demo():
    for task in ("rte", "mrpc", "custom"):
        assert composed(f"task={task}", config_name="bench").task.name == task
