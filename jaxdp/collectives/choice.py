"""The choice of an allreduce for a bucket: the algorithm, its options, the segment size and the wire format."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.config import MPI, WIRES, AllreduceConfig
from jaxdp.collectives.cost import NetworkModel, Profile
from jaxdp.collectives.program import choose_segments
from jaxdp.collectives.schedule import Schedule

DEFAULT_COLORS = 4

SEGMENT_BYTES = {"native": 2**16, "mpi4jax": 2**18}
"""Suitable segment size for each engine."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to sum a bucket over the ranks.

    Attributes:
      algorithm: name of an algorithm in `ALGORITHMS`, or "mpi".
      colors, arity, inner, outer, ranks_per_node: options of the algorithm; None if it has no such option.
      segment_bytes: target size of the segments.
      wire: wire format, a key of `WIRES`.
    """

    algorithm: str
    colors: int | None = None
    arity: int | None = None
    inner: str | None = None
    outer: str | None = None
    ranks_per_node: int | None = None
    segment_bytes: int = 2**18
    wire: str = "float32"

    @classmethod
    def of_config(cls, config: AllreduceConfig, *, num_ranks: int, ranks_per_node: int) -> Choice:
        """Returns the choice that a config makes for a job of `num_ranks` ranks.

        The default number of colors is 4, or the number of ranks in a tree if that is smaller. The default arity is the
        number of colors, as in the paper.

        Args:
          config: allreduce settings with any algorithm but "auto".
          num_ranks: number of ranks.
          ranks_per_node: ranks per node of a hierarchical allreduce if the config does not set it.
        """
        options: dict[str, Any] = {}
        wanted = ALGORITHMS[config.algorithm].options if config.algorithm != MPI else ()
        if "ranks_per_node" in wanted:
            options = {"inner": config.inner, "outer": config.outer}
            options["ranks_per_node"] = config.ranks_per_node or ranks_per_node
        if config.algorithm == "multicolor" or options.get("outer") == "multicolor":
            trees = max(1, num_ranks // options.get("ranks_per_node", 1))
            options["colors"] = config.colors or min(DEFAULT_COLORS, trees)
            options["arity"] = config.arity or options["colors"]
        return cls(config.algorithm, **options, segment_bytes=config.segment_bytes, wire=config.wire)

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set, by name, as keyword arguments of the algorithm."""
        names = ALGORITHMS[self.algorithm].options if self.algorithm != MPI else ()
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def schedule(self, num_ranks: int) -> Schedule:
        """Returns the schedule for `num_ranks` ranks; not available for "mpi"."""
        return _schedule(self.algorithm, num_ranks, tuple(self.options.items()))

    def profile(self, num_ranks: int) -> Profile:
        """Returns the closed form of the schedule's cost; not available for "mpi"."""
        return ALGORITHMS[self.algorithm].profile(num_ranks, **self.options)

    def num_segments(self, num_ranks: int, num_bytes: int) -> int:
        """Returns the number of segments into which each chunk of a payload is cut."""
        return choose_segments(self.schedule(num_ranks), num_bytes, segment_bytes=self.segment_bytes)

    def wire_of(self, dtype: np.dtype) -> str | None:
        """Returns the type to which values of this dtype are rounded when they are sent, None if they are not."""
        return self.wire if self.wire != "float32" and dtype == np.float32 else None

    def predict(self, num_ranks: int, num_bytes: int, network: NetworkModel) -> float:
        """Predicts the seconds for a float32 payload of `num_bytes` bytes from the closed form."""
        return self.profile(num_ranks).predict(
            num_bytes,
            network,
            num_segments=self.num_segments(num_ranks, num_bytes),
            wire_ratio=WIRES[self.wire] / WIRES["float32"],
        )

    def __str__(self) -> str:
        """Returns a readable form, such as `multicolor colors=4 arity=4`."""
        words = [self.algorithm, *(f"{name}={value}" for name, value in self.options.items())]
        if self.wire != "float32":
            words.append(f"wire={self.wire}")
        return " ".join(words)


@functools.lru_cache
def _schedule(algorithm: str, num_ranks: int, options: tuple[tuple[str, Any], ...]) -> Schedule:
    return ALGORITHMS[algorithm].schedule(num_ranks, **dict(options))
