"""Reports the cost of an allreduce schedule and draws its reduction trees. Does not need MPI.

With every algorithm each chunk is summed along a tree, in which the parent of a rank is the rank to which it sends its
partial sum. For multicolor these are the trees of the colors.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxdp.cli import parsing, start
from jaxdp.collectives.algorithms import ALGORITHMS, INNER, OUTER
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.cost import Link, NetworkModel, counts
from jaxdp.collectives.schedule import Schedule


def main(words: Sequence[str] | None = None) -> None:
    """Prints a report, and draws the trees if requested."""
    start.alone(_parser(), _run, words)


def _run(arguments: argparse.Namespace) -> None:
    choice = _choice(arguments)
    schedule = choice.schedule(arguments.ranks)
    print(_report(choice, schedule, arguments))
    if arguments.plot:
        from jaxdp.bench import plots

        plots.trees(choice, schedule, parents(schedule), arguments.plot, most=arguments.trees)


def parents(schedule: Schedule) -> np.ndarray:
    """Returns the parent of each rank in the tree of each chunk, -1 for the root; int64 [num_chunks, num_ranks]."""
    found = np.full((schedule.num_chunks, schedule.num_ranks), -1)
    found[schedule.chunk[schedule.reduce], schedule.src[schedule.reduce]] = schedule.dst[schedule.reduce]
    return found


def depths(parent: np.ndarray) -> np.ndarray:
    """Returns the distance of each rank from the root of one tree, int64 [num_ranks]."""
    depth, above = np.zeros(len(parent), np.int64), parent
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parent[above], -1)
    return depth


def _parser() -> parsing.Parser:
    parser = parsing.Parser(
        "bench schedule",
        __doc__,
        examples=("jaxdp bench schedule --algorithm=multicolor --ranks=8 --colors=4 --plot=trees.svg",),
    )
    add = parser.add_argument
    add("--algorithm", choices=tuple(ALGORITHMS), default="multicolor", help="algorithm of the schedule")
    add("--ranks", type=parsing.number, default=8, help="number of ranks")
    add(
        "--colors",
        type=parsing.number,
        help="number of multicolor trees; default: 4, or the number of ranks if smaller",
    )
    add("--arity", type=parsing.number, help="arity of multicolor trees; default: colors")
    add("--inner", choices=INNER, default="direct", help="algorithm of hierarchical within nodes")
    add("--outer", choices=OUTER, default="multicolor", help="algorithm of hierarchical between nodes")
    add("--ranks_per_node", type=parsing.number, default=2, help="ranks per node of hierarchical")
    add("--size", type=parsing.size, default="25M", help="size of the payload")
    add("--segment", type=parsing.size, default=2**18, help="size of a segment")
    add("--alpha", type=float, default=50.0, help="latency of a message in microseconds")
    add("--bandwidth", type=float, default=10.0, help="bandwidth of a link per direction in Gbit/s")
    add("--plot", type=pathlib.Path, help="draw the trees to this file, e.g. trees.svg")
    add("--trees", type=parsing.number, default=8, help="maximum number of trees to draw")
    return parser


def _choice(arguments: argparse.Namespace) -> Choice:
    wanted = ALGORITHMS[arguments.algorithm].options
    nodes = arguments.ranks // arguments.ranks_per_node if "outer" in wanted else arguments.ranks
    colors = arguments.colors or max(1, min(4, nodes))
    options = {
        "colors": colors,
        "arity": arguments.arity or colors,
        "inner": arguments.inner,
        "outer": arguments.outer,
        "ranks_per_node": arguments.ranks_per_node,
    }
    if "outer" in wanted and not ALGORITHMS[arguments.outer].options:
        wanted = tuple(name for name in wanted if name not in ("colors", "arity"))
    if min(arguments.alpha, arguments.bandwidth) <= 0:
        raise ValueError("--alpha and --bandwidth must be positive")
    return Choice(arguments.algorithm, **{name: options[name] for name in wanted}, segment_bytes=arguments.segment)


def _report(choice: Choice, schedule: Schedule, arguments: argparse.Namespace) -> str:
    found, p = counts(schedule), schedule.num_ranks
    network = NetworkModel.flat(Link(arguments.alpha * 1e-6, 8e-9 / arguments.bandwidth, 1e-10))
    seconds = choice.predict(p, arguments.size, network)
    trees = parents(schedule)
    roles = np.zeros(p, np.int64)
    for parent in trees:
        roles[np.unique(parent[parent >= 0])] += 1
    lines = [
        ("ranks", f"{p}"),
        ("rounds", f"{found.rounds}"),
        ("chunks", f"{schedule.num_chunks}"),
        ("moves", f"{schedule.num_moves:,}"),
        ("depth", f"{max((int(depths(parent).max()) for parent in trees), default=0)} of the deepest tree"),
        ("fan-in", f"{found.fan_in}"),
        ("internal", f"each rank in {roles.min()} to {roles.max()} of the {schedule.num_chunks} trees"),
        (
            "bytes",
            f"a rank sends {found.sent.min():.4g} to {found.sent.max():.4g} payloads, receives "
            f"{found.received.min():.4g} to {found.received.max():.4g}; the lower bound is "
            f"{found.lower_bound:.4g}",
        ),
        (
            "predicted",
            f"{seconds * 1e3:.4g} ms for {arguments.size:,} bytes, {arguments.alpha:g} us and {arguments.bandwidth:g} "
            f"Gbit/s, {choice.num_segments(p, arguments.size)} segments per chunk",
        ),
    ]
    return "\n".join([str(choice), *(f"  {name:10}{text}" for name, text in lines)])
