"""From a configuration to a run: its method, values, parent and directory."""

import dataclasses
import json

import pytest
from helpers import dense_checkpoint, finished_run, plan_of, settings_of

from ltp.command import planning
from ltp.data.tasks import TASKS
from ltp.errors import UserError, format_number
from ltp.runs.checkpoints import inspect_checkpoint
from ltp.runs.fingerprints import checkpoint_fingerprint
from ltp.runs.layout import checkpoint_folder
from ltp.runs.plan import check_labels
from ltp.training.building import check_method

SOFT = "outputs/bert-base/mrpc/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/lr_2e-05/seed_0"
DENSE = "outputs/bert-base/mrpc/finetune/lr_3e-05/seed_0"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(command):
    with pytest.raises(UserError) as caught:
        plan_of(command)
    return str(caught.value)


# -- run directories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "directory"),
    [
        ("task=rte stage=finetune", "bert-base/rte/finetune/lr_3e-05/seed_0"),
        ("task=rte lr=0.0001 seed=7", "bert-base/rte/finetune/lr_0.0001/seed_7"),
        (
            "task=rte prune=threshold stage=soft",
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/lr_2e-05/seed_0",
        ),
        (
            "task=rte prune=threshold stage=soft prune.temperature=2e-4 prune.lambda_threshold=0.05 lr=1e-5"
            " prune.final_token_threshold=0.006 seed=2 model=roberta-large",
            "roberta-large/rte/absolute_threshold/rate_0.006/temperature_0.0002/lambda_0.05/lr_1e-05/seed_2",
        ),
        (
            "task=rte prune=threshold stage=hard lr=5e-6",
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/lr_2e-05/seed_0/hard/lr_5e-06",
        ),
        (
            "task=rte prune=threshold stage=hard prune.temperature=1e-5 seed=3",
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_1e-05/lambda_0.15/lr_2e-05/seed_3/hard/lr_2e-05",
        ),
        ("task=rte prune=manual", "bert-base/rte/absolute_threshold/rate_0.004/hard/lr_2e-05/seed_0"),
        (
            "task=rte prune=manual prune.final_token_threshold=0.016 lr=1e-5",
            "bert-base/rte/absolute_threshold/rate_0.016/hard/lr_1e-05/seed_0",
        ),
        ("task=sst2 prune=topk prune.token_keep_rate=-0.2", "bert-base/sst2/topk/rate_-0.2/lr_2e-05/seed_0"),
        ("task=sst2 prune=topk prune.token_keep_rate=0", "bert-base/sst2/topk/rate_0/lr_2e-05/seed_0"),
        ("", "tiny/demo/finetune/lr_0.001/seed_0"),
    ],
)
def test_run_directories_follow_the_published_layout(command, directory):
    assert str(plan_of(command).directory) == f"outputs/{directory}"


def test_output_root_moves_the_tree():
    run = plan_of("task=mrpc prune=threshold stage=hard output_root=/somewhere/else")
    assert str(run.directory) == f"/somewhere/else/{SOFT.removeprefix('outputs/')}/hard/lr_2e-05"
    assert str(run.missing.directory) == f"/somewhere/else/{SOFT.removeprefix('outputs/')}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((2e-5, "2e-05"), (5e-6, "5e-06"), (0.0001, "0.0001"), (0.01, "0.01"), (0.15, "0.15"), (1.0, "1")),
        *((-0.2, "-0.2"), (0.0, "0"), (0.0123456789, "0.0123456789"), (0.1 + 0.2, "0.30000000000000004")),
    ],
)
def test_numbers_in_directories_are_short_and_never_rounded(value, text):
    assert format_number(value) == text
    assert float(text) == value


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("batch_size=16 epochs=1", "batch_size_16/epochs_1"),
        ("batch_size=32 epochs=5 weight_decay=0.01", ""),  # the recipe's own
        (
            "weight_decay=0.1 warmup_ratio=0 save_step=9 load_best=false",
            "weight_decay_0.1/warmup_ratio_0/save_step_9/load_best_false",
        ),
        ("task.max_length=64 task.max_train_samples=100", "max_length_64/max_train_samples_100"),
        ("trainer.precision=bf16-mixed trainer.gradient_clip_val=0.5", "precision_bf16-mixed/gradient_clip_val_0.5"),
        ("finetune.epochs=2", "epochs_2"),
        ("recipe.stages.finetune.epochs.small=2", "epochs_2"),
        ("recipe=demo", "batch_size_64/epochs_3"),
        ("trainer.devices=2 trainer.num_workers=2 recipe.stages.soft.lr=1e-3 soft.epochs=3", ""),
    ],
)
def test_every_other_setting_has_a_place_in_the_path(words, places):
    lr = "0.001" if words == "recipe=demo" else "3e-05"
    directory = "/".join(filter(None, ["outputs/bert-base/rte/finetune", places, f"lr_{lr}", "seed_0"]))
    assert str(plan_of(f"task=rte {words}").directory) == directory


