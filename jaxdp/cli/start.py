"""Starts commands on all ranks of a job or in a single process, and reports their usage errors once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jaxdp.cli import parsing
from jaxdp.runtime import launcher, world
from jaxdp.runtime.exit_codes import INTERNAL_ERROR, USER_ERROR
from jaxdp.runtime.world import Failure, World


def command_line(words: Sequence[str] | None) -> list[str]:
    """Returns these words, or without any the command line of this process; both without the name of the program."""
    return list(sys.argv[1:] if words is None else words)


def on_ranks(
    parser: parsing.Parser,
    work: Callable[[argparse.Namespace, World], None],
    words: Sequence[str] | None = None,
    *,
    check: Callable[[argparse.Namespace, World], None] | None = None,
) -> None:
    """Runs a command on every rank. The command line must be the same on all ranks.

    Args:
      parser: options of the command.
      work: the command itself.
      words: command line; None for that of this process.
      check: raises ValueError for usage errors that the parser cannot find.

    Raises:
      SystemExit: the command line has an error on some rank; one rank has printed it.
    """
    given = command_line(words)

    # Help needs no MPI.
    if parser.has_helped(given):
        return

    def job(world: World) -> None:
        with world.agree_or_exit():
            arguments = parser.parse_args(given)
            if check is not None:
                check(arguments, world)
        world.require_equal("command line", given)
        work(arguments, world)

    world.run(job)


def alone(
    parser: parsing.Parser,
    work: Callable[[argparse.Namespace], int | None],
    words: Sequence[str] | None = None,
) -> None:
    """Runs a command that takes a single process and does not need MPI.

    Args:
      parser: options of the command.
      work: the command itself; returns the exit code, or None for success.
      words: command line; None for that of this process.

    Raises:
      SystemExit: the command has failed, or its command line has an error.
    """
    given = command_line(words)
    if parser.has_helped(given):
        return
    try:
        arguments = parser.parse_args(given)
    except ValueError as error:
        exit_with_usage_error(str(error))
    try:
        code = work(arguments)
    except (ValueError, Failure) as error:
        _print_error(str(error))
        code = USER_ERROR if isinstance(error, ValueError) else INTERNAL_ERROR
    if code:
        sys.exit(code)


def exit_with_usage_error(message: str) -> NoReturn:
    """Reports an error in a command line that is the same on all ranks; under mpirun one rank reports it for all."""
    place = launcher.launch_info()
    if place is not None and place.size > 1:
        # Open MPI ends the job as soon as one rank exits with an error, so all ranks must agree first.
        world.run(lambda of_world: _refuse(message, of_world))
    _print_error(message)
    sys.exit(USER_ERROR)


def _refuse(message: str, world: World) -> None:
    with world.agree_or_exit():
        raise ValueError(message)


def _print_error(message: str) -> None:
    print(f"jaxdp: error: {message}", file=sys.stderr, flush=True)
