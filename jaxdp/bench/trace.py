"""What took place in a training step, for a person to look at: its buckets on their way, in Chrome's trace format."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from jaxdp import parse
from jaxdp.world import World


class Span(NamedTuple):
    """What took place from one moment to another, in seconds from the start of the step."""

    name: str
    start_s: float
    end_s: float


def of_step(marks: tuple[float, float], num_devices: int, world: World) -> list[list[Span]]:
    """Of every rank: the last step, and its buckets from when they were ready until they had crossed.

    Args:
      marks: when the step began and ended, by time.perf_counter.
      num_devices: of this rank.
      world: all ranks, which call it together.
    """
    from jaxdp.collectives import run_native

    start, end = marks
    mine = [Span("step", 0.0, end - start)]
    events = [event for event in run_native.engine_of(world).events() if start <= event.start_s <= end]
    first = min((event.plan for event in events), default=0)
    for event in sorted(events):
        bucket, device = divmod(event.plan - first, num_devices)
        name = f"bucket {bucket}" + f", device {device}" * (num_devices > 1)
        mine.append(Span(name, event.start_s - start, event.end_s - start))
    return world.allgather(mine)


def write(path: pathlib.Path, spans: list[list[Span]]) -> None:
    """In Chrome's trace format: a process a rank, a line a bucket."""
    events = [
        {
            "name": span.name,
            "ph": "X",
            "pid": rank,
            "tid": line,
            "ts": span.start_s * 1e6,
            "dur": (span.end_s - span.start_s) * 1e6,
        }
        for rank, of_rank in enumerate(spans)
        for line, span in enumerate(of_rank)
    ]
    parse.write_json(path, {"traceEvents": events, "displayTimeUnit": "ms"})
