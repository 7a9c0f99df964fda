"""A model as pure functions of plain nested dicts."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxdp.models import MODELS
from jaxdp.named import find

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Network:
    """The functional view of an NNX module: dicts cross jit, modules live only inside the trace.

    A dict of 300 leaves costs a jitted call 1.5 ms, an NNX module 19 ms.

    Attributes:
      graphdef: the structure of the module.
      shapes: its variables as (parameters, batch statistics), abstract.
    """

    graphdef: Any
    shapes: tuple[Any, ...]

    @classmethod
    def create(
        cls, name: str, options: Mapping[str, Any], *, image_shape: tuple[int, ...], num_classes: int, seed: int
    ) -> tuple["Network", PyTree, PyTree]:
        """The network of this name with its first parameters and batch statistics.

        Args:
          name: in the table of models, or `package.module:Name` of a class, or a function, that makes an NNX module out
            of (image_shape, num_classes, rngs=..., **options).
          options: the model's own.
          image_shape: (H, W, C).
          num_classes: K.
          seed: of the first parameters.

        Raises:
          ValueError: there is no such model; an option that it does not have or lacks, or with a value that it refuses.
        """
        first_state = _first_state(name, options, image_shape=image_shape, num_classes=num_classes, seed=seed)
        network = cls._of(name, options, first_state)
        # A jitted first state is one program to compile and to keep, not one a parameter.
        params, stats = jax.jit(lambda: tuple(map(nnx.to_pure_dict, first_state()[1:])))()
        return network, params, stats

    @classmethod
    def abstract(
        cls, name: str, options: Mapping[str, Any], *, image_shape: tuple[int, ...], num_classes: int
    ) -> "Network":
        """The network alone, without a value; see `create`."""
        first_state = _first_state(name, options, image_shape=image_shape, num_classes=num_classes, seed=0)
        return cls._of(name, options, first_state)

    @classmethod
    def _of(cls, name: str, options: Mapping[str, Any], first_state: Callable[[], tuple[Any, ...]]) -> "Network":
        try:
            graphdef, *shapes = nnx.eval_shape(first_state)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"the model {name} cannot be made with {dict(options)}: {error}") from error
        return cls(graphdef, tuple(shapes))

    @property
    def param_shapes(self) -> PyTree:
        """Nested dict of the parameters' shapes and dtypes."""
        return nnx.to_pure_dict(self.shapes[0])

    @property
    def stat_shapes(self) -> PyTree:
        """Likewise of the batch statistics."""
        return nnx.to_pure_dict(self.shapes[1])

    def apply(self, params: PyTree, stats: PyTree, image_BHWC: jax.Array, **options: Any) -> tuple[jax.Array, PyTree]:
        """Logits [B, K] of a normalised batch, and the batch statistics after it; as `heads`, of the own head alone."""
        heads, stats = self.heads(params, stats, image_BHWC, **options)
        return heads[0][0], stats

    def heads(
        self,
        params: PyTree,
        stats: PyTree,
        image_BHWC: jax.Array,
        *,
        train: bool,
        mask_B: jax.Array | None = None,
        key_B: jax.Array | None = None,
    ) -> tuple[list[tuple[jax.Array, float]], PyTree]:
        """Logits [B, K] of every head, with the weight of its loss; and the batch statistics after the batch.

        The first head is the network's own, of weight 1; auxiliary ones are there in training only. In evaluation the
        batch statistics are the same ones.

        Args:
          params: nested dict.
          stats: nested dict.
          image_BHWC: float.
          train: normalise by the batch rather than by the running statistics.
          mask_B: bool, which examples are real; None if all are.
          key_B: of each example, for dropout; None for none.
        """
        states = []
        for shapes, values in zip(self.shapes, (params, stats), strict=True):
            state = jax.tree.map(lambda leaf: leaf, shapes)
            nnx.replace_by_pure_dict(state, values)
            states.append(state)
        model = nnx.merge(self.graphdef, *states, copy=True)
        given = model(image_BHWC, train=train, mask_B=mask_B, key_B=key_B)
        logits_BK, auxiliary = given if isinstance(given, tuple) else (given, [])
        return [(logits_BK, 1.0), *auxiliary], nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def _first_state(
    name: str, options: Mapping[str, Any], *, image_shape: tuple[int, ...], num_classes: int, seed: int
) -> Callable[[], tuple[Any, ...]]:
    make = find("config.model.name", MODELS.get(name, name))
    taken = _settings(make)
    for option in options:
        if option not in taken:
            raise ValueError(f"config.model.{option} is not a setting of {name}: known are {', '.join(taken)}")
    for key, default in taken.items():
        if default is inspect.Parameter.empty and key not in options:
            raise ValueError(f"config.model.{key} is missing: the model {name} needs it, set it in the config")
    return lambda: nnx.split(make(image_shape, num_classes, rngs=nnx.Rngs(seed), **options), nnx.Param, ...)


def _settings(make: Any) -> dict[str, Any]:
    """The keyword settings of a model and their defaults (`inspect.Parameter.empty` where there is none)."""
    fixed = {"self", "image_shape", "num_classes", "rngs"}
    if isinstance(make, functools.partial):
        fixed |= make.keywords.keys()
        make = make.func
    # The class of NNX modules has a call of its own, which hides the parameters of __init__.
    parameters = inspect.signature(make.__init__ if inspect.isclass(make) else make).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in fixed}
