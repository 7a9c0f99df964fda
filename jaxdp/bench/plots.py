"""Plots of the benchmark results."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.bench.figure import save_figure
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.schedule import Schedule

if TYPE_CHECKING:
    from jaxdp.bench.rows import AllreduceRow, StepRow, WeakRow
    from jaxdp.bench.trace import Span

_MOST_LABELS = 40


def allreduce(rows: Sequence[AllreduceRow], path: pathlib.Path, *, ranks: int) -> None:
    """Plots time over payload size on log axes, one line per row label, with bars from the median to p95."""

    def draw(axes: Any) -> None:
        for label in dict.fromkeys(row.label for row in rows):
            mine = [row for row in rows if row.label == label]
            sizes = [row.size_bytes for row in mine]
            medians = [row.median_s * 1e3 for row in mine]
            above = [(row.p95_s - row.median_s) * 1e3 for row in mine]
            axes.errorbar(sizes, medians, yerr=[[0] * len(mine), above], marker="o", capsize=3, label=label)
        axes.set(xscale="log", yscale="log", xlabel="payload (bytes)", ylabel="time (ms): median, bar to p95")
        axes.set_title(f"allreduce over {ranks} ranks")
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize="small")

    save_figure(draw, path, size=(8, 6))


def scaling(
    predicted: Mapping[str, Sequence[tuple[int, float]]],
    measured: Mapping[str, Sequence[tuple[int, float]]],
    path: pathlib.Path,
    *,
    title: str,
) -> None:
    """Plots time over the number of ranks on log axes: predicted times as lines, measured times as dots."""

    def draw(axes: Any) -> None:
        for name, points in predicted.items():
            (line,) = axes.plot(*zip(*points, strict=True), label=name)
            if name in measured:
                axes.plot(*zip(*measured[name], strict=True), "o", color=line.get_color(), label=f"{name}, measured")
        axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="time (s)", title=title)
        axes.set_xscale("log", base=2)
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize="small")

    save_figure(draw, path, size=(8, 6))


def weak(rows: Sequence[WeakRow], path: pathlib.Path, *, title: str) -> None:
    """Plots efficiency, with its range, and images per second over the number of hosts, one line per framework."""

    def draw(panels: Any) -> None:
        for framework in dict.fromkeys(row.framework for row in rows):
            mine = [row for row in rows if row.framework == framework]
            hosts, efficiency = [row.hosts for row in mine], [row.efficiency for row in mine]
            below = [row.efficiency - min(row.efficiencies) for row in mine]
            above = [max(row.efficiencies) - row.efficiency for row in mine]
            panels[0].errorbar(hosts, efficiency, yerr=[below, above], marker="o", capsize=3, label=framework)
            panels[1].plot(hosts, [row.images_per_second for row in mine], "o-", label=framework)
        panels[0].set(ylabel="efficiency: step time alone / together", ylim=(0, 1.05))
        panels[1].set(ylabel="images/s, all hosts", ylim=(0, None))
        for axes in panels:
            axes.set(xlabel="hosts", xticks=sorted({row.hosts for row in rows}))
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        panels[0].figure.suptitle(title)

    save_figure(draw, path, size=(10, 4.5), ncols=2)


def trees(choice: Choice, schedule: Schedule, parents: np.ndarray, path: pathlib.Path, *, most: int) -> None:
    """Draws the reduction tree of each chunk with the root at the top; internal ranks are filled."""
    shown = parents[:most]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)

    def draw(grid: Any) -> None:
        for axes in grid.flat:
            axes.set_axis_off()
        for chunk, (axes, parent) in enumerate(zip(grid.flat, shown, strict=False)):
            _tree(axes, parent, chunk)
        more = f", first {len(shown)} of {len(parents)} trees" if len(parents) > len(shown) else ""
        grid.flat[0].figure.suptitle(f"{choice}, {schedule.num_ranks} ranks, {schedule.num_rounds} rounds{more}")

    width = max(4.0, min(12.0, 0.35 * schedule.num_ranks))
    save_figure(draw, path, size=(width * columns, 3 * rows), nrows=rows, ncols=columns, squeeze=False)


def _tree(axes: Any, parent: np.ndarray, chunk: int) -> None:
    children: dict[int, list[int]] = {}
    for rank, above in enumerate(parent.tolist()):
        children.setdefault(above, []).append(rank)
    x, y = np.zeros((2, len(parent)))
    leaves = 0
    # Place children before parents: a leaf takes the next free position, a parent the mean of its children.
    order = list(children[-1])
    for rank in order:
        order += children.get(rank, [])
        y[children.get(rank, [])] = y[rank] - 1
    for rank in _depth_first(children):
        if rank in children:
            x[rank] = np.mean(x[children[rank]])
        else:
            x[rank], leaves = leaves, leaves + 1
    for rank, above in enumerate(parent.tolist()):
        if above >= 0:
            axes.plot([x[rank], x[above]], [y[rank], y[above]], color="0.6", linewidth=0.8, zorder=1)
    internal = np.isin(np.arange(len(parent)), list(children))
    labelled = len(parent) <= _MOST_LABELS
    size = 260 if labelled else 8
    axes.scatter(x, y, s=size, c=np.where(internal, f"C{chunk % 10}", "white"), edgecolors=f"C{chunk % 10}", zorder=2)
    if labelled:
        for rank in range(len(parent)):
            color = "white" if internal[rank] else "black"
            axes.text(x[rank], y[rank], str(rank), ha="center", va="center", fontsize=8, color=color, zorder=3)
    axes.set_title(f"chunk {chunk}", fontsize="medium")
    axes.margins(0.1)


def _depth_first(children: Mapping[int, Sequence[int]]) -> list[int]:
    """Returns all ranks, children before their parents, siblings in order."""
    found, open_ = [], list(children[-1])
    while open_:
        rank = open_.pop()
        found.append(rank)
        open_ += children.get(rank, [])
    return found[::-1]


def step(row: StepRow, spans: Sequence[Span], path: pathlib.Path) -> None:
    """Draws a timeline of a step and its buckets, with the times that make up the floor."""

    def draw(axes: Any) -> None:
        for line, span in enumerate(spans):
            duration = (span.end_s - span.start_s) * 1e3
            axes.barh(line, duration, left=span.start_s * 1e3, color="0.7" if line == 0 else f"C{(line - 1) % 10}")
        for name, seconds in [("forward", row.forward_s), ("compute", row.compute_s), ("floor", row.floor_s)]:
            axes.axvline(seconds * 1e3, color="black", linewidth=0.8, linestyle=":")
            axes.text(seconds * 1e3, len(spans) - 0.4, name, ha="right", va="bottom", rotation=90, fontsize="small")
        axes.set(yticks=range(len(spans)), yticklabels=[span.name for span in spans], xlabel="ms")
        axes.set_title(
            f"{row.model}, {row.batch} images per rank, {row.ranks} ranks: each bucket from ready until summed"
        )
        axes.invert_yaxis()

    save_figure(draw, path, size=(9, 1.5 + 0.35 * len(spans)))
