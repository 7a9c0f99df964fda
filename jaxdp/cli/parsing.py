"""Command-line parsing with argparse, in which usage errors are ValueErrors."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxdp.runtime.world import World

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ValueError instead of exiting, so that one rank reports the error for all."""

    def has_helped(self, words: Sequence[str], world: World) -> bool:
        """Whether the command line asks for help, which rank 0 then prints."""
        asks = bool({"-h", "--help"} & set(words))
        if asks and world.is_root:
            self.print_help()
        return asks

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"invalid command line: {message} (see --help)")


def on_all_ranks(
    parser: Parser, words: Sequence[str], check: Callable[[argparse.Namespace], None], world: World
) -> argparse.Namespace | None:
    """Parses a command line on all ranks and checks that it is the same on all of them.

    A usage error on any rank ends the job on all ranks.

    Args:
      parser: the parser for the flags.
      words: the command line, without the name of the program.
      check: raises ValueError for errors that the parser cannot find.
      world: all ranks.

    Returns:
      The arguments; None if the command line asks for help, which rank 0 has printed.
    """
    if {"-h", "--help"} & set(words):
        if world.is_root:
            parser.print_help()
        return None
    with world.agree_or_exit():
        arguments = parser.parse_args(words)
        check(arguments)
    world.require_equal("command line", list(words))
    return arguments


def size(text: str) -> int:
    """Parses a size in bytes, e.g. `4096`, `64K` or `25M` (powers of 1000)."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        found = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write it as 4096, 64K, 25M or 1G") from None
    if found < 1:
        raise argparse.ArgumentTypeError(f"a size must be 1 byte or more, not {text!r}")
    return found


def sizes(text: str) -> list[int]:
    """Parses comma-separated sizes."""
    return [size(word) for word in text.split(",")]


def number(text: str) -> int:
    """Parses an integer of 1 or more."""
    (found,) = numbers(text)
    return found


def numbers(text: str) -> list[int]:
    """Parses comma-separated integers of 1 or more."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers: write it as 2,4") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"numbers must be 1 or more, not {text!r}")
    return found


def names(text: str) -> list[str]:
    """Parses comma-separated names."""
    return text.split(",")


def program(command: str) -> list[str]:
    """Splits a command into words. Raises ValueError if its program is not on the PATH."""
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"the program {''.join(words[:1])!r} is not on the PATH: install it, or name another program")
    return words


def check_writable(*paths: pathlib.Path | None) -> None:
    """Raises ValueError if the folder of one of these files does not exist; called before any measurement."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")


def write_json(path: pathlib.Path, document: Any) -> None:
    """Writes a document as one line of JSON. Raises ValueError if the file cannot be written."""
    write_text(path, json.dumps(document))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text and a final newline. Raises ValueError if the file cannot be written."""
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}") from None
