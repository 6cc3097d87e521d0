"""The configuration of a pruned classifier, stored in ``config.json``."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ltp.encoders import encoder_family
from ltp.model import MODEL_TYPE
from ltp.pruning import DENSE_MODE, MASKING_MODES, SLIDING_LAYERS, all_methods, method_class, setting_keys
from ltp.pruning.method import Method
from ltp.pruning.tokens import EncoderShape

# Keys that dense_config omits: they are in the outer configuration, or apply only to the original checkpoint.
_OUTER_KEYS = (
    *("id2label", "label2id", "problem_type", "dtype", "architectures", "transformers_version", "_name_or_path"),
    *("output_attentions", "output_hidden_states", "return_dict"),
)


def _dense_size(key: str) -> property:
    """Create a property for a size of the dense classifier, an int."""

    def size(self: "LTPConfig") -> int:
        family = encoder_family(self.dense_model_type)
        return family.size(family.config_class.from_dict(self.dense_config), key)

    def set_size(self: "LTPConfig", value: int) -> None:
        family = encoder_family(self.dense_model_type)
        name = family.size_names.get(key, key)
        self.dense_config[family.config_class.attribute_map.get(name, name)] = value

    return property(size, set_size)


class LTPConfig(PreTrainedConfig):
    """Configuration of a pruned classifier: pruning settings, and the configuration of the dense classifier.

    Args:
        dense_config: ``config.json`` of the dense classifier as a dict; ``model_type`` selects the encoder family.
        prune_mode: name of the method, such as ``none``, ``absolute_threshold`` or ``topk``.
        masking_mode: masking rule in training, see :data:`ltp.pruning.MASKING_MODES`. Evaluation always uses ``hard``.
        sliding_layers: what layers with a sliding window decide, see :data:`ltp.pruning.SLIDING_LAYERS`.
        budgets: FLOPs budgets with thresholds of their own, in relative FLOPs, ascending, each in (0, 1].
        kwargs: settings of the method (the fields of its class), and arguments of ``PreTrainedConfig``. Settings of
            another method have no effect: files of ltp 0.1 hold those of all.

    Raises:
        ValueError: a value is outside its range, or the family is unknown.
    """

    model_type = MODEL_TYPE
    #: What Hugging Face's Trainer leaves out of the predictions that it collects.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("token_lengths", "gate_sums", "expected_lengths", "class_states", "token_layers", "scores", "gates"),
        *("hidden_states", "attentions"),
    ]

    def __init__(
        self,
        dense_config: dict[str, Any] | None = None,
        prune_mode: str | None = DENSE_MODE,
        masking_mode: str = "hard",
        budgets: Sequence[float] = (),
        sliding_layers: str = "skip",
        **kwargs: Any,
    ) -> None:
        self.dense_config = dict(dense_config or {"model_type": "bert"})
        self.prune_mode = prune_mode or DENSE_MODE
        self.masking_mode = masking_mode
        self.budgets = list(budgets)
        self.sliding_layers = sliding_layers
        if sliding_layers not in SLIDING_LAYERS:
            raise ValueError(f"sliding_layers is {sliding_layers!r}; it must be one of {', '.join(SLIDING_LAYERS)}")
        settings = {key: kwargs.pop(key) for key in setting_keys() if key in kwargs}
        check_pruning(self.prune_mode, masking_mode, settings)
        for key, value in (method_class(self.prune_mode).defaults() | settings).items():
            setattr(self, key, value)
        check_budgets(self.budgets, self.prune_mode)
        encoder_family(self.dense_config.get("model_type", ""))  # an error if it is unknown
        super().__init__(**kwargs)

    @classmethod
    def from_dense(cls, dense: PreTrainedConfig, **pruning: Any) -> "LTPConfig":
        """Create a configuration from that of a dense classifier.

        Args:
            dense: configuration of the dense classifier; its pruning keys are used, if it has any.
            pruning: arguments of this class, which override the pruning keys of ``dense``.

        Raises:
            ValueError: an argument is unknown, or outside its range.
        """
        keys = ("prune_mode", "sliding_layers", *setting_keys())
        if problem := encoder_family(dense.model_type).unsupported(dense):
            raise ValueError(problem)
        inherited = {key: getattr(dense, key) for key in keys if getattr(dense, key, None) is not None}
        mode = pruning.get("prune_mode") or inherited.get("prune_mode") or DENSE_MODE
        check_pruning_keys(pruning, mode)
        content = {key: value for key, value in dense.to_dict().items() if key not in (*keys, *_OUTER_KEYS)}
        return cls(
            dense_config=content,
            id2label=dense.id2label,
            label2id=dense.label2id,
            problem_type=dense.problem_type,
            **{**inherited, **pruning},
        )

    def build_dense_config(self) -> PreTrainedConfig:
        """Build the configuration of the dense classifier, with the labels of this one."""
        content = {**self.dense_config, "id2label": self.id2label, "label2id": self.label2id}
        return encoder_family(self.dense_model_type).config_class.from_dict(content)

    @property
    def method(self) -> Method:
        """The method with its settings."""
        return method_class(self.prune_mode).from_config(self)

    @property
    def pruning(self) -> dict[str, Any]:
        """``prune_mode``, ``masking_mode`` and the settings of the method, by key."""
        keys = ("prune_mode", "masking_mode", "sliding_layers", *method_class(self.prune_mode).config_keys())
        return {key: getattr(self, key) for key in keys}

    @property
    def dense_model_type(self) -> str:
        """``model_type`` of the dense classifier."""
        return self.dense_config["model_type"]

    # Sizes that Hugging Face code reads from a model's configuration.
    hidden_size = _dense_size("hidden_size")
    intermediate_size = _dense_size("intermediate_size")
    num_hidden_layers = _dense_size("num_hidden_layers")
    num_attention_heads = _dense_size("num_attention_heads")
    vocab_size = _dense_size("vocab_size")
    max_position_embeddings = _dense_size("max_position_embeddings")

    @property
    def encoder_shape(self) -> EncoderShape:
        """Sizes of the encoder, from which FLOPs are counted."""
        return encoder_family(self.dense_model_type).shape(self.build_dense_config())

    @property
    def max_input_tokens(self) -> int:
        """Maximum number of tokens of an input, special tokens included."""
        return encoder_family(self.dense_model_type).max_input_tokens(self.build_dense_config())


def pruning_keys() -> tuple[str, ...]:
    """Return the keys that say how a model prunes: the method, its rule in training, and the settings of any method."""
    return ("prune_mode", "masking_mode", "sliding_layers", *setting_keys())


def check_pruning_keys(names: Collection[str], prune_mode: str) -> None:
    """Check the names of pruning settings.

    Args:
        names: keys.
        prune_mode: the method that they are for.

    Raises:
        ValueError: a name is unknown, or a setting of other methods only; the message has similar names.
    """
    own = ("prune_mode", "masking_mode", "sliding_layers", *method_class(prune_mode).config_keys())
    known = pruning_keys() if prune_mode == DENSE_MODE else own
    for name in names:
        if name in ("target_flops", "budgets"):
            raise ValueError(
                f"{name} needs training or calibration: python -m ltp.train prune=threshold prune.target_flops=…, or "
                "python -m ltp.calibrate"
            )
        if name not in own:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"prune_mode {prune_mode} has {', '.join(own[1:])}"
            what = "a setting of other methods" if name in setting_keys() else "an unknown pruning setting"
            if what == "a setting of other methods" and prune_mode == DENSE_MODE:
                hint = "name the method with prune_mode"
            raise ValueError(f"{name} is {what}; {hint}")


def check_budgets(budgets: Sequence[Any], prune_mode: str) -> None:
    """Check the FLOPs budgets of a model.

    Raises:
        ValueError: a budget is not in (0, 1], they do not ascend, or the method has no thresholds.
    """
    in_range = all(isinstance(value, int | float) and 0 < value <= 1 for value in budgets)
    if not in_range or sorted(set(budgets)) != list(budgets):
        raise ValueError(f"budgets is {list(budgets)!r}; it must be ascending shares of the dense FLOPs, in (0, 1]")
    if budgets and not method_class(prune_mode).has_thresholds():
        raise ValueError(f"budgets is {list(budgets)!r}; prune_mode {prune_mode} has no thresholds to hold for them")


def check_pruning(prune_mode: str, masking_mode: str, settings: Mapping[str, Any]) -> None:
    """Check the method, its rule in training and its settings.

    Args:
        prune_mode, masking_mode: see :class:`LTPConfig`.
        settings: settings by key. Those of other methods are checked, too, as far as they are known.

    Raises:
        ValueError: a value is outside its range.
    """
    method = method_class(prune_mode)
    for known in (method, *all_methods().values()):
        known.check(settings)
    if masking_mode not in MASKING_MODES:
        raise ValueError(f"masking_mode is {masking_mode!r}; it must be one of {', '.join(MASKING_MODES)}")
    if masking_mode != "hard" and not method.learns:
        raise ValueError(
            f"masking_mode is {masking_mode!r}; it must be hard with prune_mode {prune_mode}, "
            "which has nothing to learn"
        )
