"""A schedule lowered to what blocking messages can do: steps of phases, segments in a pipeline."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdp.collectives.phases import phases
from jaxdp.collectives.schedule import Schedule, chunk_bounds


class Message(NamedTuple):
    """What one rank sends to another at once.

    Attributes:
      src, dst: ranks.
      segment: of each chunk in it.
      chunks: in ascending order.
      moves: for each chunk the place of its move in the round; additions into one chunk follow it.
      reduce: True to add, False to overwrite.
    """

    src: int
    dst: int
    segment: int
    chunks: tuple[int, ...]
    moves: tuple[int, ...]
    reduce: bool


class Exchange(NamedTuple):
    """What a rank sends and receives in a phase, at once."""

    sent: Message | None
    received: Message | None


Step = list[list[Message]]


def program(schedule: Schedule, num_segments: int) -> Iterator[Step]:
    """The steps of a schedule whose chunks are cut into segments that follow one another in a pipeline.

    Step t does round r for segment t - r, for all r at once, so that a rank receives one segment while it sends
    another on: num_rounds + num_segments - 1 steps. Within a step all messages carry values from before it, and the
    moves of a round that go from one rank to another are one message. The phases of a step are as many as the
    busiest rank sends or receives in it; larger messages take earlier phases, so that those of like size meet.

    Args:
      schedule: any.
      num_segments: S, 1 or more.

    Yields:
      Lists of phases, in each of which a rank sends at most one message and receives at most one.
    """
    messages = functools.cache(functools.partial(_messages_of_round, schedule))

    @functools.cache
    def phases_of_window(first: int, end: int) -> list[list[tuple[int, Message]]]:
        ready = [(index, message) for index in range(first, end) for message in messages(index)]
        ready.sort(key=lambda entry: -len(entry[1].chunks))
        return [[ready[i] for i in phase] for phase in phases([(message.src, message.dst) for _, message in ready])]

    for step in range(schedule.num_rounds + num_segments - 1):
        window = phases_of_window(max(0, step - num_segments + 1), min(step + 1, schedule.num_rounds))
        yield [[message._replace(segment=step - index) for index, message in phase] for phase in window]


def of_rank(steps: Iterable[Step], rank: int, pieces: Pieces) -> Iterator[list[Exchange]]:
    """What one rank does: its exchanges of each step, in the order in which all ranks do theirs.

    Args:
      steps: of a program.
      rank: this one.
      pieces: of the payload. Messages without elements (of a payload with fewer elements than pieces) are left out.
    """
    for step in steps:
        exchanges = [
            Exchange(
                next((message for message in phase if message.src == rank and any(pieces.sizes(message))), None),
                next((message for message in phase if message.dst == rank and any(pieces.sizes(message))), None),
            )
            for phase in step
        ]
        yield [exchange for exchange in exchanges if exchange != (None, None)]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Where the segments of the chunks lie in a flat payload: one after another.

    Attributes:
      slices: by chunk and segment, in the order of the payload.
    """

    slices: dict[tuple[int, int], slice]

    @classmethod
    def of(cls, num_elements: int, *, num_chunks: int, num_segments: int) -> Pieces:
        """The pieces of a payload of so many elements."""
        bounds = chunk_bounds(num_elements, num_chunks)
        slices = {}
        for chunk, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            inner = [start + bound for bound in chunk_bounds(end - start, num_segments)]
            for segment, part in enumerate(zip(inner, inner[1:], strict=False)):
                slices[chunk, segment] = slice(*part)
        return cls(slices)

    def sizes(self, message: Message) -> list[int]:
        """Elements of each chunk in a message."""
        parts = [self.slices[chunk, message.segment] for chunk in message.chunks]
        return [part.stop - part.start for part in parts]


def _messages_of_round(schedule: Schedule, index: int) -> list[Message]:
    together: dict[tuple[int, int, bool], list[tuple[int, int]]] = {}
    for place, move in enumerate(schedule.round(index)):
        together.setdefault((move.src, move.dst, move.reduce), []).append((move.chunk, place))
    found = []
    for (src, dst, reduce), entries in together.items():
        chunks, places = zip(*sorted(entries), strict=True)
        found.append(Message(src, dst, 0, chunks, places, reduce))
    return found


# Compiling takes about 5 ms a message (JAX 0.10, one core), concatenating the chunks of a message about as much each.
_MOST_MOVES = 200


def choose_segments(schedule: Schedule, num_bytes: int, *, segment_bytes: int) -> int:
    """Segments of at most so many bytes, but never more than compile in a second or two: 200 moves a rank.

    Args:
      schedule: of one round or more.
      num_bytes: of the payload.
      segment_bytes: the size that is wanted.

    Returns:
      S for `program`: 1 where the schedule has more moves than that already.
    """
    busiest = max(np.bincount(column, minlength=1).max() for column in (schedule.src, schedule.dst))
    wanted = -(-num_bytes // (schedule.num_chunks * segment_bytes))
    return int(max(1, min(wanted, _MOST_MOVES // max(1, busiest))))
