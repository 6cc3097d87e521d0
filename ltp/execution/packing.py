"""Where the tokens of a batch stand in a packed tensor."""

from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


class Packing:
    """Where the tokens of a batch stand in a packed (T, …) tensor: sequence after sequence, without padding.

    Sequences stand in the order of their lengths, so that those of equal length are neighbours and can be computed
    together over a view.

    Making one waits for the device once, to learn the lengths; nothing else here does.

    Args:
        counts: tokens of each sequence, (B,) int64, ascending, at least 1.
        order: the example that each sequence is, (B,) int64.

    Attributes:
        counts, order: as given.
        lengths: the same counts on the host.
        total: T.
        alive: the tokens in rows, left-aligned, (B, N) bool.
        starts: places of the classification tokens, (B,) int64.
    """

    def __init__(self, counts: Tensor, order: Tensor) -> None:
        self.counts, self.order = counts, order
        self.lengths: list[int] = counts.tolist()
        self.total = sum(self.lengths)
        self.starts = counts.cumsum(dim=0) - counts
        columns = torch.arange(self.lengths[-1], device=counts.device)
        self.alive = columns < counts[:, None]
        self._slots = self.alive.flatten().nonzero_static(size=self.total).squeeze(1)  # of each token in flat rows

    @classmethod
    def of(cls, rows: Tensor) -> tuple["Packing", Tensor]:
        """Pack rows of tokens.

        Args:
            rows: the tokens to pack, (B, N) bool, at least one in each row.

        Returns:
            The packing, and the places of its tokens in the flattened rows, (T,) int64.
        """
        counts, order = rows.sum(dim=1).sort(stable=True)
        packing = cls(counts, order)
        row, column = rows[order].nonzero_static(size=packing.total).unbind(dim=1)
        return packing, order[row] * rows.shape[1] + column

    def keep(self, survivors: Tensor) -> tuple["Packing", Tensor]:
        """Drop tokens.

        Args:
            survivors: the tokens to keep, (B, N) bool, a subset of :attr:`alive` with each first token.

        Returns:
            The packing of the survivors, and their places in this one, (T',) int64.
        """
        packing, slots = Packing.of(survivors)
        packing.order = self.order[packing.order]
        row = slots.div(survivors.shape[1], rounding_mode="floor")
        return packing, self.starts[row] + slots % survivors.shape[1]

    @cached_property  # where nobody leaves, several layers ask
    def groups(self) -> list[tuple[int, int]]:
        """(sequences, tokens of each) of every run of sequences of equal length."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    def pad(self, packed: Tensor) -> Tensor:
        """(T, …) → (B, N, …), 0 where there is no token."""
        rows = packed.new_zeros(self.alive.numel(), *packed.shape[1:])
        return rows.index_copy(0, self._slots, packed).unflatten(0, self.alive.shape)

    def pack(self, rows: Tensor) -> Tensor:
        """(B, N, …) → (T, …)."""
        return rows.flatten(0, 1).index_select(0, self._slots)

    def by_example(self, values: Tensor) -> Tensor:
        """One value a sequence, (B, …), in the order of the examples."""
        return torch.empty_like(values).index_copy(0, self.order, values)
