"""Injects faults into real local jobs and checks that no training progress is lost.

  python -m jaxdp.faults --trials=12 --json=faults.jsonl

Each trial trains the default config on 2 to 4 ranks under mpirun and injects a fault at a random time. It checks that
the job reacts as it must, restarts the job, and compares the final checkpoint with that of a run without a fault.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxdp.cli import parsing
from jaxdp.faults.campaign import Campaign, append_row, read_rows, table
from jaxdp.faults.kinds import FAULTS
from jaxdp.runtime.world import INTERNAL_ERROR, USER_ERROR


def main(words: Sequence[str]) -> int:
    """Runs the trials and returns the exit code."""
    parser = parsing.Parser("jaxdp.faults", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=int, default=len(FAULTS), help="number of trials; 0 only prints the table")
    parser.add_argument("--json", type=pathlib.Path, help="append one line per trial to this file")
    parser.add_argument("--faults", type=parsing.names, help=f"injected in turn; default all of {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices; default %(default)s")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/faults"), help="default %(default)s")
    try:
        arguments = parser.parse_args(words)
        parsing.check_writable(arguments.json)
        if arguments.trials:
            parsing.program("mpirun")
        for name in arguments.faults or ():
            if name not in FAULTS:
                raise ValueError(f"unknown fault {name!r}: choose from {', '.join(FAULTS)}")
            if reason := FAULTS[name].impossible():
                raise ValueError(f"the fault {name!r} cannot be injected on this machine: {reason}")
        rows = read_rows(arguments.json) if arguments.json else []
    except ValueError as error:
        print(f"jaxdp: error: {error}", file=sys.stderr)
        return USER_ERROR
    names = arguments.faults or (_possible() if arguments.trials else [])
    campaign = Campaign(arguments.workdir, arguments.seed)
    is_good = True
    for number in range(len(rows), len(rows) + arguments.trials):
        row = campaign.carry_out(number, names[number % len(names)])
        is_good &= row.is_good
        rows.append(row)
        if arguments.json:
            append_row(arguments.json, row)
        seconds = "" if row.detected_s is None else f", {row.detected_s:.1f} s"
        outcome = "recovered, bit-identical" if row.is_good else f"FAILED: {row.why_not or 'not bit-identical'}"
        print(f"trial {number}: {row.fault} on {row.ranks} ranks, {row.moment}{seconds}: {outcome}", flush=True)
    print(table(rows), flush=True)
    return 0 if is_good else INTERNAL_ERROR


def _possible() -> list[str]:
    """Returns the faults that can be injected on this machine, and prints why any fault is skipped."""
    reasons = {name: fault.impossible() for name, fault in FAULTS.items()}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"skipped {name}: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
