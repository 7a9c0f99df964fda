"""Rows between nodes: each rank gets those of its coming batches from the nodes that hold them.

A rank takes rows that its own node holds from the memory that the ranks of a node share; no byte of them crosses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdp.data.nodes import Nodes
from jaxdp.data.order import Deal
from jaxdp.data.partition import moves
from jaxdp.data.source import Split

if TYPE_CHECKING:
    from mpi4py import MPI


# Of memory that XLA's CPU devices use as it is.
_ALIGNMENT = 64


class Rows(NamedTuple):
    """A rank's examples of one step, in their order.

    Attributes:
      images: uint8 [rows, H, W, C].
      labels: int32 [rows].
      ids: int64 [rows], which examples they are.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray


def exchange(
    split: Split, ids: np.ndarray, deal: Deal, nodes: Nodes, comm: MPI.Intracomm
) -> tuple[np.ndarray, Iterator[Rows]]:
    """This rank's rows of some global batches; what lies on other nodes has come when it returns.

    Every rank knows who holds what and who needs what, so nobody asks: only rows cross, in one Alltoallv for all of the
    steps.

    Args:
      split: what this rank's node holds.
      ids: int64 [num_steps, batch_size], the examples of the global batches; the same on all ranks.
      deal: which part of a batch is whose.
      nodes: the world's.
      comm: one communicator on all ranks.

    Returns:
      Which examples have come, as whoever held them says: int64 [num_steps, rows]; and their rows, step by step.
    """
    mine = ids[:, deal.rank_bounds[comm.rank] : deal.rank_bounds[comm.rank + 1]]
    here = split.node_of(split.slots_of(mine)) == split.node
    images, labels, sent = _cross(split, ids, mine[~here], deal, nodes, comm)
    delivered = mine.copy()
    delivered[~here] = sent
    ends = np.cumsum(np.sum(~here, axis=1))

    def rows() -> Iterator[Rows]:
        for wanted, is_here, first, end in zip(delivered, here, [0, *ends], ends, strict=False):
            yield _merged(split, wanted, is_here, images[first:end], labels[first:end])

    return delivered, rows()


def _merged(split: Split, ids: np.ndarray, is_here: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Rows:
    """The rows of a step, some of them here, the others, as given, from elsewhere."""
    rows = split.slots_of(ids[is_here]) - split.first
    here = taken(split.images_NHWC, rows), split.labels_N[rows]
    if not len(labels):
        return Rows(*here, ids)
    merged = aligned(ids.size, images.shape[1:]), np.empty(ids.size, np.int32)
    for whole, of_here, arrived in zip(merged, here, (images, labels), strict=True):
        whole[is_here], whole[~is_here] = of_here, arrived
    return Rows(*merged, ids)


def _cross(
    split: Split, ids: np.ndarray, wanted: np.ndarray, deal: Deal, nodes: Nodes, comm: MPI.Intracomm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and ids of the wanted examples, which other nodes hold, in their order."""
    if nodes.count == 1:
        return np.empty((0, *split.images_NHWC.shape[1:]), np.uint8), np.empty(0, np.int32), np.empty(0, np.int64)
    slots = split.slots_of(ids)
    holder = split.node_of(slots)
    taker = np.searchsorted(deal.rank_bounds, np.arange(ids.shape[1]), side="right") - 1
    crosses = holder != nodes.of_rank[taker]

    # What leaves goes by taker, what arrives comes by sender; among those in the order of the batches.
    leaves = crosses & (nodes.senders(holder, slots) == comm.rank)
    takers = np.broadcast_to(taker, ids.shape)[leaves]
    rows = slots[leaves][np.argsort(takers, kind="stable")] - split.first
    there = split.slots_of(wanted)
    route = _Route.of(takers, nodes.senders(split.node_of(there), there), comm)
    return (
        route.cross(taken(split.images_NHWC, rows)),
        route.cross(split.labels_N[rows]),
        route.cross(split.examples_at(rows)),
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
    before = np.arange(split.num_examples) if split.holdings is None else split.holdings
    for sources, targets in moves(before, holdings, at_once=at_once):
        source_nodes, target_nodes = split.node_of(sources), split.node_of(targets)
        givers, takers = nodes.senders(source_nodes, sources), nodes.senders(target_nodes, targets)
        crosses = source_nodes != target_nodes
        leaves, arrives = crosses & (givers == comm.rank), crosses & (takers == comm.rank)
        stays = ~crosses & (takers == comm.rank)
        outgoing = sources[leaves][np.argsort(takers[leaves], kind="stable")] - split.first
        staying = sources[stays] - split.first
        places = np.concatenate([targets[stays], targets[arrives]]) - split.first
        route = _Route.of(takers[leaves], givers[arrives], comm)
        images = taken(split.images_NHWC, staying), route.cross(taken(split.images_NHWC, outgoing))
        labels = split.labels_N[staying], route.cross(split.labels_N[outgoing])
        # All ranks of a node have read before one writes, and written before one reads.
        comm.Barrier()
        split.images_NHWC[places] = np.concatenate(images)
        split.labels_N[places] = np.concatenate(labels)
        comm.Barrier()
    return dataclasses.replace(split, holdings=holdings)


class _Route(NamedTuple):
    """Who gets how many rows from whom.

    Attributes:
      num_sent, num_received: int64 [num_ranks].
      by_sender: int64 [rows], where what arrives, by sender, goes among what this rank wants.
      comm: one communicator on all ranks.
    """

    num_sent: np.ndarray
    num_received: np.ndarray
    by_sender: np.ndarray
    comm: MPI.Intracomm

    @classmethod
    def of(cls, takers: np.ndarray, givers: np.ndarray, comm: MPI.Intracomm) -> _Route:
        """From the takers of what this rank sends, and the givers of what it wants, each in the order of all ranks."""
        num_sent, num_received = (np.bincount(ranks, minlength=comm.size) for ranks in (takers, givers))
        return cls(num_sent, num_received, np.argsort(givers, kind="stable"), comm)

    def cross(self, values: np.ndarray) -> np.ndarray:
        """What this rank wants of these values, for what the others give of theirs; one a row, sorted by taker."""
        received = np.empty((self.by_sender.size, *values.shape[1:]), values.dtype)
        # Counts are in rows, not bytes, so that they stay far below 2^31.
        row = _row_type(values)
        self.comm.Alltoallv([values, self.num_sent, row], [received, self.num_received, row])
        row.Free()
        in_order = np.empty_like(received)
        in_order[self.by_sender] = received
        return in_order


def taken(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The images of these rows, copied row by row into aligned memory.

    NumPy copies elements of a fixed number of bytes several times as fast as small arrays.
    """
    result = aligned(len(rows), images.shape[1:])
    # Indices are right; "clip" is the mode in which NumPy writes straight into `out`.
    np.take(_as_elements(images), rows, out=_as_elements(result), mode="clip")
    return result


def aligned(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [count, *shape], not initialised, which JAX takes over on CPU devices without a copy."""
    num_bytes = count * math.prod(shape)
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].reshape(count, *shape)


def _as_elements(images: np.ndarray) -> np.ndarray:
    row_bytes = math.prod(images.shape[1:])
    return images.reshape(len(images), row_bytes).view(np.dtype((np.void, row_bytes)))[:, 0]


def _row_type(values: np.ndarray) -> MPI.Datatype:
    from mpi4py import MPI

    return MPI.BYTE.Create_contiguous(values.dtype.itemsize * int(np.prod(values.shape[1:]))).Commit()
