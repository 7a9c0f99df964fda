"""Trains a network on all ranks.

  mpirun -n 4 python -m jaxdp.train --config=configs/digits.py --workdir=runs/digits

--config=FILE           config of the run (default: configs/digits.py)
--config.SETTING=VALUE  override a setting of the config, e.g. --config.optimizer.momentum=0.8
--workdir=FOLDER        output folder; an interrupted run resumes from it (default: runs/CONFIG_NAME)
--stop_at_step=N        save and exit after step N; the next start resumes the run
--profile_steps=A:B     record steps A to B on rank 0 with JAX's profiler, into the folder `profile` of the workdir
--explain               describe what the config would do on its cluster; needs neither its data nor the cluster
"""

from jaxdp.cli import train_flags
from jaxdp.runtime.world import World


def train(arguments: train_flags.Arguments, world: World) -> None:
    from jaxdp.runtime.preemption import Preemption

    # Catch signals before the imports below, which take seconds.
    preemption = Preemption(world)
    from jaxdp.runtime.watchdog import watching
    from jaxdp.trainer import loop, workdir

    assert arguments.config is not None
    if arguments.explain:
        from jaxdp.planning.explain import explain

        with world.agree_or_exit():
            if world.is_root:
                print(explain(arguments.config), flush=True)
        return
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


if __name__ == "__main__":
    train_flags.main(__doc__, train_flags.parse_train, train)
