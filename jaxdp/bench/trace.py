"""Timeline of the gradient buckets in one training step, in Chrome's trace format."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from jaxdp.cli import parsing
from jaxdp.runtime.world import World


class Span(NamedTuple):
    """A named interval, in seconds from the start of the step."""

    name: str
    start_s: float
    end_s: float


def of_step(marks: tuple[float, float], num_devices: int, world: World) -> list[list[Span]]:
    """Returns, for every rank, the span of the step and of each bucket from when it was ready until it was summed.

    All ranks must call it together.

    Args:
      marks: start and end of the step, from time.perf_counter.
      num_devices: number of devices of this rank.
      world: all ranks.
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
    """Writes the spans in Chrome's trace format, with one process per rank and one line per bucket."""
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
    parsing.write_json(path, {"traceEvents": events, "displayTimeUnit": "ms"})
