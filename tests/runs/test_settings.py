"""What stands in ``conf/`` and what its schema lets through."""

import ast
import dataclasses
from pathlib import Path

import pytest
from helpers import composed, plan_of, settings_of
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ltp import train
from ltp.command import cli
from ltp.data.tasks import TASKS
from ltp.errors import UserError
from ltp.pruning.importance import SCORING_MODES
from ltp.runs import settings as config
from ltp.runs.settings import TrainSettings, check_ranges, known_keys, unknown_key

CONF = Path(cli.config_dir())
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent not in (CONF, CONF / "logger") and "hydra" not in path.relative_to(CONF).parts
) + [f"task={name}" for name in TASKS]


# -- what is shipped -----------------------------------------------------------------------------------------


def test_the_groups_are_those_of_the_design():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert groups == {
        *("task", "model", "prune_mode", "stage", "trainer", "logger", "sweep", "experiment", "recipe"),
        *("launcher", "distill", "callbacks"),
    }
    assert {path.stem for path in (CONF / "task").iterdir()} == {"custom"}  # the others are options by themselves


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option):
    if option == "sweep=optuna":
        pytest.importorskip("optuna", reason="needs the extra optuna")
    group, name = option.split("=")
    settings = settings_of([option])
    assert HydraConfig.get().runtime.choices[group] == name
    check_ranges(settings)


@pytest.mark.parametrize("logger", sorted(path.stem for path in (CONF / "logger").iterdir()))
def test_every_logger_composes_with_others(logger):
    settings = settings_of([f"logger=[{logger}]"])
    assert list(settings.logger) == [logger]
    assert settings.logger[logger]["_target_"].startswith(("pytorch_lightning.loggers.", "ltp.training.loggers."))


def test_loggers_can_be_combined():
    assert set(settings_of("logger=[tensorboard,wandb]").logger) == {"tensorboard", "wandb"}


def test_the_experiment_is_a_task_and_a_number_of_rows():
    settings = settings_of("experiment=sst2-10k")
    assert (settings.task.name, settings.task.max_train_samples) == ("sst2", 10_000)
    assert settings.model.name == "bert-base"


@pytest.mark.parametrize(
    ("sweep", "method", "grid"),
    [
        (
            "ltp",
            "learned",
            {
                "prune.temperature": [1e-4, 2e-4, 5e-4, 1e-3, 2e-3],
                "prune.lambda_threshold": [0.01, 0.05, 0.1, 0.15, 0.2],
                "lr": [5e-6, 1e-5, 2e-5],
            },
        ),
        (
            "manual",
            "manual",
            {
                "prune.final_token_threshold": [0.004, 0.006, 0.008, 0.01, 0.012, 0.014, 0.016],
                "lr": [5e-6, 1e-5, 2e-5],
            },
        ),
        ("topk", "topk", {"prune.token_keep_rate": [0.4, 0.2, 0.0, -0.2, -0.4], "lr": [5e-6, 1e-5, 2e-5]}),
    ],
)
def test_sweeps_are_the_published_grids(sweep, method, grid):
    plan = plan_of(f"sweep={sweep} task=mrpc")
    assert (plan.method, plan.settings.stage) == (method, "hard")
    hydra = HydraConfig.get()
    assert str(hydra.mode) == "RunMode.MULTIRUN"
    params = {key: [float(word) for word in words.split(",")] for key, words in hydra.sweeper.params.items()}
    assert params == grid


def test_the_sweep_of_optuna_is_of_learned_thresholds_at_a_budget():
    pytest.importorskip("optuna", reason="needs the extra optuna")
    plan = plan_of("sweep=optuna task=mrpc")
    assert (plan.method, plan.settings.stage, plan.settings.flops_budget) == ("learned", "hard", 0.5)
    sweeper = HydraConfig.get().sweeper
    assert sweeper.direction == "maximize"
    assert {key for key in sweeper.params if key not in known_keys()} == set()
    assert plan_of("sweep=optuna task=mrpc flops_budget=0.3").settings.flops_budget == 0.3


