"""Rows between nodes: each rank gets those of its coming batches from the nodes that hold them.

A rank takes rows that its own node holds from the memory that the ranks of a node share; no byte of them crosses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdp.data.nodes import Nodes
from jaxdp.data.order import Deal
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
    here = split.holder_of(mine) == split.node
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
    rows = ids[is_here] - split.first
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
    holder = split.holder_of(ids)
    taker = np.searchsorted(deal.rank_bounds, np.arange(ids.shape[1]), side="right") - 1
    crosses = holder != nodes.of_rank[taker]

    # What leaves goes by taker, what arrives comes by sender; among those in the order of the batches.
    leaves = crosses & (nodes.senders(holder, ids) == comm.rank)
    takers = np.broadcast_to(taker, ids.shape)[leaves]
    rows = ids[leaves][np.argsort(takers, kind="stable")] - split.first
    num_sent = np.bincount(takers, minlength=comm.size)
    senders = nodes.senders(split.holder_of(wanted), wanted)
    by_sender = np.argsort(senders, kind="stable")
    num_received = np.bincount(senders, minlength=comm.size)

    def cross(values: np.ndarray) -> np.ndarray:
        received = np.empty((wanted.size, *values.shape[1:]), values.dtype)
        # Counts are in rows, not bytes, so that they stay far below 2^31.
        row = _row_type(values)
        comm.Alltoallv([values, num_sent, row], [received, num_received, row])
        row.Free()
        in_order = np.empty_like(received)
        in_order[by_sender] = received
        return in_order

    return cross(taken(split.images_NHWC, rows)), cross(split.labels_N[rows]), cross(rows + split.first)


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
