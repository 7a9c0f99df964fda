"""An allreduce as data: rounds of moves between ranks, stored in columns."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Move(NamedTuple):
    """One chunk sent from one rank to another, which adds it to its own chunk or overwrites that chunk."""

    src: int
    dst: int
    chunk: int
    reduce: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Which rank sends which chunk to which rank, round by round.

    All moves of a round send the values from before that round. Several moves into one (rank, chunk) in a round apply
    in the order of the schedule, whatever the order in which messages arrive. All executors that follow this rule
    produce the same bits.

    Attributes:
      num_ranks: number of ranks, 1 or more.
      num_chunks: number of chunks the payload is cut into, 1 or more.
      round_starts: int64 [num_rounds + 1], where each round begins in the columns; the last is their length.
      src, dst, chunk: int32 [num_moves], source rank, destination rank and chunk of each move.
      reduce: bool [num_moves], True to add to the destination's chunk, False to overwrite it.

    Raises:
      ValueError: there are no ranks or no chunks, a rank or chunk of a move is out of range, or a rank sends to itself.
    """

    num_ranks: int
    num_chunks: int
    round_starts: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    chunk: np.ndarray
    reduce: np.ndarray

    def __post_init__(self) -> None:
        if self.num_ranks < 1 or self.num_chunks < 1:
            raise ValueError(
                f"a schedule needs at least 1 rank and 1 chunk, not {self.num_ranks} and {self.num_chunks}"
            )
        for name, column, bound in [
            ("src", self.src, self.num_ranks),
            ("dst", self.dst, self.num_ranks),
            ("chunk", self.chunk, self.num_chunks),
        ]:
            outside = column[(column < 0) | (column >= bound)]
            if outside.size:
                raise ValueError(f"the {name} of every move must be in 0..{bound - 1}, but one is {outside[0]}")
        to_itself = self.src[self.src == self.dst]
        if to_itself.size:
            raise ValueError(f"every move must go to another rank, but rank {to_itself[0]} sends to itself")
        for column in (self.round_starts, self.src, self.dst, self.chunk, self.reduce):
            column.flags.writeable = False

    @classmethod
    def from_rounds(cls, num_ranks: int, num_chunks: int, rounds: Iterable[np.ndarray | Sequence[Move]]) -> "Schedule":
        """Returns the schedule of these rounds; each is a list of moves or an array that `moves` returned."""
        tables = [np.asarray(in_round, np.int32).reshape(-1, 4) for in_round in rounds]
        src, dst, chunk, reduce = np.concatenate([np.empty((0, 4), np.int32), *tables]).T
        return cls(
            num_ranks=num_ranks,
            num_chunks=num_chunks,
            round_starts=np.cumsum([0] + [len(table) for table in tables]),
            src=src.copy(),
            dst=dst.copy(),
            chunk=chunk.copy(),
            reduce=reduce.astype(bool),
        )

    @property
    def num_rounds(self) -> int:
        return len(self.round_starts) - 1

    @property
    def num_moves(self) -> int:
        return len(self.src)

    def round(self, index: int) -> list[Move]:
        """Returns the moves of one round, in order."""
        return [Move(src, dst, chunk, bool(reduce)) for src, dst, chunk, reduce in self.table(index).tolist()]

    def table(self, index: int) -> np.ndarray:
        """Returns the moves of one round as int64 [num_moves, 4]: src, dst, chunk, reduce."""
        part = slice(self.round_starts[index], self.round_starts[index + 1])
        return np.stack([self.src[part], self.dst[part], self.chunk[part], self.reduce[part]], axis=1, dtype=np.int64)

    def of_rank(self, rank: int) -> "Schedule":
        """Returns the schedule with only the moves that this rank sends or receives."""
        mine = (self.src == rank) | (self.dst == rank)
        before = np.concatenate([[0], np.cumsum(mine)])
        return dataclasses.replace(
            self,
            round_starts=before[self.round_starts],
            src=self.src[mine],
            dst=self.dst[mine],
            chunk=self.chunk[mine],
            reduce=self.reduce[mine],
        )


def moves(src: ArrayLike, dst: ArrayLike, chunk: ArrayLike, *, reduce: ArrayLike) -> np.ndarray:
    """Returns moves as int32 [num_moves, 4]; the columns are broadcast together, and the last axis varies fastest."""
    columns = np.broadcast_arrays(src, dst, chunk, reduce)
    return np.stack([column.ravel() for column in columns], axis=1).astype(np.int32)


def turned_round(in_round: np.ndarray) -> np.ndarray:
    """Returns the moves of a round reversed and as copies, which turns a reduce-scatter into an all-gather."""
    return moves(in_round[:, 1], in_round[:, 0], in_round[:, 2], reduce=False)


def chunk_bounds(num_elements: int, num_chunks: int) -> list[int]:
    """Returns where each chunk of a flat payload begins, and where the last ends; sizes differ by at most one."""
    return [index * num_elements // num_chunks for index in range(num_chunks + 1)]