@pytest.mark.parametrize(
    ("command", "directory"),
    [
        (
            "task=rte stage=soft epochs=1 prune.lr_threshold=1e-4 prune.scoring_mode=mean_norm",
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/scoring_mode_mean_norm"
            "/lr_threshold_0.0001/epochs_1/lr_2e-05/seed_0",
        ),
        (
            "task=rte stage=soft task.max_length=64",  # the default score_length follows
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/max_length_64/lr_2e-05/seed_0",
        ),
        (
            "task=rte stage=hard soft.epochs=1 epochs=2",
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/epochs_1/lr_2e-05/seed_0"
            "/hard/epochs_2/lr_2e-05",
        ),
        # a parent that is not the published one
        (
            "task=rte prune=topk finetune.epochs=1 finetune.lr=5e-5",
            "bert-base/rte/topk/rate_0.2/finetune_lr_5e-05/finetune_epochs_1/lr_2e-05/seed_0",
        ),
        (
            "task=custom task.name=mine task.train_file=a.csv task.validation_file=b.csv task.metric=f1"
            " task.size=large",
            "bert-base/mine/finetune/metric_f1/epochs_3/lr_2e-05/seed_0",
        ),
        ("model.architecture.num_hidden_layers=2", "tiny/demo/finetune/num_hidden_layers_2/lr_0.001/seed_0"),
        ("model.architecture.num_hidden_layers=6", "tiny/demo/finetune/lr_0.001/seed_0"),
        (
            "distill=logits stage=soft task=rte epochs=1",
            "bert-base/rte/absolute_threshold/rate_0.01/temperature_0.001/lambda_0.15/distill_logits_0.5_temperature_2"
            "/epochs_1/lr_2e-05/seed_0",
        ),
    ],
)
def test_settings_of_other_stages_methods_and_models_have_places_too(command, directory):
    assert str(plan_of(command).directory) == f"outputs/{directory}"


def test_a_stage_s_settings_reach_the_whole_chain():
    run = plan_of("task=rte stage=hard finetune.epochs=1 soft.lr=1e-5 soft.batch_size=8 hard.epochs=2 lr=5e-6")
    finetune, soft, hard = run.chain
    assert [one.stage for one in run.chain] == ["finetune", "soft", "hard"]
    assert (finetune.settings.epochs, finetune.settings.lr) == (1, 3e-5)
    assert (soft.settings.epochs, soft.settings.lr, soft.settings.batch_size) == (10, 1e-5, 8)
    assert (hard.settings.epochs, hard.settings.lr) == (2, 5e-6)
    assert run.missing is soft
    assert soft.missing is finetune


def test_two_values_for_one_stage():
    assert message("task=rte stage=soft lr=1e-5 soft.lr=2e-5") == (
        "lr=1e-05 and soft.lr=2e-05 contradict each other in a run of stage soft: give one of them"
    )
    assert plan_of("task=rte stage=soft lr=1e-5 soft.lr=1e-5").settings.lr == 1e-5


# -- the model's name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("model.name_or_path=microsoft/MiniLM-L12-H384-uncased", "MiniLM-L12-H384-uncased"),
        ("model.name_or_path=/models/my-bert/", "my-bert"),
        ("'model.name_or_path=\"/models/my bert\"'", "my_bert"),
        ("model.name_or_path=org/x model.name=short", "short"),
        ("model=roberta-base model.name_or_path=/data/roberta", "roberta"),
    ],
)
def test_runs_of_other_checkpoints_are_named_after_them(words, name):
    run = plan_of(f"task=rte {words}")
    assert str(run.directory) == f"outputs/{name}/rte/finetune/lr_3e-05/seed_0"


def test_another_checkpoint_does_not_keep_the_option_s_architecture():
    assert plan_of("task=rte model.name_or_path=org/x").settings.model.architecture == {}
    assert plan_of("task=rte").settings.model.architecture["hidden_size"] == 768


def test_a_restored_run_brings_its_model_s_name(root):
    finished_run(root / "elsewhere", model="my-bert")
    for source in ("elsewhere", "elsewhere/", "elsewhere/model", str(root / "elsewhere")):
        run = plan_of(f"task=mrpc prune=topk restore={source}")
        assert str(run.directory) == "outputs/my-bert/mrpc/topk/rate_0.2/restore_0123456789ab/lr_2e-05/seed_0"
        assert run.parent.run_dir.resolve() == root / "elsewhere"
        assert run.settings.model.name_or_path is None


def test_a_restored_hugging_face_directory_gives_its_own_name(root):
    dense_checkpoint(root / "finetuned-bert")
    run = plan_of("task=mrpc prune=topk restore=finetuned-bert")
    name = f"finetuned-bert-{run.checkpoint[:8]}"
    assert str(run.directory) == f"outputs/{name}/mrpc/topk/rate_0.2/lr_2e-05/seed_0"
    assert (run.parent.run_dir, run.parent_name) == (None, "finetuned-bert")


# -- stage and method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "stage", "mode", "method"),
    [
        ("", "finetune", "none", "dense"),
        ("prune=none", "finetune", "none", "dense"),
        ("stage=finetune", "finetune", "none", "dense"),
        ("stage=soft", "soft", "absolute_threshold", "learned"),
        ("stage=hard", "hard", "absolute_threshold", "learned"),
        ("prune=threshold", "soft", "absolute_threshold", "learned"),
        ("prune=threshold stage=hard", "hard", "absolute_threshold", "learned"),
        ("prune=manual", "hard", "absolute_threshold", "manual"),
        ("prune.learned=false", "hard", "absolute_threshold", "manual"),
        ("prune=manual stage=hard", "hard", "absolute_threshold", "manual"),
        ("prune=topk", "hard", "topk", "topk"),
        ("prune=topk stage=hard", "hard", "topk", "topk"),
    ],
)
def test_what_is_left_out_follows_from_the_rest(command, stage, mode, method):
    run = plan_of(f"task=mrpc {command}")
    assert (run.settings.stage, run.settings.prune.mode, run.method) == (stage, mode, method)
    assert run.settings.prune.learned == {"learned": True, "manual": False}.get(method)


