"""The contract of a token-reduction method: one dataclass with its settings, its rules and how runs name it.

A method is a file with a subclass of :class:`Method` in ``ltp/pruning/methods/``, or outside the package (see
:func:`ltp.pruning.load_modules`). Its fields are its settings: Hydra's keys ``prune.*``, and keys of ``config.json``.
Everything else in ltp asks the class and names no method.

Layers are numbered 1..L as in the papers. Masks are boolean, ``True`` for tokens that are alive. Column 0 is the
classification token, which no method may drop.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: What a method may read of a layer; see the attributes of :class:`~ltp.pruning.tokens.Tokens`.
READS = frozenset({"received", "diagonal", "class_attention", "value_weighted", "hidden", "keys", "positions"})

#: Stands for a value that is not given, where None is one.
UNSET = object()


@dataclass(frozen=True)
class Setting:
    """What the command line, the configuration and the run directories need to know of a setting.

    Attributes:
        help: one line.
        is_valid: a test of a value; None accepts every value of the type.
        range: the valid range, in words, for messages.
        published: values in publications, for messages.
        key: its key in ``config.json``; None for the field's name. "" keeps it out: it matters in training only.
        model_default: the default of a model that is not made by a run; the field's default if it is left out.
        place: its name in the path of a run; None for a place only where it differs from the default.
        learned: whether it is a setting of learned variants only.
        stage: the only stage that it is a setting of; None for all.
        short: its name in tables; the field's name if it is empty.
        initial: whether it sets initial values of parameters: another value starts them again.
        set_by_budget: whether a FLOPs budget decides it.
        with_budget: its default with a budget; the field's default if it is left out.
        follows: the key of a run that gives its default, such as ``lr``; None for the field's default.
    """

    help: str
    is_valid: Callable[[Any], bool] | None = None
    range: str = ""
    published: str = ""
    key: str | None = None
    model_default: Any = UNSET
    place: str | None = None
    learned: bool = False
    stage: str | None = None
    short: str = ""
    initial: bool = False
    set_by_budget: bool = False
    with_budget: Any = UNSET
    follows: str | None = None

    @property
    def description(self) -> str:
        """The valid range and the published values, in words."""
        return f"{self.range}; published: {self.published}" if self.published else self.range


def setting(default: Any, help: str, **facts: Any) -> Any:
    """Declare a setting of a method: a field of its dataclass.

    Args:
        default: its default.
        help: one line.
        facts: other attributes of :class:`Setting`.
    """
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **facts)})


@dataclass(frozen=True)
class Variant:
    """A way in which runs use a method, under a name of its own in results, tables and figures.

    Attributes:
        name: ``method`` in ``results.json``.
        label: name in tables and figures.
        adjective: name before the word *run* in messages.
        description: one or two sentences for model cards, in Markdown.
        learned: whether a soft stage learns the parameters, from which the hard stage starts. If not, the settings
            give the rule, and the only stage is the hard one.
        defaults, demo: defaults that differ from the fields', in the paper's recipe and in the demo's.
        color, marker, line: its style in figures; empty for the next free one.
        shown: settings that tables always show, because they determine the cost.
        grid: the values of the option ``sweep=<sweep>``: Hydra's sweeper parameters by key. Each job is a hard run.
        sweep: name of this option; empty for ``name``.
    """

    name: str
    label: str
    adjective: str = ""
    description: str = ""
    learned: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    demo: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    color: str = ""
    marker: str = ""
    line: str = ""
    shown: tuple[str, ...] = ()
    grid: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sweep: str = ""


#: Registered classes by name; filled by :meth:`Method.__init_subclass__`.
REGISTERED: dict[str, type[Method]] = {}


@dataclass
class Method:
    """A token-reduction method. Fields of a subclass are its settings.

    A subclass with a ``name`` is registered. It overrides :meth:`survivors`, or :meth:`merge_targets` if tokens that
    leave are merged. A method that learns also overrides :meth:`gate`, and :meth:`parameters`.
    """

    #: ``prune_mode`` in ``config.json``, and the option of ``prune=`` on the command line
    name: ClassVar[str] = ""
    #: name in tables and figures
    label: ClassVar[str] = ""
    #: one or two sentences for model cards, in Markdown
    description: ClassVar[str] = ""
    #: the ways in which runs use it; by default one, with the name and label of the class
    variants: ClassVar[tuple[Variant, ...]] = ()
    #: other options of ``prune=``, with the name of the variant that each selects ("" leaves it open)
    aliases: ClassVar[Mapping[str, str]] = {}
    #: whether runs that name no method use it; one method has it
    is_default: ClassVar[bool] = False
    #: settings with which the calibration of a dense classifier starts, if it is the default
    untrained: ClassVar[Mapping[str, Any]] = {}
    #: whether runs learn its parameters in a soft stage (of the only variant, where ``variants`` is not given)
    learns: ClassVar[bool] = False
    #: whether a layer's decision falls before its attention, rather than between its attention and its FFN
    decides_before: ClassVar[bool] = False
    #: whether tokens that leave are merged into others, see :meth:`merge_targets`
    merges: ClassVar[bool] = False
    #: soft rule of a training without a budget, see :data:`ltp.pruning.MASKING_MODES`
    masking: ClassVar[str] = "soft"
    #: whether its cost on given texts depends on the weights, so that a budget is held by calibrating again and again
    cost_depends_on_weights: ClassVar[bool] = True
    #: the values of ``sweep=<name>``, Hydra's sweeper parameters by key, of the only variant
    grid: ClassVar[Mapping[str, str]] = {}
    #: defaults in the demo's recipe, of the only variant
    demo: ClassVar[Mapping[str, Any]] = {}
    #: settings that tables always show, of the only variant
    shown: ClassVar[tuple[str, ...]] = ()
    #: style in figures, of the only variant: colour, marker, line; empty for the next free ones
    style: ClassVar[tuple[str, str, str]] = ("", "", "")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            if not cls.variants:
                color, marker, line = cls.style
                only = Variant(
                    cls.name,
                    cls.label or cls.name,
                    description=cls.description,
                    learned=cls.learns,
                    demo=cls.demo,
                    color=color,
                    marker=marker,
                    line=line,
                    shown=cls.shown,
                    grid=cls.grid,
                )
                cls.variants = (only,)
            REGISTERED[cls.name] = cls

    # -- what it reads, its parameters and its rules ---------------------------------------------------------------

    @property
    def reads(self) -> frozenset[str]:
        """What it reads of a layer, a subset of :data:`READS`: nothing else is computed."""
        return frozenset()

    @property
    def carries(self) -> bool:
        """Whether a value a token is passed from layer to layer, see :meth:`carry`."""
        return False

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        """Return its parameters by name: float32 tensors, which become parameters, or modules.

        They are saved with the weights. A tensor ``thresholds``, (L,), is scaled to bring the model to a budget.
        """
        return {}

    def check_encoder(self, num_layers: int) -> None:
        """Check the settings against an encoder of L layers.

        Raises:
            ValueError: a setting names layers that it lacks.
        """

    def decides_in(self, layer: int, num_layers: int) -> bool:
        """Whether tokens may leave in a layer, 1..L: the rules are asked there only."""
        return True

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        """Select the tokens that a layer keeps under the hard rule.

        Args:
            tokens: the tokens of a batch in this layer.
            weights: the parameters, as attributes.

        Returns:
            (B, N) bool: a subset of ``tokens.alive`` that contains column 0. A method that keeps every token returns
            ``tokens.alive`` itself, so that the caller need not compare the masks.
        """
        raise NotImplementedError

    def merge_targets(self, tokens: Tokens, weights: Any) -> Tensor:
        """Return the column that each token goes into: its own for a token that stays, (B, N) int64.

        The state of a token that others go into becomes the mean of all, weighted by their sizes. Only for methods
        that merge.
        """
        raise NotImplementedError

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        """Compute the gates of the soft rule: factors in [0, 1], (B, N) float32, 0 where not alive.

        Raises:
            TypeError: the method has nothing to learn.
        """
        raise TypeError(f"{self.name} has no soft form: it has nothing to learn")

    def carry(self, tokens: Tokens) -> Tensor:
        """Return the value of each token that the next layer reads as ``tokens.carried``, (B, N) float32."""
        raise NotImplementedError

    def scores(self, tokens: Tokens, weights: Any) -> Tensor:
        """Return what tools show as the importance of each token, (B, N) float32."""
        if "received" not in tokens.attention:
            return tokens.alive.float()
        return tokens.received / (tokens.heads * 128)

    @property
    def samples(self) -> int:
        """How often a training step of the soft stage runs each example: more than once for a method that samples.

        Its :meth:`gate` then is a sample of the probability that :meth:`scores` gives, 1 or 0, with the gradient of
        that probability, which counts in the cost alone: attention and states pass none. What an example's samples
        answer better or worse than their mean teaches the probabilities (REINFORCE, see
        :func:`ltp.training.policy.policy_loss`).
        """
        return 1

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        """Return what the soft stage adds to the task loss, a scalar; not with a budget, which sets its own price."""
        return 0.0

    @property
    def needs_saliency(self) -> bool:
        """Whether :meth:`guidance` reads the saliency of tokens in a dense teacher, by default the dense parent."""
        return False

    def guidance(self, scores: Tensor, saliency: Tensor, weights: Any) -> Tensor | float:
        """Return what the soft stage adds to the task loss to teach the scores, a scalar; with a budget, too.

        Only for methods with :attr:`needs_saliency`.

        Args:
            scores: those of each layer in which tokens leave, (L, B, N) float32; -1 for padding.
            saliency: how much each token matters to the teacher's answer, (B, N) float32; 0 for padding. See
                :func:`ltp.training.saliency.saliency`.
            weights: the parameters, as attributes.
        """
        return 0.0

    def own_flops(self, shape: EncoderShape) -> float:
        """Return the FLOPs that it adds for a token that enters a decision."""
        return 0.0

    def passes(self, num_layers: int, seed: int, step: int) -> Sequence[Method]:
        """Return the further passes of a training step of the hard stage: the method with other settings in each.

        Where there are any, the step's first pass keeps every token and learns from the labels, and its logits teach
        the others. Equal in all processes and after a resume.
        """
        return ()

    # -- how it is trained, and brought to a budget ----------------------------------------------------------------

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate of its parameters; None for that of the weights."""
        return None

    def at_strength(self, strength: float) -> dict[str, Any]:
        """Return the settings with which it prunes more (above 1) or less (below 1) than with its own.

        The cost must not rise with the strength. Not used for methods with ``thresholds``, which are multiplied.

        Raises:
            ValueError: the method has no such setting.
        """
        raise ValueError(f"{self.name} has no setting that brings it to a budget")

    @property
    def strength_range(self) -> tuple[float, float]:
        """Strengths below which no token is dropped, and above which nothing changes any more."""
        return 1e-6, 1e6

    @classmethod
    def has_strength(cls) -> bool:
        """Whether a search can bring it to a budget."""
        return cls.at_strength is not Method.at_strength or cls.has_thresholds()

    @classmethod
    def has_thresholds(cls) -> bool:
        """Whether its parameters include ``thresholds``, (L,): then a checkpoint can hold several budgets."""
        return False

    def largest_score(self, shape: EncoderShape) -> float:
        """Return a bound of its scores: a threshold above it leaves only the classification token."""
        return 1.0

    @classmethod
    def initial_thresholds(cls, settings: Mapping[str, Any], num_layers: int) -> list[float]:
        """Return the thresholds of layers 1..L before learning, from settings by field; empty if they do not tell."""
        return []

    def settings_of(self, weights: Any) -> dict[str, Any]:
        """Return settings that describe parameters which a calibration has set, by key of ``config.json``."""
        return {}

    # -- its settings ----------------------------------------------------------------------------------------------

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """Return what is known of its settings, by field."""
        return {item.name: item.metadata["setting"] for item in dataclasses.fields(cls)}

    @classmethod
    def setting_types(cls) -> dict[str, Any]:
        """Return the types of its settings, by field."""
        hints = typing.get_type_hints(cls)
        return {item.name: hints[item.name] for item in dataclasses.fields(cls)}

    @classmethod
    def config_keys(cls) -> dict[str, str]:
        """Return the settings that a model has, by their key in ``config.json``."""
        return {name if item.key is None else item.key: name for name, item in cls.settings().items() if item.key != ""}

    @classmethod
    def initial_keys(cls) -> tuple[str, ...]:
        """Return the keys of ``config.json`` that set initial values of parameters."""
        facts = cls.settings()
        return tuple(key for key, name in cls.config_keys().items() if facts[name].initial)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the defaults of a model that is not made by a run, by key of ``config.json``."""
        values = {item.name: item.default for item in dataclasses.fields(cls)}
        facts = cls.settings()
        return {
            key: values[name] if facts[name].model_default is UNSET else facts[name].model_default
            for key, name in cls.config_keys().items()
        }

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        """Check settings, by key of ``config.json``.

        Raises:
            ValueError: a value is of another type, or outside its range.
        """
        facts, hints = cls.settings(), cls.setting_types()
        for key, name in cls.config_keys().items():
            if key not in values:
                continue
            value = values[key]
            if value is None and is_optional(hints[name]):
                continue
            if is_number_type(hints[name]) and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{key} is {value!r}; it must be a number")
            if _is_list_type(hints[name]) and not isinstance(value, list):
                raise ValueError(f"{key} is {value!r}; it must be a list")
            test = facts[name].is_valid
            if test is not None and not test(value):
                raise ValueError(f"{key} is {value!r}; it must be {facts[name].description}")

    @classmethod
    def from_config(cls, config: Any) -> Method:
        """Create the method from a model's configuration, read by attribute."""
        defaults = cls.defaults()
        return cls(**{name: getattr(config, key, defaults[key]) for key, name in cls.config_keys().items()})

    @classmethod
    def variant(cls, learned: bool) -> Variant | None:
        """Return the variant that learns, or the one that does not; None if there is none."""
        return next((variant for variant in cls.variants if variant.learned is learned), None)


def is_optional(hint: Any) -> bool:
    """Whether None is a value of a type."""
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def _is_list_type(hint: Any) -> bool:
    """Whether a type is a list of something, or that or None."""
    return any(typing.get_origin(member) is list for member in (hint, *typing.get_args(hint)))


def is_number_type(hint: Any) -> bool:
    """Whether a type is int or float, or one of them or None."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return bool(members) and set(members) <= {int, float, type(None)}
