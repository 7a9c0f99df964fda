"""Evaluates the latest checkpoint of a run on the whole test split.

  mpirun -n 4 python -m jaxdp.evaluate --workdir=runs/digits

--workdir=FOLDER  folder of the run
"""

from jaxdp.cli import train_flags
from jaxdp.runtime.world import World


def evaluate(arguments: train_flags.Arguments, world: World) -> None:
    from jaxdp.trainer import loop, workdir

    with world.agree_or_exit():
        config = workdir.read_config(arguments.workdir) if world.is_root else None
    loop.evaluate_run(world.bcast(config), arguments.workdir, world)


if __name__ == "__main__":
    train_flags.main(__doc__, train_flags.parse_evaluate, evaluate)
