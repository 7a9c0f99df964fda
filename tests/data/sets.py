"""Small data sets for tests, and a stand-in for the rank that reads them."""

import contextlib
import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdp.config.schema import Config
from jaxdp.configs.digits import get_config
from jaxdp.data.load import check_memory, read
from jaxdp.data.nodes import Group
from jaxdp.runtime.activity import Activity

CONFIG = Config.from_dict(get_config().to_dict()).data


class World:
    """Stand-in for `jaxdp.runtime.world.World` with the parts that reading needs; every rank has its own node."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size, self.threads = rank, size, 2
        self.leaders, self.local_size, self.host = tuple(range(size)), 1, "here"
        self.activity = Activity()
        self.is_root, self.local_rank = rank == 0, 0

    def shared_array(self, shape, dtype):
        return np.empty(shape, dtype)

    def agree_or_exit(self):
        return contextlib.nullcontext()

    def allgather(self, value):
        assert self.size == 1
        return [value]

    def barrier(self):
        pass


def held(source, split, world, **options):
    return read(source, split, world, Group.of(world, 1), **options)


def check(source, world, **options):
    check_memory(source, world, {split: Group.of(world, 1) for split in source.sizes}, **options)


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def make_data_set(folder, name, *, shape=(5, 6, 3), splits=("train", "test"), label=True):
    """Prepares a small TFDS set as if on another machine: its code is unavailable when it is read.

    All pixels of example i have the value i.
    """
    features = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if label:
        features["label"] = tfds.features.ClassLabel(num_classes=4)

    def examples(self, count):
        del self
        for index in range(count):
            pixels = np.full([size or 5 for size in shape], index, np.uint8)
            yield index, {"image": png(pixels)} | ({"label": index % 4} if label else {})

    with tfds.core.registered.skip_registration():
        builder = type(
            name.capitalize(),
            (tfds.core.GeneratorBasedBuilder,),
            {
                "VERSION": tfds.core.Version("2.0.0"),
                "name": name,
                "pkg_dir_path": folder,
                "_info": lambda self: tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                ),
                "_split_generators": lambda self, _: {
                    split: self._generate_examples(size) for split, size in zip(splits, (23, 7), strict=False)
                },
                "_generate_examples": examples,
            },
        )
    builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return dataclasses.replace(CONFIG, name=name, dir=str(folder))
