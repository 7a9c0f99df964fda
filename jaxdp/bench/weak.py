"""Weak scaling over hosts of `launch/netcluster`: a batch a host, on 1, 2, 4 of them, with our engines and torch's DDP.

All hosts share the cores of one machine. So each rank has one core to use, efficiency is told against the same hosts,
at the same time, each training for itself in a loop written by hand: the time of such a step over that of a step
together. What is lost is what communication and the framework cost. Jobs of all frameworks are there at once and take
turns, some steps at a time; those that wait sleep.

Needs what `launch/netcluster` needs. --python=.venv-peers/bin/python (made by launch/peers) is for torch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from jaxdp import netcluster, parse
from jaxdp.bench.step_parts import MODELS
from jaxdp.bench.turns import Turns
from jaxdp.config import ENGINES
from jaxdp.world import INTERNAL_ERROR, USER_ERROR

_TORCH = "torch"
_TORCH_HAS = ("resnet18",)
_WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Row:
    """A framework on some hosts: seconds of a step on the slowest rank, medians over the rounds.

    Attributes:
      framework: one of our engines, or torch.
      hosts, batch: their number, and images a host.
      alone_s: all hosts at once, each for itself.
      together_s: as one job.
      transfer_s: 2 (p - 1) / p x bytes of the gradient over the goodput of one stream.
      images_per_second: of all hosts, together.
      efficiency: alone_s / together_s, the median of those of the rounds.
      efficiencies: of each round.
    """

    framework: str
    hosts: int
    batch: int
    alone_s: float
    together_s: float
    transfer_s: float
    images_per_second: float
    efficiency: float
    efficiencies: list[float]


def main(words: Sequence[str]) -> None:
    """Measures, prints a table, and writes and draws it if asked."""
    try:
        arguments = _make_parser().parse_args(words)
        _check(arguments)
        rows = [row for hosts in arguments.hosts for row in _measured(arguments, hosts)]
        if arguments.json:
            parse.write_json(
                arguments.json, {"rate": arguments.rate, "rows": [dataclasses.asdict(row) for row in rows]}
            )
        if arguments.plot:
            from jaxdp.bench import plots

            plots.weak(
                rows, arguments.plot, title=f"{arguments.model}, {arguments.batch} images a host, {arguments.rate}"
            )
    except (ValueError, RuntimeError) as error:
        print(f"jaxdp: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR if isinstance(error, ValueError) else INTERNAL_ERROR)


def _make_parser() -> parse.Parser:
    parser = parse.Parser("jaxdp.bench weak", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--hosts", type=parse.numbers, default=[1, 2, 4], help="default 1,2,4")
    add("--rate", default="500mbit", help="of each link and direction; default %(default)s")
    add("--frameworks", type=parse.names, default=["native", "xla"], help=f"of {', '.join((*ENGINES, _TORCH))}")
    add("--model", choices=tuple(MODELS), default="resnet18", help="default %(default)s")
    add("--batch", type=parse.number, default=8, help="images a host; default %(default)s")
    add("--image_size", type=parse.number, default=32, help="height and width; default %(default)s")
    add("--rounds", type=parse.number, default=5, help="in each of which every framework has its turn; default 5")
    add("--steps", type=parse.number, default=3, help="in a turn; default %(default)s")
    add("--python", type=pathlib.Path, help="a Python with torch and torchvision")
    add("--json", type=pathlib.Path, help="a file for the rows")
    add("--plot", type=pathlib.Path, help="a file for a picture")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    parse.check_writable(arguments.json, arguments.plot)
    parse.program("mpiexec")
    for name in arguments.frameworks:
        if name not in (*ENGINES, _TORCH):
            raise ValueError(f"--frameworks {name!r} is unknown: known are {', '.join((*ENGINES, _TORCH))}")
    if _TORCH in arguments.frameworks:
        if arguments.model not in _TORCH_HAS:
            raise ValueError(f"torch has no model {arguments.model!r} here: use --model={_TORCH_HAS[0]}")
        if arguments.python is None or not arguments.python.is_file():
            raise ValueError(f"torch needs --python, one that has it (launch/peers makes it), not {arguments.python}")
    if reason := netcluster.why_not():
        raise ValueError(f"no hosts can be made here: {reason}")


def _measured(arguments: argparse.Namespace, hosts: int) -> Iterator[Row]:
    """The rows of so many hosts, each printed as it comes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(netcluster.hosts(hosts, arguments.rate))
        goodput = _goodput() if hosts > 1 else None
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        jobs = {}
        for name in arguments.frameworks:
            (folder / name).mkdir()
            jobs[name] = _Job(_commands(name, hosts, folder / name, arguments), hosts, folder / name)
            stack.callback(jobs[name].close)
        sizes = {name: job.measure("parameters") for name, job in jobs.items()}
        if len(set(sizes.values())) > 1:
            raise RuntimeError(f"these are not the same models: they have {sizes} parameters")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for number in range(-_WARM_UP, arguments.rounds):
            for name, job in jobs.items():
                alone, together = job.measure("alone"), job.measure("together")
                if number >= 0:
                    seconds[name].append((alone, together))
        num_bytes = 4 * next(iter(sizes.values()))
        transfer = 2 * (hosts - 1) / hosts * num_bytes * 8e-9 / goodput if goodput else 0.0
        for name, pairs in seconds.items():
            row = _row(name, hosts, arguments.batch, pairs, transfer)
            print(_text(row), flush=True)
            yield row


