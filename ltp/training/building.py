"""Build a run's tokenizer, model and teacher, and check its inputs before anything is written."""

from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedTokenizerBase

from ltp.data.demo import demo_tokenizer
from ltp.data.hub import loading_from_hub
from ltp.data.sources import Splits
from ltp.data.tasks import Task
from ltp.encoders import encoder_family, known_families, unknown_family
from ltp.errors import UserError
from ltp.model import model_class
from ltp.model.configuration import LTPConfig
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import DENSE_MODE, variants
from ltp.pruning.pruner import check_fits
from ltp.runs.identity import Run
from ltp.runs.loading import load_tokenizer, read_splits, read_tokenizer


def check_hardware(run: Run) -> None:
    """Check that the trainer's settings fit the machine.

    Raises:
        UserError: the precision or the accelerator needs a GPU, and there is none.
    """
    trainer = run.settings.trainer
    if trainer.precision == "16-mixed" and not torch.cuda.is_available():
        raise UserError("trainer.precision=16-mixed needs a CUDA GPU; use bf16-mixed or 32-true here")
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={trainer.accelerator}: no GPU found; use trainer=cpu")


def check_sources(run: Run) -> Splits:
    """Check the data, tokenizer, model configuration and hardware of a run and its missing parent.

    No weights are loaded.

    Returns:
        The data.

    Raises:
        UserError: data, model or hardware do not fit.
    """
    check_hardware(run)
    splits = read_splits(run.settings.task, run.settings.data_dir)
    check_method(run, build_tokenizer(run))
    return splits


