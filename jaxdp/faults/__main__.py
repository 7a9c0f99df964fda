"""Has faults befall real jobs of this machine, and looks whether anything is lost.

  python -m jaxdp.faults --trials=12 --json=faults.jsonl

Every trial trains the default config on 2 to 4 ranks under mpirun, breaks something at a random moment, sees that the
job does what it must, starts it again, and compares what is saved at the end with a run to which nothing happened.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxdp import parse
from jaxdp.faults.campaign import Campaign, append_row, read_rows, table
from jaxdp.faults.kinds import FAULTS
from jaxdp.world import INTERNAL_ERROR, USER_ERROR


def main(words: Sequence[str]) -> int:
    """Carries out the trials; the code to exit with."""
    parser = parse.Parser("jaxdp.faults", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=int, default=len(FAULTS), help="how many; 0 only prints the table of the file")
    parser.add_argument("--json", type=pathlib.Path, help="a file to which a line a trial is added")
    parser.add_argument("--faults", type=parse.names, help=f"by turns; default all of {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance; default %(default)s")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/faults"), help="default %(default)s")
    try:
        arguments = parser.parse_args(words)
        parse.check_writable(arguments.json)
        if arguments.trials:
            parse.program("mpirun")
        for name in arguments.faults or ():
            if name not in FAULTS:
                raise ValueError(f"there is no fault {name!r}: known are {', '.join(FAULTS)}")
            if reason := FAULTS[name].impossible():
                raise ValueError(f"the fault {name!r} cannot be tried here: {reason}")
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
        outcome = "recovered, same bits" if row.is_good else f"LOST: {row.why_not or 'other bits'}"
        print(f"trial {number}: {row.fault} on {row.ranks} ranks, {row.moment}{seconds}: {outcome}", flush=True)
    print(table(rows), flush=True)
    return 0 if is_good else INTERNAL_ERROR


def _possible() -> list[str]:
    """The faults that can be tried on this machine; the others are named."""
    reasons = {name: fault.impossible() for name, fault in FAULTS.items()}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"left out: {name}: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
