"""Exchanges rows between nodes: each rank receives the rows of its coming batches from the nodes that hold them.

A rank reads the rows that its own node holds from memory that the ranks of the node share; those rows are never sent.
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
    """This rank's examples for several steps: their ids and labels, and where their images are stored.

    Attributes:
      ids: int64 [num_steps, rows], ids of the examples; for examples of other nodes, as reported by the sender.
      labels: int32 [num_steps, rows], labels of the examples.
      is_here: bool [num_steps, rows], whether this node holds the example.
      rows: int64 [num_steps, rows], row of the image in `here` or `arrived`.
      here: images that this node holds.
      arrived: images received from other nodes.
    """

    ids: np.ndarray
    labels: np.ndarray
    is_here: np.ndarray
    rows: np.ndarray
    here: Storage
    arrived: Storage

    def fill(self, step: int, epochs: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Writes the images of a step into a batch, see `Storage.fill`.

        Args:
          step: index of the step in this delivery.
          epochs: int64 [rows], epoch in which each example is seen.
          out: uint8 [size, H, W, C], the batch.
          places: int64 [rows], rows of `out` to write.
        """
        ids, rows, is_here = self.ids[step], self.rows[step], self.is_here[step]
        if is_here.all():
            self.here.fill(rows, ids, epochs, out, places)
            return
        for images, chosen in ((self.here, is_here), (self.arrived, ~is_here)):
            images.fill(rows[chosen], ids[chosen], epochs[chosen], out, places[chosen])


def exchange(split: Split, ids: np.ndarray, rank_bounds: np.ndarray, nodes: Nodes, comm: MPI.Intracomm) -> Delivery:
    """Delivers this rank's examples of several global batches; all rows from other nodes have arrived on return.

    Every rank can compute which rows every other rank holds and needs, so no requests are sent: only rows cross, with
    one Alltoallv each for images, labels and ids of all steps.

    Args:
      split: the part of the split that this rank's node holds.
      ids: int64 [num_steps, batch_size], ids of the examples in the global batches; the same on all ranks.
      rank_bounds: int64 [num_ranks + 1], rank r gets columns rank_bounds[r]..rank_bounds[r + 1] of `ids`.
      nodes: nodes of the ranks of `comm`.
      comm: communicator of all ranks that share the split.
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
    """Receives the examples in the wanted slots from other nodes.

    Returns:
      The images, and for each wanted slot the row of its image, its label and its id.
    """
    slots = split.slots_of(ids)
    holder = split.node_of(slots)
    taker = np.searchsorted(rank_bounds, np.arange(ids.shape[1]), side="right") - 1
    crosses = holder != nodes.of_rank[taker]

    # Rows that leave are sorted by taker and rows that arrive by sender; ties keep the order of the batches.
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
    """Moves examples to other slots, in place; all ranks call it together.

    Args:
      split: the part of the split that this rank's node holds; its memory is overwritten.
      holdings: int64 [num_examples], the example that each slot is to hold.
      nodes: nodes of the ranks of `comm`.
      comm: communicator of all ranks that share the split.
      at_once: number of slots filled per round; a round needs memory for up to twice this number of rows in addition
        to the data.

    Returns:
      The split with the new holdings.
    """
    assert isinstance(split.images, Pixels), "only decoded images can change places"
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
        # All ranks of a node must have read before any of them writes, and have written before any of them reads.
        comm.Barrier()
        for of_images, of_labels, of_places in zip(images, labels, np.split(places, [staying.size]), strict=True):
            split.images.put(of_places, of_images)
            split.labels_N[of_places] = of_labels
        comm.Barrier()
    return dataclasses.replace(split, holdings=holdings)


class _Route(NamedTuple):
    """The rows that this rank sends and receives in an exchange.

    Attributes:
      takers: int64 [rows], rank that receives each row that this rank sends; sorted.
      givers: int64 [rows], rank that sends each row that this rank wants; sorted.
      by_sender: int64 [rows], index among the wanted rows of each row that arrives; rows arrive sorted by sender.
      comm: communicator of all ranks that share the split.
    """

    takers: np.ndarray
    givers: np.ndarray
    by_sender: np.ndarray
    comm: MPI.Intracomm

    @classmethod
    def of(cls, takers: np.ndarray, givers: np.ndarray, comm: MPI.Intracomm) -> _Route:
        """Makes a route from the takers of rows sent and the givers of rows wanted, in an order all ranks share."""
        by_sender = np.argsort(givers, kind="stable")
        return cls(np.sort(takers), givers[by_sender], by_sender, comm)

    @property
    def place(self) -> np.ndarray:
        """Index among the arriving rows of each wanted row: int64 [rows]."""
        return np.argsort(self.by_sender)

    def cross(
        self, units: np.ndarray, sent: np.ndarray | None = None, received: np.ndarray | None = None
    ) -> np.ndarray:
        """Sends units to their takers and returns the units that arrive, sorted by sender.

        Args:
          units: units to send, sorted by taker.
          sent: int64 [rows], number of units of each row that is sent; None for one per row.
          received: int64 [rows], number of units of each row that arrives, sorted by sender; None for one per row.
        """
        num_sent, num_received = (
            np.bincount(ranks, lengths, minlength=self.comm.size).astype(np.int64)
            for ranks, lengths in ((self.takers, sent), (self.givers, received))
        )
        arrived = np.empty((num_received.sum(), *units.shape[1:]), units.dtype)
        # Count in units, not in bytes, so that counts stay far below 2^31.
        unit = _unit_type(units)
        self.comm.Alltoallv([units, num_sent, unit], [arrived, num_received, unit])
        unit.Free()
        return arrived


def _unit_type(units: np.ndarray) -> MPI.Datatype:
    from mpi4py import MPI

    return MPI.BYTE.Create_contiguous(units.dtype.itemsize * int(np.prod(units.shape[1:]))).Commit()
