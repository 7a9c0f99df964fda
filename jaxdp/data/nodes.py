"""Which rank is on which node, and what each node holds of the data: one copy for all of its ranks."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxdp.data.order import even_bounds


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The ranks of each node.

    Attributes:
      leaders: for each rank the first rank on its node.
    """

    leaders: tuple[int, ...]

    @functools.cached_property
    def of_rank(self) -> np.ndarray:
        """int64 [num_ranks]: the node of each rank; nodes are numbered in the order of their first ranks."""
        return np.unique(self.leaders, return_inverse=True)[1].astype(np.int64)

    @property
    def count(self) -> int:
        return int(self.of_rank.max()) + 1

    @functools.cached_property
    def _by_node(self) -> np.ndarray:
        return np.argsort(self.of_rank, kind="stable")

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """int64 [count]: ranks on each node."""
        return np.bincount(self.of_rank)

    @functools.cached_property
    def _first(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def bounds(self, num_examples: int) -> np.ndarray:
        """int64 [count + 1]: node n holds examples bounds[n]..bounds[n + 1], in proportion to its ranks."""
        return even_bounds(num_examples, len(self.leaders))[self._first]

    def part_of(self, rank: int, num_examples: int) -> slice:
        """The rows of its node's part that this rank reads, and evaluates."""
        place = int(np.flatnonzero(self._by_node == rank)[0])
        of_ranks = even_bounds(num_examples, len(self.leaders))
        first = of_ranks[self._first[self.of_rank[rank]]]
        return slice(int(of_ranks[place] - first), int(of_ranks[place + 1] - first))

    def senders(self, nodes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Which rank sends what lies in each slot: the ranks of its node take turns.

        Args:
          nodes: int64 [...], with the slots.
          slots: int64 [...].
        """
        return self._by_node[self._first[nodes] + slots % self.sizes[nodes]]