def test_hard_from_a_soft_run_is_learned_and_lives_inside_it(root):
    finished_run(root / "soft", prune_mode="absolute_threshold", lambda_threshold=0.1, threshold_temperature=5e-4)
    for words in ("stage=hard", "prune=threshold stage=hard", "prune_mode=absolute_threshold stage=hard", ""):
        run = plan_of(f"task=mrpc {words} restore=soft lr=1e-5")
        assert (run.method, run.settings.stage, str(run.directory)) == ("learned", "hard", "soft/hard/lr_1e-05")
        prune = run.settings.prune
        assert (prune.final_token_threshold, prune.temperature, prune.lambda_threshold) == (0.01, 5e-4, 0.1)


def test_hard_with_another_seed_than_its_soft_run_says_so_in_its_directory(root):
    finished_run(root / "soft", prune_mode="absolute_threshold", seed=1)
    assert str(plan_of("task=mrpc stage=hard restore=soft seed=1").directory) == "soft/hard/lr_2e-05"
    assert str(plan_of("task=mrpc stage=hard restore=soft seed=2").directory) == "soft/hard/lr_2e-05/seed_2"


def test_hard_from_a_dense_checkpoint_is_the_manual_baseline(root):
    finished_run(root / DENSE)
    folder = checkpoint_folder(str(dense_checkpoint(root / "hf")))
    for source, model in ((DENSE, "bert-base"), ("hf", folder)):
        run = plan_of(f"prune_mode=absolute_threshold stage=hard task=mrpc restore={source}")
        assert (run.method, run.settings.prune.learned) == ("manual", False)
        assert str(run.directory) == f"outputs/{model}/mrpc/absolute_threshold/rate_0.004/hard/lr_2e-05/seed_0"


def test_soft_from_a_checkpoint(root):
    finished_run(root / DENSE)
    run = plan_of(f"task=mrpc prune=threshold stage=soft restore={DENSE}")
    assert (run.method, str(run.directory), run.missing) == ("learned", SOFT, None)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            "stage=finetune prune=threshold",
            "stage=finetune trains the dense model, prune_mode=absolute_threshold prunes it: "
            "leave one of them out (stage=soft learns thresholds, stage=hard trains with fixed ones).",
        ),
        (
            "stage=soft prune=topk",
            "stage=soft with prune=topk: top-k has nothing to learn. Use stage=hard, or prune=threshold.",
        ),
        (
            "stage=hard prune=none",
            "stage=hard with prune=none: nothing is pruned. Use stage=finetune, or prune=threshold.",
        ),
        (
            "stage=soft prune=manual",
            "stage=soft learns thresholds, prune=manual gives them: use stage=hard, or prune=threshold.",
        ),
    ],
)
def test_selections_that_contradict_each_other(command, text):
    assert message(f"task=mrpc {command}") == text


def test_learned_thresholds_need_a_checkpoint_that_holds_some(root):
    finished_run(root / "dense")
    assert message("task=mrpc prune=threshold stage=hard prune.learned=true restore=dense") == (
        "restore=dense holds no learned thresholds, which prune.learned=true asks for: "
        "run stage=soft on it first, or use prune=manual."
    )


def test_learned_thresholds_are_not_thrown_away_in_passing(root):
    finished_run(root / "soft", prune_mode="absolute_threshold", final_token_threshold=0.01)
    assert message("task=mrpc stage=hard restore=soft prune.final_token_threshold=0.02") == (
        "restore=soft has learned from final_token_threshold=0.01; "
        "prune.final_token_threshold=0.02 would start again: leave it out, or use prune=manual."
    )
    assert plan_of("task=mrpc stage=hard restore=soft prune.final_token_threshold=0.01").method == "learned"


# -- values: the command line, the checkpoint's config.json, the recipe --------------------------------------


CARRIED = {
    "prune_mode": "absolute_threshold",
    "final_token_threshold": 0.012,
    "scoring_mode": "mean_norm",
    "score_length": 64,
}


def test_values_come_from_the_checkpoint_before_the_recipe(root):
    dense_checkpoint(root / "hf", **CARRIED)
    for stage in ("soft", "hard"):
        prune = plan_of(f"task=mrpc stage={stage} restore=hf").settings.prune
        assert prune.mode == "absolute_threshold"
        assert (prune.final_token_threshold, prune.scoring_mode, prune.score_length) == (0.012, "mean_norm", 64)


def test_the_command_line_wins_over_the_checkpoint(root):
    dense_checkpoint(root / "hf", **CARRIED)
    words = "prune.final_token_threshold=0.006 prune.scoring_mode=mean prune.score_length=32"
    prune = plan_of(f"task=mrpc stage=hard restore=hf {words}").settings.prune
    assert (prune.final_token_threshold, prune.scoring_mode, prune.score_length) == (0.006, "mean", 32)
    other = plan_of("task=mrpc prune=topk restore=hf").settings.prune
    assert (other.mode, other.final_token_threshold, other.token_keep_rate) == ("topk", None, 0.2)


def test_a_checkpoint_s_prune_mode_is_taken_where_none_is_given(root):
    dense_checkpoint(root / "hf", prune_mode="topk", token_keep_rate=-0.1)
    run = plan_of("task=mrpc restore=hf")
    assert (run.method, run.settings.stage, run.settings.prune.token_keep_rate) == ("topk", "hard", -0.1)
    assert str(run.directory) == f"outputs/{checkpoint_folder('hf')}/mrpc/topk/rate_-0.1/lr_2e-05/seed_0"
    assert plan_of("task=mrpc restore=hf prune.token_keep_rate=0.4").settings.prune.token_keep_rate == 0.4


