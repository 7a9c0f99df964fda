"""The command `jaxdp evaluate`: evaluates the latest checkpoint of a run on the whole test split."""

from __future__ import annotations

from collections.abc import Sequence

from jaxdp.cli import train_flags
from jaxdp.runtime.world import World


def evaluate(arguments: train_flags.Arguments, world: World) -> None:
    from jaxdp.trainer import loop, workdir

    with world.agree_or_exit():
        config = workdir.read_config(arguments.workdir) if world.is_root else None
    loop.evaluate_run(world.bcast(config), arguments.workdir, world)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on every rank; `words` is the command line without the name of the program."""
    train_flags.run(train_flags.evaluate_parser(), train_flags.parse_evaluate, evaluate, words)


if __name__ == "__main__":
    main()