# -- the commands of the design ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "task", "model", "stage", "mode"),
    [
        ("prune=threshold stage=soft task=rte", "rte", "bert-base", "soft", "absolute_threshold"),
        ("stage=finetune task=mrpc model=roberta-base", "mrpc", "roberta-base", "finetune", "none"),
        ("prune=topk task=sst2 prune.token_keep_rate=-0.2", "sst2", "bert-base", "hard", "topk"),
        ("prune_mode=absolute_threshold stage=hard task=mrpc", "mrpc", "bert-base", "hard", "absolute_threshold"),
        (
            "prune=threshold stage=soft task=mrpc lr=1e-5 prune.lambda_threshold=0.05 prune.temperature=1e-4",
            *("mrpc", "bert-base", "soft", "absolute_threshold"),
        ),
        ("trainer.devices=2 trainer.strategy=ddp", "demo", "tiny", "finetune", "none"),
        ("", "demo", "tiny", "finetune", "none"),
        ("task=demo", "demo", "tiny", "finetune", "none"),
        ("task=demo model=bert-base", "demo", "bert-base", "finetune", "none"),
        ("task=rte", "rte", "bert-base", "finetune", "none"),
    ],
)
def test_the_commands_of_the_design(command, task, model, stage, mode):
    settings = plan_of(command).settings
    assert (settings.task.name, settings.model.name) == (task, model)
    assert (settings.stage, settings.prune.mode) == (stage, mode)


@pytest.mark.parametrize(
    "spelling",
    [
        *("prune=threshold", "prune=absolute_threshold", "prune_mode=absolute_threshold"),
        *("prune=threshold prune_mode=absolute_threshold", "prune=absolute_threshold prune_mode=absolute_threshold"),
    ],
)
def test_spellings_of_thresholds(spelling):
    cli_settings = settings_of(f"task=rte stage=soft {spelling}")
    cli.check_selections(HydraConfig.get().runtime.choices)
    assert cli_settings == settings_of("task=rte stage=soft prune=threshold")


@pytest.mark.parametrize("mode", ["topk", "none"])
def test_the_other_methods_are_called_alike_in_both_groups(mode):
    assert settings_of(f"prune={mode}") == settings_of(f"prune_mode={mode}")
    cli.check_selections(HydraConfig.get().runtime.choices)
    assert settings_of(f"prune={mode}").prune.mode == mode


def test_manual_thresholds_are_thresholds_that_are_not_learned():
    assert settings_of("prune=manual") == settings_of("prune_mode=absolute_threshold prune.learned=false")
    settings_of("prune=manual prune_mode=absolute_threshold")
    cli.check_selections(HydraConfig.get().runtime.choices)


# -- recipes -------------------------------------------------------------------------------------------------


def hyperparameters(command, *keys):
    settings = plan_of(command).settings
    return tuple(getattr(settings.prune if hasattr(settings.prune, key) else settings, key) for key in keys)


COMMON = ("lr", "batch_size", "weight_decay", "save_step", "load_best")


@pytest.mark.parametrize("task", ["rte", "sst2"])
def test_the_soft_recipe(task):
    command = f"task={task} prune=threshold stage=soft"
    assert hyperparameters(command, *COMMON) == (2e-5, 64, 0.0, 100, False)
    keys = ("temperature", "lambda_threshold", "final_token_threshold", "lr_threshold", "scoring_mode", "score_length")
    assert hyperparameters(command, *keys) == (1e-3, 0.15, 0.01, 2e-5, "mean", 128)


@pytest.mark.parametrize("method", ["prune=threshold", "prune=manual", "prune=topk"])
def test_the_recipe_of_hard_runs_and_baselines(method):
    assert hyperparameters(f"task=rte {method} stage=hard", *COMMON) == (2e-5, 64, 0.0, 500, True)


def test_the_baselines_own_values():
    assert hyperparameters("task=rte prune=manual", "final_token_threshold") == (0.004,)
    assert hyperparameters("task=rte prune=topk", "token_keep_rate") == (0.2,)


@pytest.mark.parametrize("task", ["rte", "mrpc", "stsb", "cola", "sst2", "qnli", "qqp", "mnli"])
def test_the_dense_recipe_takes_the_task_s_learning_rate(task):
    lr, load_best = hyperparameters(f"task={task} stage=finetune", "lr", "load_best")
    assert lr == TASKS[task].lr
    assert 2e-5 <= lr <= 5e-5
    assert load_best is True


