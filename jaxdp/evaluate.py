"""Evaluates the latest checkpoint of a run on the whole test split.

  mpirun -n 4 python -m jaxdp.evaluate --workdir=runs/digits

--workdir=FOLDER  of the run
"""

import dataclasses

from jaxdp import cli
from jaxdp.world import World


def evaluate(arguments: cli.Arguments, world: World) -> None:
    from jaxdp import loop, workdir

    with world.together():
        config = workdir.read_config(arguments.workdir) if world.is_root else None
    config = world.bcast(config)
    # No gradient crosses, so that any number of ranks will do, whatever trees the run had.
    config = dataclasses.replace(config, allreduce=dataclasses.replace(config.allreduce, colors=None, arity=None))
    loop.evaluate_run(config, arguments.workdir, world)


if __name__ == "__main__":
    cli.main(__doc__, cli.parse_evaluate, evaluate)
