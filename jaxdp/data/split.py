"""What a node holds of a split, in RAM."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxdp.data.storage import Storage


@dataclasses.dataclass(frozen=True)
class Split:
    """What a node holds of a split, in RAM that its ranks share.

    Attributes:
      bounds: int64 [num_nodes + 1], node n of the group holds the slots bounds[n]..bounds[n + 1].
      node: this one.
      images: the node's part.
      labels_N: int32, likewise.
      mine: the rows of it that this rank has read.
      holdings: int64 [num_examples], the example in each slot, the rows of all nodes being the slots; None if it is
        that of its number.
      lengths: int64 [num_examples], units of storage of the image in each slot; None if it is one each.
    """

    bounds: np.ndarray
    node: int
    images: Storage
    labels_N: np.ndarray
    mine: slice
    holdings: np.ndarray | None = None
    lengths: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        """In the whole split."""
        return int(self.bounds[-1])

    @property
    def first(self) -> int:
        """The first slot on this node."""
        return int(self.bounds[self.node])

    @property
    def nbytes(self) -> int:
        """Of the node's part."""
        return self.images.nbytes + self.labels_N.nbytes

    @functools.cached_property
    def _slots(self) -> np.ndarray | None:
        return None if self.holdings is None else np.argsort(self.holdings)

    def slots_of(self, examples: np.ndarray) -> np.ndarray:
        """int64 [...]: where these examples lie."""
        return examples if self._slots is None else self._slots[examples]

    def examples_at(self, rows: np.ndarray) -> np.ndarray:
        """int64 [...]: the examples in these rows of this node."""
        return rows + self.first if self.holdings is None else self.holdings[rows + self.first]

    def node_of(self, slots: np.ndarray) -> np.ndarray:
        """int64 [...]: the nodes with these slots."""
        return np.searchsorted(self.bounds, slots, side="right") - 1

    def lengths_of(self, slots: np.ndarray) -> np.ndarray:
        """int64 [...]: units of storage of the images in these slots."""
        return np.ones_like(slots) if self.lengths is None else self.lengths[slots]