@pytest.mark.parametrize(("task", "soft", "hard"), [("rte", 10, 10), ("mrpc", 10, 10), ("sst2", 1, 5), ("mnli", 1, 5)])
def test_epochs_by_the_task_s_size(task, soft, hard):
    assert hyperparameters(f"task={task} stage=soft", "epochs") == (soft,)
    assert hyperparameters(f"task={task} stage=hard", "epochs") == (hard,)


def test_the_threshold_learning_rate_follows_lr():
    assert hyperparameters("task=rte stage=soft lr=5e-6", "lr_threshold") == (5e-6,)
    assert hyperparameters("task=rte stage=soft lr=5e-6 prune.lr_threshold=1e-3", "lr_threshold") == (1e-3,)


def test_the_demo_recipe_differs_from_the_paper_s_in_what_it_says_only():
    paper, demo = settings_of("task=rte").recipe, settings_of("task=demo").recipe
    assert (demo.stages["soft"].batch_size, demo.stages["soft"].load_best) == (64, False)
    assert hyperparameters("task=demo stage=soft", "temperature") == hyperparameters(
        "task=rte stage=soft", "temperature"
    )
    assert hyperparameters("task=demo stage=soft", "final_token_threshold", "lambda_threshold") == (0.005, 0.05)
    assert demo.stages["finetune"].lr != paper.stages["finetune"].lr


def test_short_keys_win_over_the_recipe():
    command = "task=rte lr=1e-5 batch_size=8 epochs=0.5 weight_decay=0.1 save_step=7 load_best=true seed=3 stage=soft"
    keys = ("lr", "batch_size", "epochs", "weight_decay", "save_step", "load_best", "seed")
    assert hyperparameters(command, *keys) == (1e-5, 8, 0.5, 0.1, 7, True, 3)


# -- the schema ----------------------------------------------------------------------------------------------


def test_no_key_that_nobody_reads():
    package = Path(config.__file__).parents[1]
    read = set()
    for path in package.rglob("*.py"):
        if path != Path(config.__file__):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read.add(node.value)
    schemas = [schema for schema in vars(config).values() if dataclasses.is_dataclass(schema)]
    keys = {f"{schema.__name__}.{item.name}" for schema in schemas for item in dataclasses.fields(schema)}
    assert len(keys) > 70
    assert {key for key in keys if key.split(".")[1] not in read} == set()


def test_known_keys_are_the_composed_ones():
    leaves = set()

    def walk(node, prefix):
        for key, value in node.items():
            leaves.add(prefix + key)
            if isinstance(value, dict) and prefix + key != "model.architecture":
                walk(value, f"{prefix}{key}.")

    cfg = OmegaConf.to_container(composed())
    del cfg["recipe"]  # its keys stand below the stages' names
    walk(cfg, "")
    assert leaves == {key for key in known_keys() if key.split(".")[0] != "recipe"}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lrr", "did you mean lr?"),
        ("learning_rate", "Hugging Face's learning_rate is lr here"),
        ("temperature", "did you mean prune.temperature or distill.temperature?"),
        ("task.temperature", "did you mean prune.temperature or distill.temperature?"),
        ("prune.temprature", "did you mean prune.temperature or prune.gate_temperature?"),
        ("prune.lambda", "did you mean prune.lambda_retention or prune.lambda_threshold?"),
        ("token_keep_rates", "did you mean prune.token_keep_rate or prune.keep_rates?"),
        ("max_length", "did you mean task.max_length?"),
        ("devices", "did you mean trainer.devices?"),
        ("batchsize", "did you mean batch_size or trainer.eval_batch_size?"),
        ("name", "did you mean task.name or model.name?"),
        ("xyz", "see python -m ltp.train --cfg job for every key"),
    ],
)
def test_unknown_keys_name_the_near_ones(key, hint):
    assert unknown_key(key) == f"unknown key {key}; {hint}"


