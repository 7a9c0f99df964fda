"""Measures and draws what jaxdp is made of.

  mpirun -n 4 python -m jaxdp.bench allreduce --sizes=1M,25M --algorithms=all
  mpirun -n 2 python -m jaxdp.bench step --engine=native
  python -m jaxdp.bench schedule --algorithm=multicolor --ranks=8 --colors=4 --plot=trees.svg
  python -m jaxdp.bench scaling --bandwidth=0.48 --plot=scaling.png

Each command has a --help of its own.
"""

import sys

from jaxdp import world


def main() -> None:
    from jaxdp.bench import allreduce, scaling, schedule, step

    command, words = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if command == "allreduce":
        world.run(lambda of_world: allreduce.main(words, of_world))
    elif command == "step":
        world.run(lambda of_world: step.main(words, of_world))
    elif command == "schedule":
        schedule.main(words)
    elif command == "scaling":
        scaling.main(words)
    elif command == "--help":
        print(__doc__)
    else:
        known = "allreduce, step, schedule, scaling"
        print(f"jaxdp: error: there is no benchmark {command!r}: known are {known}", file=sys.stderr)
        sys.exit(world.USER_ERROR)


if __name__ == "__main__":
    main()
