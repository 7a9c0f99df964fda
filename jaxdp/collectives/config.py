"""Settings of the allreduce, and the names that they take."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from jaxdp.collectives.algorithms import ALGORITHMS, INNER, OUTER
from jaxdp.settings.rules import Count, one_of

ENGINES = ("native", "mpi4jax", "xla")
"""What can sum gradients over the ranks."""

MPI = "mpi"
"""Name of the MPI library's own allreduce, which is not in the algorithm table."""

AUTO = "auto"
"""Algorithm name that chooses an allreduce for each bucket from measurements at the start of a job."""

WIRES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Wire formats of float32 values, with the bytes of a value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllreduceConfig:
    """How gradients are summed over the ranks.

    Attributes:
      engine: what runs the algorithms. "native" runs all buckets concurrently and overlaps them with the backward pass;
        "mpi4jax" runs one bucket after another once the backward pass is done. "xla" uses JAX's own collectives (gloo
        between CPUs, NCCL between GPUs); only `bucket_bytes` applies to them.
      algorithm: a name in the table of algorithms, "mpi" for the MPI library's own allreduce, or "auto" for the fastest
        one in measurements at the start of the job. A run keeps the choice of "auto" while the number of ranks stays
        the same.
      colors, arity: number of trees of the multi-color allreduce, and of children per rank in a tree; None chooses
        them by the number of ranks.
      inner, outer: the algorithms of a hierarchical allreduce within nodes and between nodes.
      ranks_per_node: for hierarchical allreduces; None uses the number of ranks on this node.
      segment_bytes: size of the segments into which chunks are cut for pipelining; "auto" chooses it too.
      wire: the type that float32 values are rounded to before they are sent: "bfloat16", "float16", or "float32" for no
        rounding. Sums are always computed in float32.
      bucket_bytes: target size of a gradient bucket; each bucket is summed by one allreduce.
    """

    engine: Annotated[str, one_of(*ENGINES)] = "native"
    algorithm: Annotated[str, one_of(*ALGORITHMS, MPI, AUTO)] = "multicolor"
    colors: Count | None = None
    arity: Count | None = None
    inner: Annotated[str, one_of(*INNER)] = "direct"
    outer: Annotated[str, one_of(*OUTER)] = "multicolor"
    ranks_per_node: Count | None = None
    segment_bytes: Count = 2**16
    wire: Annotated[str, one_of(*WIRES)] = "float32"
    bucket_bytes: Count = 4_000_000
