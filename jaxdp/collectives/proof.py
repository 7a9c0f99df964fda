"""Proves the schedules of a job before its first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import MPI
from jaxdp.collectives.verify import verify
from jaxdp.runtime.world import Failure

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

# The time of a proof grows with the number of moves, and its memory with their product with the number of ranks. Up to
# 256 ranks no algorithm exceeds this product (2 * 255 * 256 moves), and a proof takes less than a second.
LARGEST_PROOF = 2**25


def prove_schedules(choices: Iterable[tuple[Choice, np.dtype]], world: World) -> str:
    """Verifies every schedule of a job on rank 0, see `verify`; all ranks must call it together.

    MPI's own allreduce has no schedule. Schedules whose number of moves times the number of ranks exceeds
    `LARGEST_PROOF` are not verified. That happens only above 256 ranks, for example to ring, direct and
    halving_doubling from 257 ranks on, and to multicolor with its default of 4 colors from 2,049 ranks on.

    Args:
      choices: choices of the job, each with the dtype of its payloads.
      world: all ranks.

    Returns:
      The result in a few words, such as "verified", the same on all ranks; empty if there is nothing to verify.

    Raises:
      Failure: a schedule is wrong; ends the job on all ranks.
    """
    result = _prove(choices, world.size) if world.is_root else ""
    return world.bcast(result)


def _prove(choices: Iterable[tuple[Choice, np.dtype]], num_ranks: int) -> str:
    # Choices that differ only in their segments have the same schedule.
    distinct = {
        (choice.schedule(num_ranks), choice.wire_of(dtype) is not None): choice
        for choice, dtype in choices
        if choice.algorithm != MPI
    }
    too_large = []
    for (schedule, wire_rounds), choice in distinct.items():
        if schedule.num_moves * num_ranks > LARGEST_PROOF:
            too_large.append(choice)
            continue
        try:
            verify(schedule, wire_rounds=wire_rounds)
        except ValueError as error:
            raise Failure(
                f"the schedule of {choice} for {num_ranks} ranks is wrong: {error}. This is a bug in jaxdp: report it, "
                "and choose another allreduce algorithm"
            ) from None
    if too_large:
        return f"{' and '.join(map(str, too_large))} not verified: too many moves for {num_ranks} ranks"
    return "verified" if distinct else ""
