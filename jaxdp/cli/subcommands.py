"""Tables of commands; the first word of a command line selects one."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping, Sequence

from jaxdp.cli import parsing, start


@dataclasses.dataclass(frozen=True)
class Subcommand:
    """A command of a table.

    Attributes:
      module: name of the module whose `main(words)` runs the command; imported only when the command is selected.
      summary: one line that describes the command.
    """

    module: str
    summary: str


def run(
    parent: str,
    kind: str,
    commands: Mapping[str, Subcommand],
    words: Sequence[str] | None,
    *,
    about: str,
    examples: Sequence[str],
) -> None:
    """Runs the command that the first word selects; without a word, or with --help, lists all commands.

    Args:
      parent: words after `jaxdp` that lead to this table; empty for `jaxdp` itself.
      kind: what the commands are called in messages, e.g. "benchmark".
      commands: commands by name.
      words: command line; None for that of this process.
      about: what the commands have in common, for --help.
      examples: command lines that --help shows.

    Raises:
      SystemExit: the command is unknown, or has failed; one rank has printed why.
    """
    name, *rest = start.command_line(words) or ["--help"]
    if name in commands:
        importlib.import_module(commands[name].module).main(rest)
    elif parsing.asks_for_help([name]):
        width = max(map(len, commands))
        listed = [f"{kind.upper()} is one of:", *(f"  {name:{width}}  {commands[name].summary}" for name in commands)]
        parser = parsing.Parser(parent, "\n".join([about, "", *listed]), examples=examples)
        parser.usage = f"%(prog)s {kind.upper()} ...\n       %(prog)s {kind.upper()} --help"
        parser.has_helped(["--help"])
    else:
        close = difflib.get_close_matches(name, commands, 1)
        remedy = f"did you mean {close[0]!r}? (see --help)" if close else f"choose from {', '.join(commands)}"
        start.exit_with_usage_error(f"unknown {kind} {name!r}: {remedy}")
