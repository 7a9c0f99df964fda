"""The part of a split that a node holds in RAM."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxdp.data.storage import Storage


@dataclasses.dataclass(frozen=True)
class Split:
    """The part of a split that a node holds, in RAM that its ranks share.

    The rows of all nodes, one node after the other, are the slots of the split.

    Attributes:
      bounds: int64 [num_nodes + 1], node n of the group holds slots bounds[n]..bounds[n + 1].
      node: number of this node in the group.
      images: images of the node's part.
      labels_N: int32, labels of the node's part.
      mine: rows of the node's part that this rank has read.
      holdings: int64 [num_examples], example in each slot; None if slot i holds example i.
      lengths: int64 [num_examples], number of storage units of the image in each slot; None for one per image.
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
        """Number of examples in the whole split."""
        return int(self.bounds[-1])

    @property
    def first(self) -> int:
        """First slot of this node."""
        return int(self.bounds[self.node])

    @property
    def nbytes(self) -> int:
        """Size of the node's part in RAM, in bytes."""
        return self.images.nbytes + self.labels_N.nbytes

    @functools.cached_property
    def _slots(self) -> np.ndarray | None:
        return None if self.holdings is None else np.argsort(self.holdings)

    def slots_of(self, examples: np.ndarray) -> np.ndarray:
        """Slots that hold these examples: int64 [...]."""
        return examples if self._slots is None else self._slots[examples]

    def examples_at(self, rows: np.ndarray) -> np.ndarray:
        """Examples in these rows of this node: int64 [...]."""
        return rows + self.first if self.holdings is None else self.holdings[rows + self.first]

    def node_of(self, slots: np.ndarray) -> np.ndarray:
        """Nodes that hold these slots: int64 [...]."""
        return np.searchsorted(self.bounds, slots, side="right") - 1

    def lengths_of(self, slots: np.ndarray) -> np.ndarray:
        """Number of storage units of the image in each of these slots: int64 [...]."""
        return np.ones_like(slots) if self.lengths is None else self.lengths[slots]
