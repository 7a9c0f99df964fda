"""The cost of a schedule: rounds, bytes, fan-in, and the time under a model of the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdp.collectives.program import program
from jaxdp.collectives.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Link:
    """A full-duplex link in the alpha-beta-gamma model (Thakur et al. 2005, section 3).

    Attributes:
      alpha: seconds per message, whatever its size.
      beta: seconds per byte on the wire.
      gamma: seconds to add one byte of the payload.
    """

    alpha: float
    beta: float
    gamma: float


@dataclasses.dataclass(frozen=True)
class Counts:
    """Communication counts of a schedule, independent of any network model.

    Attributes:
      rounds: number of rounds.
      sent, received: float64 [num_ranks], volume in payloads: 2.0 is twice the bytes of the payload.
      fan_in: the largest number of ranks from which a rank receives in one round.
      lower_bound: 2 (p - 1) / p payloads, the least that every rank must send and receive (Patarasu and Yuan 2009).
    """

    rounds: int
    sent: np.ndarray
    received: np.ndarray
    fan_in: int
    lower_bound: float


def counts(schedule: Schedule) -> Counts:
    """Returns the communication counts of a schedule."""
    p = schedule.num_ranks
    of_round = np.repeat(np.arange(schedule.num_rounds), np.diff(schedule.round_starts))
    pairs = np.unique((of_round * p + schedule.dst) * p + schedule.src)
    _, senders = np.unique(pairs // p, return_counts=True)
    return Counts(
        rounds=schedule.num_rounds,
        sent=np.bincount(schedule.src, minlength=p) / schedule.num_chunks,
        received=np.bincount(schedule.dst, minlength=p) / schedule.num_chunks,
        fan_in=int(senders.max(initial=0)),
        lower_bound=2 * (p - 1) / p,
    )


@dataclasses.dataclass(frozen=True)
class NetworkModel:
    """The links of a cluster.

    Attributes:
      between: link between two ranks of different nodes.
      inside: link between two ranks of one node.
      ranks_per_node: number of ranks per node; rank r is on node r // ranks_per_node.
    """

    between: Link
    inside: Link
    ranks_per_node: int

    @classmethod
    def flat(cls, link: Link) -> NetworkModel:
        """Returns a network in which all pairs of ranks have the same link."""
        return cls(link, link, 1)


def simulate(
    schedule: Schedule, num_bytes: float, network: NetworkModel, *, num_segments: int = 1, wire_ratio: float = 1.0
) -> float:
    """Returns the seconds until the last rank is done, by simulating the program of the blocking executor.

    A message starts when both of its ranks have reached its phase, and takes alpha + beta x bytes. A rank leaves a
    phase when its outgoing and its incoming message are complete, and a step when it has added what it received.

    Args:
      schedule: any schedule.
      num_bytes: size of the payload.
      network: model of the network.
      num_segments: number of segments into which each chunk is cut.
      wire_ratio: bytes on the wire per byte of the payload.
    """
    size = num_bytes / schedule.num_chunks / num_segments
    clock = np.zeros(schedule.num_ranks)
    for step in program(schedule, num_segments):
        adding = np.zeros(schedule.num_ranks)
        for phase in step:
            src, dst, num_chunks, reduce = np.array([(m.src, m.dst, len(m.chunks), m.reduce) for m in phase]).T
            in_a_node = src // network.ranks_per_node == dst // network.ranks_per_node
            alpha = np.where(in_a_node, network.inside.alpha, network.between.alpha)
            beta = np.where(in_a_node, network.inside.beta, network.between.beta)
            end = np.maximum(clock[src], clock[dst]) + alpha + beta * wire_ratio * size * num_chunks
            # In a phase a rank is source at most once and destination at most once: neither line repeats an index.
            clock[src] = np.maximum(clock[src], end)
            clock[dst] = np.maximum(clock[dst], end)
            adding[dst] += network.between.gamma * size * num_chunks * reduce
        clock += adding
    return float(clock.max())


@dataclasses.dataclass(frozen=True)
class Activity:
    """What a rank does in one round.

    Attributes:
      messages_in, messages_out: number of messages received and sent.
      received, sent: volume received and sent, in payloads.
      added: the part of the received volume that the rank adds, in payloads.
    """

    messages_in: float = 0
    received: float = 0
    messages_out: float = 0
    sent: float = 0
    added: float = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """The closed form of a schedule's cost, for any number of ranks: what the busiest ranks do in each round.

    Attributes:
      table: float64 [num_roles, num_rounds, 5], the fields of Activity; every rank's activity is at most that of
        one of the roles.
      in_a_node: bool [num_rounds], whether the messages of a round stay inside nodes.
    """

    table: np.ndarray
    in_a_node: np.ndarray

    @classmethod
    def of(cls, *roles: Sequence[Activity]) -> Profile:
        """Returns the profile of ranks in these roles, with all rounds between nodes."""
        table = np.array([[dataclasses.astuple(activity) for activity in role] for role in roles], float)
        return cls.of_table(table.reshape(len(roles), -1, len(dataclasses.fields(Activity))))

    @classmethod
    def of_table(cls, table: np.ndarray) -> Profile:
        """Returns the profile with this table, with all rounds between nodes."""
        return cls(table, np.zeros(table.shape[1], bool))

    @classmethod
    def balanced(cls, num_ranks: int) -> Profile:
        """Returns the profile of a reduce-scatter and all-gather with one chunk of n / p per rank and round."""
        chunk = 1 / num_ranks
        reduce_scatter = Activity(messages_in=1, received=chunk, messages_out=1, sent=chunk, added=chunk)
        all_gather = dataclasses.replace(reduce_scatter, added=0)
        return cls.of([reduce_scatter] * (num_ranks - 1) + [all_gather] * (num_ranks - 1))

    def predict(
        self, num_bytes: float, network: NetworkModel, *, num_segments: int = 1, wire_ratio: float = 1.0
    ) -> float:
        """Predicts the seconds of an allreduce; each pipeline step takes as long as its busiest rank.

        The arguments are those of `simulate`.
        """
        segment = num_bytes / num_segments
        alpha = np.where(self.in_a_node, network.inside.alpha, network.between.alpha)
        beta = np.where(self.in_a_node, network.inside.beta, network.between.beta) * wire_ratio * segment
        messages_in, received, messages_out, sent, added = np.moveaxis(self.table, -1, 0)

        # Step t runs the rounds from t - S + 1 to t, where S is the number of segments.
        step = np.arange(self.table.shape[1] + num_segments - 1)
        first, end = np.maximum(0, step - num_segments + 1), np.minimum(step + 1, self.table.shape[1])

        def in_step(of_round: np.ndarray) -> np.ndarray:
            running = np.pad(np.cumsum(of_round, axis=1), ((0, 0), (1, 0)))
            return running[:, end] - running[:, first]

        receiving = in_step(alpha * messages_in + beta * received)
        sending = in_step(alpha * messages_out + beta * sent)
        adding = in_step(network.between.gamma * segment * added)
        return float(np.sum(np.max(np.maximum(receiving, sending) + adding, axis=0, initial=0)))
