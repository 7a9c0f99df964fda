"""The table of allreduce algorithms, each a pure function from a number of ranks to a schedule.

To add one, write a file with a function from a number of ranks to a `Schedule` and, unless every rank sends and
receives the same bytes in every round, one for its `Profile`; then add a row to `ALGORITHMS`. Settings, the verifier,
the tests and the benchmarks read the table. `auto.candidates` lists what algorithm "auto" tries; an option that no
algorithm has yet is a field of `choice.Choice` and of `config.AllreduceConfig` too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdp.collectives.algorithms.binomial import binomial, binomial_profile
from jaxdp.collectives.algorithms.direct import direct
from jaxdp.collectives.algorithms.halving_doubling import halving_doubling, halving_doubling_profile
from jaxdp.collectives.algorithms.hierarchical import compose, compose_profiles
from jaxdp.collectives.algorithms.multicolor import multicolor, multicolor_profile
from jaxdp.collectives.algorithms.parameter_server import parameter_server, parameter_server_profile
from jaxdp.collectives.algorithms.ring import ring
from jaxdp.collectives.cost import Profile
from jaxdp.collectives.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """An entry of the algorithm table.

    Attributes:
      schedule: function of (num_ranks, **options) that returns the schedule.
      profile: function of the same arguments that returns the closed form of its cost.
      options: names of the options.
    """

    schedule: Callable[..., Schedule]
    profile: Callable[..., Profile]
    options: tuple[str, ...] = ()


def hierarchical(num_ranks: int, *, inner: str, outer: str, ranks_per_node: int, **options: Any) -> Schedule:
    """Returns a schedule with one algorithm inside nodes and one between nodes, built by `compose`.

    Args:
      num_ranks: number of ranks p, 1 or more; rank r is on node r // ranks_per_node.
      inner: name of the algorithm inside nodes, which must have no options.
      outer: name of the algorithm between nodes, any but "hierarchical".
      ranks_per_node: number of ranks per node, a divisor of p.
      **options: options of the outer algorithm; unknown options are ignored.

    Returns:
      A schedule of p ranks.

    Raises:
      ValueError: p is not divisible by ranks_per_node, or the inner or outer algorithm is unknown.
    """
    within, between, num_nodes = _levels(num_ranks, inner, outer, ranks_per_node)
    return compose(
        within.schedule(ranks_per_node),
        between.schedule(num_nodes, **{name: options[name] for name in between.options}),
    )


def hierarchical_profile(num_ranks: int, *, inner: str, outer: str, ranks_per_node: int, **options: Any) -> Profile:
    """Returns the closed form of the cost of `hierarchical`."""
    within, between, num_nodes = _levels(num_ranks, inner, outer, ranks_per_node)
    return compose_profiles(
        within.schedule(ranks_per_node),
        within.profile(ranks_per_node),
        between.profile(num_nodes, **{name: options[name] for name in between.options}),
    )


ALGORITHMS = {
    "multicolor": Algorithm(multicolor, multicolor_profile, ("colors", "arity")),
    "ring": Algorithm(ring, Profile.balanced),
    "direct": Algorithm(direct, Profile.balanced),
    "halving_doubling": Algorithm(halving_doubling, halving_doubling_profile),
    "binomial": Algorithm(binomial, binomial_profile),
    "parameter_server": Algorithm(parameter_server, parameter_server_profile),
    "hierarchical": Algorithm(
        hierarchical, hierarchical_profile, ("inner", "outer", "ranks_per_node", "colors", "arity")
    ),
}
INNER = tuple(name for name, algorithm in ALGORITHMS.items() if not algorithm.options)
OUTER = tuple(name for name in ALGORITHMS if name != "hierarchical")


def _levels(num_ranks: int, inner: str, outer: str, ranks_per_node: int) -> tuple[Algorithm, Algorithm, int]:
    for level, name, known in (("inner", inner, INNER), ("outer", outer, OUTER)):
        if name not in known:
            raise ValueError(f"config.allreduce.{level} must be one of {', '.join(known)}, not {name!r}")
    if ranks_per_node < 1 or num_ranks % ranks_per_node:
        raise ValueError(
            f"a hierarchical allreduce needs the same number of ranks on every node: {num_ranks} ranks cannot be "
            f"divided into nodes of {ranks_per_node}: set config.allreduce.ranks_per_node to a divisor of {num_ranks}"
        )
    return ALGORITHMS[inner], ALGORITHMS[outer], num_ranks // ranks_per_node
