"""Plots of the results of the studies."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdp.bench.figure import save_figure
from jaxdp.config.schema import Config
from jaxdp.study.protocol import METHODS, Summary


def large_batch(summaries: Sequence[Summary], small: Config, path: pathlib.Path) -> None:
    """Plots, per batch size, the accuracy of each arm with its interval, and below it the error over the base rate."""
    multiples = list(dict.fromkeys(entry.arm.multiple for entry in summaries))

    def draw(grid: Any) -> None:
        for above, below, multiple in zip(*grid, multiples, strict=True):
            of_batch = [entry for entry in summaries if entry.arm.multiple == multiple]
            for entry in of_batch:
                method = list(METHODS).index(entry.arm.method)
                mean, low, high = (100 * value for value in entry.accuracy)
                above.errorbar(
                    [method], [mean], yerr=[[mean - low], [high - mean]], fmt="o", capsize=4, color=f"C{method}"
                )
                errors = [100 * (1 - accuracy) for accuracy in entry.by_rate.values()]
                below.plot(list(entry.by_rate), errors, "o-", color=f"C{method}", label=METHODS[entry.arm.method])
            above.set(title=f"batch {small.batch_size * multiple}", xticks=range(len(METHODS)), xticklabels=METHODS)
            above.set_xlim(-0.5, len(METHODS) - 0.5)
            above.tick_params(axis="x", labelrotation=45)
            below.set(xscale="log", yscale="log", xlabel=f"base rate, at batch {small.batch_size}")
            for axes in (above, below):
                axes.grid(which="both", alpha=0.3)
        grid[0][0].set_ylabel("accuracy, %, with 95 % interval")
        grid[1][0].set_ylabel("error at each base rate, %")
        grid[0][0].legend(*grid[1][-1].get_legend_handles_labels(), fontsize="small", loc="lower left")
        grid[0][0].set_ylim(top=100)

    columns = len(multiples)
    save_figure(draw, path, size=(3.2 * columns, 7), nrows=2, ncols=columns, squeeze=False, sharey="row")
