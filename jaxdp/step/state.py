"""The state of a run between two steps."""

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
    """The replicated training state: a pytree with the same bits on every device of every rank.

    Attributes:
      step: int32 [], number of steps done.
      params: nested dict of parameters.
      stats: nested dict of running batch statistics.
      opt_state: state of the optimizer.
      average: running mean of the parameters; an empty dict if none is kept.
      skipped: int32 [], number of consecutive skipped steps up to this one.
    """

    step: jax.Array
    params: PyTree
    stats: PyTree
    opt_state: PyTree
    average: PyTree
    skipped: jax.Array

    @classmethod
    def create(
        cls, params: PyTree, stats: PyTree, optimizer: optax.GradientTransformation, *, averages: bool = False
    ) -> "TrainState":
        """The state before the first step, with a running mean of the parameters if `averages`."""
        # Every leaf is donated separately, so no buffer may appear twice.
        average = jax.tree.map(jnp.copy, params) if averages else {}
        none = jnp.zeros((), jnp.int32)
        return cls(none, params, stats, jax.jit(optimizer.init)(params), average, jnp.copy(none))

    @classmethod
    def abstract(
        cls, params: PyTree, stats: PyTree, optimizer: optax.GradientTransformation, *, averages: bool = False
    ) -> "TrainState":
        """Shapes and dtypes of the state, from those of the parameters and batch statistics."""
        return jax.eval_shape(
            lambda *trees: cls.create(trees[0], trees[1], optimizer, averages=averages), params, stats
        )

    @property
    def evaluated(self) -> PyTree:
        """The parameters to evaluate: their running mean if one is kept."""
        return self.average or self.params


def leaf_name(path: Any) -> str:
    """The name of a leaf in messages and files: its keys, joined by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name, in the order of the tree."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fingerprint(state: TrainState) -> str:
    """A hash of all bits of a state, as 64 hexadecimal digits; identical replicas have equal hashes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
