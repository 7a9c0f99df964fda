"""Maps ranks to nodes, and the data to nodes: a node holds one copy of its part of the data for all of its ranks.

Nodes may be divided into groups. Each group holds all of the data and exchanges it only among its own nodes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.data.order import even_bounds

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.runtime.world import World


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The nodes of several ranks.

    Attributes:
      leaders: for each rank, in order, the first rank on its node.
    """

    leaders: tuple[int, ...]

    @functools.cached_property
    def of_rank(self) -> np.ndarray:
        """Node of each rank: int64 [num_ranks]. Nodes are numbered in the order of their first ranks."""
        return np.unique(self.leaders, return_inverse=True)[1].astype(np.int64)

    @property
    def count(self) -> int:
        return int(self.of_rank.max()) + 1

    @functools.cached_property
    def by_node(self) -> np.ndarray:
        """Ranks sorted by node: int64 [num_ranks]."""
        return np.argsort(self.of_rank, kind="stable")

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Number of ranks on each node: int64 [count]."""
        return np.bincount(self.of_rank)

    @functools.cached_property
    def _first(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def bounds(self, num_examples: int) -> np.ndarray:
        """Bounds of the parts of the nodes, in proportion to their ranks: int64 [count + 1].

        Node n holds examples bounds[n]..bounds[n + 1].
        """
        return even_bounds(num_examples, len(self.leaders))[self._first]

    def part_of(self, rank: int, num_examples: int) -> slice:
        """Rows, within its node's part, that a rank reads and evaluates."""
        place = int(np.flatnonzero(self.by_node == rank)[0])
        of_ranks = even_bounds(num_examples, len(self.leaders))
        first = of_ranks[self._first[self.of_rank[rank]]]
        return slice(int(of_ranks[place] - first), int(of_ranks[place + 1] - first))

    def senders(self, nodes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Rank that sends the contents of each slot, int64 [...]; the ranks of a node take turns.

        Args:
          nodes: int64 [...], node of each slot.
          slots: int64 [...], numbers of the slots.
        """
        return self.by_node[self._first[nodes] + slots % self.sizes[nodes]]


@dataclasses.dataclass(frozen=True)
class Group:
    """Ranks that together hold one copy of the data, and exchange it among themselves.

    Attributes:
      ranks: int64 [size], numbers of the group's ranks in the world.
      nodes: nodes of these ranks.
      rank: index of this rank in `ranks`.
      comm: communicator of these ranks; None before `opened`.
    """

    ranks: np.ndarray
    nodes: Nodes
    rank: int
    comm: MPI.Intracomm | None = None

    @classmethod
    def of(cls, world: World, count: int) -> Group:
        """Returns this rank's group when the nodes are divided into `count` groups as evenly as possible.

        Raises:
          ValueError: there are fewer nodes than groups.
        """
        nodes = Nodes(world.leaders)
        if count > nodes.count:
            raise ValueError(
                f"each group needs at least one node, but config.data.groups is {count} and the job has {nodes.count} "
                f"{'node' if nodes.count == 1 else 'nodes'}: set it to {nodes.count} or less"
            )
        of_node = np.searchsorted(even_bounds(nodes.count, count), np.arange(nodes.count), side="right") - 1
        of_rank = of_node[nodes.of_rank]
        ranks = np.flatnonzero(of_rank == of_rank[world.rank])
        leaders = tuple(world.leaders[rank] for rank in ranks)
        return cls(ranks, Nodes(leaders), int(np.flatnonzero(ranks == world.rank)[0]))

    def opened(self, comm: MPI.Intracomm) -> Group:
        """Returns the group with its own communicator, split off `comm` of all ranks; all ranks call it together."""
        own: Any = comm.Split(int(self.ranks[0]), self.rank)
        return dataclasses.replace(self, comm=own)
