"""Replicas that have drifted apart, found by hashes of their states."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.state import TrainState, named_leaves
from jaxdp.world import Failure, World


class DivergenceError(Failure):
    """The replicas of the state are no longer the same."""


class Sentinel:
    """Compares the state of all devices of all ranks, which must be the same to the bit.

    Args:
      like: a state, arrays or their shapes.
      world: all ranks.
      dump: a folder into which each rank is to write its state if they differ; None for none.
    """

    def __init__(self, like: TrainState, world: World, *, dump: pathlib.Path | None):
        self._world, self._dump = world, dump
        self._names = list(named_leaves(like))
        self._hash = jax.jit(lambda leaves: jnp.stack([_word(leaf) for leaf in leaves]))

    def check(self, state: TrainState, step: int) -> None:
        """Compares; all ranks call it together.

        Raises:
          DivergenceError: on the first rank of those that differ from most.
        """
        leaves = jax.tree.leaves(state)
        of_devices = [
            np.asarray(self._hash([leaf.addressable_shards[device].data for leaf in leaves]))
            for device in range(len(leaves[0].addressable_shards))
        ]
        of_ranks = np.array(self._world.allgather(np.stack(of_devices)))
        found = drifted(of_ranks)
        if found is None:
            return
        rank, device, leaf = found
        if self._dump is not None:
            self._dump.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = self._by_name(leaves)
            np.savez(self._dump / f"step-{step}-rank-{self._world.rank}.npz", **arrays)
        # Whoever ends the job must not keep others from writing.
        self._world.barrier()
        if self._world.rank == rank:
            where = f", in {self._dump}" if self._dump is not None else ""
            raise DivergenceError(
                f"after step {step} replicas are no longer the same: device {device} of this rank has another "
                f"{self._names[leaf]} than most: memory or a link may be faulty on this host; the last checkpoint is "
                f"from before{where}"
            )
        self._world.barrier()

    def _by_name(self, leaves: list[Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(leaf.addressable_data(0)) for name, leaf in zip(self._names, leaves, strict=True)}


def drifted(hashes: np.ndarray) -> tuple[int, int, int] | None:
    """The first rank and device with another hash than most, and the first leaf in which it differs.

    Args:
      hashes: uint32 [ranks, devices, leaves].
    """
    _, devices, leaves = hashes.shape
    replicas = hashes.reshape(-1, leaves)
    kinds, which, counts = np.unique(replicas, axis=0, return_inverse=True, return_counts=True)
    if len(kinds) == 1:
        return None
    # Of several that are as common as one another, the one that comes first.
    most = which[np.argmax(counts[which])]
    replica = int(np.argmax(which != most))
    leaf = int(np.argmax(replicas[replica] != kinds[most]))
    return replica // devices, replica % devices, leaf


def _word(leaf: jax.Array) -> jax.Array:
    """uint32 []: another one for an array in which one word of 32 bits is another.

    Each word is mapped one to one and multiplied with an odd number of its own, which keeps it so; all are added up.
    """
    narrow = leaf.dtype.itemsize == 2
    bits = jax.lax.bitcast_convert_type(leaf.ravel(), jnp.uint16 if narrow else jnp.uint32)
    words = bits.ravel().astype(jnp.uint32)
    odd = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
    return jnp.sum((words ^ (words >> 15)) * odd, dtype=jnp.uint32)
