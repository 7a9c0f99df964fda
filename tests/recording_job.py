"""Training job that records the examples it is given: `recording_job.py FOLDER [arguments of jaxdp.train]`."""

import json
import pathlib
import sys

import numpy as np

from jaxdp import train

FOLDER = pathlib.Path(sys.argv.pop(1))


def noting(step, file):
    """Wraps a training step so that it first writes a line with the examples in its batch and their epochs."""

    def instead(state, batch):
        ids, epochs, is_real = map(np.asarray, (batch.id_B, batch.epoch_B, batch.mask_B))
        file.write(json.dumps([ids[is_real].tolist(), epochs[is_real].tolist()]) + "\n")
        return step(state, batch)

    return instead


def work(arguments, world):
    from jaxdp.placement import local

    FOLDER.mkdir(parents=True, exist_ok=True)
    file = (FOLDER / f"{world.rank}.jsonl").open("w", buffering=1)
    make_step = local.LocalPlacement.train_step
    local.LocalPlacement.train_step = lambda *args, **kwargs: noting(make_step(*args, **kwargs), file)
    train.train(arguments, world)


train.main(work=work)
