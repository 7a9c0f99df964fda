"""A pytree of arrays to a few flat buckets, and back."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Which leaves of a pytree lie in which flat bucket.

    A bucket holds leaves of one dtype that follow one another in the order in which they become ready, and is closed
    once it holds as many bytes as asked: so no bucket but the last is small.

    Attributes:
      shapes: shape and dtype of each leaf.
      members: for each bucket the indices of its leaves.
      treedef: of the pytree.
    """

    shapes: tuple[jax.ShapeDtypeStruct, ...]
    members: tuple[tuple[int, ...], ...]
    treedef: Any

    @classmethod
    def plan(cls, tree: PyTree, *, bucket_bytes: int, order: Sequence[int] | None = None) -> "Buckets":
        """The buckets for pytrees like this one (arrays or their shapes).

        Args:
          tree: of arrays or their shapes.
          bucket_bytes: with which a bucket is closed.
          order: indices of the leaves, those that are ready first before the others; None for the last leaves first,
            as their gradients often are.
        """
        leaves, treedef = jax.tree.flatten(tree)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        members: list[list[int]] = []
        open_buckets: dict[np.dtype, list[int]] = {}
        for index in reversed(range(len(shapes))) if order is None else order:
            dtype = shapes[index].dtype
            if dtype not in open_buckets:
                open_buckets[dtype] = []
                members.append(open_buckets[dtype])
            open_buckets[dtype].append(index)
            if sum(_num_bytes(shapes[member]) for member in open_buckets[dtype]) >= bucket_bytes:
                del open_buckets[dtype]
        return cls(shapes, tuple(tuple(bucket) for bucket in members), treedef)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each bucket."""
        return [_num_bytes(bucket) for bucket in self.buckets]

    @property
    def buckets(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each bucket."""
        return [
            jax.ShapeDtypeStruct((sum(math.prod(self.shapes[i].shape) for i in bucket),), self.shapes[bucket[0]].dtype)
            for bucket in self.members
        ]

    def pack(self, tree: PyTree) -> list[jax.Array]:
        """The buckets of a pytree: arrays [num_elements]."""
        leaves = self.treedef.flatten_up_to(tree)
        return [jnp.concatenate([leaves[index].ravel() for index in bucket]) for bucket in self.members]

    def unpack(self, buckets: list[jax.Array]) -> PyTree:
        """The pytree whose buckets these are."""
        leaves: list[Any] = [None] * len(self.shapes)
        for bucket, flat in zip(self.members, buckets, strict=True):
            sizes = [math.prod(self.shapes[index].shape) for index in bucket]
            parts = jnp.split(flat, np.cumsum(sizes)[:-1].tolist())
            for index, part in zip(bucket, parts, strict=True):
                leaves[index] = part.reshape(self.shapes[index].shape)
        return jax.tree.unflatten(self.treedef, leaves)


def readiness(function: Callable[..., PyTree], *args: PyTree) -> list[int]:
    """The leaves of what a function returns, those that it has computed first before the others.

    In the order of the function's own program (its jaxpr), which for a backward pass runs from the last layer to the
    first.

    Args:
      function: pure.
      args: pytrees of arrays or their shapes.

    Returns:
      Indices of the leaves; leaves that are ready at once are in their own order.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    computed = {id(variable): place for place, equation in enumerate(jaxpr.eqns) for variable in equation.outvars}
    places = [computed.get(id(variable), -1) for variable in jaxpr.outvars]
    return sorted(range(len(places)), key=places.__getitem__)


def _num_bytes(array: jax.ShapeDtypeStruct) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
