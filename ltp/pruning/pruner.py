"""The pruning of a model: a method, its parameters, and those of each budget."""

from typing import Any

import torch
from torch import Tensor, nn

from ltp.pruning.flops import CostModel
from ltp.pruning.method import Method
from ltp.pruning.tokens import EncoderShape, Tokens


def check_fits(method: Method, shape: EncoderShape, sliding_layers: str) -> None:
    """Check that tokens can leave in one of the layers of an encoder that a method decides in.

    Raises:
        ValueError: a setting names layers that the encoder lacks, or all layers in which tokens would leave have a
            window; the message names the setting.
    """
    method.check_encoder(shape.num_layers)
    own = [number for number in range(1, shape.num_layers + 1) if method.decides_in(number, shape.num_layers)]
    if own and not any(_decides(method, shape, sliding_layers, number) for number in own):
        raise ValueError(
            f"{method.name} drops tokens in layer {', '.join(map(str, own))} alone, with a sliding window, where "
            "sliding_layers=skip lets none leave. Choose another layer, or sliding_layers=scale"
        )


def _decides(method: Method, shape: EncoderShape, sliding_layers: str, number: int) -> bool:
    is_skipped = sliding_layers == "skip" and bool(shape.windows) and shape.windows[number - 1] is not None
    return not is_skipped and method.decides_in(number, shape.num_layers)


class Pruner(nn.Module):
    """Applies a method. Its parameters are the method's, under their names.

    Args:
        method: the method with its settings.
        shape: sizes of the encoder.
        num_budgets: K, the number of FLOPs budgets with thresholds of their own.
        sliding_layers: see :data:`~ltp.pruning.SLIDING_LAYERS`.

    Attributes:
        method, shape, sliding_layers: as given.
        budget_thresholds: thresholds of each budget, (K, L) float32; absent without budgets. The row of the budget
            in use is updated only when :meth:`use_budget` selects another one.
        budget_in_use: row of the budget in use, scalar int64; absent without budgets.
    """

    thresholds: Tensor
    budget_thresholds: Tensor
    budget_in_use: Tensor

    def __init__(self, method: Method, shape: EncoderShape, num_budgets: int = 0, sliding_layers: str = "skip") -> None:
        super().__init__()
        self.sliding_layers = sliding_layers
        self.method = method
        self.shape = shape
        self.num_budgets = num_budgets
        for name, value in method.parameters(shape).items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)
        if num_budgets:
            self.register_buffer("budget_thresholds", self.thresholds.detach().repeat(num_budgets, 1))
            self.register_buffer("budget_in_use", torch.zeros((), dtype=torch.int64))

    @classmethod
    def from_config(cls, method: type[Method], config: Any) -> "Pruner":
        """Create the pruner from an :class:`~ltp.model.configuration.LTPConfig`, read by attribute."""
        own, shape = method.from_config(config), config.encoder_shape
        check_fits(own, shape, config.sliding_layers)
        return cls(own, shape, len(config.budgets), config.sliding_layers)

    @torch.no_grad()
    def reset(self) -> None:
        """Set parameters to their initial values (called for parameters that are not in the checkpoint)."""
        initial = Pruner(self.method, self.shape, self.num_budgets, self.sliding_layers)
        self.load_state_dict(initial.state_dict())

    @property
    def own_thresholds(self) -> Tensor | None:
        """Effective thresholds of layers 1..L, (L,) float32; None if the method has none."""
        return self._parameters.get("thresholds")

    @torch.no_grad()
    def share_thresholds(self) -> None:
        """Copy the effective thresholds to every budget."""
        self.budget_thresholds.copy_(self.thresholds.expand_as(self.budget_thresholds))

    @torch.no_grad()
    def use_budget(self, number: int) -> None:
        """Make the thresholds of a budget the effective ones, in place, after saving the current ones in their row.

        Args:
            number: row of the budget.
        """
        self.budget_thresholds[self.budget_in_use] = self.thresholds
        self.thresholds.copy_(self.budget_thresholds[number])
        self.budget_in_use.fill_(number)

    def decides_in(self, number: int) -> bool:
        """Whether tokens may leave in a layer, 1..L."""
        return _decides(self.method, self.shape, self.sliding_layers, number)

    @property
    def decides(self) -> list[bool]:
        """Whether tokens may leave, of layers 1..L."""
        return [self.decides_in(number) for number in range(1, self.shape.num_layers + 1)]

    def freeze_idle_layers(self) -> None:
        """Freeze the modules, one a layer, of the layers in which no token leaves: they get no gradient."""
        for modules in self.children():
            if isinstance(modules, nn.ModuleList) and len(modules) == self.shape.num_layers:
                for module, decides in zip(modules, self.decides, strict=True):
                    if not decides:
                        module.requires_grad_(False)

    @property
    def reads(self) -> frozenset[str]:
        """What the method reads of a layer; see :data:`ltp.pruning.method.READS`."""
        return self.method.reads

    @property
    def decides_before(self) -> bool:
        """Whether a layer's decision falls before its attention."""
        return self.method.decides_before

    @property
    def merges(self) -> bool:
        """Whether tokens that leave are merged into others."""
        return self.method.merges

    @property
    def carries(self) -> bool:
        """Whether a value a token is passed from layer to layer."""
        return self.method.carries

    def presence(self, survival: Tensor) -> Tensor:
        """Return survival probabilities as attention and states take them: sampled ones pass no gradient."""
        return survival.detach() if self.method.samples > 1 else survival

    def survivors(self, tokens: Tokens) -> Tensor:
        """Select the tokens that a layer keeps; see :meth:`ltp.pruning.method.Method.survivors`."""
        return self.method.survivors(tokens, self)

    def merge_targets(self, tokens: Tokens) -> Tensor:
        """Return the column that each token goes into; see :meth:`ltp.pruning.method.Method.merge_targets`."""
        return self.method.merge_targets(tokens, self)

    def gate(self, tokens: Tokens) -> Tensor:
        """Compute the gates of the soft rule; see :meth:`ltp.pruning.method.Method.gate`."""
        return self.method.gate(tokens, self)

    def scores(self, tokens: Tokens) -> Tensor:
        """Compute the importance of each token; see :meth:`ltp.pruning.method.Method.scores`."""
        return self.method.scores(tokens, self)

    def carry(self, tokens: Tokens) -> Tensor:
        """Return the value that is passed to the next layer; see :meth:`ltp.pruning.method.Method.carry`."""
        return self.method.carry(tokens)

    @property
    def cost(self) -> CostModel:
        """Counts the FLOPs of a forward pass with this pruning."""
        return CostModel.of_method(self.method, self.shape, self.decides)
