"""A training job in which one rank fails: `failing_job.py WHERE RANK [arguments of jaxdp.train]`."""

import pathlib
import sys
import time

from jaxdp import cli, train

WHERE, RANK = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
WORKDIR = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))


def failing(function, *, after):
    """The function, until it has been called so often."""
    calls = iter(range(after))

    def instead(*args, **kwargs):
        if next(calls, None) is not None:
            return function(*args, **kwargs)
        (WORKDIR / "failed-at").write_text(str(time.time()))
        if WHERE == "exit":
            sys.exit(0)
        if WHERE == "decode":
            raise OSError("broken data stream")
        raise RuntimeError("a failure for the test")

    return instead


def work(arguments, world):
    from jaxdp import checkpoint
    from jaxdp.data import decode, feed
    from jaxdp.engines import distributed, local

    if world.rank == RANK:
        if WHERE == "feed":
            feed.padded = failing(feed.padded, after=20)
        elif WHERE == "decode":
            decode.Decoder.__call__ = failing(decode.Decoder.__call__, after=2000)
        elif WHERE == "save":
            checkpoint.Checkpoints.save = failing(checkpoint.Checkpoints.save, after=1)
        else:
            xla = arguments.config.allreduce.engine == "xla"
            engine = distributed.DistributedEngine if xla else local.LocalEngine
            make_step = engine.train_step
            engine.train_step = lambda *args, **kwargs: failing(make_step(*args, **kwargs), after=10)
    train.train(arguments, world)


cli.main(None, cli.parse_train, work)
