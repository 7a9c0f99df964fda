"""Packs a pytree of arrays into a few flat buckets, and unpacks it."""

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
    """The assignment of the leaves of a pytree to flat buckets.

    A bucket holds leaves of one dtype, in the order in which they become ready. It is closed once it reaches the target
    size, so only the last bucket of each dtype can be smaller.

    Attributes:
      shapes: shape and dtype of each leaf.
      members: indices of the leaves of each bucket.
      treedef: structure of the pytree.
    """

    shapes: tuple[jax.ShapeDtypeStruct, ...]
    members: tuple[tuple[int, ...], ...]
    treedef: Any

    @classmethod
    def plan(cls, tree: PyTree, *, bucket_bytes: int, order: Sequence[int] | None = None) -> "Buckets":
        """Returns the buckets for pytrees like this one.

        Args:
          tree: pytree of arrays or their shapes.
          bucket_bytes: target size of a bucket; a bucket that has reached it is closed.
          order: indices of the leaves in the order in which they become ready. None for the last leaf first, because
            the gradients of the last layers are often ready first.
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
        """Size of each bucket in bytes."""
        return [_num_bytes(bucket) for bucket in self.buckets]

    @property
    def buckets(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each bucket."""
        return [
            jax.ShapeDtypeStruct((sum(math.prod(self.shapes[i].shape) for i in bucket),), self.shapes[bucket[0]].dtype)
            for bucket in self.members
        ]

    def pack(self, tree: PyTree) -> list[jax.Array]:
        """Returns the buckets of a pytree, arrays [num_elements]."""
        leaves = self.treedef.flatten_up_to(tree)
        return [jnp.concatenate([leaves[index].ravel() for index in bucket]) for bucket in self.members]

    def unpack(self, buckets: list[jax.Array]) -> PyTree:
        """Returns the pytree that `pack` turned into these buckets."""
        leaves: list[Any] = [None] * len(self.shapes)
        for bucket, flat in zip(self.members, buckets, strict=True):
            sizes = [math.prod(self.shapes[index].shape) for index in bucket]
            parts = jnp.split(flat, np.cumsum(sizes)[:-1].tolist())
            for index, part in zip(bucket, parts, strict=True):
                leaves[index] = part.reshape(self.shapes[index].shape)
        return jax.tree.unflatten(self.treedef, leaves)


def gradient_ready_order(function: Callable[..., PyTree], *args: PyTree) -> list[int]:
    """Returns the order in which a function, such as a backward pass, computes the leaves of its result.

    The order is that of the function's own program (its jaxpr), which for a backward pass runs from the last layer to
    the first.

    Args:
      function: a pure function.
      args: its arguments, pytrees of arrays or their shapes.

    Returns:
      Indices of the leaves. Leaves that are computed at the same time keep their own order.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    computed = {id(variable): place for place, equation in enumerate(jaxpr.eqns) for variable in equation.outvars}
    places = [computed.get(id(variable), -1) for variable in jaxpr.outvars]
    return sorted(range(len(places)), key=places.__getitem__)


def _num_bytes(array: jax.ShapeDtypeStruct) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
