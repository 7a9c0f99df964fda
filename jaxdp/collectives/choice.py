"""Which allreduce a bucket takes: an algorithm with all its options, and how it is cut and sent."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.cost import Network, Profile
from jaxdp.collectives.program import choose_segments
from jaxdp.collectives.schedule import Schedule

if TYPE_CHECKING:
    from jaxdp.config import AllreduceConfig

MPI = "mpi"
"""The name of the MPI library's own allreduce, beside those in the table."""

AUTO = "auto"
"""In place of a name: a choice for each bucket from measurements at the start."""

WIRES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""What float32 values may be on the wire, and its bytes."""

DEFAULT_COLORS = 4

SEGMENT_BYTES = {"native": 2**16, "mpi4jax": 2**18}
"""Sizes of segments that suit each engine."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to sum a bucket over the ranks.

    Attributes:
      algorithm: a name in the table, or "mpi".
      colors, arity, inner, outer, ranks_per_node: its options, None where it has no such option.
      segment_bytes: the size of segments that is wanted.
      wire: a name in WIRES.
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
        """What a config asks for in a world.

        Without colors there are 4, or as many as there are ranks in a tree if fewer; without an arity it is that of the
        paper, the number of colors.

        Args:
          config: any but algorithm "auto".
          num_ranks: p.
          ranks_per_node: for a hierarchical allreduce whose config does not say.
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
        """The options that are set, by name."""
        names = ALGORITHMS[self.algorithm].options if self.algorithm != MPI else ()
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def schedule(self, num_ranks: int) -> Schedule:
        """The schedule in a world of so many ranks; not for "mpi"."""
        return _schedule(self.algorithm, num_ranks, tuple(self.options.items()))

    def profile(self, num_ranks: int) -> Profile:
        """Its closed form."""
        return ALGORITHMS[self.algorithm].profile(num_ranks, **self.options)

    def num_segments(self, num_ranks: int, num_bytes: int) -> int:
        """Segments into which the chunks of a payload are cut."""
        return choose_segments(self.schedule(num_ranks), num_bytes, segment_bytes=self.segment_bytes)

    def wire_of(self, dtype: np.dtype) -> str | None:
        """What values of this dtype are rounded to when they are sent; None if they are not."""
        return self.wire if self.wire != "float32" and dtype == np.float32 else None

    def predict(self, num_ranks: int, num_bytes: int, network: Network) -> float:
        """Seconds for a float32 payload, by the closed form."""
        return self.profile(num_ranks).predict(
            num_bytes,
            network,
            num_segments=self.num_segments(num_ranks, num_bytes),
            wire_ratio=WIRES[self.wire] / WIRES["float32"],
        )

    def __str__(self) -> str:
        """For a person, as `multicolor colors=4 arity=4`."""
        words = [self.algorithm, *(f"{name}={value}" for name, value in self.options.items())]
        if self.wire != "float32":
            words.append(f"wire={self.wire}")
        return " ".join(words)


@functools.lru_cache
def _schedule(algorithm: str, num_ranks: int, options: tuple[tuple[str, Any], ...]) -> Schedule:
    return ALGORITHMS[algorithm].schedule(num_ranks, **dict(options))
