"""Command-line parsing with argparse, in which usage errors are ValueErrors."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxdp.runtime import exit_codes, launcher

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
# Help texts with these words state their default themselves.
_STATED = re.compile(r"\b(default|required)\b")


class Parser(argparse.ArgumentParser):
    """The options of a command; raises ValueError for usage errors, so that one rank reports them for all.

    Args:
      command: words after `jaxdp` that select the command; empty for `jaxdp` itself.
      description: what the command does.
      examples: command lines that --help shows.
    """

    def __init__(self, command: str, description: str | None, *, examples: Sequence[str] = ()):
        shown = [f"example{'s' * (len(examples) > 1)}:", *(f"  {line}" for line in examples), ""] if examples else []
        super().__init__(
            prog=f"jaxdp {command}".strip(),
            description=description,
            epilog="\n".join([*shown, exit_codes.SUMMARY]),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"invalid command line: {message} (see --help)")

    def has_helped(self, words: Sequence[str]) -> bool:
        """Prints the help if the command line asks for it, without MPI and on rank 0 only; returns whether it does."""
        if not asks_for_help(words):
            return False
        place = launcher.launch_info()
        if place is None or place.rank == 0:
            self.print_help()
        return True


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and adds the default to the help of each option that does not state it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        # A help text may describe a default that depends on other options or on the machine.
        if not action.option_strings or action.default is argparse.SUPPRESS or _STATED.search(text):
            return text
        stated = "required" if action.required else f"default: {_written(action.default)}"
        # argparse expands % signs in help texts.
        return f"{text}; {stated.replace('%', '%%')}"


def _written(default: Any) -> str:
    """Returns a default as the user would write it."""
    if default is None or default == []:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether a command line contains -h or --help."""
    return not {"-h", "--help"}.isdisjoint(words)


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