def test_appended_keys_are_unknown_keys():
    for word, key in (("+prune.temperatur=1", "prune.temperatur"), ("+foo=1", "foo"), ("++task.foo=1", "task.foo")):
        with pytest.raises(UserError) as caught:
            settings_of([word])
        assert str(caught.value) == unknown_key(key)


def test_a_key_without_a_value_is_asked_for():
    cfg = composed()
    cfg.task.name = "???"
    with pytest.raises(UserError) as caught:
        train.COMMAND.settings(cfg)
    assert str(caught.value) == "task.name has no value; give it on the command line: task.name=…"


# -- ranges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "good", "bad", "range_"),
    [
        ("lr", [1e-9, 0.5], [0.0, -1e-5, 1.0, float("nan"), float("inf")], "above 0 and below 1"),
        ("batch_size", [1, 4096], [0, -8], "1 or more"),
        ("epochs", [0.01, 100.0], [0.0, -1.0, float("nan"), float("inf"), 1e300], "above 0 and at most 1e6"),
        ("weight_decay", [0.0, 0.99], [-0.1, 1.0, float("nan")], "in [0, 1)"),
        ("warmup_ratio", [0.0, 0.99], [-0.1, 1.0], "in [0, 1)"),
        ("save_step", [0, 1], [-1], "0 (every epoch) or more"),
        ("seed", [0, 2**32 - 1], [-1, 2**32], "in [0, 2^32)"),
        ("flops_budget", [0.01, 1.0, None], [0.0, -0.5, 1.1, float("nan")], "in (0, 1] (of the dense FLOPs)"),
        ("stage", ["soft", None], ["softt", "Soft", ""], "one of finetune, soft, hard"),
        ("prune.scoring_mode", ["mean", "mean_norm"], ["max"], f"one of {', '.join(SCORING_MODES)}"),
        ("prune.score_length", [1], [0], "1 or more (tokens)"),
        (
            "prune.final_token_threshold",
            [0.0, 0.999],
            [-0.001, 1.0, float("nan")],
            "in [0, 1); published: 0.004–0.016",
        ),
        (
            "prune.token_keep_rate",
            [-10.0, 0.0, 1.0],
            [1.01, -10.1, float("nan")],
            "in [-10, 1]; published: −0.4 to 0.4",
        ),
        ("prune.temperature", [1e-5, 1.0], [0.0, -1e-3, 1.1, float("nan")], "in (0, 1]; published: 1e-5 to 2e-3"),
        ("prune.lambda_threshold", [0.0, 5.0], [-0.01, float("inf"), float("nan")], "0 or more; published: 0.01–0.2"),
        ("prune.lr_threshold", [1e-3], [0.0, 1.0], "above 0 and below 1"),
        ("task.max_length", [8, 512], [7, 0], "8 or more (tokens)"),
        ("task.max_train_samples", [1, None], [0, -5], "1 or more (rows)"),
        ("task.max_validation_samples", [1, None], [0], "1 or more (rows)"),
        ("task.size", ["small", "large"], ["medium"], "small or large"),
        (
            "trainer.precision",
            ["32-true", "bf16-mixed", "16-mixed"],
            ["16-true", "bf16", "32"],
            "one of 32-true, bf16-mixed, 16-mixed (weights and thresholds stay float32)",
        ),
        ("trainer.accumulate_grad_batches", [1], [0], "1 or more"),
        ("trainer.eval_batch_size", [1], [0], "1 or more"),
        ("trainer.gradient_clip_val", [0.0, 1.0], [-1.0, float("nan")], "0 or more"),
        ("trainer.num_workers", [0, 4], [-1, 100000], "in [0, 1024]"),
        ("trainer.num_threads", [1, None], [0, 100000], "in [1, 1024]"),
    ],
)
def test_ranges(key, good, bad, range_):
    settings = TrainSettings()
    settings.task.name = "rte"
    *groups, name = key.split(".")
    node = getattr(settings, groups[0]) if groups else settings
    for value in good:
        setattr(node, name, value)
        check_ranges(settings)
    for value in bad:
        setattr(node, name, value)
        with pytest.raises(UserError) as caught:
            check_ranges(settings)
        given = f"{value:g}" if isinstance(value, float) else value
        assert str(caught.value) == f"{key}={given} is out of range: it must be {range_}"
