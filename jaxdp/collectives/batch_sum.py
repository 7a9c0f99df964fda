"""Small sums over all devices of all ranks in the middle of a forward pass, and of its gradient."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.collectives import run_native
from jaxdp.collectives.allreduce import BlockingAllreduce, BucketSum, NativeAllreduce
from jaxdp.collectives.choice import Choice

if TYPE_CHECKING:
    from jaxdp.world import World

_Sum = Callable[[jax.Array], jax.Array]

# Few rounds, as payloads are a few kB.
_CHOICE = Choice("halving_doubling")


def make_batch_sums(engine: str, world: World, *, axis: str, num_devices: int) -> Callable[[], _Sum]:
    """What gives, for each forward pass that is traced, the sum for its layers, in their order.

    The first layer's messages have a plan of their own, and so have the second's, as layers may be side by side.

    Args:
      engine: "native", or "mpi4jax" with one device a rank.
      world: all ranks, which trace the same programs in the same order.
      axis: of the mesh of local devices, if they are several.
      num_devices: along it.
    """

    @functools.cache
    def of_layer(layer: int, size: int, dtype: np.dtype) -> _Sum:
        del layer
        forward, backward = (_sum_once(engine, world, size, dtype, axis, num_devices) for _ in range(2))
        # Every device's part of the loss depends on the sum: what they all say of it adds up to its gradient.
        total = jax.custom_vjp(forward)
        total.defvjp(lambda array: (forward(array), None), lambda _, cotangent: (backward(cotangent),))
        return total

    def of_forward_pass() -> _Sum:
        layers = itertools.count()
        return lambda array: of_layer(next(layers), array.size, array.dtype)(array)

    return of_forward_pass


def _sum_once(engine: str, world: World, size: int, dtype: np.dtype, axis: str, num_devices: int) -> _Sum:
    """A sum that one place in a program takes."""
    allreduce: BucketSum
    if engine == "mpi4jax" and world.size > 1:
        allreduce = BlockingAllreduce([_CHOICE], world.device_comm)
    else:
        plans = None
        if world.size > 1:
            name = "batch statistics"
            plans = [run_native.plan_of_parts(_CHOICE, size, dtype, world, parts=num_devices, name=name)]
        allreduce = NativeAllreduce(plans, axis, num_devices)

    def of_array(array: jax.Array) -> jax.Array:
        # The total is to vary over the devices as the array does, if that is what it does: JAX itself would sum the
        # gradient of what is the same on all of them, once too often.
        return jnp.where(True, allreduce([array])[0], array)

    return of_array
