"""The configuration of a pruned classifier, stored in ``config.json``."""

import difflib
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ltp.encoders import FAMILIES, encoder_family
from ltp.model import MODEL_TYPE
from ltp.pruning import MASKING_MODES, METHODS, PRUNING_KEYS, SCORING_MODES, SOFT_KEYS, pruner_class

# Keys that dense_config omits: they are in the outer configuration, or apply only to the original checkpoint.
_OUTER_KEYS = (
    *("id2label", "label2id", "problem_type", "dtype", "architectures", "transformers_version", "_name_or_path"),
    *("output_attentions", "output_hidden_states", "return_dict"),
)


def _dense_size(key: str) -> property:
    """Create a property for a size of the dense classifier, an int."""

    def size(self: "LTPConfig") -> int:
        default = encoder_family(self.dense_model_type).config_class
        return int(self.dense_config[key] if key in self.dense_config else getattr(default(), key))

    def set_size(self: "LTPConfig", value: int) -> None:
        self.dense_config[key] = value

    return property(size, set_size)


class LTPConfig(PreTrainedConfig):
    """Configuration of a pruned classifier: pruning settings, and the configuration of the dense classifier.

    Args:
        dense_config: ``config.json`` of the dense classifier as a dict; ``model_type`` selects the encoder family.
        prune_mode: ``none``, ``absolute_threshold`` or ``topk``.
        scoring_mode: ``mean`` or ``mean_norm``, see :func:`ltp.pruning.importance`.
        score_length: the constant Z of ``mean`` and of the regulariser, in tokens.
        final_token_threshold: initial threshold of the last layer, in units of importance.
        token_keep_rate: keep rate of top-k in the last layer; may be negative.
        masking_mode: masking rule in training, see :data:`ltp.pruning.MASKING_MODES`. Evaluation always uses ``hard``.
        threshold_temperature: T of the soft rule (transformers reserves ``temperature`` for generation).
        lambda_threshold: weight of the regulariser under the soft rule.
        budgets: FLOPs budgets with thresholds of their own, in relative FLOPs, ascending, each in (0, 1].

    Raises:
        ValueError: a value is outside its range, or the family is unknown.
    """

    model_type = MODEL_TYPE
    #: What Hugging Face's Trainer leaves out of the predictions that it collects.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        *("token_lengths", "gate_sums", "expected_lengths", "class_states", "hidden_states", "attentions"),
    ]

    def __init__(
        self,
        dense_config: dict[str, Any] | None = None,
        prune_mode: str | None = "none",
        scoring_mode: str = "mean",
        score_length: int = 128,
        final_token_threshold: float = 0.01,
        token_keep_rate: float = 0.2,
        masking_mode: str = "hard",
        threshold_temperature: float = 1e-3,
        lambda_threshold: float = 0.0,
        budgets: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        self.dense_config = dict(dense_config or {"model_type": "bert"})
        self.prune_mode = prune_mode or "none"
        self.scoring_mode = scoring_mode
        self.score_length = score_length
        self.final_token_threshold = final_token_threshold
        self.token_keep_rate = token_keep_rate
        self.masking_mode = masking_mode
        self.threshold_temperature = threshold_temperature
        self.lambda_threshold = lambda_threshold
        self.budgets = list(budgets)
        check_pruning(**{key: getattr(self, key) for key in PRUNING_KEYS + SOFT_KEYS})
        check_budgets(self.budgets, self.prune_mode)
        if self.dense_config.get("model_type") not in FAMILIES:
            raise ValueError(
                f"model_type is {self.dense_config.get('model_type')!r}; ltp prunes {', '.join(sorted(FAMILIES))}"
            )
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
        check_pruning_keys(pruning)
        inherited = {key: getattr(dense, key) for key in PRUNING_KEYS if getattr(dense, key, None) is not None}
        content = {key: value for key, value in dense.to_dict().items() if key not in PRUNING_KEYS + _OUTER_KEYS}
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
    def max_input_tokens(self) -> int:
        """Maximum number of tokens of an input, special tokens included."""
        return encoder_family(self.dense_model_type).max_input_tokens(self.build_dense_config())


def check_pruning_keys(names: Collection[str]) -> None:
    """Check the names of pruning settings.

    Raises:
        ValueError: a name is unknown; the message has similar names.
    """
    known = (*PRUNING_KEYS, *SOFT_KEYS)
    for name in names:
        if name in ("target_flops", "budgets"):
            raise ValueError(
                f"{name} needs training or calibration: python -m ltp.train prune=threshold prune.target_flops=…, or "
                "python -m ltp.calibrate"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the settings are {', '.join(known)}"
            raise ValueError(f"unknown pruning setting {name}; {hint}")


def check_budgets(budgets: Sequence[Any], prune_mode: str) -> None:
    """Check the FLOPs budgets of a model.

    Raises:
        ValueError: a budget is not in (0, 1], they do not ascend, or the method has no thresholds.
    """
    in_range = all(isinstance(value, int | float) and 0 < value <= 1 for value in budgets)
    if not in_range or sorted(set(budgets)) != list(budgets):
        raise ValueError(f"budgets is {list(budgets)!r}; it must be ascending shares of the dense FLOPs, in (0, 1]")
    if budgets and prune_mode != "absolute_threshold":
        raise ValueError(f"budgets is {list(budgets)!r}; prune_mode {prune_mode} has no thresholds to hold for them")


def check_pruning(
    prune_mode: str,
    scoring_mode: str,
    score_length: int,
    final_token_threshold: float,
    token_keep_rate: float,
    masking_mode: str,
    threshold_temperature: float,
    lambda_threshold: float,
) -> None:
    """Check the ranges of the pruning settings.

    Raises:
        ValueError: a value is outside its range.
    """

    def check_range(ok: bool, key: str, value: Any, range_: str) -> None:
        if not ok:
            raise ValueError(f"{key} is {value!r}; it must be {range_}")

    numbers = {
        "score_length": score_length,
        "final_token_threshold": final_token_threshold,
        "token_keep_rate": token_keep_rate,
        "threshold_temperature": threshold_temperature,
        "lambda_threshold": lambda_threshold,
    }
    for key, value in numbers.items():  # a config.json edited by hand may hold "0.01"
        check_range(isinstance(value, int | float), key, value, "a number")
    check_range(prune_mode in METHODS, "prune_mode", prune_mode, f"one of {', '.join(METHODS)}")
    check_range(scoring_mode in SCORING_MODES, "scoring_mode", scoring_mode, f"one of {', '.join(SCORING_MODES)}")
    check_range(score_length >= 1, "score_length", score_length, "at least 1 (tokens)")
    check_range(0 <= final_token_threshold < 1, "final_token_threshold", final_token_threshold, "in [0, 1)")
    check_range(-10 <= token_keep_rate <= 1, "token_keep_rate", token_keep_rate, "in [-10, 1]")
    check_range(masking_mode in MASKING_MODES, "masking_mode", masking_mode, f"one of {', '.join(MASKING_MODES)}")
    learnable = masking_mode == "hard" or pruner_class(prune_mode).learnable
    check_range(
        learnable, "masking_mode", masking_mode, f"hard with prune_mode {prune_mode}, which has nothing to learn"
    )
    check_range(
        0 < threshold_temperature <= 1,
        "threshold_temperature",
        threshold_temperature,
        "in (0, 1]; published values are 1e-5 to 2e-3",
    )
    check_range(0 <= lambda_threshold < float("inf"), "lambda_threshold", lambda_threshold, "0 or more")
