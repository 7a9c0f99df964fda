"""Classifies images with a trained network.

  python -m jaxdp.predict --workdir=runs/digits photo.png folder/

--workdir=FOLDER  folder of the run, or of one of its checkpoints
--top=N           number of classes to print per image, most likely first (default: 5)
--json=FILE       also write the predictions to a file, one line of JSON per image

A folder stands for all files in it. Under mpirun the images are divided among the ranks.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdp.cli import parsing
from jaxdp.runtime import jax_compat, process, world
from jaxdp.runtime.world import World

_BATCH = 32


def predict(words: Sequence[str], of_world: World) -> None:
    """Runs the command; called on every rank."""
    parser = parsing.Parser("jaxdp.predict", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run or a checkpoint")
    parser.add_argument(
        "--top", type=parsing.number, default=5, help="number of classes per image; default %(default)s"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the predictions, one line of JSON per image")
    parser.add_argument("images", type=pathlib.Path, nargs="+", help="image files, or folders of image files")
    arguments = parsing.on_all_ranks(parser, words, lambda given: parsing.check_writable(given.json), of_world)
    if arguments is None:
        return
    process.prepare_process(threads=of_world.threads, gpus=of_world.gpus)
    jax_compat.use_compilation_cache(rank=of_world.rank, size=of_world.size)
    with of_world.agree_or_exit():
        files = list(_files(arguments.images))
        found = list(_predictions(arguments.workdir, files[of_world.rank :: of_world.size], arguments.top))
    of_ranks = of_world.allgather(found)
    if not of_world.is_root:
        return
    lines = [of_ranks[number % of_world.size][number // of_world.size] for number in range(len(files))]
    for line in lines:
        print(line["image"], *(f" {name} {share:.4f}" for name, share in line["classes"]), flush=True)
    if arguments.json:
        parsing.write_text(arguments.json, "\n".join(map(json.dumps, lines)))


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


def main() -> None:
    import sys

    world.run(lambda of_world: predict(sys.argv[1:], of_world))


if __name__ == "__main__":
    main()
