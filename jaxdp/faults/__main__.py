"""Injects faults into real local jobs and checks that no training progress is lost.

Each trial trains the default config on 2 to 4 ranks under mpirun and injects a fault at a random time. It checks that
the job reacts as it must, restarts the job, and compares the final checkpoint with that of a run without a fault.
`jaxdp faults endurance --help` describes a long job that is checked for leaks instead.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from jaxdp.cli import parsing, start
from jaxdp.faults import endurance
from jaxdp.faults.campaign import Campaign, append_row, read_rows, table
from jaxdp.faults.kinds import FAULTS
from jaxdp.runtime.exit_codes import INTERNAL_ERROR, SUCCESS


def main(words: Sequence[str] | None = None) -> None:
    """Runs the trials, or the endurance job."""
    given = start.command_line(words)
    if given[:1] == ["endurance"]:
        endurance.main(given[1:])
    else:
        start.alone(_parser(), _run_trials, given)


def _parser() -> parsing.Parser:
    parser = parsing.Parser(
        "faults",
        __doc__,
        examples=("jaxdp faults --trials=12 --json=faults.jsonl", "jaxdp faults endurance --ranks=8 --steps=10000"),
    )
    add = parser.add_argument
    add("--trials", type=int, default=len(FAULTS), help="number of trials; 0 only prints the table")
    add("--json", type=pathlib.Path, help="append one line per trial to this file")
    add("--faults", type=parsing.names, help=f"injected in turn; default: all of {', '.join(FAULTS)}")
    add("--seed", type=int, default=0, help="seed of all random choices")
    add("--workdir", type=pathlib.Path, default="runs/faults", help="folder of the trials")
    return parser


def _run_trials(arguments: argparse.Namespace) -> int:
    parsing.check_writable(arguments.json)
    if arguments.trials:
        parsing.program("mpirun")
    for name in arguments.faults or ():
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r}: choose from {', '.join(FAULTS)}")
        if reason := FAULTS[name].impossible():
            raise ValueError(f"the fault {name!r} cannot be injected on this machine: {reason}")
    rows = read_rows(arguments.json) if arguments.json else []
    names = arguments.faults or (_possible() if arguments.trials else [])
    numbers = range(len(rows), len(rows) + arguments.trials)
    is_good = True
    for row in Campaign(arguments.workdir, arguments.seed).carry_out_all(numbers, names):
        is_good &= row.is_good
        rows.append(row)
        if arguments.json:
            append_row(arguments.json, row)
    print(table(rows), flush=True)
    return SUCCESS if is_good else INTERNAL_ERROR


def _possible() -> list[str]:
    """Returns the faults that can be injected on this machine, and prints why any fault is skipped."""
    reasons = {name: fault.impossible() for name, fault in FAULTS.items()}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"skipped {name}: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


if __name__ == "__main__":
    main()
