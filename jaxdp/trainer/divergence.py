"""Detects replicas that have drifted apart by comparing hashes of their states."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.runtime.world import Failure, World
from jaxdp.step.state import TrainState, named_leaves

# With these, two states that differ in several leaves share a hash with a probability of about 2**-64.
_HASH_DIGITS = 16


class DivergenceError(Failure):
    """The replicas of the state are no longer identical."""


class DivergenceCheck:
    """Compares the state on all devices of all ranks, which must be bit-identical.

    Args:
      like: state whose leaves are compared, as arrays or their shapes.
      world: all ranks.
      dump: folder into which every rank writes its state if replicas differ; None to write nothing.
    """

    def __init__(self, like: TrainState, world: World, *, dump: pathlib.Path | None):
        self._world, self._dump = world, dump
        named = named_leaves(like)
        self._names = list(named)
        self._layout = [f"{name} {np.dtype(leaf.dtype).name} {tuple(leaf.shape)}" for name, leaf in named.items()]
        self._hash = jax.jit(lambda leaves: jnp.stack([_word(leaf) for leaf in leaves]))

    def check(self, state: TrainState, step: int) -> str:
        """Compares the replicas of the state after a step; all ranks call it together.

        Returns:
          A hash of all bits of the state, with the names, dtypes and shapes of its leaves, as 16 hexadecimal digits.
          States have the same hash on any number of ranks and devices.

        Raises:
          DivergenceError: replicas differ; raised only on the first rank that differs from the majority.
        """
        leaves = jax.tree.leaves(state)
        of_devices = [
            np.asarray(self._hash([leaf.addressable_shards[device].data for leaf in leaves]))
            for device in range(len(leaves[0].addressable_shards))
        ]
        of_ranks = np.array(self._world.allgather(np.stack(of_devices)))
        found = first_divergent(of_ranks)
        if found is not None:
            self._end_job(leaves, step, *found)
        words = of_ranks[0, 0].tolist()
        return hashlib.sha256(repr((self._layout, words)).encode()).hexdigest()[:_HASH_DIGITS]

    def _end_job(self, leaves: list[jax.Array], step: int, rank: int, device: int, leaf: int) -> None:
        """Raises the error on the rank that differs; the other ranks wait until that rank has ended the job."""
        if self._dump is not None:
            self._dump.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = {
                name: np.asarray(array.addressable_data(0)) for name, array in zip(self._names, leaves, strict=True)
            }
            np.savez(self._dump / f"step-{step}-rank-{self._world.rank}.npz", **arrays)
        # The rank that raises ends the job, so first wait until all ranks have written.
        self._world.barrier()
        if self._world.rank == rank:
            where = f" (states written to {self._dump})" if self._dump is not None else ""
            raise DivergenceError(
                f"replicas differ after step {step}: {self._names[leaf]} on device {device} of this rank is not that "
                f"of most replicas{where}. Memory or a link of this host may be faulty; the last checkpoint is from "
                "before the divergence"
            )
        self._world.barrier()


def first_divergent(hashes: np.ndarray) -> tuple[int, int, int] | None:
    """Finds the first replica whose hashes differ from those of most replicas.

    Args:
      hashes: uint32 [ranks, devices, leaves].

    Returns:
      Rank, device, and the first leaf that differs; None if all replicas are equal.
    """
    _, devices, leaves = hashes.shape
    replicas = hashes.reshape(-1, leaves)
    kinds, which, counts = np.unique(replicas, axis=0, return_inverse=True, return_counts=True)
    if len(kinds) == 1:
        return None
    # In a tie, the hashes that come first count as the majority.
    most = which[np.argmax(counts[which])]
    replica = int(np.argmax(which != most))
    leaf = int(np.argmax(replicas[replica] != kinds[most]))
    return replica // devices, replica % devices, leaf


def _word(leaf: jax.Array) -> jax.Array:
    """Hashes an array to a uint32 [] that changes whenever a single word (of 16 or 32 bits) changes.

    Each word is mapped one-to-one, and multiplied by an odd number that depends on its position, which is one-to-one
    too; the hash is the sum of the products.
    """
    narrow = leaf.dtype.itemsize == 2
    bits = jax.lax.bitcast_convert_type(leaf.ravel(), jnp.uint16 if narrow else jnp.uint32)
    words = bits.ravel().astype(jnp.uint32)
    odd = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
    return jnp.sum((words ^ (words >> 15)) * odd, dtype=jnp.uint32)
