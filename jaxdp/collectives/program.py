"""Lowers a schedule to blocking messages: steps of phases, with segments in a pipeline."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdp.collectives.phases import phases
from jaxdp.collectives.schedule import Schedule, chunk_bounds


class Message(NamedTuple):
    """One message between two ranks: a segment of one or more chunks.

    Attributes:
      src, dst: source and destination rank.
      segment: index of the segment that is sent of each chunk.
      chunks: the chunks, in ascending order.
      moves: index of each chunk's move in its round; additions into a chunk are applied in this order.
      reduce: True to add, False to overwrite.
    """

    src: int
    dst: int
    segment: int
    chunks: tuple[int, ...]
    moves: tuple[int, ...]
    reduce: bool


class Exchange(NamedTuple):
    """What a rank sends and receives together in one phase; None for nothing."""

    sent: Message | None
    received: Message | None


Step = list[list[Message]]


def program(schedule: Schedule, num_segments: int) -> Iterator[Step]:
    """Yields the steps of a schedule whose chunks are cut into segments, which pass through the rounds as a pipeline.

    Step t runs round r for segment t - r, for all r at once, so that a rank receives one segment while it forwards
    another. This takes num_rounds + num_segments - 1 steps. Within a step all messages carry values from before the
    step. All additions of a round from one rank to another are one message, and so are all copies. The number of phases
    of a step is the number of messages that the busiest rank sends or receives in it. Larger messages take earlier
    phases, so that messages of similar size share a phase.

    Args:
      schedule: any schedule.
      num_segments: number of segments per chunk, 1 or more.

    Yields:
      Each step as a list of phases, in each of which a rank sends at most one message and receives at most one.
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
    """Yields the exchanges of one rank in each step, in the order of phases that all ranks follow.

    Args:
      steps: the steps of a program.
      rank: the rank.
      pieces: the pieces of the payload. Empty messages, of a payload with fewer elements than pieces, are left out.
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
    """The location of each segment of each chunk in a flat payload.

    Attributes:
      slices: slice of the payload for each (chunk, segment), in the order of the payload.
    """

    slices: dict[tuple[int, int], slice]

    @classmethod
    def of(cls, num_elements: int, *, num_chunks: int, num_segments: int) -> Pieces:
        """Returns the pieces of a payload of `num_elements` elements."""
        bounds = chunk_bounds(num_elements, num_chunks)
        slices = {}
        for chunk, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            inner = [start + bound for bound in chunk_bounds(end - start, num_segments)]
            for segment, part in enumerate(zip(inner, inner[1:], strict=False)):
                slices[chunk, segment] = slice(*part)
        return cls(slices)

    def sizes(self, message: Message) -> list[int]:
        """Returns the number of elements of each chunk in a message."""
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


# Compiling takes about 5 ms per message, and about as much per chunk to be concatenated (JAX 0.10, one core).
_MOST_MOVES = 200


def choose_segments(schedule: Schedule, num_bytes: int, *, segment_bytes: int) -> int:
    """Returns the number of segments per chunk for segments of at most `segment_bytes`, within a limit on compile time.

    The limit is 200 moves per rank, which compile in a second or two.

    Args:
      schedule: a schedule of one round or more.
      num_bytes: size of the payload.
      segment_bytes: target size of a segment.

    Returns:
      The number of segments for `program`; 1 if the schedule itself has more moves than the limit.
    """
    busiest = max(np.bincount(column, minlength=1).max() for column in (schedule.src, schedule.dst))
    wanted = -(-num_bytes // (schedule.num_chunks * segment_bytes))
    return int(max(1, min(wanted, _MOST_MOVES // max(1, busiest))))
