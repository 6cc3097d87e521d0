"""Packed layout of a batch of variable-length sequences."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


def real_tokens(attention_mask: Tensor | None, inputs: Tensor) -> Tensor:
    """Convert an attention mask to the real tokens, (B, N) bool.

    Args:
        attention_mask: 1 for real tokens and 0 for padding, (B, N) of any dtype; None if every token is real.
        inputs: token ids, (B, N), or embeddings, (B, N, D).

    Raises:
        ValueError: the batch is empty; the mask has another shape or is additive; an example has no real token at
            position 0 (padding on the left).
    """
    shape = tuple(inputs.shape[:2])
    if 0 in shape:
        raise ValueError(f"the batch is empty: its shape is {shape}")
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=inputs.device)
    if tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}; "
            f"give one of {shape}: 1 for real tokens, 0 for padding"
        )
    if attention_mask.is_floating_point() and not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError("attention_mask holds other values than 0 and 1; give 1 for real tokens, 0 for padding")
    alive = attention_mask.bool()
    if not bool(alive[:, 0].all()):
        raise ValueError(
            "position 0 of an example is padding, or it has no real token; the classification token must stand "
            "there: pad on the right (tokenizer.padding_side = 'right')"
        )
    return alive


def owners(owner: Tensor, origin: Tensor, into: Tensor) -> Tensor:
    """Return which token each token of the embeddings is merged into after a further merge.

    Args:
        owner: the same before it, (T,) int64; at first each token is its own.
        origin: of each row that is left, its token of the embeddings, (T',) int64.
        into: the row that each of these rows goes into, (T',) int64.
    """
    of_rows = torch.arange(len(owner), device=owner.device)
    of_rows = of_rows.index_copy(0, origin, origin.index_select(0, into))
    return of_rows.index_select(0, owner)


@dataclass(frozen=True)
class Layout:
    """Where the real tokens of a batch stand: padded, (B, N, …), or packed, (T, …).

    Attributes:
        alive: the real tokens, (B, N) bool.
        indices: their indices in the flattened batch, in the order of the packed rows, (T,) int64; None if padded.
    """

    alive: Tensor
    indices: Tensor | None

    def padded(self, rows: Tensor, padding: float = 0.0) -> Tensor:
        """Return rows of tokens in the padded layout, (B, N, …), with a value for padding."""
        if self.indices is None:
            is_padding = ~self.alive.view(*self.alive.shape, *[1] * (rows.ndim - 2))
            return rows.masked_fill(is_padding, padding)
        padded = rows.new_full((self.alive.shape[0] * self.alive.shape[1], *rows.shape[1:]), padding)
        return padded.index_copy(0, self.indices, rows).unflatten(0, self.alive.shape)

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean of the real tokens of each example: (T, D) or (B, N, D) → (B, D)."""
        return self.padded(rows).sum(dim=1) / self.alive.sum(dim=1, keepdim=True)


class Packing:
    """Positions of the tokens of a batch in a packed (T, …) tensor: sequence after sequence, without padding.

    Sequences are sorted by length, so that those of equal length are adjacent and form one view.

    The constructor synchronises once with the device, to read the lengths; the methods do not, except :meth:`keep`,
    which constructs another packing.

    Args:
        counts: number of tokens of each sequence, (B,) int64, ascending, at least 1.
        order: index of the example of each sequence, (B,) int64.

    Attributes:
        counts, order: as given.
        lengths: ``counts`` as a list, on the host.
        total: T.
        alive: mask of the tokens in padded form, left-aligned, (B, N) bool.
        starts: indices of the classification tokens, (B,) int64.
    """

    def __init__(self, counts: Tensor, order: Tensor) -> None:
        self.counts, self.order = counts, order
        self.lengths: list[int] = counts.tolist()
        self.total = sum(self.lengths)
        self.starts = counts.cumsum(dim=0) - counts
        columns = torch.arange(self.lengths[-1], device=counts.device)
        self.alive = columns < counts[:, None]
        # index of each token in the flattened padded form
        self._slots = self.alive.flatten().nonzero_static(size=self.total).squeeze(1)

    @classmethod
    def from_mask(cls, mask: Tensor) -> tuple["Packing", Tensor]:
        """Create the packing of the tokens that a mask selects.

        Args:
            mask: (B, N) bool, at least one token in each row.

        Returns:
            The packing, and the indices of its tokens in the flattened mask, (T,) int64.
        """
        counts, order = mask.sum(dim=1).sort(stable=True)
        packing = cls(counts, order)
        row, column = mask[order].nonzero_static(size=packing.total).unbind(dim=1)
        return packing, order[row] * mask.shape[1] + column

    def keep(self, survivors: Tensor) -> tuple["Packing", Tensor]:
        """Drop all tokens but the survivors.

        Args:
            survivors: the tokens to keep, (B, N) bool, a subset of :attr:`alive` that contains each first token.

        Returns:
            The packing of the survivors, and their indices in this packing, (T',) int64.
        """
        packing, slots = Packing.from_mask(survivors)
        packing.order = self.order[packing.order]
        row = slots.div(survivors.shape[1], rounding_mode="floor")
        return packing, self.starts[row] + slots % survivors.shape[1]

    @cached_property  # layers that prune nothing reuse the packing
    def groups(self) -> list[tuple[int, int]]:
        """(number of sequences, tokens of each) of every group of adjacent sequences of equal length."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    @property
    def positions(self) -> Tensor:
        """Column of each token in the padded form, (T,) int64."""
        return self._slots % self.alive.shape[1]

    def pad(self, packed: Tensor) -> Tensor:
        """Convert (T, …) to the padded form (B, N, …), 0 where there is no token."""
        rows = packed.new_zeros(self.alive.numel(), *packed.shape[1:])
        return rows.index_copy(0, self._slots, packed).unflatten(0, self.alive.shape)

    def pack(self, rows: Tensor) -> Tensor:
        """Convert the padded form (B, N, …) to (T, …)."""
        return rows.flatten(0, 1).index_select(0, self._slots)

    def to_example_order(self, values: Tensor) -> Tensor:
        """Reorder values of sequences, (B, …), to the order of the examples."""
        return torch.empty_like(values).index_copy(0, self.order, values)
