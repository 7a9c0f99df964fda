"""The command `jaxdp train`: trains a network on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxdp.cli import train_flags
from jaxdp.explain import explain
from jaxdp.runtime.world import World


def train(arguments: train_flags.Arguments, world: World) -> None:
    if arguments.explain:
        explain(arguments, world)
        return
    from jaxdp.runtime.preemption import Preemption

    # Catch signals before the imports below, which take seconds.
    preemption = Preemption(world)
    from jaxdp.runtime.watchdog import watching
    from jaxdp.trainer import loop, workdir

    assert arguments.config is not None, "the command line of train has a config"
    with world.agree_or_exit():
        if world.is_root:
            workdir.check_workdir(arguments.config, arguments.workdir)
    with watching(world, arguments.config.safety.watchdog_seconds):
        loop.train(
            arguments.config,
            arguments.workdir,
            world,
            preemption=preemption,
            stop_at_step=arguments.stop_at_step,
            profile_steps=arguments.profile_steps,
        )


def main(words: Sequence[str] | None = None, *, work: Callable[[train_flags.Arguments, World], None] = train) -> None:
    """Runs the command on every rank.

    Args:
      words: the command line without the name of the program; None takes that of this process.
      work: what is done with the checked command line.
    """
    train_flags.run(train_flags.train_parser(), train_flags.parse_train, work, words)


if __name__ == "__main__":
    main()
