"""A pytree of arrays to a few flat buckets, and back."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Which leaves of a pytree lie in which flat bucket.

    Last leaves come first, as their gradients are ready first in the backward pass. A bucket holds leaves of
    one dtype and is closed when the next leaf would make it larger than asked; a larger leaf has a
    bucket to itself.

    Attributes:
      shapes: shape and dtype of each leaf.
      members: for each bucket the indices of its leaves.
      treedef: of the pytree.
    """

    shapes: tuple[jax.ShapeDtypeStruct, ...]
    members: tuple[tuple[int, ...], ...]
    treedef: Any

    @classmethod
    def plan(cls, tree: PyTree, *, bucket_bytes: int) -> "Buckets":
        """The buckets for pytrees like this one (arrays or their shapes), of at most so many bytes each."""
        leaves, treedef = jax.tree.flatten(tree)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        members: list[list[int]] = []
        room: dict[np.dtype, tuple[list[int], int]] = {}
        for index in reversed(range(len(shapes))):
            size = _num_bytes(shapes[index])
            bucket, left = room.get(shapes[index].dtype, ([], 0))
            if not bucket or size > left:
                bucket, left = [], bucket_bytes
                members.append(bucket)
            bucket.append(index)
            room[shapes[index].dtype] = bucket, left - size
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


def _num_bytes(array: jax.ShapeDtypeStruct) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