def test_a_dense_run_s_config_says_nothing_about_pruning(root):
    # an unpruned LTPConfig writes every key with its default
    finished_run(root / "dense", scoring_mode="mean_norm", final_token_threshold=0.5, score_length=7)
    prune = plan_of("task=mrpc prune=threshold stage=soft restore=dense").settings.prune
    assert (prune.scoring_mode, prune.final_token_threshold, prune.score_length) == ("mean", 0.01, 128)


def test_the_constant_z_is_the_task_s_maximum_length():
    assert plan_of("task=mrpc prune=topk").settings.prune.score_length == 128
    assert plan_of("task=mrpc prune=topk task.max_length=64").settings.prune.score_length == 64


def test_no_value_is_left_open():
    for command in ("stage=finetune", "stage=soft", "stage=hard", "prune=manual", "prune=topk"):
        settings = plan_of(f"task=mrpc {command}").settings
        open_keys = {key for key, value in vars(settings).items() if value is None}
        assert open_keys == {"data_dir", "flops_budget", "budgets", "plan"}


@pytest.mark.parametrize(
    ("command", "key", "kind"),
    [
        ("stage=finetune prune.temperature=1e-3", "prune.temperature=0.001", "dense"),
        ("stage=finetune prune.scoring_mode=mean", "prune.scoring_mode=mean", "dense"),
        ("stage=finetune prune.learned=true", "prune.learned=True", "dense"),
        ("prune=topk prune.final_token_threshold=0.01", "prune.final_token_threshold=0.01", "top-k"),
        ("prune=topk prune.lambda_threshold=0.1", "prune.lambda_threshold=0.1", "top-k"),
        ("prune=topk prune.learned=false", "prune.learned=False", "top-k"),
        ("prune=manual prune.temperature=1e-3", "prune.temperature=0.001", "manual-threshold"),
        ("prune=manual prune.token_keep_rate=0.2", "prune.token_keep_rate=0.2", "manual-threshold"),
        ("stage=soft prune.token_keep_rate=0.2", "prune.token_keep_rate=0.2", "soft learned-threshold"),
        ("stage=hard prune.lr_threshold=1e-4", "prune.lr_threshold=0.0001", "hard learned-threshold"),
    ],
)
def test_keys_without_meaning_for_the_method(command, key, kind):
    assert message(f"task=mrpc {command}") == f"{key} has no meaning for a {kind} run; leave it out"


@pytest.mark.parametrize(
    "word",
    [
        *("task.train_file=a.csv", "task.validation_file=a.csv", "task.metric=f1", "task.size=large"),
        *("task.label_column=y", "task.text_columns=[a]"),
    ],
)
def test_keys_of_custom_tasks_on_another(word):
    shown = word.replace("[a]", "['a']")
    assert message(f"task=mrpc {word}") == f"{shown} goes with task=custom, not task=mrpc"


def test_a_custom_task_under_its_own_name():
    run = plan_of("task=custom task.name=reviews task.train_file=a.csv task.validation_file=b.csv task.size=large")
    assert str(run.directory) == "outputs/bert-base/reviews/finetune/epochs_3/lr_2e-05/seed_0"
    assert (run.task.size, run.settings.epochs) == ("large", 3)


@pytest.mark.parametrize("threshold", ["2.5", "-1", "inf"])
def test_a_threshold_of_no_answer(threshold):
    run = plan_of(f"task=squad_v2 task.null_threshold={threshold} prune=topk")
    place = f"null_threshold_{threshold}/lr_3e-05/seed_0"
    assert str(run.missing.directory) == f"outputs/bert-base/squad_v2/finetune/{place}"
    assert run.task.null_threshold == run.missing.task.null_threshold == float(threshold)
    assert plan_of(planning.overrides_of(run.missing)) == run.missing
    assert plan_of("task=squad_v2").task.null_threshold == 0  # the task's own, and no place in the path
    assert "null_threshold" not in str(plan_of("task=squad_v2").directory)


@pytest.mark.parametrize("task", ["squad", "mrpc", "demo-span"])
def test_a_threshold_of_no_answer_where_there_is_always_one(task):
    assert message(f"task={task} task.null_threshold=1") == (
        "task.null_threshold=1 is for questions that may have no answer, as of task.kind=span and task=squad_v2; "
        f"task={task} has none"
    )
    assert message("task=squad_v2 task.null_threshold=nan").startswith("task.null_threshold=nan is out of range")


def test_an_unknown_task_name():
    tasks = ", ".join([*TASKS, "custom"])
    assert message("task=mrpc task.name=mrcp") == f"task=mrcp: no such task. Did you mean mrpc? Tasks: {tasks}."


# -- the parent ----------------------------------------------------------------------------------------------


def test_a_missing_parent_is_planned_where_its_own_command_would_put_it():
    for command in ("prune=threshold stage=soft", "prune=manual", "prune=topk"):
        run = plan_of(f"task=mrpc {command}")
        assert (str(run.missing.directory), run.missing.stage, run.parent) == (DENSE, "finetune", None)
        assert run.parent_name == DENSE
    run = plan_of("task=mrpc prune=threshold stage=hard")
    assert (str(run.missing.directory), run.missing.stage) == (SOFT, "soft")
    assert plan_of("task=mrpc stage=finetune").missing is None


