"""Measures weak scaling over hosts of `launch/netcluster`, with the engines of jaxdp and PyTorch's DDP.

The batch per host is fixed while the number of hosts grows. All hosts share the cores of one machine, so each rank uses
one core. Efficiency is the step time of the same hosts, each training alone at the same time in a hand-written loop,
divided by the step time of all hosts training together. It therefore shows the cost of communication and of the
framework. The jobs of all frameworks exist at the same time and take turns of a few steps; jobs that wait sleep.

Has the requirements of `launch/netcluster`. The framework torch also needs --python=.venv-peers/bin/python (created by
launch/peers).
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

from jaxdp.bench import netcluster
from jaxdp.bench.rows import WeakRow
from jaxdp.bench.step_parts import MODELS
from jaxdp.bench.turns import Turns
from jaxdp.cli import parsing, start
from jaxdp.collectives.config import ENGINES
from jaxdp.runtime.world import Failure

_TORCH = "torch"
_TORCH_HAS = ("resnet18",)
_WARM_UP = 2


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark, prints a table, and writes and plots it if requested."""
    start.alone(_make_parser(), _run, words)


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    try:
        rows = [row for hosts in arguments.hosts for row in _measured(arguments, hosts)]
    except RuntimeError as error:
        raise Failure(str(error)) from error
    if arguments.json:
        parsing.write_json(arguments.json, {"rate": arguments.rate, "rows": [dataclasses.asdict(row) for row in rows]})
    if arguments.plot:
        from jaxdp.bench import plots

        plots.weak(
            rows, arguments.plot, title=f"{arguments.model}, {arguments.batch} images per host, {arguments.rate}"
        )


def _make_parser() -> parsing.Parser:
    parser = parsing.Parser("bench weak", __doc__, examples=("jaxdp bench weak --hosts=1,2,4 --frameworks=native,xla",))
    add = parser.add_argument
    add("--hosts", type=parsing.numbers, default="1,2,4", help="numbers of hosts")
    add("--rate", default="500mbit", help="bandwidth of each link per direction")
    add("--frameworks", type=parsing.names, default="native,xla", help=f"some of {', '.join((*ENGINES, _TORCH))}")
    add("--model", choices=tuple(MODELS), default="resnet18", help="model to train")
    add("--batch", type=parsing.number, default=8, help="images per host")
    add("--image_size", type=parsing.number, default=32, help="height and width of the images")
    add("--rounds", type=parsing.number, default=5, help="rounds, with one turn per framework")
    add("--steps", type=parsing.number, default=3, help="steps per turn")
    add("--python", type=pathlib.Path, help="a Python with torch and torchvision, for torch")
    add("--json", type=pathlib.Path, help="write the rows to this file")
    add("--plot", type=pathlib.Path, help="write the plot to this file")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    parsing.check_writable(arguments.json, arguments.plot)
    parsing.program("mpiexec")
    for name in arguments.frameworks:
        if name not in (*ENGINES, _TORCH):
            raise ValueError(f"unknown framework {name!r}: choose from {', '.join((*ENGINES, _TORCH))}")
    if _TORCH in arguments.frameworks:
        if arguments.model not in _TORCH_HAS:
            raise ValueError(f"the torch baseline has no model {arguments.model!r}: use --model={_TORCH_HAS[0]}")
        if arguments.python is None or not arguments.python.is_file():
            raise ValueError(f"torch needs --python, a Python created by launch/peers, not {arguments.python}")
    if reason := netcluster.why_not():
        raise ValueError(f"cannot create hosts on this machine: {reason}")


def _measured(arguments: argparse.Namespace, hosts: int) -> Iterator[WeakRow]:
    """Measures all frameworks on this number of hosts; prints and yields one row per framework."""
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
            raise RuntimeError(f"the models of the frameworks differ in their number of parameters: {sizes}")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for number in range(-_WARM_UP, arguments.rounds):
            for name, job in jobs.items():
                alone, together = job.measure("alone"), job.measure("together")
                if number >= 0:
                    seconds[name].append((alone, together))
        num_bytes = 4 * next(iter(sizes.values()))
        transfer = 2 * (hosts - 1) / hosts * num_bytes * 8e-9 / goodput if goodput else 0.0
        for name, pairs in seconds.items():
            row = row_of(name, hosts, arguments.batch, pairs, transfer)
            print(_text(row), flush=True)
            yield row


def row_of(name: str, hosts: int, batch: int, pairs: Sequence[tuple[float, float]], transfer: float) -> WeakRow:
    """Summarises the rounds of a framework.

    Args:
      name: name of the framework.
      hosts: number of hosts.
      batch: images per host.
      pairs: seconds of a step in each round, on one host alone and on all hosts together.
      transfer: seconds that the gradient takes over the network, at least.
    """
    alone, together = np.median(pairs, axis=0).tolist()
    efficiencies = [of_alone / of_together for of_alone, of_together in pairs]
    return WeakRow(
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


def _text(row: WeakRow) -> str:
    return (
        f"{row.hosts} hosts  {row.framework:8} {row.images_per_second:8.2f} images/s  step {row.together_s:.3f} s, "
        f"alone {row.alone_s:.3f} s, transfer {row.transfer_s:.3f} s  efficiency {row.efficiency:.3f} "
        f"({min(row.efficiencies):.3f} to {max(row.efficiencies):.3f})"
    )


def _goodput() -> float:
    """Returns the Gbit/s of a stream between two hosts."""
    return float(netcluster.run("goodput", "2").split()[1])


def _commands(name: str, hosts: int, folder: pathlib.Path, arguments: argparse.Namespace) -> list[list[str]]:
    """Returns the commands that start the job: one for all ranks, or one per host for torch, which has no launcher."""
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
    """The job of one framework, which runs until all rounds are over."""

    def __init__(self, commands: Sequence[Sequence[str]], hosts: int, folder: pathlib.Path):
        self._hosts, self._turns = hosts, Turns(folder)
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for command in commands
        ]

    def measure(self, what: str) -> float:
        """Returns the result of the slowest rank."""
        return max(self._turns.call(what, self._hosts, self._is_over))

    def _is_over(self) -> bool:
        return any(process.poll() is not None for process in self._processes)

    def close(self) -> None:
        """Ends the job, and kills it if it has not exited after 30 s."""
        self._turns.end()
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
