"""Training job in which one rank fails or misbehaves: `failing_job.py WHERE RANK [arguments of jaxdp.train]`."""

import dataclasses
import itertools
import pathlib
import sys
import time

from jaxdp import train

WHERE, RANK = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
WORKDIR = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))


def failing(function, *, after):
    """Wraps a function so that it fails once it has been called `after` times."""
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


def flipping(step, *, after):
    """Wraps a training step so that, after `after` steps, each step flips one bit of one parameter."""
    from jax import lax
    from jax import numpy as jnp

    calls = iter(range(after))

    def instead(state, batch):
        state, metrics = step(state, batch)
        if next(calls, None) is None:
            kernel = state.params["conv2"]["kernel"]
            bits = lax.bitcast_convert_type(kernel, jnp.uint32).at[0, 0, 0, 0].apply(lambda word: word ^ 1)
            state.params["conv2"]["kernel"] = lax.bitcast_convert_type(bits, jnp.float32)
        return state, metrics

    return instead


def delayed(function, seconds, after):
    """Wraps a function so that one call, after `after` calls, first sleeps for `seconds`."""
    calls = itertools.count()

    def instead(*args, **kwargs):
        if next(calls) == after:
            time.sleep(seconds)
        return function(*args, **kwargs)

    return instead


def late(step, seconds):
    """Wraps a training step so that every step starts `seconds` late."""

    def instead(state, batch):
        time.sleep(seconds)
        return step(state, batch)

    return instead


def narrowed(made, params, stats):
    """Returns the network with one parameter cast to float16."""
    params["conv2"]["kernel"] = params["conv2"]["kernel"].astype("float16")
    return made, params, stats


def incomplete(make_schedule):
    """Wraps an algorithm so that its schedules lack the last move."""
    from jaxdp.collectives.schedule import Schedule

    def instead(*args, **options):
        right = make_schedule(*args, **options)
        *rounds, last = [right.round(index) for index in range(right.num_rounds)]
        return Schedule.from_rounds(right.num_ranks, right.num_chunks, [*rounds, last[:-1]])

    return instead


def work(arguments, world):
    from jaxdp.collectives import algorithms
    from jaxdp.data import decode, feed
    from jaxdp.models import network
    from jaxdp.placement import distributed, local
    from jaxdp.trainer import checkpoint, preflight

    if WHERE == "schedule":
        # On all ranks, as an algorithm with a mistake would be.
        for name, algorithm in algorithms.ALGORITHMS.items():
            algorithms.ALGORITHMS[name] = dataclasses.replace(algorithm, schedule=incomplete(algorithm.schedule))
    if world.rank == RANK:
        if WHERE == "feed":
            feed.padded = failing(feed.padded, after=20)
        elif WHERE == "decode":
            decode.Decoder.__call__ = failing(decode.Decoder.__call__, after=2000)
        elif WHERE == "save":
            checkpoint.Checkpoints.save = failing(checkpoint.Checkpoints.save, after=1)
        elif WHERE in ("hang", "slow"):
            make_step, wait = local.LocalPlacement.train_step, {"hang": (1000, 10), "slow": (8, 0)}[WHERE]
            local.LocalPlacement.train_step = lambda *args, **kwargs: delayed(make_step(*args, **kwargs), *wait)
        elif WHERE == "late":
            make_step = local.LocalPlacement.train_step
            local.LocalPlacement.train_step = lambda *args, **kwargs: late(make_step(*args, **kwargs), 0.25)
        elif WHERE == "code":
            preflight.code_hash = lambda _: "0123456789ab"
        elif WHERE == "cpu":
            preflight.cpu = lambda: "Another One"
        elif WHERE == "array":
            create = network.Network.create
            network.Network.create = lambda *args, **kwargs: narrowed(*create(*args, **kwargs))
        elif WHERE == "bit":
            make_step = local.LocalPlacement.train_step
            local.LocalPlacement.train_step = lambda *args, **kwargs: flipping(make_step(*args, **kwargs), after=10)
        else:
            xla = arguments.config.allreduce.engine == "xla"
            engine = distributed.DistributedPlacement if xla else local.LocalPlacement
            make_step = engine.train_step
            engine.train_step = lambda *args, **kwargs: failing(make_step(*args, **kwargs), after=10)
    train.train(arguments, world)


train.main(work=work)
