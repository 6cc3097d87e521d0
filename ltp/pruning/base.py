"""What a pruning method is."""

from typing import Any, ClassVar

from torch import Tensor, nn


class Pruner(nn.Module):
    """Decides, layer by layer, which tokens go on. It executes nothing: :mod:`ltp.execution.packed` does.

    A method overrides :meth:`survivors`. One that is learnable also overrides :meth:`gate`.
    """

    #: the value of ``prune_mode`` that selects the method, in ``config.json`` and on the command line
    prune_mode: ClassVar[str]
    #: whether the method reads importance scores; without, attention need not compute them, and they are 0
    needs_scores: ClassVar[bool] = True
    #: whether the method has a soft form, :meth:`gate`
    learnable: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Any) -> "Pruner":
        """The method as an :class:`~ltp.model.configuration.LTPConfig` (read by attribute) describes it."""
        return cls()

    def reset(self) -> None:
        """Set parameters to their initial values (called for parameters that a checkpoint lacks)."""

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        """The tokens that survive a layer under the hard rule.

        Args:
            layer: 1..L.
            scores: importance, (B, N) float32.
            alive: tokens alive when the layer starts, (B, N) bool.
            lengths: real tokens n of each input, (B,) int64.

        Returns:
            Tokens alive from this layer's attention on, (B, N) bool: a subset of ``alive`` with position 0 (or
            ``alive`` itself, which spares the executors to look who left).
        """
        raise NotImplementedError

    def gate(self, layer: int, scores: Tensor, alive: Tensor) -> Tensor:
        """The soft rule: factors in (0, 1) on the layer's output, (B, N) float32, 0 where not alive.

        Raises:
            TypeError: the method has nothing to learn.
        """
        raise TypeError(f"{type(self).__name__} has no soft form: it has nothing to learn")


class NoPruning(Pruner):
    """Keeps every token: the dense model."""

    prune_mode = "none"
    needs_scores = False

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        return alive