def test_a_finished_parent_is_found(root):
    finished_run(root / DENSE)
    for command in ("prune=threshold stage=soft", "prune=manual", "prune=topk"):
        run = plan_of(f"task=mrpc {command}")
        assert (str(run.parent.run_dir), run.missing) == (DENSE, None)
    finished_run(root / SOFT, prune_mode="absolute_threshold", lambda_threshold=0.15)
    run = plan_of("task=mrpc prune=threshold stage=hard")
    assert (str(run.parent.run_dir), str(run.directory)) == (SOFT, f"{SOFT}/hard/lr_2e-05")


def test_the_parent_has_the_same_model_task_seed_and_prune_settings(root):
    finished_run(root / DENSE)
    finished_run(root / SOFT, prune_mode="absolute_threshold")
    assert plan_of("task=mrpc prune=topk").missing is None
    for words in ("seed=1", "model=roberta-base"):
        assert plan_of(f"task=mrpc prune=topk {words}").missing is not None
    assert plan_of("task=rte prune=topk").missing is not None
    assert plan_of("task=mrpc stage=hard").missing is None
    for key in ("prune.temperature=1e-4", "prune.lambda_threshold=0.1", "prune.final_token_threshold=0.02"):
        assert plan_of(f"task=mrpc stage=hard {key}").missing is not None


def test_an_unfinished_parent_is_missing(root):
    finished_run(root / DENSE)
    (root / DENSE / "results.json").unlink()
    assert str(plan_of("task=mrpc prune=topk").missing.directory) == DENSE


def test_a_parent_at_another_learning_rate_is_taken_only_where_it_is_asked_for(root):
    other = DENSE.replace("3e-05", "5e-05")
    finished_run(root / other, run_id="cafe")
    assert str(plan_of("task=mrpc prune=topk").missing.directory) == DENSE
    run = plan_of("task=mrpc prune=topk finetune.lr=5e-5")
    assert (str(run.parent.run_dir), str(run.directory)) == (
        other,
        "outputs/bert-base/mrpc/topk/rate_0.2/finetune_lr_5e-05/lr_2e-05/seed_0",
    )
    run = plan_of(f"task=mrpc prune=topk restore={other}")
    assert (str(run.parent.run_dir), str(run.directory)) == (
        other,
        "outputs/bert-base/mrpc/topk/rate_0.2/restore_cafe/lr_2e-05/seed_0",
    )


def test_the_name_of_what_auto_takes_changes_nothing(root):
    finished_run(root / DENSE)
    automatic, named = plan_of("task=mrpc prune=topk"), plan_of(f"task=mrpc prune=topk restore={root}/{DENSE}")
    assert automatic.directory == named.directory
    assert named.parent_run.directory == automatic.parent_run.directory


@pytest.mark.parametrize(
    "command",
    [
        "task=mrpc prune=threshold stage=soft",
        "task=mrpc prune=threshold stage=hard lr=5e-6 epochs=3 prune.temperature=1e-4 prune.scoring_mode=mean_norm",
        "prune=topk",
        "prune=manual seed=3 task.max_train_samples=10 trainer=cpu trainer.precision=bf16-mixed output_root=/a/b",
        "stage=hard model.architecture.num_hidden_layers=2 +model.architecture.layer_norm_eps=1e-6",
        "stage=hard recipe.stages.soft.lr=1e-3 recipe.stages.finetune.epochs.small=1 recipe.name=demo",
        "task=rte prune=topk model=roberta-base model.name_or_path=/data/roberta",
        "prune=threshold stage=hard prune.target_flops=0.4 distill=logits distill.weight=0.7",
        "prune=threshold stage=hard budgets=[0.3,0.7] distill=hidden",
        "prune=threshold stage=soft prune.target_flops=0.4 distill=logits",
        "experiment=sst2-10k stage=hard logger=[tensorboard] logger.tensorboard.name=tb",
        "task=custom prune=topk task.name=mine task.validation_file=b.csv"
        " 'task.train_file=\"it'\\''s, a {f} = $x.csv\"' 'task.text_columns=[\"a b\",c]' task.metric=spearman"
        " 'data_dir=\"x\\\\y\"'",
    ],
)
def test_a_parent_s_command_line_leads_to_the_parent(command):
    run = plan_of(command)
    parent = plan_of(planning.overrides_of(run.missing))
    assert parent == run.missing


# -- checkpoints that do not fit -----------------------------------------------------------------------------


def test_another_number_of_labels(root):
    dense_checkpoint(root / "hf", id2label={"0": "a", "1": "b", "2": "c"})
    assert message("task=mrpc prune=topk restore=hf") == (
        "restore=hf has 3 labels, task=mrpc has 2; restore a checkpoint that was fine-tuned on mrpc."
    )
    assert message("task=stsb prune=topk restore=hf") == (
        "restore=hf has 3 labels, task=stsb has 1; restore a checkpoint that was fine-tuned on stsb."
    )


def test_the_same_labels_in_another_order(root):
    dense_checkpoint(root / "hf", id2label={"0": "equivalent", "1": "not_equivalent"})
    assert message("task=mrpc prune=topk restore=hf") == (
        "restore=hf numbers its labels equivalent, not_equivalent; task=mrpc has not_equivalent, equivalent in this "
        "order. Reorder the head's rows and id2label, or fine-tune anew."
    )


