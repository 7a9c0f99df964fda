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
      average: the running mean of the parameters, or an empty dict where none is kept.
      skipped: int32 [], the steps in a row, up to this one, that have changed nothing but `step`.
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
        """The state before the first step, with a mean of the parameters if one is to be kept."""
        # Each leaf is given up in the step by itself: none may be in two places.
        average = jax.tree.map(jnp.copy, params) if averages else {}
        none = jnp.zeros((), jnp.int32)
        return cls(none, params, stats, jax.jit(optimizer.init)(params), average, jnp.copy(none))

    @classmethod
    def abstract(
        cls, params: PyTree, stats: PyTree, optimizer: optax.GradientTransformation, *, averages: bool = False
    ) -> "TrainState":
        """Its shapes and dtypes, from those of parameters and statistics."""
        return jax.eval_shape(
            lambda *trees: cls.create(trees[0], trees[1], optimizer, averages=averages), params, stats
        )

    @property
    def evaluated(self) -> PyTree:
        """The parameters to evaluate."""
        return self.average or self.params


def leaf_name(path: Any) -> str:
    """As messages and files call a leaf of a tree: its keys, with dots between them."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their names, in its order."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fingerprint(state: TrainState) -> str:
    """A hash of all bits of a state: 64 hexadecimal digits, equal on replicas that have not drifted apart."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
