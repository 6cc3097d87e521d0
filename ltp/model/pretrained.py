"""What all pruned models share: a dense Hugging Face model, a pruner, and a forward pass through the encoder."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from ltp.encoders import encoder_family
from ltp.encoders.base import EncoderFamily
from ltp.execution.masked import masked_encoder
from ltp.execution.output import EncoderOutput
from ltp.execution.packed import packed_encoder
from ltp.execution.packing import Layout, Packing, real_tokens
from ltp.model.configuration import LTPConfig, check_budgets, check_pruning, check_pruning_keys, pruning_keys
from ltp.pruning import method_class
from ltp.pruning.flops import CostModel
from ltp.pruning.pruner import Pruner, check_fits
from ltp.pruning.tokens import SoftPass

if TYPE_CHECKING:
    from ltp.deploy.cuda import DeployedOnCUDA
    from ltp.deploy.fastest import FastestModel
    from ltp.deploy.model import DeployedModel

log = logging.getLogger(__name__)


class LTPPreTrainedModel(PreTrainedModel):
    """An encoder that prunes tokens, with the head that a subclass adds.

    Attributes:
        dense_model: the Hugging Face model with the weights; ``dense`` is short for it.
        pruner: the pruning method with its parameters (learned thresholds).
        execution: ``packed`` removes pruned tokens; ``masked`` computes and masks them (the reference; always used
            to return attentions).
        gradient_checkpointing: whether training computes the activations of a layer again in the backward pass rather
            than keep them; ``gradient_checkpointing_enable()`` sets it.
        has_penalty: whether the objective of a soft rule includes the method's penalty; a budget sets its own price.
        auto_class: name of the Auto class of transformers that loads the dense model, and this one.
        output_class: class of the output.
    """

    execution = "packed"
    gradient_checkpointing = False
    has_penalty = True
    auto_class: ClassVar[str] = ""
    output_class: ClassVar[Any]
    task_loss: Callable[..., Tensor]  # of the models with a head

    config_class = LTPConfig
    base_model_prefix = "dense_model"  # not "dense": PEFT's target module of that name would match it
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: LTPConfig) -> None:
        super().__init__(config)
        self.family = encoder_family(config.dense_model_type)
        self.num_labels = config.num_labels
        self.dense_model = self.family.dense_class(self.auto_class)(config.build_dense_config())
        self.pruner = _new_pruner(config)
        self.post_init()

    @property
    def dense(self) -> Any:
        """The Hugging Face model with the weights."""
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
    def from_dense(cls, dense: PreTrainedModel, **pruning: Any) -> Self:
        """Wrap a fine-tuned Hugging Face model. Weights are shared, not copied.

        Args:
            dense: a model of a known family (:mod:`ltp.encoders`), with the head of this class.
            pruning: arguments of :class:`LTPConfig`, such as ``prune_mode="topk", token_keep_rate=0.2``.

        Raises:
            ValueError: ltp has no adapter for the model, or it has another head.
        """
        config = LTPConfig.from_dense(dense.config, **pruning)
        family = encoder_family(config.dense_model_type)
        if not isinstance(dense, expected := family.dense_class(cls.auto_class)):
            raise ValueError(f"{type(dense).__name__} is not a {expected.__name__}")
        with torch.device("meta"):  # allocates no memory: the dense part is replaced
            model = cls(config)
        model.dense_model = dense
        model.pruner = _new_pruner(config).to(dense.device)
        return model.train(dense.training)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # other arguments are in kwargs
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Self:
        """Load a pruned model from a run or from a dense model of a known family.

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
        pruning = {key: kwargs.pop(key) for key in pruning_keys() if key in kwargs}
        budget = kwargs.pop("budget", None)
        model_dir = os.path.join(pretrained_model_name_or_path, "model")
        if os.path.isfile(os.path.join(model_dir, CONFIG_NAME)):  # a run directory
            pretrained_model_name_or_path = model_dir
        config_file = _config_file(pretrained_model_name_or_path, kwargs)
        if config_file.get("model_type") == LTPConfig.model_type:
            if isinstance(given := kwargs.get("config"), LTPConfig):  # the Auto classes put the arguments into it
                stored = LTPConfig.from_pretrained(pretrained_model_name_or_path)
                changed = {key: value for key, value in given.pruning.items() if stored.pruning.get(key) != value}
                pruning = changed | pruning
                for key, value in stored.pruning.items():
                    setattr(given, key, value)
            kwargs["key_mapping"] = cls._renamed_weights(config_file) | (kwargs.get("key_mapping") or {})
            model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            model.set_pruning(**pruning)
            if budget is not None:
                model.use_budget(budget)
            return model
        if budget is not None:
            raise ValueError(f"budget={budget}: {pretrained_model_name_or_path} is a dense model; it holds no budgets")
        dense = getattr(transformers, cls.auto_class).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return cls.from_dense(dense, **pruning)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as Hugging Face does; the weights get the permissions of ``config.json``, which safetensors ignores."""
        super().save_pretrained(save_directory, *args, **kwargs)
        config = Path(save_directory) / CONFIG_NAME
        for weights in Path(save_directory).glob("*.safetensors"):
            weights.chmod(config.stat().st_mode)

    def set_pruning(self, **pruning: Any) -> None:
        """Change how the model prunes, in place.

        What the method has learned is kept unless the method or its initial thresholds change. In this case its
        parameters are reset, and budgets are removed.

        Args:
            pruning: ``prune_mode``, ``masking_mode`` and settings of the method. Another method starts with its
                defaults.

        Raises:
            ValueError: an unknown key, a setting of another method, or a value outside its range.
        """
        before = self.config.pruning
        mode = pruning.get("prune_mode", before["prune_mode"])
        check_pruning_keys(pruning, mode)
        method = method_class(mode)
        kept = before
        if mode != before["prune_mode"]:
            kept = {"masking_mode": "hard", "sliding_layers": before["sliding_layers"], **method.defaults()}
        after = kept | {"prune_mode": mode} | pruning
        check_pruning(mode, after["masking_mode"], {key: after[key] for key in method.config_keys()})
        changed = method(**{name: after[key] for key, name in method.config_keys().items()})
        check_fits(changed, self.config.encoder_shape, after["sliding_layers"])
        for key in before:
            if key not in after:
                vars(self.config).pop(key, None)
        for key, value in after.items():
            setattr(self.config, key, value)
        if before != after:
            vars(self.config).pop("calibration", None)  # the record of another pruning
        fresh = any(before.get(key) != after.get(key) for key in ("prune_mode", *method.initial_keys()))
        if fresh:
            self.config.budgets = []
        if not fresh:
            self.pruner.method, self.pruner.sliding_layers = self.config.method, self.config.sliding_layers
            return
        if before["prune_mode"] == mode:
            values = ", ".join(f"{key}={after[key]}" for key in method.initial_keys() if before[key] != after[key])
            log.warning("thresholds start again from %s", values)
        self.pruner = _new_pruner(self.config).to(self.device).train(self.training)

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
        pruner = _new_pruner(self.config).to(self.device)
        with torch.no_grad():
            for name, parameter in self.pruner.named_parameters():
                pruner.get_parameter(name).copy_(parameter)
        if budgets:
            pruner.share_thresholds()
        pruner.requires_grad_(thresholds.requires_grad)
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
        self.pruner.use_budget(budgets.index(budget))

    @property
    def budget(self) -> float | None:
        """The budget whose thresholds are in use, in relative FLOPs; None without budgets."""
        if not self.config.budgets:
            return None
        return self.config.budgets[int(self.pruner.budget_in_use)]

    @property
    def thresholds(self) -> Tensor | None:
        """Effective thresholds of layers 1..L, (L,) float32; None if the method has none."""
        return self.pruner.own_thresholds

    @property
    def cost(self) -> CostModel:
        """Counts the FLOPs of a forward pass from its ``token_lengths``."""
        return self.pruner.cost

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_class_states: bool = False,
        output_scores: bool = False,
        head_mask: Tensor | None = None,
    ) -> tuple[EncoderOutput, Layout]:
        """Run the encoder; for the arguments see :meth:`ltp.LTPForSequenceClassification.forward`.

        Returns:
            Its output, and the layout of its states and scores.

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
        positions = None
        if self.family.has_positions:
            columns = torch.arange(alive.shape[1], device=alive.device)[None]
            positions = self.family.attention_positions(columns, position_ids)
        common: dict[str, Any] = {
            "masking_mode": self.config.masking_mode if self.training else "hard",
            "keep_states": bool(output_hidden_states),
            "keep_last_state": self.reads_tokens(self.family, self.dense),
            "keep_class_states": output_class_states,
            "keep_scores": output_scores,
            "recompute": self.gradient_checkpointing and self.training,
        }
        layers = self.family.layers(self.dense)
        if self.execution != "packed" or output_attentions:
            hidden = self.family.embed(self.dense, input_ids, token_type_ids, position_ids, inputs_embeds)
            encoded = masked_encoder(
                *(self.family, layers, self.pruner, hidden, alive),
                **common,
                positions=positions,
                keep_attentions=bool(output_attentions),
            )
            return encoded, Layout(alive, None)
        packing, indices = Packing.from_mask(alive)
        limit = self.family.max_input_tokens(self.dense.config)
        if position_ids is None and packing.lengths[-1] > limit:
            raise ValueError(f"an example has {packing.lengths[-1]} tokens; the encoder has {limit} positions")
        if input_ids is not None:
            hidden = self.family.embed_tokens(self.dense, input_ids, indices, token_type_ids, position_ids)
        else:
            hidden = self.family.embed(self.dense, None, token_type_ids, position_ids, inputs_embeds)
            hidden = hidden.flatten(0, 1)[indices]
        if positions is not None:
            positions = positions.expand(alive.shape).flatten()[indices]
        encoded = packed_encoder(
            *(self.family, layers, self.pruner, hidden, packing),
            **common,
            positions=positions,
            reach=alive.shape[1] - 1,
        )
        return encoded, Layout(alive, indices)

    @classmethod
    def reads_tokens(cls, family: type[EncoderFamily], dense: Any) -> bool:
        """Whether the head reads the last state of every token, rather than of the classification token."""
        return True

    @classmethod
    def head(cls, family: type[EncoderFamily], dense: Any, last: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Compute the results of the head, in every form of execution.

        Args:
            family: adapter to the encoder.
            dense: the Hugging Face model.
            last: last states of the classification tokens, (B, D), or if :meth:`reads_tokens` of all tokens.
            layout: where the latter stand.

        Returns:
            The fields of the output, by name.
        """
        raise NotImplementedError

    def outputs(self, encoded: EncoderOutput, layout: Layout, output_hidden_states: bool | None) -> dict[str, Any]:
        """Return the fields of the output but the loss: those of :meth:`head`, and what all models have."""
        reads_tokens = self.reads_tokens(self.family, self.dense)
        last = encoded.hidden_states[-1] if reads_tokens else encoded.class_token
        scores = [layout.padded(scores, -1) for scores in encoded.scores]
        gates = [layout.padded(gates, 0) for gates in encoded.gates]
        token_layers = encoded.token_layers
        return {
            **self.head(self.family, self.dense, last, layout),
            "hidden_states": tuple(map(layout.padded, encoded.hidden_states)) if output_hidden_states else None,
            "attentions": encoded.attentions or None,
            "token_lengths": encoded.token_lengths,
            "gate_sums": encoded.gate_sums,
            "expected_lengths": encoded.expected_lengths,
            "class_states": encoded.class_states,
            "token_layers": None if token_layers is None else layout.padded(token_layers, 0),
            "scores": torch.stack(scores) if scores else None,
            "gates": torch.stack(gates) if gates else None,
        }

    def deploy(
        self, dtype: str = "float32", examples: Sequence[Mapping[str, Tensor]] | None = None, **settings: Any
    ) -> "DeployedModel | DeployedOnCUDA | FastestModel":
        """Create a frozen copy for inference on the model's device. Call it like the model.

        Args:
            dtype: on a CPU ``float32``, ``bfloat16`` or ``int8``, with prepacked or quantised weights; or ``auto``: the
                fastest here of these and of graphs, see :class:`~ltp.deploy.fastest.FastestModel`. On a GPU
                ``float32``, ``bfloat16`` or ``float16``.
            examples: for ``int8`` and ``auto``, batches of inputs such as the model will see, a hundred sequences or
                so; from them come the ranges of the values that are quantised. Without them, random tokens are taken.
            settings: for ``auto``, ``batch_sizes`` and ``least_answers``.

        Raises:
            ValueError: an unknown dtype, a model on another kind of device, or on a GPU one whose head reads tokens.
            RuntimeError: int8 where PyTorch has no products for it.
        """
        if self.device.type == "cuda":
            if self.reads_tokens(self.family, self.dense):
                raise ValueError(f"{type(self).__name__} is deployed on a CPU only; on a GPU use the model itself")
            from ltp.deploy.cuda import DeployedOnCUDA  # needs Triton

            return DeployedOnCUDA(self.family, self.dense, self.pruner, dtype=dtype)
        if dtype == "auto":
            from ltp.deploy.fastest import FastestModel

            return FastestModel(self, examples, **settings)
        from ltp.deploy.model import DeployedModel  # not needed for training

        return DeployedModel(self, dtype=dtype, examples=examples, **settings)

    def with_penalty(self, loss: Tensor, encoded: EncoderOutput) -> Tensor:
        """Return the objective: the task loss, plus the method's penalty under a soft rule; scalar float32."""
        if encoded.gate_sums is None or not self.has_penalty:
            return loss
        assert encoded.expected_lengths is not None
        soft = SoftPass(encoded.gate_sums, encoded.expected_lengths)
        return loss + self.pruner.method.penalty(soft, self.pruner)

    @classmethod
    def _renamed_weights(cls, config: dict[str, Any]) -> dict[str, str]:
        """Return the names of weights that a checkpoint has otherwise: regular expressions and replacements.

        Those of ltp 0.1 begin with ``dense.``; the bare encoder is a part of a model with a head.

        Args:
            config: its ``config.json``.
        """
        dense = encoder_family(config["dense_config"]["model_type"]).dense_class(cls.auto_class)
        part = dense.base_model_prefix
        is_bare = config.get("architectures") == ["LTPModel"]
        if cls.auto_class == "AutoModel" and not is_bare:
            return {rf"^(?:dense|dense_model)\.{part}\.": "dense_model."}
        if cls.auto_class != "AutoModel" and is_bare:
            return {r"^dense_model\.": f"dense_model.{part}."}
        return {r"^dense\.": "dense_model."}


def _new_pruner(config: Any) -> Pruner:
    return Pruner.from_config(method_class(config.prune_mode), config)


def _config_file(name_or_path: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Read the ``config.json`` of a directory or hub id."""
    hub = {
        key: kwargs[key] for key in ("revision", "subfolder", "cache_dir", "token", "local_files_only") if key in kwargs
    }
    path = cast(str, cached_file(name_or_path, CONFIG_NAME, **hub))
    with open(path, encoding="utf-8") as file:
        return json.load(file)