def test_labels_of_other_names_are_taken_by_number(root):
    dense_checkpoint(root / "hf", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert plan_of("task=mrpc prune=topk restore=hf").method == "topk"


def test_a_custom_task_s_labels_are_checked_once_they_are_known(root):
    dense_checkpoint(root / "hf", id2label={"0": "a", "1": "b", "2": "c"})
    run = plan_of("task=custom task.train_file=a.csv task.validation_file=b.csv prune=topk restore=hf")
    task = dataclasses.replace(run.task, labels=("no", "yes"))
    with pytest.raises(UserError) as caught:
        check_labels(run.parent, task)
    assert str(caught.value) == (
        "restore=hf has 3 labels, task=custom has 2; restore a checkpoint that was fine-tuned on custom."
    )
    check_labels(run.parent, dataclasses.replace(run.task, labels=("x", "y", "z")))


def test_label_numbers_are_sorted_as_numbers(root):
    names = tuple(f"class {index}" for index in range(12))
    dense_checkpoint(root / "hf", id2label={str(index): name for index, name in enumerate(names)})
    check_labels(inspect_checkpoint("hf"), dataclasses.replace(TASKS["mrpc"], labels=names))


@pytest.mark.parametrize(
    ("changes", "model", "key", "has", "wanted"),
    [
        ({"model_type": "roberta"}, "bert-base", "model_type", "roberta", "bert"),
        ({}, "bert-large", "num_hidden_layers", 12, 24),
        ({"hidden_size": 384}, "bert-base", "hidden_size", 384, 768),
    ],
)
def test_another_architecture_than_the_chosen_model_s(root, changes, model, key, has, wanted):
    dense_checkpoint(root / "hf", **changes)
    assert message(f"task=mrpc prune=topk restore=hf model={model}") == (
        f"restore=hf has {key} {has}, model={model} has {wanted}: another architecture. "
        "Leave model= out to take the checkpoint's, or restore one that fits."
    )
    plan_of("task=mrpc prune=topk restore=hf")  # the default model is nobody's choice


def test_a_chosen_model_directory_is_compared_too(root):
    dense_checkpoint(root / "hf")
    dense_checkpoint(root / "small", hidden_size=128)
    text = message("task=mrpc prune=topk restore=hf model.name_or_path=small")
    assert text.startswith("restore=hf has hidden_size 768, model=small has 128: another architecture.")


def test_a_chosen_model_that_fits_names_the_run(root):
    dense_checkpoint(root / "hf")
    run = plan_of("task=mrpc prune=topk restore=hf model=bert-base")
    place = f"restore_{checkpoint_fingerprint('hf')}"
    assert str(run.directory) == f"outputs/bert-base/mrpc/topk/rate_0.2/{place}/lr_2e-05/seed_0"


def test_planning_leaves_what_was_given_alone(root):
    given = settings_of("task=mrpc prune=topk")
    before = json.dumps(dataclasses.asdict(given))
    planning.plan(given)
    assert json.dumps(dataclasses.asdict(given)) == before
    assert list(root.iterdir()) == []


# -- budgets -------------------------------------------------------------------------------------------------

TARGET = "outputs/bert-base/mrpc/absolute_threshold/target_0.5/temperature_0.0003/lr_2e-05/seed_0"


@pytest.mark.parametrize(
    ("command", "directory"),
    [
        ("stage=soft prune.target_flops=0.5", "absolute_threshold/target_0.5/temperature_0.0003/lr_2e-05/seed_0"),
        (
            "stage=hard prune=threshold prune.target_flops=0.5 lr=1e-5",
            "absolute_threshold/target_0.5/temperature_0.0003/lr_2e-05/seed_0/hard/lr_1e-05",
        ),
        (
            "stage=hard prune=threshold budgets=[0.7,0.3] prune.temperature=2e-4",
            "absolute_threshold/budgets_0.3_0.7/temperature_0.0002/lr_2e-05/seed_0/hard/lr_2e-05",
        ),
        ("prune=manual prune.target_flops=0.5", "absolute_threshold/target_0.5/hard/lr_2e-05/seed_0"),
        ("prune=manual budgets=[0.5]", "absolute_threshold/budgets_0.5/hard/lr_2e-05/seed_0"),
        ("prune=topk prune.target_flops=0.5 seed=3", "topk/target_0.5/lr_2e-05/seed_3"),
        (
            "stage=hard prune=threshold prune.target_flops=0.5 distill=logits",
            "absolute_threshold/target_0.5/temperature_0.0003/distill_logits_0.5_temperature_2/lr_2e-05/seed_0"
            "/hard/distill_logits_0.5_temperature_2/lr_2e-05",
        ),
        (
            "stage=soft prune.lambda_threshold=0.1 distill=hidden distill.weight=1 distill.temperature=4",
            "absolute_threshold/rate_0.01/temperature_0.001/lambda_0.1/distill_logits_1_temperature_4_hidden_1"
            "/lr_2e-05/seed_0",
        ),
    ],
)
def test_run_directories_of_budgets_and_of_what_is_distilled(command, directory):
    assert str(plan_of(f"task=mrpc {command}").directory) == f"outputs/bert-base/mrpc/{directory}"


def test_a_budget_takes_the_place_of_what_it_decides():
    prune = plan_of("task=mrpc stage=soft prune.target_flops=0.5").settings.prune
    assert (prune.target_flops, prune.final_token_threshold, prune.lambda_threshold) == (0.5, None, None)
    assert (prune.temperature, prune.lr_threshold) == (3e-4, 3e-5)
    assert plan_of("task=mrpc prune=topk prune.target_flops=0.5").settings.prune.token_keep_rate is None


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("stage=soft prune.target_flops=0.5 prune.lambda_threshold=0.1", "lambda_threshold=0.1 is what prune.target"),
        ("prune=manual budgets=[0.5] prune.final_token_threshold=0.1", "final_token_threshold=0.1 is what budgets dec"),
        ("prune=topk prune.target_flops=0.5 prune.token_keep_rate=0.1", "token_keep_rate=0.1 is what prune.target_fl"),
        ("stage=finetune prune.target_flops=0.5", "prune.target_flops=0.5 has no meaning for a dense run"),
        ("stage=finetune budgets=[0.5]", "budgets=[0.5] has no meaning for a dense run"),
        ("prune=topk budgets=[0.3,0.5]", "budgets=[0.3, 0.5] has no meaning for a top-k run"),
        ("stage=soft prune.target_flops=0", "prune.target_flops=0 is out of range: it must be in (0, 1]"),
        ("stage=soft prune.target_flops=1.5", "prune.target_flops=1.5 is out of range: it must be in (0, 1]"),
        ("stage=soft budgets=[0.5,1.5]", "budgets=[0.5,1.5] is out of range: it must be in (0, 1]"),
        ("stage=soft budgets=[0.5,0.5]", "budgets=[0.5,0.5] is out of range: it must be one or more different shares"),
        ("stage=soft budgets=[]", "budgets=[] is out of range: it must be one or more different shares"),
        ("stage=soft budgets=[0.5] prune.target_flops=0.4", "both set the cost: give one of them"),
    ],
)
def test_budgets_that_mean_nothing(command, text):
    assert text in message(f"task=mrpc {command}")


