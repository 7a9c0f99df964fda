"""Command lines that argparse reads: flags, mistakes in them as ValueError."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxdp.world import World

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are errors for the caller to tell: one rank speaks for all."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"the command line cannot be understood: {message}: see --help")


def on_all_ranks(
    parser: Parser, words: Sequence[str], check: Callable[[argparse.Namespace], None], world: World
) -> argparse.Namespace | None:
    """The command line, the same and without a mistake on all ranks; None if it asked for help and had it.

    Args:
      parser: of its flags.
      words: of the command line.
      check: raises ValueError for what the parser cannot know.
      world: all ranks.
    """
    if {"-h", "--help"} & set(words):
        if world.is_root:
            parser.print_help()
        return None
    with world.together():
        arguments = parser.parse_args(words)
        check(arguments)
    world.require_equal("command line", list(words))
    return arguments


def size(text: str) -> int:
    """Bytes: `64K`, `25M` (powers of 1000), `4096`."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        found = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write it as 4096, 64K, 25M or 1G") from None
    if found < 1:
        raise argparse.ArgumentTypeError(f"a size is 1 byte or more, not {text!r}")
    return found


def sizes(text: str) -> list[int]:
    """Several sizes, with commas between."""
    return [size(word) for word in text.split(",")]


def number(text: str) -> int:
    """A number of 1 or more."""
    (found,) = numbers(text)
    return found


def numbers(text: str) -> list[int]:
    """Several numbers of 1 or more, with commas between."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers: write it as 2,4") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"these numbers are 1 or more: {text!r}")
    return found


def names(text: str) -> list[str]:
    """Several names, with commas between."""
    return text.split(",")


def program(command: str) -> list[str]:
    """The words of a command. Raises ValueError if its program is not there."""
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"the program {''.join(words[:1])!r} is not on the PATH: install it, or name another one")
    return words


def check_writable(*paths: pathlib.Path | None) -> None:
    """Raises ValueError, before anything is measured, if there is no folder for one of these files."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")


def write_json(path: pathlib.Path, document: Any) -> None:
    """Raises ValueError if it cannot be written."""
    write_text(path, json.dumps(document))


def write_text(path: pathlib.Path, text: str) -> None:
    """The text and the end of its last line. Raises ValueError if it cannot be written."""
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}") from None
