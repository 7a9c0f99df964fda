"""Groups messages into phases in which each rank sends at most one message and receives at most one."""

import collections
import itertools
from collections.abc import Sequence


def phases(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Distributes messages over the fewest possible phases: the most messages that a rank sends or receives.

    This is a proper edge colouring of the bipartite multigraph of senders and receivers, found by alternating paths.
    The number of colours is the largest degree (Koenig 1916). If every rank takes the phases in this order, and does
    its one send and one receive of a phase together, no deadlock can occur.

    Args:
      pairs: sender and receiver of each message.

    Returns:
      The phases, as indices of messages; every message is in exactly one phase.
    """
    # A vertex is a rank as sender or as receiver; `at` holds, for each vertex, the message in each phase.
    at: dict[tuple[str, int], dict[int, int]] = collections.defaultdict(dict)
    ends = [(("send", src), ("receive", dst)) for src, dst in pairs]
    phase_of: list[int] = []
    for index, (sender, receiver) in enumerate(ends):
        phase, other = _first_free(at[sender]), _first_free(at[receiver])
        if phase in at[receiver]:
            # Swap `phase` and `other` along the path from the receiver, which frees `phase` there. The path enters
            # senders only through `phase`, which is free at this sender, so the path never reaches this sender.
            path = []
            vertex, wanted = receiver, phase
            while wanted in at[vertex]:
                step = at[vertex][wanted]
                path.append(step)
                vertex = ends[step][1] if ends[step][0] == vertex else ends[step][0]
                wanted = phase + other - wanted
            for vertex in {vertex for step in path for vertex in ends[step]}:
                at[vertex] = {_swapped(key, phase, other): step for key, step in at[vertex].items()}
            for step in path:
                phase_of[step] = phase + other - phase_of[step]
        phase_of.append(phase)
        at[sender][phase] = at[receiver][phase] = index
    return [
        [index for index, phase in enumerate(phase_of) if phase == wanted]
        for wanted in range(max(phase_of, default=-1) + 1)
    ]


def _first_free(taken: dict[int, int]) -> int:
    return next(phase for phase in itertools.count() if phase not in taken)


def _swapped(value: int, one: int, other: int) -> int:
    return one + other - value if value in (one, other) else value
