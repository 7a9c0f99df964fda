"""Trains a network on all ranks.

  mpirun -n 4 python -m jaxdp.train --config=configs/digits.py --workdir=runs/digits

--config=FILE           the run (default: configs/digits.py)
--config.SETTING=VALUE  another value of one of its settings, as --config.optimizer.momentum=0.8
--workdir=FOLDER        checkpoints and metrics; a run that is there goes on (default: runs/NAME OF THE CONFIG)
--stop_at_step=N        save and end once N steps are done; started again, the run goes on
--profile_steps=A:B     record steps A to B with JAX's profiler, on rank 0, in the workdir's folder profile
--explain               say what the config would do on its cluster, with neither its data nor the cluster
"""

from jaxdp import cli
from jaxdp.world import World


def train(arguments: cli.Arguments, world: World) -> None:
    from jaxdp.preemption import Preemption

    # Before what takes seconds to import.
    preemption = Preemption(world)
    from jaxdp import loop, workdir
    from jaxdp.watchdog import watching

    assert arguments.config is not None
    if arguments.explain:
        from jaxdp.explain import explain

        with world.together():
            if world.is_root:
                print(explain(arguments.config), flush=True)
        return
    with world.together():
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


if __name__ == "__main__":
    cli.main(__doc__, cli.parse_train, train)
