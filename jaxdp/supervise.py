"""Keeps a run going on hosts that come and go, without a scheduler: starts its job, and restarts it after failures.

The options after -- are those of `jaxdp train`. The hostfile has one host per line, followed by its number of ranks
("node07 slots=4" or "node07:4"; without a number, 1 rank). Before every start each host is probed, and the job starts
on the hosts that answer. If the job fails, it restarts after a growing delay and resumes from the last checkpoint. When
a missing host answers again, the job saves, stops and restarts on all hosts that answer. The global batch, the order of
the data and the learning rate do not depend on the number of hosts.

Preemption signals (SIGUSR1, SIGTERM) are forwarded to the job. They also end the supervisor, with exit code 75.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from jaxdp.cli import parsing, start, train_flags
from jaxdp.trainer import supervisor


def main(words: Sequence[str] | None = None) -> None:
    """Supervises a run from this process."""
    given = start.command_line(words)
    split = given.index("--") if "--" in given else len(given)
    start.alone(_parser(), lambda arguments: _supervise(arguments, given[split + 1 :]), given[:split])


def _parser() -> parsing.Parser:
    parser = parsing.Parser(
        "supervise",
        __doc__,
        examples=("jaxdp supervise --hostfile=hosts -- --config=digits --workdir=runs/digits",),
    )
    parser.usage = "%(prog)s --hostfile=FILE [options] -- [options of jaxdp train]"
    defaults = supervisor.Policy()
    add = parser.add_argument
    add("--hostfile", type=pathlib.Path, required=True, metavar="FILE", help="file with a host and its ranks per line")
    add("--launcher", default="mpiexec", metavar="COMMAND", help="command that starts ranks, with its options")
    add("--shell", default="ssh", metavar="COMMAND", help="command that reaches a host")
    add(
        "--most_failures",
        type=parsing.number,
        default=defaults.most_failures,
        metavar="N",
        help="give up after this many failures without a new checkpoint",
    )
    for name, default, what in [
        ("back_off", defaults.back_off_s, "before the first restart of a failed job"),
        ("probe", defaults.probe_s, "within which a host must answer"),
        ("look_every", defaults.look_every_s, "between probes of missing hosts"),
    ]:
        add(f"--{name}", type=float, default=default, metavar="SECONDS", help=f"seconds {what}")
    return parser


def _supervise(arguments: argparse.Namespace, of_train: list[str]) -> int:
    hosts = supervisor.read_hosts(arguments.hostfile)
    workdir = train_flags.parse_train(of_train).workdir
    launcher = parsing.program(arguments.launcher)
    parsing.program(arguments.shell)
    return supervisor.supervise(
        hosts,
        workdir,
        of_train,
        launcher=launcher,
        shell=arguments.shell,
        policy=supervisor.Policy(
            arguments.most_failures, arguments.back_off, arguments.look_every, probe_s=arguments.probe
        ),
    )


if __name__ == "__main__":
    main()
