"""The allreduce algorithms: each one a pure function from a number of ranks to a schedule."""

import dataclasses
from collections.abc import Callable

from jaxdp.collectives.algorithms.binomial import binomial, binomial_profile
from jaxdp.collectives.algorithms.direct import direct
from jaxdp.collectives.algorithms.halving_doubling import halving_doubling, halving_doubling_profile
from jaxdp.collectives.algorithms.multicolor import multicolor, multicolor_profile
from jaxdp.collectives.algorithms.parameter_server import parameter_server, parameter_server_profile
from jaxdp.collectives.algorithms.ring import ring
from jaxdp.collectives.cost import Profile
from jaxdp.collectives.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A row of the table.

    Attributes:
      schedule: (num_ranks, **options) to a schedule.
      profile: the same arguments to its closed form.
      options: the names of the options.
    """

    schedule: Callable[..., Schedule]
    profile: Callable[..., Profile]
    options: tuple[str, ...] = ()


ALGORITHMS = {
    "multicolor": Algorithm(multicolor, multicolor_profile, ("colors", "arity")),
    "ring": Algorithm(ring, Profile.balanced),
    "direct": Algorithm(direct, Profile.balanced),
    "halving_doubling": Algorithm(halving_doubling, halving_doubling_profile),
    "binomial": Algorithm(binomial, binomial_profile),
    "parameter_server": Algorithm(parameter_server, parameter_server_profile),
}
