"""Evaluates the latest checkpoint of a run on the whole test split.

  mpirun -n 4 python -m jaxdp.evaluate --workdir=runs/digits

--workdir=FOLDER  folder of the run
"""

from jaxdp import cli
from jaxdp.world import World


def evaluate(arguments: cli.Arguments, world: World) -> None:
    from jaxdp import loop, workdir

    with world.together():
        config = workdir.read_config(arguments.workdir) if world.is_root else None
    loop.evaluate_run(world.bcast(config), arguments.workdir, world)


if __name__ == "__main__":
    cli.main(__doc__, cli.parse_evaluate, evaluate)
