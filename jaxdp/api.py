"""For training loops of one's own: sums and means over all ranks, and broadcasts, of any pytree.

    import jaxdp

    def main(world):
        params = jaxdp.broadcast(params, world)
        optimizer = optax.chain(jaxdp.average_gradients(world), optax.adam(1e-3))
        ...

    jaxdp.run(main)

The README has a whole example.
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

from jaxdp import compat
from jaxdp import world as world_module
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.allreduce import BucketSum, make_allreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.choice import AUTO, MPI, WIRES
from jaxdp.config import AllreduceConfig
from jaxdp.world import World

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
    """The mean or the sum of a pytree over all ranks, the same bits on all of them.

    All ranks call it together, with trees of one structure. Outside jit it takes arrays on any devices, passes them
    through the host, and puts the results where the arrays were. Inside jit it is part of the program, which must then
    run on one CPU device.

    Leaves of 16-bit floats cross as they are and are summed in float32. Integers are summed in their own dtype,
    booleans as int32; means of them are float32.

    Args:
      tree: any pytree of numbers and arrays.
      world: all ranks, from `jaxdp.run` or `jaxdp.connect`.
      op: "mean" or "sum".
      algorithm: a name in the table of algorithms, "mpi", or "auto", which measures when it first meets a structure.
      colors: of the multi-color trees; None for 4, or as many as there are ranks if fewer.
      arity: of those trees; None for as many as colors.
      wire: what float32 values are rounded to when they are sent, "bfloat16" or "float16".
      segment_bytes: the size of the pieces in the pipeline.
      bucket_bytes: with which a bucket of leaves, which one allreduce sums, is closed.

    Returns:
      A pytree of arrays.

    Raises:
      ValueError: an argument or a leaf's dtype that is none of these.
      SystemExit: the ranks have different trees; one message on one rank's stderr.
    """
    if op not in ("mean", "sum"):
        raise ValueError(f"allreduce knows the ops 'mean' and 'sum', not {op!r}")
    for name, value, known in [("algorithm", algorithm, (*ALGORITHMS, MPI, AUTO)), ("wire", wire, tuple(WIRES))]:
        if value not in known:
            raise ValueError(f"allreduce has no {name} {value!r}: known are {', '.join(known)}")
    if algorithm == MPI and wire != "float32":
        raise ValueError(f"MPI's own allreduce sends what it sums: wire {wire!r} needs another algorithm than 'mpi'")
    config = AllreduceConfig(
        engine="mpi4jax",
        algorithm=algorithm,
        colors=colors,
        arity=arity,
        inner="direct",
        outer="multicolor",
        ranks_per_node=None,
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
    """Rank 0's pytree, on all ranks.

    All ranks call it together, outside jit, with trees of one structure.

    Args:
      tree: any pytree of numbers and arrays.
      world: all ranks.

    Returns:
      A pytree of arrays, each where this rank's was.

    Raises:
      ValueError: it is called inside jit, or a leaf is no array of numbers.
      SystemExit: the ranks have different trees; one message on one rank's stderr.
    """
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_checked(path, leaf) for path, leaf in paths_and_leaves]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise ValueError("broadcast works outside jit: call it before the training step is compiled")
    world.require_equal("pytree in a broadcast", _digest(treedef, leaves))
    same = world.bcast_arrays([np.array(leaf) for leaf in leaves])
    return jax.tree.unflatten(treedef, [_back(array, leaf) for array, leaf in zip(same, leaves, strict=True)])


def average_gradients(world: World, **settings: Any) -> optax.GradientTransformation:
    """An optax transformation that replaces updates by their mean over all ranks: the first one of a chain.

        optimizer = optax.chain(jaxdp.average_gradients(world), optax.adam(1e-3))

    Args:
      world: all ranks.
      **settings: of `allreduce`.
    """
    return optax.stateless(lambda updates, _: allreduce(updates, world, **settings))


def run(job: Callable[[World], None]) -> None:
    """Runs a job on every rank; whatever happens on one of them, none is left waiting for it.

    Args:
      job: what every rank does. An exception that leaves it, a `sys.exit` among them, ends all ranks.
    """

    def prepared(of_world: World) -> None:
        if not compat.back_ends_are_open():
            compat.prepare_process(threads=of_world.threads, gpus=of_world.gpus)
        job(of_world)

    world_module.run(prepared)


@functools.cache
def _plan(
    world: World, op: str, config: AllreduceConfig, treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> Callable[[PyTree], PyTree]:
    """What reduces trees of this structure. Ranks are compared when one is met first, and only then.

    So a rank that compiles its step anew alone (for a last batch of another size) waits for nobody.
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
    """In which dtype a leaf is summed."""
    if shape.dtype == jnp.bool_:
        return shape.update(dtype=jnp.dtype("int32"))
    if jnp.issubdtype(shape.dtype, jnp.floating) and shape.dtype.itemsize == 2:
        return shape.update(dtype=jnp.dtype("float32"))
    return shape


def _checked(path: Any, leaf: Any) -> jax.Array:
    known = "numbers, and arrays of booleans, integers, and floats and complex numbers of 16 bits or more"
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
        raise ValueError(f"pytrees that cross between ranks hold {known}: {name} is of type {kind}")
    return array


def _back(array: Any, like: jax.Array) -> jax.Array:
    """The array on the devices of another one."""
    return jax.device_put(array, like.sharding)


def _digest(treedef: Any, arrays: Any) -> str:
    """Short for the structure, shapes and dtypes of a tree, alike on ranks whose trees are alike."""
    whole = f"{treedef} {[(array.shape, array.dtype.name) for array in arrays]}"
    return f"{len(arrays)} leaves, hash {hashlib.sha256(whole.encode()).hexdigest()[:8]}"
