"""What a run is, between two steps."""

import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """The one replicated pytree: the same bits on every device of every rank.

    Attributes:
      step: int32 [], steps done.
      params: nested dict of parameters.
      stats: nested dict of running batch statistics.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: PyTree
    stats: PyTree
    opt_state: PyTree

    @classmethod
    def create(cls, params: PyTree, stats: PyTree, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, stats, jax.jit(optimizer.init)(params))


def fingerprint(state: TrainState) -> str:
    """A hash of all bits of a state: 64 hexadecimal digits, equal on replicas that have not drifted apart."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
