import contextlib
import dataclasses
import io
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.digits import get_config
from jaxdp.config import Config
from jaxdp.data import memory
from jaxdp.data import source as source_module
from jaxdp.data.catalog import open_source
from jaxdp.data.source import check_memory
from jaxdp.data.tfds_source import _write_digits

CONFIG = Config.from_dict(get_config().to_dict()).data


class World:
    """A rank of a world whose ranks have a node each, as far as reading needs one."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size, self.threads = rank, size, 2
        self.leaders, self.local_size, self.host = tuple(range(size)), 1, "here"

    def shared_array(self, shape, dtype):
        return np.empty(shape, dtype)

    def together(self):
        return contextlib.nullcontext()


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def make_data_set(folder, name, *, shape=(5, 6, 3), splits=("train", "test"), label=True):
    """A small TFDS set, prepared elsewhere: example i has pixels i, and its code is not there when it is read."""
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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    config = dataclasses.replace(CONFIG, dir=str(tmp_path_factory.mktemp("digits")))
    _write_digits(config)
    return config


def test_digits_are_all_there_once(digits):
    from sklearn.datasets import load_digits

    source = open_source(digits)
    splits = [source.read(split, World()) for split in ("train", "test")]
    assert [len(split.labels_N) for split in splits] == [1437, 360]
    read = np.concatenate([split.images_NHWC for split in splits])[..., 0]
    originals = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(image.tobytes() for image in read) == sorted(image.tobytes() for image in originals)
    assert (
        np.bincount(np.concatenate([split.labels_N for split in splits])).tolist()
        == np.bincount(load_digits().target).tolist()
    )


def test_digits_are_written_once(digits):
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(digits.dir).glob("**/*")}
    _write_digits(digits)
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(digits.dir).glob("**/*")} == before


@pytest.mark.parametrize("num_ranks", [1, 3, 40])
def test_another_set_loads_by_its_name_in_shares(tmp_path, num_ranks):
    source = open_source(make_data_set(tmp_path, "stripes"))
    assert (source.name, source.image_shape, source.num_classes) == ("stripes/2.0.0", (5, 6, 3), 4)
    shares = [source.read("train", World(rank, num_ranks)) for rank in range(num_ranks)]
    assert {share.num_examples for share in shares} == {23}
    assert max(len(share.labels_N) for share in shares) == -(-23 // num_ranks)
    images = np.concatenate([share.images_NHWC for share in shares])
    labels = np.concatenate([share.labels_N for share in shares])
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(23))
    assert (images == images[:, :1, :1, :1]).all()
    assert (images[:, 0, 0, 0] % 4 == labels).all()


def test_a_missing_set_is_named_with_the_remedy(tmp_path):
    config = dataclasses.replace(CONFIG, name="mnist", dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no data set 'mnist' in .*: prepare it with tfds\.builder\('mnist'"):
        open_source(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_format": "riegeli"}, "in array_record format, 'odd' in .* is in riegeli"),
        ({"splits": ("train", "validation")}, r"test_split is 'test', 'odd' has the splits train, validation"),
        ({"label": False}, "'odd' has image"),
        ({"shape": (None, None, 3)}, r"of 'odd' have many sizes, \(None, None, 3\): set config.data.stored_size"),
        ({"shape": (5, 6, 4)}, "give one value, or one a channel"),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_named(tmp_path, options, message):
    if options.get("file_format"):
        config = make_data_set(tmp_path, "odd")
        info = tmp_path / "odd" / "2.0.0" / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "riegeli"))
    else:
        config = dataclasses.replace(make_data_set(tmp_path, "odd", **options), mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        open_source(config)


def test_a_damaged_record_is_named(tmp_path):
    config = make_data_set(tmp_path, "broken")
    (shard,) = (tmp_path / "broken" / "2.0.0").glob("*train*.array_record*")
    content = bytearray(shard.read_bytes())
    half = len(content) // 2
    content[half - 200 : half + 200] = bytes(400)
    shard.write_bytes(content)
    source = open_source(config)
    with pytest.raises(
        ValueError, match=r"examples 0 to 22 of the split 'train' of broken/2\.0\.0 .* prepare the data"
    ):
        source.read("train", World())


def test_a_missing_shard_is_named(tmp_path):
    source = open_source(make_data_set(tmp_path, "holey"))
    (shard,) = (tmp_path / "holey" / "2.0.0").glob("*train*.array_record*")
    shard.unlink()
    with pytest.raises(ValueError, match=r"of holey/2\.0\.0 in .* cannot be read: .*prepare the data set anew"):
        source.read("train", World())


@pytest.mark.parametrize("stored_size", [4, 8])
def test_images_are_fitted_to_the_stored_size(tmp_path, stored_size):
    config = dataclasses.replace(make_data_set(tmp_path, "many", shape=(None, 6, 3)), stored_size=stored_size)
    source = open_source(config)
    assert source.image_shape == (stored_size, stored_size, 3)
    images = source.read("train", World()).images_NHWC
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(23))
    assert (images == images[:, :1, :1, :1]).all()


def test_the_middle_of_an_image_is_kept_whole():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (source_module._fitted(wide, (10, 10, 3)) == 255).all()
    grey = source_module._fitted(wide[..., :1], (5, 5, 1))
    assert grey.shape == (5, 5, 1)
    assert grey[:, 1:-1].min() > 250


def test_a_view_larger_than_the_images_is_refused(digits):
    with pytest.raises(ValueError, match=r"config\.data\.image_size is 9, but images are held as"):
        open_source(dataclasses.replace(digits, image_size=9))


def test_too_little_memory_is_found_out_before_anything_is_read(digits, monkeypatch):
    source = open_source(digits)
    free = 1000
    monkeypatch.setattr(memory, "free_bytes", lambda *, shared: (free + 0 * shared, "in RAM"))
    with pytest.raises(ValueError, match=r"0\.00 GiB of memory on here, 1 of 3 nodes .* 0\.00 GiB left in RAM: start"):
        check_memory(source, World(0, 3))
    free = (1437 + 360) * source.example_bytes // 3
    check_memory(source, World(0, 3))


def test_free_memory_is_what_the_tightest_limit_leaves(monkeypatch, tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 900 kB\nMemAvailable: 500 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", info)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_SHARED", tmp_path)
    assert memory.free_bytes(shared=False) == (500 * 1024, "in RAM")
    (tmp_path / "memory.current").write_text("1000\n")
    for most, expected in [("max", (500 * 1024, "in RAM")), ("3000", (2000, "in its control group"))]:
        (tmp_path / "memory.max").write_text(most + "\n")
        assert memory.free_bytes(shared=False) == expected
    assert memory.free_bytes(shared=True)[0] <= 2000


def test_a_data_set_that_has_changed_has_another_fingerprint(tmp_path):
    before = open_source(make_data_set(tmp_path / "one", "same")).fingerprint
    assert open_source(make_data_set(tmp_path / "two", "same")).fingerprint == before
    info = tmp_path / "two" / "same" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"23"', '"22"'))
    changed = open_source(dataclasses.replace(CONFIG, name="same", dir=str(tmp_path / "two"))).fingerprint
    assert changed != before
    assert changed.startswith("same/2.0.0 ")


def test_the_splits_to_use_can_be_named(tmp_path):
    config = make_data_set(tmp_path, "named", splits=("train", "validation"))
    source = open_source(dataclasses.replace(config, test_split="validation"))
    assert source.sizes == {"train": 23, "test": 7}
    assert sorted(source.read("test", World()).images_NHWC[:, 0, 0, 0].tolist()) == list(range(7))


def test_made_up_data_is_the_same_for_any_number_of_ranks():
    source = open_source(dataclasses.replace(CONFIG, name="synthetic:20:6:5:4"))
    assert (source.sizes, source.image_shape, source.num_classes) == ({"train": 20, "test": 6}, (5, 5, 3), 4)
    whole = source.read("train", World())
    parts = [source.read("train", World(rank, 3)) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.images_NHWC for part in parts]), whole.images_NHWC)
    assert np.concatenate([part.labels_N for part in parts]).tolist() == [example % 4 for example in range(20)]
    assert len(np.unique(whole.images_NHWC.reshape(20, -1), axis=0)) == 20
    assert 100 < whole.images_NHWC.mean() < 155
    assert (source.read("test", World()).images_NHWC[0] != whole.images_NHWC[0]).any()


@pytest.mark.parametrize("name", ["synthetic:", "synthetic:1:2:3", "synthetic:1:0:8:8", "synthetic:a:b:c:d"])
def test_made_up_data_that_is_not_said_in_full_is_refused(name):
    with pytest.raises(ValueError, match="made-up data is written synthetic:TRAIN:TEST:SIZE:CLASSES"):
        open_source(dataclasses.replace(CONFIG, name=name))
