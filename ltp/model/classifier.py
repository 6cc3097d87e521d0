"""The pruned classifier as a Hugging Face model."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from ltp.encoders import encoder_family
from ltp.execution.masked import masked_encoder
from ltp.execution.output import LTPOutput
from ltp.execution.packed import packed_encoder
from ltp.execution.packing import Packing, real_tokens
from ltp.model.configuration import LTPConfig, check_budgets, check_pruning, check_pruning_keys
from ltp.pruning import ALIASES, PRUNING_KEYS, SOFT_KEYS, pruner_class
from ltp.pruning.base import Pruner
from ltp.pruning.threshold import ThresholdPruner, sparsity_penalty

if TYPE_CHECKING:
    from ltp.deploy.classifier import DeployedClassifier

log = logging.getLogger(__name__)


class LTPForSequenceClassification(PreTrainedModel):
    """A BERT or RoBERTa sequence classifier whose encoder prunes tokens.

    Attributes:
        dense_model: the Hugging Face classifier with the weights; ``dense`` is short for it.
        pruner: the pruning method with its parameters (learned thresholds).
        execution: ``packed`` removes pruned tokens; ``masked`` computes and masks them (the reference; always used
            to return hidden states or attentions).
        gradient_checkpointing: whether training computes the activations of a layer again in the backward pass rather
            than keep them; ``gradient_checkpointing_enable()`` sets it.
    """

    execution = "packed"
    gradient_checkpointing = False

    config_class = LTPConfig
    base_model_prefix = "dense_model"  # not "dense": PEFT's target module of that name would match it
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: LTPConfig) -> None:
        super().__init__(config)
        self.family = encoder_family(config.dense_model_type)
        self.num_labels = config.num_labels
        self.dense_model = self.family.classifier_class(config.build_dense_config())
        self.pruner = pruner_class(config.prune_mode).from_config(config)
        self.post_init()

    @property
    def dense(self) -> Any:
        """The Hugging Face classifier with the weights."""
        return self.dense_model

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation not in (None, "eager", "sdpa"):
            raise ValueError(
                f"attn_implementation={attn_implementation!r}: a pruned encoder needs attention that returns what each "
                "token receives, which is built in; leave the argument out"
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(f"{prefix}dense.")]:  # written by ltp 0.1
            state_dict[f"{prefix}dense_model.{key.removeprefix(f'{prefix}dense.')}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the embeddings as Hugging Face models do."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.dense.config.vocab_size = self.config.vocab_size
        return embeddings

    def _init_weights(self, module: nn.Module) -> None:
        # from_pretrained builds on the meta device: parameters that the checkpoint lacks are uninitialised until here
        if isinstance(module, Pruner):
            module.reset()
        else:
            super()._init_weights(module)

    @classmethod
    def from_dense(cls, dense: PreTrainedModel, **pruning: Any) -> "LTPForSequenceClassification":
        """Wrap a fine-tuned Hugging Face classifier. Weights are shared, not copied.

        Args:
            dense: a BERT or RoBERTa sequence classifier.
            pruning: arguments of :class:`LTPConfig`, such as ``prune_mode="topk", token_keep_rate=0.2``.

        Raises:
            ValueError: ltp has no adapter for the model, or it is not a sequence classifier.
        """
        config = LTPConfig.from_dense(dense.config, **pruning)
        family = encoder_family(config.dense_model_type)
        if not isinstance(dense, family.classifier_class):
            raise ValueError(f"{type(dense).__name__} is not a {family.classifier_class.__name__}")
        with torch.device("meta"):  # allocates no memory: the dense part is replaced
            model = cls(config)
        model.dense_model = dense
        model.pruner = pruner_class(config.prune_mode).from_config(config).to(dense.device)
        return model.train(dense.training)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # other arguments are in kwargs
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> "LTPForSequenceClassification":
        """Load a pruned classifier from a run or from a dense BERT or RoBERTa classifier.

        Args:
            pretrained_model_name_or_path: a run directory or its ``model/``, a Hugging Face directory or a hub id. The
                ``config.json`` of a dense checkpoint may contain ``prune_mode``, ``final_token_threshold``,
                ``scoring_mode``, ``token_keep_rate`` and ``score_length``; without ``prune_mode`` it does not prune.
            kwargs: ``budget``, the checkpoint's budget to use; arguments of :class:`LTPConfig`, which override the
                file; and arguments of ``PreTrainedModel.from_pretrained``. ``dtype`` defaults to float32.

        Returns:
            The model, in evaluation mode.
        """
        # with the checkpoint's dtype, a float16 checkpoint would give float16 thresholds
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype", torch.float32))
        pruning = {key: kwargs.pop(key) for key in (*PRUNING_KEYS, *SOFT_KEYS) if key in kwargs}
        budget = kwargs.pop("budget", None)
        model_dir = os.path.join(pretrained_model_name_or_path, "model")
        if os.path.isfile(os.path.join(model_dir, CONFIG_NAME)):  # a run directory
            pretrained_model_name_or_path = model_dir
        if _is_ltp_checkpoint(pretrained_model_name_or_path, kwargs):
            if isinstance(given := kwargs.get("config"), LTPConfig):  # the Auto classes put the arguments into it
                stored = LTPConfig.from_pretrained(pretrained_model_name_or_path)
                for key in (*PRUNING_KEYS, *SOFT_KEYS):
                    pruning.setdefault(key, getattr(given, key))
                    setattr(given, key, getattr(stored, key))
            kwargs["key_mapping"] = {r"^dense\.": "dense_model."} | (
                kwargs.get("key_mapping") or {}
            )  # written by ltp 0.1
            model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            model.set_pruning(**pruning)
            if budget is not None:
                model.use_budget(budget)
            return model
        if budget is not None:
            raise ValueError(f"budget={budget}: {pretrained_model_name_or_path} is a dense model; it holds no budgets")
        from transformers import AutoModelForSequenceClassification  # the import registers this class

        dense = AutoModelForSequenceClassification.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return cls.from_dense(dense, **pruning)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as Hugging Face does; the weights get the permissions of ``config.json``, which safetensors ignores."""
        super().save_pretrained(save_directory, *args, **kwargs)
        config = Path(save_directory) / CONFIG_NAME
        for weights in Path(save_directory).glob("*.safetensors"):
            weights.chmod(config.stat().st_mode)

    def set_pruning(self, **pruning: Any) -> None:
        """Change how the model prunes, in place.

        Learned thresholds are kept unless ``prune_mode`` or ``final_token_threshold`` changes. In this case they are
        reset to the initial schedule, and budgets are removed.

        Args:
            pruning: keys of :data:`~ltp.pruning.PRUNING_KEYS` and :data:`~ltp.pruning.SOFT_KEYS`.

        Raises:
            ValueError: an unknown key, or a value outside its range.
        """
        check_pruning_keys(pruning)
        before = {key: getattr(self.config, key) for key in (*PRUNING_KEYS, *SOFT_KEYS)}
        after = {**before, **pruning}
        check_pruning(**after)
        for key, value in after.items():
            setattr(self.config, key, value)
        if before != after:
            vars(self.config).pop("calibration", None)  # the record of another pruning
        kept = all(before[key] == after[key] for key in ("prune_mode", "final_token_threshold"))
        if not kept:
            self.config.budgets = []
        pruner = pruner_class(after["prune_mode"]).from_config(self.config).to(self.device)
        if kept:
            pruner.load_state_dict(self.pruner.state_dict())
        elif isinstance(self.pruner, ThresholdPruner) and isinstance(pruner, ThresholdPruner):
            log.warning("thresholds start again from final_token_threshold=%g", after["final_token_threshold"])
        self.pruner = pruner.train(self.training)

    def set_budgets(self, budgets: Sequence[float]) -> None:
        """Set the budgets of the model; each starts with the current thresholds.

        Args:
            budgets: shares of the dense FLOPs, ascending; an empty sequence removes all budgets.

        Raises:
            ValueError: a budget is out of range, or the method has no thresholds.
        """
        check_budgets(budgets, self.config.prune_mode)
        self.config.budgets = list(budgets)
        thresholds = self.thresholds
        if thresholds is None:
            return
        pruner = pruner_class(self.config.prune_mode).from_config(self.config).to(self.device)
        assert isinstance(pruner, ThresholdPruner)
        with torch.no_grad():
            pruner.thresholds.copy_(thresholds)
        if budgets:
            pruner.share_thresholds()
        pruner.thresholds.requires_grad_(thresholds.requires_grad)
        self.pruner = pruner.train(self.training)

    def use_budget(self, budget: float) -> None:
        """Use the thresholds of another budget of the model.

        Args:
            budget: one of ``config.budgets``, in relative FLOPs.

        Raises:
            ValueError: the model has no such budget.
        """
        budgets = self.config.budgets
        if budget not in budgets:
            known = f"it holds {', '.join(f'{value:g}' for value in budgets)}" if budgets else "it holds none"
            raise ValueError(
                f"budget={budget}: the model has no thresholds for it, {known}. "
                "python -m ltp.calibrate makes them, without training."
            )
        assert isinstance(self.pruner, ThresholdPruner)
        self.pruner.use_budget(budgets.index(budget))

    @property
    def budget(self) -> float | None:
        """The budget whose thresholds are in use, in relative FLOPs; None without budgets."""
        if not self.config.budgets:
            return None
        assert isinstance(self.pruner, ThresholdPruner)
        return self.config.budgets[int(self.pruner.budget_in_use)]

    @property
    def thresholds(self) -> Tensor | None:
        """Effective thresholds of layers 1..L, (L,) float32; None if the method has none."""
        return self.pruner.thresholds if isinstance(self.pruner, ThresholdPruner) else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_class_states: bool = False,
        head_mask: Tensor | None = None,
    ) -> LTPOutput | tuple[Any, ...]:
        """Classify a batch.

        Args:
            input_ids: (B, N) int64, or ``inputs_embeds``, (B, N, D).
            attention_mask: 1 for real tokens, 0 for padding, (B, N); position 0 must be real.
            token_type_ids, position_ids: (B, N) int64, as in Hugging Face models.
            labels: class ids, (B,) int64, or targets of a regression, (B,) float.
            output_attentions, output_hidden_states: whether to return these outputs of every layer.
            return_dict: whether to return an :class:`~ltp.execution.output.LTPOutput` (default) or a tuple.
            output_class_states: whether to return the class states of every layer.
            head_mask: not supported, as in transformers 5; must be None.

        Raises:
            ValueError: neither or both of ``input_ids`` and ``inputs_embeds``; an empty batch; a mask of another shape
                or meaning; an example without a real token at position 0 (padding on the left), or with more tokens
                than the encoder has positions; a head mask.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if head_mask is not None:
            raise ValueError("head_mask is not supported; leave it out")
        inputs = input_ids if input_ids is not None else cast(Tensor, inputs_embeds)
        alive = real_tokens(attention_mask, inputs)
        common: dict[str, Any] = {
            "masking_mode": self.config.masking_mode if self.training else "hard",
            "scoring_mode": self.config.scoring_mode,
            "score_length": self.config.score_length,
            "keep_class_states": output_class_states,
            "recompute": self.gradient_checkpointing and self.training,
        }
        layers = self.family.layers(self.dense)
        if self.execution == "packed" and not (output_attentions or output_hidden_states):
            packing, indices = Packing.from_mask(alive)
            limit = self.family.max_input_tokens(self.dense.config)
            if position_ids is None and packing.lengths[-1] > limit:
                raise ValueError(f"an example has {packing.lengths[-1]} tokens; the encoder has {limit} positions")
            if input_ids is not None:
                hidden = self.family.embed_tokens(self.dense, input_ids, indices, token_type_ids, position_ids)
            else:
                hidden = self.family.embed(self.dense, None, token_type_ids, position_ids, inputs_embeds)
                hidden = hidden.flatten(0, 1)[indices]
            encoded = packed_encoder(self.family, layers, self.pruner, hidden, packing, **common)
        else:
            hidden = self.family.embed(self.dense, input_ids, token_type_ids, position_ids, inputs_embeds)
            encoded = masked_encoder(
                *(self.family, layers, self.pruner, hidden, alive),
                **common,
                keep_states=bool(output_hidden_states),
                keep_attentions=bool(output_attentions),
            )
        logits = self.family.classify(self.dense, encoded.class_token)
        output = LTPOutput(
            loss=None if labels is None else self.objective(logits, labels, encoded.gate_sums),
            logits=logits,
            hidden_states=encoded.hidden_states or None,
            attentions=encoded.attentions or None,
            token_lengths=encoded.token_lengths,
            gate_sums=encoded.gate_sums,
            expected_lengths=encoded.expected_lengths,
            class_states=encoded.class_states,
        )
        return output if return_dict is not False else output.to_tuple()

    def deploy(self, dtype: str = "float32") -> "DeployedClassifier":
        """Create a frozen copy for inference on a CPU, with prepacked or quantised weights. Call it like the model.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``int8`` (dynamic).

        Raises:
            ValueError: an unknown dtype, or a model that is not on the CPU.
            RuntimeError: int8 without a PyTorch engine for it.
        """
        from ltp.deploy.classifier import DeployedClassifier  # not needed for training

        return DeployedClassifier(
            self.family,
            self.dense,
            self.pruner,
            dtype=dtype,
            scoring_mode=self.config.scoring_mode,
            score_length=self.config.score_length,
        )

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the task loss, the mean over the examples, by the rule of Hugging Face's classifiers.

        Where ``config.problem_type`` is not set, the labels decide: a regression if ``num_labels`` is 1, one class per
        example for integers, several labels per example for floats.

        Args:
            logits: (B, num_labels).
            labels: class ids, (B,) or (B, 1), integers; targets of a regression, float, (B,) or (B, num_labels); or
                several labels per example, float, (B, num_labels).

        Returns:
            Scalar float32.
        """
        logits = logits.float()
        problem_type = self.config.problem_type or (
            "regression"
            if self.num_labels == 1
            else "multi_label_classification"
            if labels.is_floating_point()
            else "single_label_classification"
        )
        if problem_type == "regression":
            return functional.mse_loss(logits.flatten(), labels.float().flatten())
        if problem_type == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.float())
        return functional.cross_entropy(logits, labels.flatten())

    def objective(self, logits: Tensor, labels: Tensor, gate_sums: Tensor | None) -> Tensor:
        """Compute the objective: the task loss, plus lambda times the regulariser under a soft rule (LTP §3.3).

        Args:
            logits, labels: see :meth:`task_loss`.
            gate_sums: (B, L) float32, or None under the hard rule.

        Returns:
            Scalar float32.
        """
        loss = self.task_loss(logits, labels)
        if gate_sums is not None:
            loss = loss + self.config.lambda_threshold * sparsity_penalty(gate_sums, self.config.score_length)
        return loss