def check_method(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the settings of a run's method against the encoder, also while the parents are missing.

    Raises:
        UserError: they name layers that it lacks, or no token could leave.
    """
    settings, method = run.settings.prune, run.settings.method
    if method.name == DENSE_MODE:
        return
    while run.missing is not None:
        run = run.missing
    if run.parent is None:
        config = dense_config(run, run.task, tokenizer)
    else:
        with loading_from_hub(f"restore={run.parent.source}", _MODEL_REMEDY, source=run.parent.path):
            config = AutoConfig.from_pretrained(run.parent.path, trust_remote_code=False)
    try:
        own = config if isinstance(config, LTPConfig) else LTPConfig.from_dense(config)
        check_fits(method, own.encoder_shape, settings.sliding_layers or own.sliding_layers)
    except ValueError as error:
        raise UserError(f"prune={settings.mode}: {error}") from error


_BAD_SIZES = (StrictDataclassError, TypeError, ValueError, RuntimeError, ZeroDivisionError)
_LARGEST = 5e9  # parameters of an encoder from scratch
_MODEL_REMEDY = (
    "Give a local directory with model.name_or_path=DIR or restore=DIR, take task=demo model=tiny, "
    "or connect to the hub."
)


def build_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the run's initial checkpoint; the demo tokenizer for an encoder from scratch."""
    if run.parent is not None:
        return load_tokenizer(run.parent, run.task)
    name_or_path = run.settings.model.name_or_path
    if name_or_path is None:
        return demo_tokenizer()
    config = pretrained_config(name_or_path).to_dict()
    source = f"model.name_or_path={name_or_path}"
    return read_tokenizer(name_or_path, config, source, task=run.task, remedy=_MODEL_REMEDY)


def build_model(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> LTPPreTrainedModel:
    """Build the pruned model that the run starts from, in float32.

    Raises:
        UserError: the checkpoint cannot be loaded, or it does not fit the settings.
    """
    settings, method = run.settings, run.settings.method
    pruning: dict[str, Any] = {
        "prune_mode": method.name,
        # survival: with a budget, the expected FLOPs of the training must match those counted in an evaluation
        "masking_mode": "hard" if settings.stage != "soft" else "survival" if settings.targets else method.masking,
    }
    pruning |= {
        key: value for key, name in method.config_keys().items() if (value := getattr(settings.prune, name)) is not None
    }
    if settings.prune.sliding_layers is not None:
        pruning["sliding_layers"] = settings.prune.sliding_layers
    if run.parent is not None:
        with loading_from_hub(f"restore={run.parent.source}", _MODEL_REMEDY, source=run.parent.path):
            model = model_class(task.model_class).from_pretrained(run.parent.path, **pruning)
        if not variants()[run.method].learned:
            model.pruner.reset()  # use the configured thresholds, not the checkpoint's learned ones
    else:
        model = model_class(task.model_class).from_dense(build_dense(run, task, tokenizer), **pruning)
    if settings.prune.sliding_layers is not None and not model.pruner.shape.windows:
        raise UserError(
            f"prune.sliding_layers={settings.prune.sliding_layers}: a {model.config.dense_model_type} model has no "
            "layers with a sliding window; leave it out"
        )
    if method.has_thresholds() and settings.targets != model.config.budgets:
        model.set_budgets(settings.targets)
    model.has_penalty = not settings.targets  # a budget sets a price of its own
    labels = task.labels or tuple(f"LABEL_{index}" for index in range(task.num_labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.config.problem_type = task.problem_type
    model.gradient_checkpointing = settings.model.gradient_checkpointing
    if model.gradient_checkpointing and settings.stage == "hard" and method.passes(model.pruner.shape.num_layers, 0, 0):
        raise UserError(
            f"model.gradient_checkpointing=true: {method.name} trains several forms of the model in a step, and only "
            "the last could be computed again in the backward pass; leave it out"
        )
    if settings.task.max_length > (limit := model.config.max_input_tokens):
        raise UserError(f"task.max_length={settings.task.max_length}: the model reads at most {limit} tokens")
    return model


def build_teacher(run: Run) -> LTPPreTrainedModel:
    """Load the dense teacher of a run, in float32."""
    assert run.teacher is not None
    with loading_from_hub(f"distill.teacher={run.teacher.source}", _MODEL_REMEDY, source=run.teacher.path):
        teacher = model_class(run.task.model_class).from_pretrained(run.teacher.path, prune_mode=DENSE_MODE)
    teacher.config.problem_type = run.task.problem_type
    return teacher


def dense_config(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the configuration of the dense model: of a pretrained encoder, or of one with random weights.

    Raises:
        UserError: the architecture is unknown or inconsistent, or the configuration cannot be loaded.
    """
    settings = run.settings.model
    if settings.name_or_path is None:
        architecture = dict(settings.architecture)
        model_type = architecture.pop("model_type", None)
        if settings.num_layers is not None:
            architecture["num_hidden_layers"] = settings.num_layers
        if model_type not in known_families():
            known = ", ".join(known_families())
            raise UserError(
                f"model.architecture.model_type={model_type}, and model.name_or_path is null: "
                f"an encoder from scratch is one of {known}; a pretrained one is named by model.name_or_path"
            )
        family = encoder_family(model_type)
        try:
            config = family.config_class(
                **_special_tokens(family.config_class, tokenizer),
                **{family.size_names.get(key, key): value for key, value in architecture.items()},
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                num_labels=task.num_labels,
            )
            shape = family.shape(config)
            layer = 4 * shape.hidden_size**2 + shape.ffn_products * shape.hidden_size * shape.intermediate_size
            if (parameters := shape.num_layers * layer + config.vocab_size * shape.hidden_size) > _LARGEST:
                raise ValueError(f"{parameters:.3g} parameters are too many")
        except _BAD_SIZES as error:
            raise UserError(f"model.architecture: {' '.join(str(error).split())}") from error
        return config
    config = pretrained_config(settings.name_or_path)
    depth = config.num_hidden_layers
    if settings.num_layers is not None and settings.num_layers > depth:
        raise UserError(f"model.num_layers={settings.num_layers}: {settings.name_or_path} has {depth} layers")
    config.num_hidden_layers = settings.num_layers or depth
    return config


def build_dense(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Build the dense model: a pretrained encoder with a new head, or one with random weights.

    Raises:
        UserError: the architecture is unknown or inconsistent, or the weights cannot be loaded.
    """
    settings, auto_class = run.settings.model, model_class(task.model_class).auto_class
    config = dense_config(run, task, tokenizer)
    if settings.name_or_path is None:
        try:
            return encoder_family(config.model_type).dense_class(auto_class)(config)
        except _BAD_SIZES as error:
            raise UserError(f"model.architecture: {' '.join(str(error).split())}") from error
    with loading_from_hub(f"model.name_or_path={settings.name_or_path}", _MODEL_REMEDY, source=settings.name_or_path):
        return getattr(transformers, auto_class).from_pretrained(
            settings.name_or_path,
            num_labels=task.num_labels,
            num_hidden_layers=config.num_hidden_layers,
            dtype=torch.float32,
            trust_remote_code=False,
        )


def _special_tokens(config_class: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids of special tokens of a configuration whose defaults are outside the vocabulary."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = {"cls_token_id": first, "bos_token_id": first, "sep_token_id": last, "eos_token_id": last}
    return {name: value for name, value in ids.items() if (getattr(config_class, name, None) or 0) >= len(tokenizer)}


def pretrained_config(name_or_path: str) -> Any:
    """Load the configuration of a pretrained encoder.

    Raises:
        UserError: it cannot be read, or ltp has no adapter for its architecture.
    """
    with loading_from_hub(f"model.name_or_path={name_or_path}", _MODEL_REMEDY, source=name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    if config.model_type not in known_families():
        raise UserError(f"model.name_or_path={name_or_path}: {unknown_family(config.model_type)}")
    if problem := encoder_family(config.model_type).unsupported(config):
        raise UserError(f"model.name_or_path={name_or_path}: {problem}")
    return config
