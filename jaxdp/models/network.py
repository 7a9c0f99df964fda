"""Models as pure functions of nested dicts."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxdp.models import MODELS
from jaxdp.settings.user_objects import find

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Network:
    """The functional view of an NNX module: jitted functions take dicts, and the module exists only inside the trace.

    Passing a dict of 300 leaves to a jitted function costs 1.5 ms, passing an NNX module 19 ms.

    Attributes:
      graphdef: structure of the module.
      shapes: abstract variables of the module as (parameters, batch statistics).
    """

    graphdef: Any
    shapes: tuple[Any, ...]

    @classmethod
    def create(
        cls, name: str, options: Mapping[str, Any], *, image_shape: tuple[int, ...], num_classes: int, seed: int
    ) -> tuple["Network", PyTree, PyTree]:
        """Creates the network of this name, with its initial parameters and batch statistics.

        Args:
          name: name in the table of models, or `package.module:Name` of a class or function that makes an NNX module
            from (image_shape, num_classes, rngs=..., **options).
          options: settings of the model.
          image_shape: (H, W, C).
          num_classes: number of classes, K.
          seed: seed of the initial parameters.

        Raises:
          ValueError: the model does not exist, or an option is unknown, missing, or has a value that the model refuses.
        """
        first_state = _first_state(name, options, image_shape=image_shape, num_classes=num_classes, seed=seed)
        network = cls._of(name, options, first_state)
        # With jit, the initial state is one program to compile and cache, instead of one per parameter.
        params, stats = jax.jit(lambda: tuple(map(nnx.to_pure_dict, first_state()[1:])))()
        return network, params, stats

    @classmethod
    def abstract(
        cls, name: str, options: Mapping[str, Any], *, image_shape: tuple[int, ...], num_classes: int
    ) -> "Network":
        """The network without parameter values; see `create`."""
        first_state = _first_state(name, options, image_shape=image_shape, num_classes=num_classes, seed=0)
        return cls._of(name, options, first_state)

    @classmethod
    def _of(cls, name: str, options: Mapping[str, Any], first_state: Callable[[], tuple[Any, ...]]) -> "Network":
        try:
            graphdef, *shapes = nnx.eval_shape(first_state)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"the model {name} cannot be created with {dict(options)}: {error}") from error
        return cls(graphdef, tuple(shapes))

    @property
    def param_shapes(self) -> PyTree:
        """Shapes and dtypes of the parameters, as a nested dict."""
        return nnx.to_pure_dict(self.shapes[0])

    @property
    def stat_shapes(self) -> PyTree:
        """Shapes and dtypes of the batch statistics, as a nested dict."""
        return nnx.to_pure_dict(self.shapes[1])

    def apply(self, params: PyTree, stats: PyTree, image_BHWC: jax.Array, **options: Any) -> tuple[jax.Array, PyTree]:
        """Logits [B, K] of the main head, and the batch statistics after the batch; takes the arguments of `heads`."""
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
        """Logits [B, K] of every head with the weight of its loss, and the batch statistics after the batch.

        The first head is the main head, with weight 1. Auxiliary heads exist only in training. Evaluation leaves the
        batch statistics unchanged.

        Args:
          params: nested dict of parameters.
          stats: nested dict of batch statistics.
          image_BHWC: normalised images, float.
          train: whether to normalise by the statistics of the batch instead of the running statistics.
          mask_B: bool, which examples are real; None if all are.
          key_B: key of each example for dropout; None for no dropout.
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
            raise ValueError(f"config.model.{option} is not a setting of {name}: its settings are {', '.join(taken)}")
    for key, default in taken.items():
        if default is inspect.Parameter.empty and key not in options:
            raise ValueError(f"config.model.{key} is missing: the model {name} needs it, set it in the config")
    return lambda: nnx.split(make(image_shape, num_classes, rngs=nnx.Rngs(seed), **options), nnx.Param, ...)


def _settings(make: Any) -> dict[str, Any]:
    """The keyword settings of a model and their defaults (`inspect.Parameter.empty` for no default)."""
    fixed = {"self", "image_shape", "num_classes", "rngs"}
    if isinstance(make, functools.partial):
        fixed |= make.keywords.keys()
        make = make.func
    # The metaclass of NNX modules has its own __call__, which hides the parameters of __init__.
    parameters = inspect.signature(make.__init__ if inspect.isclass(make) else make).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in fixed}
