"""Benchmarks of the parts of jaxdp.

  mpirun -n 4 python -m jaxdp.bench allreduce --sizes=1M,25M --algorithms=all
  mpirun -n 2 python -m jaxdp.bench step --engine=native
  mpirun -n 2 python -m jaxdp.bench staging
  mpirun -n 2 python -m jaxdp.bench input --sizes=32,224
  python -m jaxdp.bench weak --hosts=1,2,4 --frameworks=native,xla
  python -m jaxdp.bench schedule --algorithm=multicolor --ranks=8 --colors=4 --plot=trees.svg
  python -m jaxdp.bench scaling --bandwidth=0.48 --plot=scaling.png

Add --help to a command to see its options.
"""

import sys

from jaxdp.runtime import world


def main() -> None:
    # Do not shadow the builtin `input`.
    from jaxdp.bench import allreduce, scaling, schedule, staging, step, weak
    from jaxdp.bench import input as input_pipeline

    on_ranks = {"allreduce": allreduce.main, "step": step.main, "staging": staging.main, "input": input_pipeline.main}
    alone = {"schedule": schedule.main, "scaling": scaling.main, "weak": weak.main}
    command, words = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if command in on_ranks:
        world.run(lambda of_world: on_ranks[command](words, of_world))
    elif command in alone:
        alone[command](words)
    elif command == "--help":
        print(__doc__)
    else:
        known = ", ".join([*on_ranks, *alone])
        print(f"jaxdp: error: unknown benchmark {command!r}: choose from {known}", file=sys.stderr)
        sys.exit(world.USER_ERROR)


if __name__ == "__main__":
    main()
