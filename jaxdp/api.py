"""For your own training loops: sums, means and broadcasts of pytrees over all ranks.

    import jaxdp

    def main(world):
        params = jaxdp.broadcast(params, world)
        optimizer = optax.chain(jaxdp.average_gradients(world), optax.adam(1e-3))
        ...

    jaxdp.run(main)

The README has a complete example.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.allreduce import BucketSum, make_allreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.config import AUTO, MPI, WIRES, AllreduceConfig
from jaxdp.runtime import jax_compat, process
from jaxdp.runtime import world as world_module
from jaxdp.runtime.world import World

PyTree = Any


def allreduce(
    tree: PyTree,
    world: World,
    *,
    op: str = "mean",
    algorithm: str = "multicolor",
    colors: int | None = None,
    arity: int | None = None,
    wire: str = "float32",
    segment_bytes: int = 2**18,
    bucket_bytes: int = 25_000_000,
) -> PyTree:
    """Computes the mean or the sum of a pytree over all ranks, with the same bits on every rank.

    All ranks must call it together, with trees of the same structure. Outside jit, arrays may be on any device: they
    are reduced on the host, and each result is put where its array was. Inside jit, the allreduce is part of the
    program, which must then run on one CPU device.

    Leaves of 16-bit floats are sent in their own dtype and summed in float32. Integers are summed in their own dtype,
    booleans as int32; their means are float32.

    Args:
      tree: any pytree of numbers and arrays.
      world: all ranks, as `jaxdp.run` passes it to the job.
      op: "mean" or "sum".
      algorithm: name of an algorithm, "mpi" for MPI's own allreduce, or "auto", which measures when it first meets a
        tree structure.
      colors: number of multi-color trees; None for 4, or for the number of ranks if that is smaller.
      arity: maximum number of children in these trees; None for the number of colors.
      wire: dtype to which float32 values are rounded for sending: "float32" (no rounding), "bfloat16" or "float16".
      segment_bytes: size of the pipelined segments.
      bucket_bytes: target size of a bucket of leaves; each bucket is summed by one allreduce.

    Returns:
      A pytree of arrays.

    Raises:
      ValueError: an argument is invalid, or the dtype of a leaf is not supported.
      SystemExit: the ranks have different trees; one rank prints one message to stderr.
    """
    if op not in ("mean", "sum"):
        raise ValueError(f"op must be 'mean' or 'sum', not {op!r}")
    for name, value, known in [("algorithm", algorithm, (*ALGORITHMS, MPI, AUTO)), ("wire", wire, tuple(WIRES))]:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if algorithm == MPI and wire != "float32":
        raise ValueError(f"algorithm 'mpi' does not support wire {wire!r}: choose another algorithm, or wire='float32'")
    config = AllreduceConfig(
        engine="mpi4jax",
        algorithm=algorithm,
        colors=colors,
        arity=arity,
        segment_bytes=segment_bytes,
        wire=wire,
        bucket_bytes=bucket_bytes,
    )
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_checked(path, leaf) for path, leaf in paths_and_leaves]
    plan = _plan(world, op, config, treedef, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return plan(tree)
    on_host = jax.device_put(tree, jax.local_devices(backend="cpu")[0])
    return jax.tree.map(_back, plan(on_host), jax.tree.unflatten(treedef, leaves))


def broadcast(tree: PyTree, world: World) -> PyTree:
    """Returns rank 0's pytree on all ranks.

    All ranks must call it together, outside jit, with trees of the same structure.

    Args:
      tree: any pytree of numbers and arrays.
      world: all ranks.

    Returns:
      A pytree of arrays, each on the devices of this rank's own leaf.

    Raises:
      ValueError: it is called inside jit, or a leaf is neither a number nor an array of numbers.
      SystemExit: the ranks have different trees; one rank prints one message to stderr.
    """
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_checked(path, leaf) for path, leaf in paths_and_leaves]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise ValueError("broadcast cannot be called inside jit: call it before the training step is compiled")
    world.require_equal("pytree in a broadcast", _digest(treedef, leaves))
    same = world.bcast_arrays([np.array(leaf) for leaf in leaves])
    return jax.tree.unflatten(treedef, [_back(array, leaf) for array, leaf in zip(same, leaves, strict=True)])


def average_gradients(world: World, **settings: Any) -> optax.GradientTransformation:
    """An optax transformation that replaces updates by their mean over all ranks. Put it first in a chain.

        optimizer = optax.chain(jaxdp.average_gradients(world), optax.adam(1e-3))

    Args:
      world: all ranks.
      **settings: keyword arguments of `allreduce`.
    """
    return optax.stateless(lambda updates, _: allreduce(updates, world, **settings))


def run(job: Callable[[World], None]) -> None:
    """Runs a job on every rank. If one rank fails, all ranks end, so that none is left waiting.

    Args:
      job: function that every rank runs. An exception that leaves it, including `sys.exit`, ends all ranks.
    """

    def prepared(of_world: World) -> None:
        if not jax_compat.back_ends_are_open():
            process.prepare_process(threads=of_world.threads, gpus=of_world.gpus)
        job(of_world)

    world_module.run(prepared)


@functools.cache
def _plan(
    world: World, op: str, config: AllreduceConfig, treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> Callable[[PyTree], PyTree]:
    """Returns the function that reduces trees of this structure.

    Ranks are compared only when a structure is first met. A rank that recompiles its step on its own (e.g. for a
    smaller last batch) therefore does not block the other ranks.
    """
    world.require_equal("pytree in an allreduce", _digest(treedef, shapes))
    world.require_equal("settings of an allreduce", (op, config))
    groups: dict[str, list[int]] = {}
    for index, shape in enumerate(shapes):
        narrow = shape.dtype.name if shape.dtype.name in WIRES and shape.dtype.itemsize == 2 else config.wire
        groups.setdefault(narrow, []).append(index)
    layouts: list[tuple[list[int], Buckets, BucketSum]] = []
    for wire, members in groups.items():
        layout = Buckets.plan([_summed(shapes[index]) for index in members], bucket_bytes=config.bucket_bytes)
        over_ranks = make_allreduce(dataclasses.replace(config, wire=wire), world, layout)
        layouts.append((members, layout, over_ranks))

    def reduce(tree: PyTree) -> PyTree:
        leaves = [jnp.asarray(leaf) for leaf in treedef.flatten_up_to(tree)]
        for members, layout, over_ranks in layouts:
            wide = [leaves[index].astype(_summed(shapes[index]).dtype) for index in members]
            sums = layout.unpack(over_ranks(layout.pack(wide)))
            for index, total in zip(members, sums, strict=True):
                if op == "mean":
                    total = total / world.size
                narrow = jnp.issubdtype(shapes[index].dtype, jnp.inexact)
                leaves[index] = total.astype(shapes[index].dtype) if narrow else total
        return jax.tree.unflatten(treedef, leaves)

    return jax.jit(reduce)


def _summed(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The leaf with the dtype in which it is summed."""
    if shape.dtype == jnp.bool_:
        return shape.update(dtype=jnp.dtype("int32"))
    if jnp.issubdtype(shape.dtype, jnp.floating) and shape.dtype.itemsize == 2:
        return shape.update(dtype=jnp.dtype("float32"))
    return shape


def _checked(path: Any, leaf: Any) -> jax.Array:
    known = "numbers, or arrays of booleans, integers, or floats and complex numbers of at least 16 bits"
    try:
        array = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    except TypeError:
        array = None
    kind = type(leaf).__name__ if array is None else array.dtype.name
    if (
        array is None
        or not any(jnp.issubdtype(array.dtype, of) for of in (jnp.bool_, jnp.integer, jnp.inexact))
        or (array.dtype.itemsize == 1 and jnp.issubdtype(array.dtype, jnp.inexact))
    ):
        name = jax.tree_util.keystr(path) or "the tree"
        raise ValueError(f"leaves of the pytree must be {known}, but {name} is of type {kind}")
    return array


def _back(array: Any, like: jax.Array) -> jax.Array:
    """Puts an array on the devices of another one."""
    return jax.device_put(array, like.sharding)


def _digest(treedef: Any, arrays: Any) -> str:
    """A short digest of the structure, shapes and dtypes of a tree, equal on ranks with equal trees."""
    whole = f"{treedef} {[(array.shape, array.dtype.name) for array in arrays]}"
    return f"{len(arrays)} leaves, hash {hashlib.sha256(whole.encode()).hexdigest()[:8]}"
