"""Every key that a command's help lists is used once, on a small run."""

import dataclasses
import importlib
import json
import re

import pytest
from helpers import SMALL, in_process, ltp_train

from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.pruning import all_methods

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in multiply:RuntimeWarning"),  # FBGEMM
]

TASK_KEYS = ("task.max_length=16", "task.max_train_samples=20", "task.max_validation_samples=10")


def method_trials():
    """A command for each setting of each method, with its default or a valid value."""
    values = {"first_layer": 2, "keep_rates": "[1,0.8,0.6,0.5,0.4,0.3]", "select_layers": "[1,3]"}
    values |= {"pool_layer": 2, "lr_threshold": 1e-3}
    trials = {}
    for name, method in all_methods().items():
        for item in dataclasses.fields(method):
            fact = item.metadata["setting"]
            value = values.get(item.name, item.default)
            stage = fact.stage or ("soft" if fact.learned else "hard")
            trials[f"prune.{item.name}"] = f"prune={name} stage={stage} prune.{item.name}={value}"
    return trials


#: The arguments that try a key, by command and key. RUN is a run with the budgets 0.4 and 0.7, DENSE its dense parent,
#: TOPK a run that keeps a share.
TRIALS = {
    "evaluate": {
        "restore": "restore=RUN",
        "budget": "restore=RUN budget=0.4",
        "task": "restore=RUN task=sst2 data_dir=GLUE",
        "data_dir": "restore=RUN task=sst2 data_dir=GLUE",
        "task.max_length": "restore=RUN task.max_length=16 task.max_validation_samples=10",
        "split": "restore=RUN split=train",
        "by_length": "restore=RUN by_length=2",
        "threshold_scale": "restore=RUN threshold_scale=[0.5,1]",
        "execution": "restore=RUN execution=masked",
        "dtype": "restore=RUN dtype=bfloat16",
        "threads": "restore=RUN threads=1",
        "device": "restore=RUN device=cpu",
        "batch_size": "restore=RUN batch_size=3",
        "to": "restore=RUN to=HERE/predictions.parquet",
        "output": "restore=RUN output=HERE/table.json",
    },
    "predict": {
        "restore": "restore=RUN text=good",
        "budget": "restore=RUN text=good budget=0.4",
        "text": "restore=RUN text=good",
        "text_pair": "restore=PAIRS text=good text_pair=bad",
        "input": "restore=RUN input=HERE/texts.jsonl",
        "columns": "restore=RUN input=HERE/texts.jsonl columns=[body]",
        "split": "restore=RUN split=test",
        "task": "restore=RUN split=validation task=sst2 data_dir=GLUE",
        "data_dir": "restore=RUN split=validation task=sst2 data_dir=GLUE",
        "task.max_length": "restore=RUN split=test task.max_length=16",
        "submission": "restore=RUN split=test task=sst2 data_dir=GLUE submission=HERE",
        "output": "restore=RUN text=good output=HERE/labels.csv",
        "show": "restore=RUN text=good show=true",
        "html": "restore=RUN text=good html=HERE/page.html",
        # several processes: tests/evaluation/test_parts.py
        "trainer.devices": "--cfg job restore=RUN input=HERE/texts.jsonl output=HERE/out.jsonl trainer.devices=2",
        "trainer.num_nodes": "--cfg job restore=RUN input=HERE/texts.jsonl output=HERE/out.jsonl trainer.num_nodes=2",
        "trainer.strategy": "--cfg job restore=RUN input=HERE/texts.jsonl output=HERE/out.jsonl trainer.strategy=ddp",
        "resume": "restore=RUN input=HERE/texts.jsonl columns=[body] output=HERE/out.jsonl resume=true",
        "n_best": "restore=RUN text=good n_best=1",  # more are for answers: tests/evaluation/test_spans.py
        "max_length": "restore=RUN text=good max_length=8",
        "batch_size": "restore=RUN text=good batch_size=2",
        "threads": "restore=RUN text=good threads=1",
        "device": "restore=RUN text=good device=cpu",
    },
    # a server does not end: tests/serving has its keys
    "serve": {
        "restore": "--cfg job restore=RUN",
        "budget": "--cfg job restore=RUN budget=0.4",
        "dtype": "--cfg job restore=RUN dtype=int8",
        "max_length": "--cfg job restore=RUN max_length=16",
        "host": "--cfg job restore=RUN host=0.0.0.0",
        "port": "--cfg job restore=RUN port=8080",
        "batch_size": "--cfg job restore=RUN batch_size=8",
        "batch_wait_ms": "--cfg job restore=RUN batch_wait_ms=0",
        "queue_size": "--cfg job restore=RUN queue_size=16",
        "max_texts": "--cfg job restore=RUN max_texts=1",
        "max_request_bytes": "--cfg job restore=RUN max_request_bytes=10000",
        "timeout": "--cfg job restore=RUN timeout=2.5",
        "workers": "--cfg job restore=RUN workers=2",
        "threads": "--cfg job restore=RUN threads=1",
        "device": "--cfg job restore=RUN device=cpu",
    },
    "calibrate": {
        "restore": "restore=RUN target_flops=0.5 to=HERE/new",
        "target_flops": "restore=RUN target_flops=0.5 to=HERE/new",
        # how long a batch of this small model takes is too uncertain: tests/calibration has these keys
        "target_latency_ms": "--cfg job restore=RUN target_latency_ms=100 to=HERE/new",
        "budgets": "restore=RUN budgets=[0.5,0.8] to=HERE/new",
        "agreement": "restore=DENSE agreement=0.9 to=HERE/new",
        "search": "restore=TOPK target_flops=0.9 search=evolution generations=1 to=HERE/new",
        "generations": "restore=TOPK target_flops=0.9 search=evolution generations=1 to=HERE/new",
        "texts": "restore=DENSE target_flops=0.8 texts=HERE/texts.jsonl columns=[body] to=HERE/new",
        "columns": "restore=DENSE target_flops=0.8 texts=HERE/texts.jsonl columns=[body] to=HERE/new",
        "batch_size": "--cfg job restore=RUN target_latency_ms=100 batch_size=2 to=HERE/new",
        "execution": "--cfg job restore=RUN target_latency_ms=100 execution=packed to=HERE/new",
        "dtype": "--cfg job restore=RUN target_latency_ms=100 dtype=bfloat16 to=HERE/new",
        "task": "restore=RUN target_flops=0.5 task=sst2 data_dir=GLUE to=HERE/new",
        "data_dir": "restore=RUN target_flops=0.5 task=sst2 data_dir=GLUE to=HERE/new",
        "task.max_length": "restore=RUN target_flops=0.5 task.max_length=16 to=HERE/new",
        "examples": "restore=RUN target_flops=0.5 examples=10 to=HERE/new",
        "threads": "restore=RUN target_flops=0.5 threads=1 to=HERE/new",
        "device": "restore=RUN target_flops=0.5 device=cpu to=HERE/new",
        "to": "restore=RUN target_flops=0.5 to=HERE/new",
        "output_root": "restore=RUN target_flops=0.5 output_root=HERE/other",
        "overwrite": "restore=RUN target_flops=0.5 to=HERE/new overwrite=true",
    },
    "bench": {
        "restore": "restore=RUN",
        "budget": "restore=RUN budget=0.4",
        "task": "restore=RUN task=sst2 data_dir=GLUE",
        "data_dir": "restore=RUN task=sst2 data_dir=GLUE",
        "task.max_length": "restore=RUN task.max_length=16",
        "seed": "restore=RUN seed=1",
        "bench.shape": "bench.shape=tiny",
        "bench.relative_flops": "restore=RUN bench.relative_flops=0.6",
        "bench.lengths": "restore=RUN bench.lengths=rte",
        "bench.sequences": "restore=RUN bench.sequences=4",
        "bench.batch_size": "restore=RUN bench.batch_size=[1,2]",
        "bench.order": "restore=RUN bench.order=sorted",
        "bench.dtype": "restore=RUN bench.dtype=bfloat16",
        "bench.threads": "restore=RUN bench.threads=1",
        "bench.rounds": "restore=RUN bench.rounds=2",
        "bench.engines": "restore=RUN bench.engines=[hf_sdpa,masked]",
        "bench.baseline": "restore=RUN bench.baseline=hf_eager bench.engines=[hf_eager]",
        "bench.train": "restore=RUN bench.train=true",
        "bench.clock": "restore=RUN bench.clock=processor",
        "bench.device": "restore=RUN bench.device=cpu",
        "bench.output": "restore=RUN bench.output=HERE/bench.json",
    },
    "leaderboard": {
        "methods": "--cfg job methods=[topk]",
        "budgets": "--cfg job budgets=[0.5]",
        "seeds": "--cfg job seeds=[0,1]",
        "layers": "--cfg job layers=false",
        "int8": "--cfg job int8=false",
        "speed_batch_size": "--cfg job speed_batch_size=8",
        "threads": "--cfg job threads=1",
        "to": "--cfg job to=HERE/board",
        "any": "--cfg job task=mrpc",
    },
    "export": {
        "restore": "restore=RUN to=HERE/exported",
        "budget": "restore=RUN to=HERE/exported budget=0.4",
        "to": "restore=RUN to=HERE/exported",
        "format": "restore=RUN to=HERE/exported format=huggingface",
        "dtype": "restore=RUN to=HERE/exported dtype=float32",
        "overwrite": "restore=RUN to=HERE/exported overwrite=true",
        "data_dir": "restore=RUN to=HERE/exported data_dir=null",
        # a graph takes ten seconds: tests/exporting has its keys
        "sequences": "--cfg job restore=RUN to=HERE/exported format=onnx sequences=4",
        "batch_size": "--cfg job restore=RUN to=HERE/exported format=onnx batch_size=[1,2]",
        "rounds": "--cfg job restore=RUN to=HERE/exported format=onnx rounds=0",
    },
    "report": {
        "output_root": "output_root=ROOT to=HERE/report figures=false",
        "folders": "folders=[ROOT] to=HERE/report figures=false",
        "to": "ROOT to=HERE/report figures=false",
        "points": "ROOT to=HERE/report figures=false points=2",
        "figures": "ROOT to=HERE/report figures=false",
    },
    "train": {
        **{key: f"{key}={value}" for key, value in {"lr": 1e-4, "batch_size": 8, "epochs": 2, "seed": 3}.items()},
        "weight_decay": "weight_decay=0.1",
        "warmup_ratio": "warmup_ratio=0.2",
        "save_step": "save_step=5",
        "load_best": "load_best=false",
        "finetune.lr": "prune=topk finetune.lr=1e-3",
        "soft.epochs": "prune=threshold soft.epochs=2",
        "plan": "plan=only",
        "restore": "prune=manual restore=DENSE",
        "data_dir": "task=sst2 model=tiny recipe=demo data_dir=GLUE",
        "output_root": "output_root=HERE",
        "overwrite": "overwrite=true",
        "flops_budget": "flops_budget=0.5",
        "prune.target_flops": "prune=threshold prune.target_flops=0.5",
        "budgets": "prune=threshold budgets=[0.3,0.5]",
        "distill.weight": "prune=topk distill=logits distill.weight=0.3",
        "distill.temperature": "prune=topk distill=logits distill.temperature=3",
        "distill.hidden_weight": "prune=topk distill=hidden distill.hidden_weight=0.2",
        "distill.ranking_weight": "prune=topk distill=ranking distill.ranking_weight=0.2",
        "prune.sliding_layers": (
            "prune=topk prune.sliding_layers=scale model.architecture.model_type=modernbert "
            "+model.architecture.local_attention=4"
        ),
        "distill.teacher": "prune=topk restore=DENSE distill=logits distill.teacher=DENSE",
        **method_trials(),
        "plugins": "plugins=[ltp.pruning.methods.topk]",
        "model.num_layers": "model.num_layers=2",
        "model.name_or_path": "model.name_or_path=PRETRAINED",
        "model.gradient_checkpointing": "model.gradient_checkpointing=true",
        **{item.partition("=")[0]: item for item in TASK_KEYS},
        **dict.fromkeys(
            (
                "task.train_file",
                "task.validation_file",
                "task.test_file",
                "task.text_columns",
                "task.label_column",
                "task.metric",
                "task.kind",
                "task.size",
            ),
            "task=custom model=tiny recipe=demo task.train_file=HERE/texts.jsonl task.validation_file=HERE/texts.jsonl "
            "task.test_file=HERE/texts.jsonl "
            "task.text_columns=[body] task.label_column=sentiment task.metric=f1 task.kind=single task.size=small",
        ),
        "task.null_threshold": "--cfg job task=squad_v2 data_dir=GLUE task.null_threshold=0.5",
        "callbacks": "callbacks=[early_stopping]",
        "trainer.devices": "trainer.devices=2",
        "trainer.strategy": "trainer.devices=2 trainer.strategy=ddp",
        "trainer.precision": "trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches": "trainer.accumulate_grad_batches=2",
        "trainer.max_time": "trainer.max_time=00:01:00:00",
        "trainer.max_steps": "trainer.max_steps=3",
        "trainer.limit_train_batches": "trainer.limit_train_batches=3",
        "trainer.fast_dev_run": "trainer.fast_dev_run=true",
        "trainer.profiler": "trainer.profiler=simple",
    },
}
#: What a trial needs beside its key, to be quick.
COMMON = {
    "bench": "bench.output=HERE/bench.json bench.sequences=4 bench.rounds=1 bench.batch_size=[2] bench.device=cpu "
    "bench.engines=[hf_sdpa,packed_pruned]",
    "calibrate": "examples=32",
    "train": "plan=only",
}
#: Lines of a help that are no keys, or keys of others.
NO_KEYS = {"results.csv", "summary.md", "summary.tex", "for", "hydra.launcher.n_jobs", "hydra.launcher.partition"}


