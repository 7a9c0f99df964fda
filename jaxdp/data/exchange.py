"""Rows between nodes: each rank gets those of its coming batches from the nodes that hold them.

A rank takes rows that its own node holds from the memory that the ranks of a node share; no byte of them crosses.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdp.data.nodes import Nodes
from jaxdp.data.partition import moves
from jaxdp.data.split import Split
from jaxdp.data.storage import Pixels, Storage

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclasses.dataclass(frozen=True)
class Delivery:
    """This rank's examples of some steps: which they are, and where their images lie.

    Attributes:
      ids: int64 [num_steps, rows], as whoever held them says.
      labels: int32, likewise.
      is_here: bool, likewise: on this node.
      rows: int64, likewise: in `here` or in `arrived`.
      here, arrived: images.
    """

    ids: np.ndarray
    labels: np.ndarray
    is_here: np.ndarray
    rows: np.ndarray
    here: Storage
    arrived: Storage

    def fill(self, step: int, epochs: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Puts the images of a step into a batch, see `Storage.fill`.

        Args:
          step: of these.
          epochs: int64 [rows], in which each is seen.
          out: uint8 [size, H, W, C].
          places: int64 [rows], in `out`.
        """
        ids, rows, is_here = self.ids[step], self.rows[step], self.is_here[step]
        if is_here.all():
            self.here.fill(rows, ids, epochs, out, places)
            return
        for images, chosen in ((self.here, is_here), (self.arrived, ~is_here)):
            images.fill(rows[chosen], ids[chosen], epochs[chosen], out, places[chosen])


def exchange(split: Split, ids: np.ndarray, rank_bounds: np.ndarray, nodes: Nodes, comm: MPI.Intracomm) -> Delivery:
    """This rank's examples of some global batches; what lies on other nodes has come when it returns.

    Every rank knows who holds what and who needs what, so nobody asks: only rows cross, in one Alltoallv for all of the
    steps.

    Args:
      split: what this rank's node holds.
      ids: int64 [num_steps, batch_size], the examples of the global batches; the same on all ranks.
      rank_bounds: int64 [num_ranks + 1], rank r gets those from rank_bounds[r] to rank_bounds[r + 1].
      nodes: of all ranks.
      comm: one communicator on all ranks.
    """
    mine = ids[:, rank_bounds[comm.rank] : rank_bounds[comm.rank + 1]]
    slots = split.slots_of(mine)
    is_here = split.node_of(slots) == split.node
    rows = np.where(is_here, slots - split.first, 0)
    labels, delivered = np.empty(mine.shape, np.int32), mine.copy()
    labels[is_here] = split.labels_N[rows[is_here]]
    arrived = split.images
    if nodes.count > 1:
        arrived, rows[~is_here], labels[~is_here], delivered[~is_here] = _cross(
            split, ids, slots[~is_here], rank_bounds, nodes, comm
        )
    return Delivery(delivered, labels, is_here, rows, split.images, arrived)


def _cross(
    split: Split, ids: np.ndarray, wanted: np.ndarray, rank_bounds: np.ndarray, nodes: Nodes, comm: MPI.Intracomm
) -> tuple[Storage, np.ndarray, np.ndarray, np.ndarray]:
    """Images, and the rows among them, labels and ids of what lies in the wanted slots, which other nodes hold."""
    slots = split.slots_of(ids)
    holder = split.node_of(slots)
    taker = np.searchsorted(rank_bounds, np.arange(ids.shape[1]), side="right") - 1
    crosses = holder != nodes.of_rank[taker]

    # What leaves goes by taker, what arrives comes by sender; among those in the order of the batches.
    leaves = crosses & (nodes.senders(holder, slots) == comm.rank)
    takers = np.broadcast_to(taker, ids.shape)[leaves]
    leaving = slots[leaves][np.argsort(takers, kind="stable")]
    rows = leaving - split.first
    route = _Route.of(takers, nodes.senders(split.node_of(wanted), wanted), comm)
    lengths = split.lengths_of(wanted[route.by_sender])
    units = route.cross(split.images.units(rows), split.lengths_of(leaving), lengths)
    return (
        split.images.of_units(units, lengths),
        route.place,
        route.cross(split.labels_N[rows])[route.place],
        route.cross(split.examples_at(rows))[route.place],
    )


