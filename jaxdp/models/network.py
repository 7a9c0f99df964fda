"""A model as pure functions of plain nested dicts."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxdp.models import MODELS

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

        Raises:
          ValueError: an option that the model does not have or lacks, or with a value that it refuses.
        """
        module_name, _, attribute = MODELS[name].partition(":")
        make = getattr(importlib.import_module(module_name), attribute)
        taken = _settings(make)
        for option in options:
            if option not in taken:
                raise ValueError(f"config.model.{option} is not a setting of {name}: known are {', '.join(taken)}")
        for key, default in taken.items():
            if default is inspect.Parameter.empty and key not in options:
                raise ValueError(f"config.model.{key} is missing: the model {name} needs it")

        def first_state():
            return nnx.split(make(image_shape, num_classes, rngs=nnx.Rngs(seed), **options), nnx.Param, ...)

        # A jitted first state is one program to compile and to keep, not one a parameter.
        try:
            graphdef, *shapes = nnx.eval_shape(first_state)
            params, stats = jax.jit(lambda: tuple(map(nnx.to_pure_dict, first_state()[1:])))()
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"the model {name} cannot be made with {dict(options)}: {error}") from error
        return cls(graphdef, tuple(shapes)), params, stats

    def apply(
        self,
        params: PyTree,
        stats: PyTree,
        image_BHWC: jax.Array,
        *,
        train: bool,
        mask_B: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """Logits [B, K] of a normalised batch, and the batch statistics after it (the same ones in evaluation).

        Args:
          params: nested dict.
          stats: nested dict.
          image_BHWC: float.
          train: normalise by the batch rather than by the running statistics.
          mask_B: bool, which examples are real; None if all are.
        """
        states = []
        for shapes, values in zip(self.shapes, (params, stats), strict=True):
            state = jax.tree.map(lambda leaf: leaf, shapes)
            nnx.replace_by_pure_dict(state, values)
            states.append(state)
        model = nnx.merge(self.graphdef, *states, copy=True)
        logits_BK = model(image_BHWC, train=train, mask_B=mask_B)
        return logits_BK, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def _settings(make: Any) -> dict[str, Any]:
    """The keyword settings of a model and their defaults (`inspect.Parameter.empty` where there is none)."""
    fixed = {"self", "image_shape", "num_classes", "rngs"}
    if isinstance(make, functools.partial):
        fixed |= make.keywords.keys()
        make = make.func
    # The class of NNX modules has a call of its own, which hides the parameters of __init__.
    parameters = inspect.signature(make.__init__ if inspect.isclass(make) else make).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in fixed}
