"""Which rank is on which node, and what each node holds of the data: one copy for all of its ranks.

Nodes may form groups, each of which holds all of the data and exchanges it among its own nodes only.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.data.order import even_bounds

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.world import World


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The nodes of some ranks.

    Attributes:
      leaders: for each rank, in their order, the first rank on its node.
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
    def by_node(self) -> np.ndarray:
        """int64 [num_ranks]: the ranks, those of the first node first."""
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
        place = int(np.flatnonzero(self.by_node == rank)[0])
        of_ranks = even_bounds(num_examples, len(self.leaders))
        first = of_ranks[self._first[self.of_rank[rank]]]
        return slice(int(of_ranks[place] - first), int(of_ranks[place + 1] - first))

    def senders(self, nodes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Which rank sends what lies in each slot: the ranks of its node take turns.

        Args:
          nodes: int64 [...], with the slots.
          slots: int64 [...].
        """
        return self.by_node[self._first[nodes] + slots % self.sizes[nodes]]


@dataclasses.dataclass(frozen=True)
class Group:
    """Ranks that hold the data once between them, and exchange it among themselves.

    Attributes:
      ranks: int64 [size], which ranks of the world they are.
      nodes: theirs.
      rank: this one's place among them.
      comm: one communicator on all of them; None before it is opened.
    """

    ranks: np.ndarray
    nodes: Nodes
    rank: int
    comm: MPI.Intracomm | None = None

    @classmethod
    def of(cls, world: World, count: int) -> Group:
        """This rank's of so many groups, of as many nodes each as can be.

        Raises:
          ValueError: there are fewer nodes than groups.
        """
        nodes = Nodes(world.leaders)
        if count > nodes.count:
            raise ValueError(
                f"each group has a node or more: config.data.groups is {count}, the job has {nodes.count} "
                f"{'node' if nodes.count == 1 else 'nodes'}: set it to {nodes.count} or less"
            )
        of_node = np.searchsorted(even_bounds(nodes.count, count), np.arange(nodes.count), side="right") - 1
        of_rank = of_node[nodes.of_rank]
        ranks = np.flatnonzero(of_rank == of_rank[world.rank])
        leaders = tuple(world.leaders[rank] for rank in ranks)
        return cls(ranks, Nodes(leaders), int(np.flatnonzero(ranks == world.rank)[0]))

    def opened(self, comm: MPI.Intracomm) -> Group:
        """With a communicator of its own, out of one of all ranks, who call it together."""
        own: Any = comm.Split(int(self.ranks[0]), self.rank)
        return dataclasses.replace(self, comm=own)
