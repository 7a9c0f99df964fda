"""The command lines of `train` and `evaluate`: options to a checked config, with one message for a mistake."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from jaxdp.cli import parsing, start
from jaxdp.config.files import DEFAULT, read_config
from jaxdp.config.run_lengths import check_world
from jaxdp.config.schema import Config
from jaxdp.runtime import process
from jaxdp.runtime import world as world_module
from jaxdp.runtime.world import World
from jaxdp.settings.build import flattened, renamed_settings


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A checked command line.

    Attributes:
      workdir: folder of the run.
      config: config of the run; None for commands that read it from the workdir.
      stop_at_step: step after which to save and end; None for the end of the run.
      profile_steps: the first and the last step to profile; None for none.
      explain: describe the config instead of training.
      warnings: what to tell the user about the command line, such as a setting that is given under its old name.
    """

    workdir: pathlib.Path
    config: Config | None = None
    stop_at_step: int | None = None
    profile_steps: tuple[int, int] | None = None
    explain: bool = False
    warnings: tuple[str, ...] = ()


def add_config_options(parser: parsing.Parser) -> None:
    """Adds the options that choose a config and change its settings."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=DEFAULT,
        help="config file, or the name of one of jaxdp's configs",
    )
    parser.add_argument(
        "--config.SETTING",
        metavar="VALUE",
        dest="_settings",
        help="value of a setting, such as --config.optimizer.momentum=0.8; default: that of the config",
    )


def train_parser() -> parsing.Parser:
    """The options of `jaxdp train`, but for the settings."""
    parser = parsing.Parser(
        "train",
        "Trains a network on all ranks.",
        examples=(
            "mpirun -n 4 jaxdp train --config=digits --workdir=runs/digits",
            "jaxdp train --config=configs/mine.py --config.optimizer.momentum=0.8",
        ),
    )
    add_config_options(parser)
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        metavar="FOLDER",
        help="folder of checkpoints and metrics; an interrupted run resumes from it; default: runs/NAME OF THE CONFIG",
    )
    parser.add_argument(
        "--stop_at_step",
        type=parsing.number,
        metavar="N",
        help="save and end after step N; started again, the run resumes; default: the end of the run",
    )
    parser.add_argument(
        "--profile_steps",
        type=_window,
        metavar="A:B",
        help="record steps A to B with JAX's profiler, on rank 0, in the workdir's folder profile; default: none",
    )
    parser.add_argument(
        "--explain", action="store_true", help="describe the config, without its data and its cluster, and end"
    )
    return parser


def parse_train(words: Sequence[str]) -> Arguments:
    """The checked command line of `jaxdp train`, without the name of the program.

    Raises:
      ValueError: an unknown option or setting, or a wrong value of one.
    """
    options, rest = train_parser().parse_known_args(words)
    warnings: list[str] = []
    config = _with_flags(options.config, rest, warnings.append)
    workdir = options.workdir or pathlib.Path("runs", pathlib.Path(options.config.split(":")[0]).stem)
    window = options.profile_steps
    return Arguments(workdir, config, options.stop_at_step, window, options.explain, tuple(warnings))


def evaluate_parser() -> parsing.Parser:
    """The options of `jaxdp evaluate`."""
    parser = parsing.Parser(
        "evaluate",
        "Evaluates the latest checkpoint of a run on the whole test split.",
        examples=("mpirun -n 4 jaxdp evaluate --workdir=runs/digits",),
    )
    parser.add_argument("--workdir", type=pathlib.Path, metavar="FOLDER", help="folder of the run; required")
    return parser


def parse_evaluate(words: Sequence[str]) -> Arguments:
    """The checked command line of `jaxdp evaluate`.

    Raises:
      ValueError: the folder is missing, or there is another option.
    """
    options = evaluate_parser().parse_args(words)
    if options.workdir is None:
        raise ValueError("no run given: pass its folder, e.g. --workdir=runs/digits")
    return Arguments(options.workdir)


def run(
    parser: parsing.Parser,
    parse: Callable[[Sequence[str]], Arguments],
    work: Callable[[Arguments, World], None],
    words: Sequence[str] | None,
) -> None:
    """Runs a command on every rank.

    Args:
      parser: options of the command, for --help.
      parse: turns the command line into arguments; raises ValueError.
      work: the command itself.
      words: the command line without the name of the program; None for that of this process.
    """
    given = start.command_line(words)
    if not parser.has_helped(given):
        world_module.run(lambda world: _run_on_rank(parse, work, given, world))


def _run_on_rank(
    parse: Callable[[Sequence[str]], Arguments],
    work: Callable[[Arguments, World], None],
    words: Sequence[str],
    world: World,
) -> None:
    arguments = Arguments(pathlib.Path())
    with world.agree_or_exit():
        arguments = parse(words)
        if arguments.config is not None:
            check_world(arguments.config, world.size)
    first = world.bcast(arguments)
    with world.agree_or_exit():
        if arguments != first:
            difference = None
            if first.config is not None and arguments.config is not None:
                difference = first.config.difference(arguments.config)
            raise ValueError(
                "all ranks need the same command line and config: "
                + (f"{difference} (reference: rank 0)" if difference else f"{first} on rank 0, {arguments} here")
            )
    if world.is_root:
        for text in arguments.warnings:
            print(f"jaxdp: warning: {text}", file=sys.stderr)
    deterministic = arguments.config is not None and arguments.config.deterministic
    process.prepare_process(threads=world.threads, gpus=world.gpus, deterministic=deterministic)
    work(arguments, world)


def _with_flags(name: str, words: Sequence[str], warn: Callable[[str], None]) -> Config:
    """The config of this name with the settings of the command line, which ml_collections reads."""
    config = read_config(name, warn=warn)
    known = list(flattened(config.to_dict()))
    words = [_checked(_with_current_name(word, warn), known, name) for word in words]
    argv, values = ["train", *words], flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"invalid command line: {error} (see --help)") from None
    if len(rest) > 1:
        raise ValueError(f"invalid command line: unrecognized arguments: {' '.join(rest[1:])} (see --help)")
    return Config.from_dict(values.config.to_dict(), warn=warn)


def _checked(word: str, known: Sequence[str], name: str) -> str:
    """A word of the command line that may be a setting. Raises ValueError if it is an option that does not exist."""
    found = re.match(r"--(?:no)?config\.([\w.]+)", word)
    # A negative number is the value of the option before it.
    if found is None and re.match(r"-(?![\d.])", word):
        raise ValueError(f"invalid command line: unrecognized arguments: {word} (see --help)")
    if found is not None and found[1] not in known:
        near = difflib.get_close_matches(found[1], known, 1, cutoff=0.75)
        if near:
            hint = f"did you mean config.{near[0]}?"
        elif found[1].startswith("model."):
            hint = "flags change those options of the model that the config sets"
        else:
            hint = "jaxdp/config/schema.py lists all settings"
        raise ValueError(f"config.{found[1]} is not a setting of {name}: {hint}")
    return word


def _with_current_name(word: str, warn: Callable[[str], None]) -> str:
    """A word of the command line, with the current name of a setting that it gives under its old name."""
    for old, current in renamed_settings(Config).items():
        if found := re.fullmatch(f"--(no)?config[.]{re.escape(old)}(=.*)?", word):
            warn(f"config.{old} is now called config.{current}: use the new name")
            return f"--{found[1] or ''}config.{current}{found[2] or ''}"
    return word


def _window(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"give the first and the last step to record, such as 100:110, not {text!r}")
    return int(found[1]), int(found[2])