def test_a_hard_run_is_held_at_its_parent_s_budget(root):
    soft = finished_run(root / TARGET, prune_mode="absolute_threshold", budgets=[0.5])
    run = plan_of(f"task=mrpc stage=hard restore={soft}")
    assert run.settings.targets == [0.5]
    assert run.directory == soft / "hard" / "lr_2e-05"
    assert plan_of("task=mrpc stage=hard prune=threshold prune.target_flops=0.5").parent.run_dir.samefile(soft)
    other = plan_of(f"task=mrpc stage=hard restore={soft} prune.target_flops=0.4")
    assert other.directory == soft / "hard" / "target_0.4" / "lr_2e-05"
    several = finished_run(root / "several", prune_mode="absolute_threshold", budgets=[0.3, 0.7])
    assert plan_of(f"task=mrpc stage=hard restore={several}").settings.budgets == [0.3, 0.7]


def test_a_learned_threshold_run_can_be_brought_to_a_budget(root):
    soft = finished_run(root / SOFT, prune_mode="absolute_threshold", lambda_threshold=0.15)
    run = plan_of(f"task=mrpc stage=hard restore={soft} prune.target_flops=0.4")
    assert run.method == "learned"
    assert run.directory == soft / "hard" / "target_0.4" / "lr_2e-05"


# -- distillation --------------------------------------------------------------------------------------------


def dense_run(directory, **changes):
    finished_run(directory, **changes)
    results = json.loads((directory / "results.json").read_text())
    (directory / "results.json").write_text(json.dumps(results | {"method": "dense", "parent": None}))
    return directory


def test_the_teacher_is_the_dense_ancestor(root):
    dense = dense_run(root / DENSE)
    assert plan_of("task=mrpc stage=soft distill=logits").teacher.run_dir.samefile(dense)
    assert plan_of("task=mrpc stage=soft").teacher is None
    soft = finished_run(root / SOFT, prune_mode="absolute_threshold")
    results = json.loads((soft / "results.json").read_text())
    (soft / "results.json").write_text(json.dumps(results | {"method": "learned", "parent": str(dense)}))
    assert plan_of(f"task=mrpc stage=hard restore={soft} distill=hidden").teacher.run_dir == dense
    named = dense_run(root / "named")
    command = f"task=mrpc stage=hard restore={soft} distill=logits distill.teacher={named}"
    assert plan_of(command).teacher.run_dir == named


def test_a_teacher_that_cannot_be_found(root):
    soft = finished_run(root / SOFT, prune_mode="absolute_threshold")
    remedy = "name a dense checkpoint with distill.teacher=…"
    assert message(f"task=mrpc stage=hard restore={soft} distill=logits") == (
        f"distill.teacher=auto: the dense parent of {soft} is not known; {remedy}"
    )
    assert message("task=mrpc stage=finetune distill=logits") == (
        f"distill.teacher=auto: this run starts from no fine-tuned checkpoint that could teach it; {remedy}"
    )
    dense_run(root / DENSE)
    assert message("task=mrpc stage=soft distill=logits distill.teacher=/nowhere").startswith(
        "distill.teacher=/nowhere: no such directory."
    )


