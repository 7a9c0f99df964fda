"""Classifies images with the network of a finished or unfinished run."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdp.runtime import jax_compat, process
from jaxdp.runtime.world import World

_BATCH = 32


def predict(
    workdir: pathlib.Path, images: Sequence[pathlib.Path], world: World, *, num_classes: int
) -> list[dict[str, Any]]:
    """Classifies images on all ranks, which divide them among each other and call it together.

    Args:
      workdir: folder of a run, or of one of its checkpoints.
      images: image files and folders of image files.
      world: all ranks.
      num_classes: number of classes to return per image, the most likely ones first.

    Returns:
      For each image file its path, `image`, and `classes`, pairs of a class name and its probability.

    Raises:
      AgreedExit: there is no run or no such image, or a file is not an image.
    """
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    jax_compat.use_compilation_cache(rank=world.rank, size=world.size)
    with world.agree_or_exit():
        files = list(_files(images))
        found = list(_predictions(workdir, files[world.rank :: world.size], num_classes))
    of_ranks = world.allgather(found)
    return [of_ranks[number % world.size][number // world.size] for number in range(len(files))]


def _files(paths: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no image {path}: give image files, or folders of image files")
        yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _predictions(workdir: pathlib.Path, files: Sequence[pathlib.Path], top: int) -> Iterator[dict[str, Any]]:
    import jax

    from jaxdp.data.decode import Decoder
    from jaxdp.data.order import BatchSplit
    from jaxdp.step.evaluate import evaluated_logits
    from jaxdp.step.task import Task
    from jaxdp.trainer.saved_run import SavedRun

    saved = SavedRun.read(workdir)
    task = Task.of_config(saved.config, saved.network, BatchSplit(1, 1, 1))
    decoder = Decoder(saved.labels.image_shape)
    names = saved.labels.class_names or tuple(map(str, range(saved.labels.num_classes)))
    weights = jax.device_put((saved.state.evaluated, saved.state.stats))

    @jax.jit
    def shares_of(weights: Any, image_BHWC: Any) -> Any:
        params, stats = weights
        return jax.nn.softmax(evaluated_logits(task, params, stats, image_BHWC).astype("float32"))

    for start in range(0, len(files), _BATCH):
        some = files[start : start + _BATCH]
        image_BHWC = np.zeros((_BATCH, *decoder.shape), np.uint8)
        for row, file in enumerate(some):
            try:
                image_BHWC[row] = decoder(file.read_bytes(), example=0, epoch=0)
            except OSError as error:
                raise ValueError(f"{file} is not an image that can be decoded: {error}: leave it out") from error
        for file, share_K in zip(some, np.asarray(shares_of(weights, image_BHWC)), strict=False):
            likely = np.argsort(-share_K, kind="stable")[:top].tolist()
            yield {"image": str(file), "classes": [(names[label], float(share_K[label])) for label in likely]}