def rearrange(split: Split, holdings: np.ndarray, nodes: Nodes, comm: MPI.Intracomm, *, at_once: int) -> Split:
    """Has examples lie in other slots, in the memory that there is; all ranks call it together.

    Args:
      split: what this rank's node holds; its memory is written to.
      holdings: int64 [num_examples], the example that each slot is to hold.
      nodes: the world's.
      comm: one communicator on all ranks.
      at_once: slots that get their example at once; twice as many rows are held beside the data meanwhile.

    Returns:
      The split as it is then.
    """
    assert isinstance(split.images, Pixels)
    before = np.arange(split.num_examples) if split.holdings is None else split.holdings
    for sources, targets in moves(before, holdings, at_once=at_once):
        source_nodes, target_nodes = split.node_of(sources), split.node_of(targets)
        givers, takers = nodes.senders(source_nodes, sources), nodes.senders(target_nodes, targets)
        crosses = source_nodes != target_nodes
        leaves, arrives = crosses & (givers == comm.rank), crosses & (takers == comm.rank)
        stays = ~crosses & (takers == comm.rank)
        outgoing = sources[leaves][np.argsort(takers[leaves], kind="stable")] - split.first
        staying = sources[stays] - split.first
        route = _Route.of(takers[leaves], givers[arrives], comm)
        places = np.concatenate([targets[stays], targets[arrives][route.by_sender]]) - split.first
        images = split.images.units(staying), route.cross(split.images.units(outgoing))
        labels = split.labels_N[staying], route.cross(split.labels_N[outgoing])
        # All ranks of a node have read before one writes, and written before one reads.
        comm.Barrier()
        for of_images, of_labels, of_places in zip(images, labels, np.split(places, [staying.size]), strict=True):
            split.images.put(of_places, of_images)
            split.labels_N[of_places] = of_labels
        comm.Barrier()
    return dataclasses.replace(split, holdings=holdings)


class _Route(NamedTuple):
    """Who gets how many rows from whom.

    Attributes:
      takers, givers: int64 [rows], of what this rank sends, by taker, and of what it wants, by sender.
      by_sender: int64 [rows], where what arrives, by sender, goes among what this rank wants.
      comm: one communicator on all ranks.
    """

    takers: np.ndarray
    givers: np.ndarray
    by_sender: np.ndarray
    comm: MPI.Intracomm

    @classmethod
    def of(cls, takers: np.ndarray, givers: np.ndarray, comm: MPI.Intracomm) -> _Route:
        """From the takers of what this rank sends, and the givers of what it wants, each in the order of all ranks."""
        by_sender = np.argsort(givers, kind="stable")
        return cls(np.sort(takers), givers[by_sender], by_sender, comm)

    @property
    def place(self) -> np.ndarray:
        """int64 [rows]: where what this rank wants is among what arrives."""
        return np.argsort(self.by_sender)

    def cross(
        self, units: np.ndarray, sent: np.ndarray | None = None, received: np.ndarray | None = None
    ) -> np.ndarray:
        """What the others give of their units for what this rank gives of its own, by sender.

        Args:
          units: sorted by taker.
          sent: int64 [rows], units of each row that is sent; None if it is one each.
          received: likewise of those that arrive, by sender.
        """
        num_sent, num_received = (
            np.bincount(ranks, lengths, minlength=self.comm.size).astype(np.int64)
            for ranks, lengths in ((self.takers, sent), (self.givers, received))
        )
        arrived = np.empty((num_received.sum(), *units.shape[1:]), units.dtype)
        # Counts are in units, not bytes, so that they stay far below 2^31.
        unit = _unit_type(units)
        self.comm.Alltoallv([units, num_sent, unit], [arrived, num_received, unit])
        unit.Free()
        return arrived


def _unit_type(units: np.ndarray) -> MPI.Datatype:
    from mpi4py import MPI

    return MPI.BYTE.Create_contiguous(units.dtype.itemsize * int(np.prod(units.shape[1:]))).Commit()