def prune(
    model: PreTrainedModel, prune_mode: str = "absolute_threshold", **pruning: Any
) -> LTPForSequenceClassification:
    """Add token pruning to a fine-tuned classifier, or change how a pruned classifier prunes.

    Args:
        model: a BERT or RoBERTa sequence classifier, or a classifier returned by this function. Weights are shared.
        prune_mode: ``absolute_threshold`` (or ``threshold``, as on the command line), ``topk`` or ``none``.
        pruning: other arguments of :class:`LTPConfig`: ``final_token_threshold=0.01``, ``token_keep_rate=0.2``,
            ``masking_mode="soft"`` to learn thresholds, …

    Raises:
        ValueError: ltp has no adapter for the model, a setting is unknown, or a value is outside its range.
    """
    prune_mode = ALIASES.get(prune_mode, prune_mode)
    if isinstance(model, LTPForSequenceClassification):
        model.set_pruning(prune_mode=prune_mode, **pruning)
        return model
    return LTPForSequenceClassification.from_dense(model, prune_mode=prune_mode, **pruning)


def _is_ltp_checkpoint(name_or_path: str | os.PathLike[str], kwargs: dict[str, Any]) -> bool:
    """Whether the ``config.json`` of a directory or hub id belongs to a pruned classifier."""
    hub = {
        key: kwargs[key] for key in ("revision", "subfolder", "cache_dir", "token", "local_files_only") if key in kwargs
    }
    path = cast(str, cached_file(name_or_path, CONFIG_NAME, **hub))
    with open(path, encoding="utf-8") as file:
        return json.load(file).get("model_type") == LTPConfig.model_type
