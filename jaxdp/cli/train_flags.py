"""The command line of training and evaluation: parses flags into a checked config and reports each error once."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxdp.config.run_lengths import check_world
from jaxdp.config.schema import Config
from jaxdp.runtime import process, world

DEFAULT_CONFIG = "configs/digits.py"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A checked command line.

    Attributes:
      workdir: the run's folder.
      config: the config; None for commands that read it from the workdir.
      stop_at_step: the step after which the job saves and ends; None trains to the end of the run.
      profile_steps: the first and the last step to profile; None disables the profiler.
      explain: describe what the config would do instead of training.
    """

    workdir: pathlib.Path
    config: Config | None = None
    stop_at_step: int | None = None
    profile_steps: tuple[int, int] | None = None
    explain: bool = False


def parse_train(argv: list[str]) -> Arguments:
    """Parses --config, --config.SETTING, --workdir, --stop_at_step, --profile_steps and --explain.

    Raises:
      ValueError: a flag or a setting is unknown or has an invalid value, or the config file does not exist or fails.
    """
    path, rest = _config_path(argv[1:])
    # ml_collections needs --config before the flags that override its settings.
    argv = [argv[0], f"--config={path}", *rest]
    # The path of a config may be followed by a colon and an argument for it.
    if not pathlib.Path(path.split(":")[0]).is_file():
        raise ValueError(f"there is no config {path}: give the path of a config file, e.g. --config=configs/digits.py")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv, lock_config=True)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_integer("stop_at_step", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("profile_steps", None, "", flag_values=values)
    flags.DEFINE_boolean("explain", False, "", flag_values=values)
    _parse(values, argv, path)
    try:
        config = Config.from_dict(values.config.to_dict())
    except AttributeError:
        raise ValueError(f"the config {path} must return an ml_collections.ConfigDict from get_config()") from None
    workdir = pathlib.Path(values.workdir or pathlib.Path("runs", pathlib.Path(path).stem))
    return Arguments(workdir, config, values.stop_at_step, _window(values.profile_steps), values.explain)


def parse_evaluate(argv: list[str]) -> Arguments:
    """Parses --workdir.

    Raises:
      ValueError: --workdir is missing, or another flag is given.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    _parse(values, argv, "")
    if values.workdir is None:
        raise ValueError("no run given: pass its folder, e.g. --workdir=runs/digits")
    return Arguments(pathlib.Path(values.workdir))


def main(
    usage: str | None,
    parse: Callable[[list[str]], Arguments],
    work: Callable[[Arguments, world.World], None],
) -> None:
    """Runs a command on every rank.

    MPI is initialised first, which takes a tenth of a second. With MPI, a usage error is reported once for all ranks,
    and no rank waits for a rank that has exited.

    Args:
      usage: the text that --help prints.
      parse: parses the command line into arguments; raises ValueError for a usage error.
      work: the command itself.
    """

    def job(of_world: world.World) -> None:
        if "--help" in sys.argv[1:]:
            if of_world.is_root:
                print(usage)
            return
        arguments = Arguments(pathlib.Path())
        with of_world.agree_or_exit():
            arguments = parse(sys.argv)
            if arguments.config is not None:
                check_world(arguments.config, of_world.size)
        first = of_world.bcast(arguments)
        with of_world.agree_or_exit():
            if arguments != first:
                difference = None
                if first.config is not None and arguments.config is not None:
                    difference = first.config.difference(arguments.config)
                raise ValueError(
                    "all ranks need the same command line and config: "
                    + (f"{difference} (reference: rank 0)" if difference else f"{first} on rank 0, {arguments} here")
                )
        deterministic = arguments.config is not None and arguments.config.deterministic
        process.prepare_process(threads=of_world.threads, gpus=of_world.gpus, deterministic=deterministic)
        work(arguments, of_world)

    world.run(job)


def _parse(values: flags.FlagValues, argv: list[str], path: str) -> None:
    try:
        rest = values(argv)
    except flags.Error as error:
        raise ValueError(f"invalid command line: {error} (see --help)") from None
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"{_overridden(argv, _one_line(error))} is not a setting of {path}: {_one_line(error)}"
        ) from None
    except Exception as error:  # A config file is a program, so it may raise any exception.
        raise ValueError(f"the config {path} cannot be run: {type(error).__name__}: {_one_line(error)}") from None
    if len(rest) > 1:
        raise ValueError(f"invalid command line: {rest[1]!r} is not a flag; flags begin with -- (see --help)")


def _window(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--profile_steps must be the first and the last step to record, e.g. 100:110, not {text!r}")
    return int(found[1]), int(found[2])


def _config_path(words: list[str]) -> tuple[str, list[str]]:
    """Splits the command line into the path of the config, or the default path, and the remaining words."""
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return word.removeprefix("--config="), words[:index] + words[index + 1 :]
        if word == "--config" and index + 1 < len(words):
            return words[index + 1], words[:index] + words[index + 2 :]
    return DEFAULT_CONFIG, words


def _overridden(argv: list[str], text: str) -> str:
    """Finds the overridden setting whose last part the error message of ml_collections quotes."""
    names = [word.split("=")[0].removeprefix("--") for word in argv if word.startswith("--config.")]
    quoted = [name for name in names if f"'{name.split('.')[-1]}'" in text.replace('"', "'")]
    return quoted[0] if quoted else "an attribute used in it"


def _one_line(error: BaseException) -> str:
    """The message of an error on one line, without the quotes and escapes that a KeyError adds."""
    text: Any = error
    while isinstance(text, (AttributeError, KeyError)) and text.args:
        text = text.args[0]
    return " ".join(str(text).split())
