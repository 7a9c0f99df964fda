"""Predicts allreduce times for growing numbers of ranks, next to measured times. Does not need MPI.

The comparison follows FireCaffe (arXiv 1511.00175, section 4): the time of a parameter server grows in proportion to
the number of ranks, the time of a reduction tree with its logarithm.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdp.cli import parsing, start
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.choice import DEFAULT_COLORS, Choice
from jaxdp.collectives.cost import Link, NetworkModel


def main(words: Sequence[str] | None = None) -> None:
    """Prints a table, and plots it if requested."""
    start.alone(_parser(), _run, words)


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    network = NetworkModel.flat(Link(arguments.alpha * 1e-6, 8e-9 / arguments.bandwidth, 1e-10))
    predicted = {
        name: [
            (ranks, _choice(name, ranks, arguments.segment).predict(ranks, arguments.size, network))
            for ranks in _worlds(arguments.most)
        ]
        for name in arguments.algorithms
    }
    measured = _measured(arguments.measured, arguments.size)
    print(_table(predicted, measured))
    if arguments.plot:
        from jaxdp.bench import plots

        title = f"allreduce of {arguments.size:,} bytes, {arguments.alpha:g} us and {arguments.bandwidth:g} Gbit/s"
        plots.scaling(predicted, measured, arguments.plot, title=title)


def _parser() -> parsing.Parser:
    parser = parsing.Parser(
        "bench scaling", __doc__, examples=("jaxdp bench scaling --bandwidth=0.48 --plot=scaling.png",)
    )
    add = parser.add_argument
    add(
        "--algorithms",
        type=parsing.names,
        default="parameter_server,binomial,multicolor,ring",
        help="algorithms to compare",
    )
    add("--size", type=parsing.size, default="25M", help="size of the payload")
    add("--segment", type=parsing.size, default=2**18, help="size of a segment")
    add("--alpha", type=float, default=50.0, help="latency of a message in microseconds")
    add("--bandwidth", type=float, default=10.0, help="bandwidth of a link per direction in Gbit/s")
    add("--most", type=parsing.number, default=1024, help="the largest number of ranks")
    add("--measured", type=pathlib.Path, nargs="*", default=[], help="files written by bench allreduce --json")
    add("--plot", type=pathlib.Path, help="write the plot to this file, e.g. scaling.png")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in arguments.algorithms:
        if name not in ALGORITHMS or name == "hierarchical":
            known = ", ".join(name for name in ALGORITHMS if name != "hierarchical")
            raise ValueError(f"unknown algorithm {name!r} in --algorithms: choose from {known}")
    if min(arguments.alpha, arguments.bandwidth) <= 0 or arguments.most < 2:
        raise ValueError("--alpha and --bandwidth must be positive, and --most must be at least 2")


def _worlds(most: int) -> list[int]:
    return [*range(2, min(9, most + 1)), *(2**level for level in range(4, most.bit_length()) if 2**level <= most)]


def _choice(name: str, ranks: int, segment_bytes: int = 2**18) -> Choice:
    colors = min(DEFAULT_COLORS, ranks)
    options: dict[str, Any] = {"colors": colors, "arity": colors} if name == "multicolor" else {}
    return Choice(name, **options, segment_bytes=segment_bytes)


def _measured(paths: Sequence[pathlib.Path], size: int) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for path in paths:
        try:
            document = json.loads(path.read_text())
            ranks = document["ranks"]
            for row in document["rows"]:
                name = row["algorithm"]
                # Of several multicolor rows, use the one with the number of colors that is predicted.
                if name in ALGORITHMS and row["size_bytes"] == size and row["label"] == str(_choice(name, ranks)):
                    found.setdefault(name, []).append((ranks, row["median_s"]))
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} was not written by `bench allreduce --json`: {error}") from None
    return {name: sorted(points) for name, points in found.items()}


def _table(predicted: dict[str, list[tuple[int, float]]], measured: dict[str, list[tuple[int, float]]]) -> str:
    names = list(predicted)
    lines = ["ranks  " + "  ".join(f"{name:>26}" for name in names), "       " + "predicted s, measured s".rjust(26)]
    for index, (ranks, _) in enumerate(predicted[names[0]]):
        cells = []
        for name in names:
            seconds = dict(measured.get(name, [])).get(ranks)
            cells.append(f"{predicted[name][index][1]:.4f} {'' if seconds is None else f'{seconds:.4f}':>8}")
        lines.append(f"{ranks:5}  " + "  ".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)