def test_a_method_that_reads_saliency_has_a_teacher_in_its_soft_stage(root):
    command, remedy = "task=mrpc prune=adapler stage=soft", "name a dense checkpoint with distill.teacher=…"
    assert plan_of(command).teacher is None  # its parent is trained first
    dense = dense_run(root / DENSE)
    run = plan_of(command)
    assert run.teacher.run_dir.samefile(dense)
    assert plan_of(f"{command} prune.saliency_weight=0").teacher is None
    named = dense_run(root / "named")
    assert plan_of(f"task=mrpc prune=adapler distill.teacher={named}").teacher.run_dir == named  # soft is implied
    other = plan_of(f"{command} distill.teacher={named}")
    assert other.teacher.run_dir == named
    assert other.directory != run.directory
    assert "nothing is distilled" in message(f"{command} distill.teacher={named} distill.weight=0.7")
    assert "nothing is distilled" in message(f"task=mrpc prune=threshold stage=soft distill.teacher={named}")
    soft = finished_run(root / "soft", prune_mode="adapler", initial_share=0.25)
    assert plan_of(f"task=mrpc stage=hard restore={soft}").teacher is None
    assert message(f"task=mrpc stage=soft restore={soft}") == (
        f"prune=adapler: the dense parent of {soft} is not known; {remedy}"
    )
    for stage in ("soft", "hard"):
        assert message(f"task=mrpc stage={stage} restore={soft} prune.initial_share=0.5") == (
            f"restore={soft} has learned from initial_share=0.25; "
            "prune.initial_share=0.5 would start again: leave it out."
        )


@pytest.mark.parametrize(
    ("method", "held"), [("threshold", [0.5]), ("transkimmer", []), ("tr_bert", []), ("adapler", [0.5])]
)
def test_the_directory_of_a_hard_run_is_known_before_its_parents(root, method, held):
    """So that a sweep finds its runs: a parent holds budgets where the method has thresholds for them."""
    command = f"task=mrpc prune={method} stage=hard prune.target_flops=0.5"
    before = plan_of(command)
    dense_run(root / DENSE)
    soft = plan_of(command).missing
    finished_run(soft.directory, prune_mode=soft.settings.method.name, budgets=held)
    after = plan_of(command)
    assert after.parent.run_dir.samefile(soft.directory)
    assert after.directory == before.directory


def test_a_checkpoint_says_what_its_layers_with_a_window_do(root):
    sizes = {"model_type": "modernbert", "num_hidden_layers": 6, "hidden_size": 32, "num_attention_heads": 2}
    held = {"prune_mode": "ltc", "pool_layer": 2, "dense_config": sizes}
    scaled = finished_run(root / "scaled", **held, sliding_layers="scale")
    skipped = finished_run(root / "skipped", **held, sliding_layers="skip")
    command = "task=mrpc stage=hard prune=ltc prune.pool_layer=2"
    check_method(plan_of(f"{command} restore={scaled}"), None)
    check_method(plan_of(f"{command} restore={skipped} prune.sliding_layers=scale"), None)
    for overrides in (f"restore={skipped}", f"restore={scaled} prune.sliding_layers=skip"):
        with pytest.raises(UserError, match=r"prune=ltc: ltc drops tokens in layer 2 alone"):
            check_method(plan_of(f"{command} {overrides}"), None)


def test_a_teacher_that_does_not_fit(root):
    dense_run(root / DENSE)
    sizes = {"model_type": "bert", "hidden_size": 384}
    small = dense_run(root / "small", dense_config=sizes | {"num_hidden_layers": 12})
    command = f"task=mrpc stage=soft distill.teacher={small}"
    assert plan_of(f"{command} distill=logits").teacher.run_dir == small
    assert "has hidden_size 384, the run's model has 768" in message(f"{command} distill=hidden")
    words = finished_run(root / "three", id2label={"0": "a", "1": "b", "2": "c"})
    assert "has 3 labels, task=mrpc has 2" in message(f"task=mrpc stage=soft distill=logits distill.teacher={words}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("distill.weight=0.7", "distill.… is given, but nothing is distilled: add distill=logits, hidden or ranking"),
        ("distill=logits distill.weight=0", "distill.weight=0 is out of range: it must be above 0 and at most 1"),
        ("distill=logits distill.temperature=0", "distill.temperature=0 is out of range: it must be above 0"),
        ("distill=hidden distill.hidden_weight=0", "hidden states are distilled by distill=hidden, with a weight"),
        (
            "distill=ranking distill.ranking_weight=0",
            "the ranking of the tokens is distilled by distill=ranking, with a",
        ),
        ("prune=first distill=ranking", "distill=ranking: prune=first does not rank tokens by attention"),
        ("distill=logits distill.hidden_weight=1", "hidden states are distilled by distill=hidden, with a weight"),
    ],
)
def test_what_cannot_be_distilled(words, text):
    assert text in message(f"task=mrpc stage=soft {words}")


@pytest.mark.parametrize("labels", ["NOT_EQUIVALENT,EQUIVALENT", "Not Equivalent,equivalent"])
def test_labels_are_matched_whatever_their_spelling(tmp_path, caplog, labels):
    first, second = labels.split(",")
    right = dense_checkpoint(tmp_path / "right", id2label={"0": first, "1": second})
    check_labels(inspect_checkpoint(str(right)), TASKS["mrpc"])
    assert caplog.messages == []
    wrong = dense_checkpoint(tmp_path / "wrong", id2label={"0": second, "1": first})
    with pytest.raises(UserError, match=r"numbers its labels .* Reorder the head's rows"):
        check_labels(inspect_checkpoint(str(wrong)), TASKS["mrpc"])


def test_labels_without_a_name_in_common_are_taken_in_their_order_and_said_so(tmp_path, caplog):
    directory = dense_checkpoint(tmp_path / "hf", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    check_labels(inspect_checkpoint(str(directory)), TASKS["mrpc"])
    assert caplog.messages == [
        f"the labels of restore={directory} (LABEL_0, LABEL_1) do not match those of task=mrpc (not_equivalent, "
        "equivalent) by name: they are taken in this order"
    ]
