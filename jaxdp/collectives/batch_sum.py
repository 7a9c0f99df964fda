"""Small differentiable sums over all devices of all ranks inside a forward pass."""

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
from jaxdp.collectives.proof import prove_schedules

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

_Sum = Callable[[jax.Array], jax.Array]

# An algorithm with few rounds, because payloads are only a few kB.
_CHOICE = Choice("halving_doubling")


def make_batch_sums(engine: str, world: World, *, axis: str, num_devices: int) -> Callable[[], _Sum]:
    """Returns a function that makes, for each traced forward pass, the sum that its layers call one after another.

    All ranks must call it together, because rank 0 first verifies the schedule of the sums. Each layer has its own
    plans, because the sums of different layers may be in progress at the same time.

    Args:
      engine: "native", or "mpi4jax" with one device per rank.
      world: all ranks, which must trace the same programs in the same order.
      axis: name of the mesh axis of the local devices, if there are several.
      num_devices: number of local devices along the axis.
    """
    if world.size > 1:
        prove_schedules([(_CHOICE, np.dtype(np.float32))], world)

    @functools.cache
    def of_layer(layer: int, size: int, dtype: np.dtype) -> _Sum:
        del layer
        forward, backward = (_sum_once(engine, world, size, dtype, axis, num_devices) for _ in range(2))
        # Every device's part of the loss depends on the sum, so its gradient is the sum of all their cotangents.
        total = jax.custom_vjp(forward)
        total.defvjp(lambda array: (forward(array), None), lambda _, cotangent: (backward(cotangent),))
        return total

    def of_forward_pass() -> _Sum:
        layers = itertools.count()
        return lambda array: of_layer(next(layers), array.size, array.dtype)(array)

    return of_forward_pass


def _sum_once(engine: str, world: World, size: int, dtype: np.dtype, axis: str, num_devices: int) -> _Sum:
    """Returns the sum for one place in a program."""
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
        # The total must be device-varying exactly if the input is: JAX sums the gradient of a value that is the same
        # on all devices, which would be one sum too many.
        return jnp.where(True, allreduce([array])[0], array)

    return of_array
