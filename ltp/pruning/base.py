"""Base class of the pruning methods."""

from typing import Any, ClassVar

from torch import Tensor, nn


class Pruner(nn.Module):
    """Selects the tokens that each layer keeps. :mod:`ltp.execution` removes the others.

    A method overrides :meth:`survivors`. A learnable method also overrides :meth:`gate`.
    """

    #: value of ``prune_mode`` that selects the method, in ``config.json`` and on the command line
    prune_mode: ClassVar[str]
    #: whether the method uses importance scores; if not, they are not computed and the scores passed are 0
    needs_scores: ClassVar[bool] = True
    #: whether the method has a soft form, :meth:`gate`
    learnable: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Any) -> "Pruner":
        """Create the method from an :class:`~ltp.model.configuration.LTPConfig`, read by attribute."""
        return cls()

    def reset(self) -> None:
        """Set parameters to their initial values (called for parameters that are not in the checkpoint)."""

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        """Select the tokens that a layer keeps under the hard rule.

        Args:
            layer: 1..L.
            scores: importance, (B, N) float32.
            alive: tokens alive when the layer starts, (B, N) bool.
            lengths: number of real tokens n of each input, (B,) int64.

        Returns:
            Tokens alive after this layer's attention, (B, N) bool: a subset of ``alive`` that contains position 0.
            A method that prunes nothing returns ``alive`` itself, so that the caller need not compare the masks.
        """
        raise NotImplementedError

    def gate(self, layer: int, scores: Tensor, alive: Tensor) -> Tensor:
        """Compute the gates of the soft rule: factors in (0, 1), (B, N) float32, 0 where not alive.

        Raises:
            TypeError: the method is not learnable.
        """
        raise TypeError(f"{type(self).__name__} has no soft form: it has nothing to learn")


class NoPruning(Pruner):
    """Keeps every token: the dense model."""

    prune_mode = "none"
    needs_scores = False

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        return alive