@pytest.fixture(scope="module")
def places(tmp_path_factory, make_dense):
    root = tmp_path_factory.mktemp("runs")
    glue = tmp_path_factory.mktemp("glue")
    for command in ("prune=manual prune.final_token_threshold=0.02", "prune=topk prune.token_keep_rate=-0.5"):
        assert (finished := ltp_train([*command.split(), *SMALL, f"output_root={root}"])).code == 0, finished.err
    directories = {json.loads(path.read_text())["method"]: path.parent for path in root.rglob("results.json")}
    budgets = f"restore={directories['manual']} budgets=[0.4,0.7] to={root}/budgets examples=32"
    assert (finished := in_process("ltp.calibrate", budgets, command_of("calibrate"))).code == 0, finished.err
    (glue / "sst2").mkdir()
    for split in ("train", "validation", "test"):
        rows = [
            f"{word} film number {number}\t{label}\n"
            for number in range(8)
            for word, label in (("good", 1), ("bad", 0))
        ]
        (glue / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    pretrained = tmp_path_factory.mktemp("pretrained")
    tokenizer = demo_tokenizer()
    make_dense("bert", vocab_size=len(tokenizer)).save_pretrained(pretrained)
    tokenizer.save_pretrained(pretrained)
    pairs = finished_pairs(tmp_path_factory.mktemp("pairs"))
    return {
        "RUN": root / "budgets",
        "TOPK": directories["topk"],
        "DENSE": directories["dense"],
        "ROOT": root,
        "GLUE": glue,
        "PAIRS": pairs,
        "PRETRAINED": pretrained,
    }


def finished_pairs(root):
    """A small run on pairs of texts."""
    rows = [{"first": "good", "second": "bad", "label": number % 2} for number in range(16)]
    file = root / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = (
        f"task=custom model=tiny recipe=demo task.train_file={file} task.validation_file={file} "
        f"task.text_columns=[first,second] output_root={root} stage=finetune"
    )
    small = [word for word in SMALL if not word.startswith("task.")]
    assert (finished := ltp_train([*command.split(), *small])).code == 0, finished.err
    return next(root.rglob("results.json")).parent


def command_of(name):
    return importlib.import_module(f"ltp.{name}").COMMAND


def keys_of_help(name):
    """The keys that a command's help lists."""
    text = in_process(f"ltp.{name}", "--help", command_of(name)).out
    lines = re.findall(
        r"^  (\w[\w.]*(?:, [\w.]+)*)", text[text.index("\nKeys") if "\nKeys" in text else text.index("Keys (") :], re.M
    )
    return {key for line in lines for key in line.split(", ") if key != "..." and key not in NO_KEYS and key[0] != "."}


@pytest.mark.parametrize("name", TRIALS)
def test_every_key_of_the_help_is_tried(name):
    assert keys_of_help(name) == set(TRIALS[name])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param(name, arguments, id=f"{name}-{arguments}")
        for name, trials in TRIALS.items()
        for arguments in dict.fromkeys(trials.values())
    ],
)
def test_a_key_works(places, tmp_path, name, arguments):
    texts = [row["sentence"] for row in demo_rows("train")[:40]]
    rows = [{"sentence": text, "body": text, "sentiment": number % 2} for number, text in enumerate(texts)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"{COMMON.get(name, '')} {arguments}"
    given = {word.partition("=")[0]: word for word in command.split()}  # the later word of a key wins
    command = " ".join(given.values())
    if name == "train":
        command += f" output_root={places['ROOT']}" if "output_root" not in given else ""
    for place, path in {**places, "HERE": tmp_path}.items():
        command = re.sub(rf"\b{place}\b", str(path), command)
    finished = in_process(f"ltp.{name}", command, command_of(name), COLUMNS="160")
    assert finished.code == 0, finished.err
