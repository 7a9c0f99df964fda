"""Rows between ranks: each rank gets those of its coming batches from the ranks that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdp.data.order import Deal
from jaxdp.data.source import Split

if TYPE_CHECKING:
    from mpi4py import MPI


def exchange(split: Split, ids: np.ndarray, deal: Deal, comm: MPI.Intracomm) -> tuple[np.ndarray, np.ndarray]:
    """Brings every rank the rows of its part of some global batches, in one Alltoallv each of images and labels.

    Every rank knows who holds what and who needs what, so nobody asks: only rows cross.

    Args:
      split: this rank's share.
      ids: int64 [num_steps, batch_size], the examples of the global batches; the same on all ranks.
      deal: which part of a batch is whose.
      comm: one communicator on all ranks.

    Returns:
      This rank's rows in the order of its examples: images uint8 [num_steps, rows, H, W, C] and labels int32
      [num_steps, rows], with as many rows as the rank has examples of a batch.
    """
    rank = comm.rank
    owner_of = np.searchsorted(split.bounds, ids, side="right") - 1
    taker_of = np.broadcast_to(np.searchsorted(deal.rank_bounds, np.arange(ids.shape[1]), side="right") - 1, ids.shape)

    # What leaves goes by taker, what arrives comes by owner; among those in the order of the batches.
    mine = owner_of == rank
    rows = ids[mine] - split.bounds[rank]
    by_taker = np.argsort(taker_of[mine], kind="stable")
    num_sent = np.bincount(taker_of[mine], minlength=comm.size)
    wanted = owner_of[taker_of == rank]
    by_owner = np.argsort(wanted, kind="stable")
    num_received = np.bincount(wanted, minlength=comm.size)

    def cross(values: np.ndarray) -> np.ndarray:
        sent = values[rows[by_taker]]
        received = np.empty((wanted.size, *values.shape[1:]), values.dtype)
        # Counts are in rows, not bytes, so that they stay far below 2^31.
        row = _row_type(values)
        comm.Alltoallv([sent, num_sent, row], [received, num_received, row])
        row.Free()
        in_order = np.empty_like(received)
        in_order[by_owner] = received
        return in_order.reshape(ids.shape[0], -1, *values.shape[1:])

    return cross(split.images_NHWC), cross(split.labels_N)


def _row_type(values: np.ndarray) -> MPI.Datatype:
    from mpi4py import MPI

    return MPI.BYTE.Create_contiguous(values.dtype.itemsize * int(np.prod(values.shape[1:]))).Commit()
