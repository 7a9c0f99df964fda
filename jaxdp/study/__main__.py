"""Studies that answer questions about training with many runs.

  mpirun -n 2 python -m jaxdp.study large_batch --table=large_batch.md --plot=large_batch.png

Add --help to the name of a study to see its options.
"""

import sys

from jaxdp.runtime import world
from jaxdp.study import large_batch

STUDIES = {"large_batch": large_batch.main}


def main() -> None:
    study, words = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if study in STUDIES:
        world.run(lambda of_world: STUDIES[study](words, of_world))
    elif study == "--help":
        print(__doc__)
    else:
        print(f"jaxdp: error: unknown study {study!r}: choose from {', '.join(STUDIES)}", file=sys.stderr)
        sys.exit(world.USER_ERROR)


if __name__ == "__main__":
    main()