def _row(name: str, hosts: int, batch: int, pairs: Sequence[tuple[float, float]], transfer: float) -> Row:
    alone, together = np.median(pairs, axis=0).tolist()
    efficiencies = [of_alone / of_together for of_alone, of_together in pairs]
    return Row(
        framework=name,
        hosts=hosts,
        batch=batch,
        alone_s=alone,
        together_s=together,
        transfer_s=transfer,
        images_per_second=hosts * batch / together,
        efficiency=float(np.median(efficiencies)),
        efficiencies=efficiencies,
    )


def _text(row: Row) -> str:
    return (
        f"{row.hosts} hosts  {row.framework:8} {row.images_per_second:8.2f} images/s  step {row.together_s:.3f} s, "
        f"alone {row.alone_s:.3f} s, transfer {row.transfer_s:.3f} s  efficiency {row.efficiency:.3f} "
        f"({min(row.efficiencies):.3f} to {max(row.efficiencies):.3f})"
    )


def _goodput() -> float:
    """Gbit/s of a stream between two hosts."""
    return float(netcluster.run("goodput", "2").split()[1])


def _commands(name: str, hosts: int, folder: pathlib.Path, arguments: argparse.Namespace) -> list[list[str]]:
    """What starts the job: one command for all ranks, or one a host for torch, which has no launcher."""
    sizes = [str(value) for value in (arguments.batch, arguments.image_size, arguments.steps)]
    if name != _TORCH:
        flags = [f"--{flag}={value}" for flag, value in zip(("batch", "image_size", "steps"), sizes, strict=True)]
        member = [sys.executable, "-m", "jaxdp.bench.weak_member", str(folder), f"--engine={name}"]
        return [[str(netcluster.PROGRAM), "run", str(hosts), *member, f"--model={arguments.model}", *flags]]
    program = [str(arguments.python), str(pathlib.Path(__file__).with_name("peer_ddp.py")), str(folder)]
    return [
        [str(netcluster.PROGRAM), "exec", f"h{rank}", *program, str(rank), str(hosts), "h0", arguments.model, *sizes]
        for rank in range(hosts)
    ]


class _Job:
    """Of one framework; it lives until all rounds are over."""

    def __init__(self, commands: Sequence[Sequence[str]], hosts: int, folder: pathlib.Path):
        self._hosts, self._turns = hosts, Turns(folder)
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for command in commands
        ]

    def measure(self, what: str) -> float:
        """Of the slowest rank."""
        return max(self._turns.call(what, self._hosts, self._is_over))

    def _is_over(self) -> bool:
        return any(process.poll() is not None for process in self._processes)

    def close(self) -> None:
        """Ends it, if need be by force."""
        self._turns.end()
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
