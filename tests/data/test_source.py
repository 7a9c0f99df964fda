import dataclasses
import pathlib

import numpy as np
import pytest

from jaxdp.data.catalog import open_source
from jaxdp.data.decode import Decoder, fitted, image_of
from jaxdp.data.nodes import Group
from jaxdp.data.storage import BLOCK_BYTES
from jaxdp.data.tfds_source import _write_digits
from tests.data.sets import CONFIG, World, held, make_data_set


def test_digits_are_all_there_once(digits):
    from sklearn.datasets import load_digits

    source = open_source(digits)
    splits = [held(source, split, World()) for split in ("train", "test")]
    assert [len(split.labels_N) for split in splits] == [1437, 360]
    read = np.concatenate([split.images.images_NHWC for split in splits])[..., 0]
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
    shares = [held(source, "train", World(rank, num_ranks)) for rank in range(num_ranks)]
    assert {share.num_examples for share in shares} == {23}
    assert max(len(share.labels_N) for share in shares) == -(-23 // num_ranks)
    images = np.concatenate([share.images.images_NHWC for share in shares])
    labels = np.concatenate([share.labels_N for share in shares])
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(23))
    assert (images == images[:, :1, :1, :1]).all()
    assert (images[:, 0, 0, 0] % 4 == labels).all()


def test_a_missing_set_is_named_with_the_remedy(tmp_path):
    config = dataclasses.replace(CONFIG, name="mnist", dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no data set 'mnist' in .*: prepare it with launch/prepare mnist"):
        open_source(config)


def test_a_set_is_found_in_another_version_than_the_code_of_tfds_has(tmp_path):
    config = make_data_set(tmp_path, "mnist")
    assert open_source(config).name == "mnist/2.0.0"
    assert open_source(dataclasses.replace(config, name="mnist:2.*.*")).name == "mnist/2.0.0"
    with pytest.raises(ValueError, match=r"there is no data set 'mnist:3\.0\.1'"):
        open_source(dataclasses.replace(config, name="mnist:3.0.1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_format": "riegeli"}, "in array_record format, 'odd' in .* is in riegeli: prepare it with"),
        (
            {"file_format": "tfrecord"},
            "'odd' in .* is in tfrecord: convert it with launch/prepare odd --dir=OTHER",
        ),
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
        info.write_text(info.read_text().replace("array_record", options["file_format"]))
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
        held(source, "train", World())


def test_a_missing_shard_is_named(tmp_path):
    source = open_source(make_data_set(tmp_path, "holey"))
    (shard,) = (tmp_path / "holey" / "2.0.0").glob("*train*.array_record*")
    shard.unlink()
    with pytest.raises(ValueError, match=r"of holey/2\.0\.0 in .* cannot be read: .*prepare the data set anew"):
        held(source, "train", World())


@pytest.mark.parametrize("stored_size", [4, 8])
def test_images_are_fitted_to_the_stored_size(tmp_path, stored_size):
    config = dataclasses.replace(make_data_set(tmp_path, "many", shape=(None, 6, 3)), stored_size=stored_size)
    source = open_source(config)
    assert source.image_shape == (stored_size, stored_size, 3)
    images = held(source, "train", World()).images.images_NHWC
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(23))
    assert (images == images[:, :1, :1, :1]).all()


@pytest.mark.parametrize("stored_size", [None, 4])
def test_files_that_are_held_become_the_pixels_that_would_be(tmp_path, stored_size):
    source = open_source(dataclasses.replace(make_data_set(tmp_path, "kept"), stored_size=stored_size))
    for split, size in source.sizes.items():
        as_pixels = held(source, split, World())
        as_files = held(source, split, World(), decoder=Decoder(source.image_shape))
        rows, out = np.arange(size), np.empty_like(as_pixels.images.images_NHWC)
        as_files.images.fill(rows, rows, rows, out, rows)
        np.testing.assert_array_equal(out, as_pixels.images.images_NHWC)
        np.testing.assert_array_equal(as_files.labels_N, as_pixels.labels_N)
        assert as_files.lengths.sum() * BLOCK_BYTES <= as_files.nbytes


def test_a_file_without_the_head_of_an_image_is_named(tmp_path):
    source = open_source(make_data_set(tmp_path, "headless"))
    files = [{"image": b"no image", "label": 0}] * 23

    class Files:
        def __getitems__(self, examples):
            return [files[example] for example in examples]

    source = dataclasses.replace(source, files=lambda _: Files())
    with pytest.raises(ValueError, match=r"examples 0 to 22 of .* headless/2\.0\.0 .* cannot be read"):
        held(source, "train", World(), decoder=Decoder(source.image_shape))


def test_groups_are_of_whole_nodes_and_no_more_than_there_are():
    groups = [Group.of(World(rank, 5), 2) for rank in range(5)]
    assert [group.ranks.tolist() for group in groups] == [[0, 1]] * 2 + [[2, 3, 4]] * 3
    assert [group.rank for group in groups] == [0, 1, 0, 1, 2]
    with pytest.raises(ValueError, match=r"config\.data\.groups is 6, the job has 5 nodes: set it to 5 or less"):
        Group.of(World(0, 5), 6)


def test_the_middle_of_an_image_is_kept_whole():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (fitted(image_of(wide), (10, 10, 3)) == 255).all()
    grey = fitted(image_of(wide[..., :1]), (5, 5, 1))
    assert grey.shape == (5, 5, 1)
    assert grey[:, 1:-1].min() > 250


def test_a_view_larger_than_the_images_is_refused(digits):
    with pytest.raises(ValueError, match=r"config\.data\.image_size is 9, but images are held as"):
        open_source(dataclasses.replace(digits, image_size=9))


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
    assert sorted(held(source, "test", World()).images.images_NHWC[:, 0, 0, 0].tolist()) == list(range(7))


def test_made_up_data_is_the_same_for_any_number_of_ranks():
    source = open_source(dataclasses.replace(CONFIG, name="synthetic:20:6:5:4"))
    assert (source.sizes, source.image_shape, source.num_classes) == ({"train": 20, "test": 6}, (5, 5, 3), 4)
    whole = held(source, "train", World())
    parts = [held(source, "train", World(rank, 3)) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.images.images_NHWC for part in parts]), whole.images.images_NHWC)
    assert np.concatenate([part.labels_N for part in parts]).tolist() == [example % 4 for example in range(20)]
    assert len(np.unique(whole.images.images_NHWC.reshape(20, -1), axis=0)) == 20
    assert 100 < whole.images.images_NHWC.mean() < 155
    assert (held(source, "test", World()).images.images_NHWC[0] != whole.images.images_NHWC[0]).any()


@pytest.mark.parametrize("name", ["synthetic:", "synthetic:1:2:3", "synthetic:1:0:8:8", "synthetic:a:b:c:d"])
def test_made_up_data_that_is_not_said_in_full_is_refused(name):
    with pytest.raises(ValueError, match="made-up data is written synthetic:TRAIN:TEST:SIZE:CLASSES"):
        open_source(dataclasses.replace(CONFIG, name=name))


def test_a_data_set_of_ones_own_is_read_and_known_again(tmp_path, monkeypatch):
    (tmp_path / "ownset.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(CONFIG, name="ownset:make")
    source = open_source(config)
    assert (source.sizes, source.image_shape, source.num_classes) == ({"train": 9, "test": 4}, (2, 3, 1), 3)
    assert source.fingerprint.startswith("own/7 ")
    parts = [held(source, "train", World(rank, 2)) for rank in range(2)]
    assert [image.max() for part in parts for image in part.images.images_NHWC] == list(range(9))
    for name, message in [
        ("ownset:none", "which gives NoneType in place of a Source: have it return"),
        ("ownset:nothing", "'ownset:nothing', but module 'ownset' has no attribute 'nothing'"),
        ("ownset:floats", r"jaxdp needs uint8 images \[H, W, C\], those of 'own' are float64 \(2, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(dataclasses.replace(config, name=name))
    with pytest.raises(ValueError, match="the images of 'ownset:make' are in no files"):
        open_source(dataclasses.replace(config, storage="encoded"))


OWN = """
import numpy as np
from jaxdp.data.source import of_examples

def make():
    train = [(np.full((2, 3, 1), number, np.uint8), number % 3) for number in range(9)]
    return of_examples("own", train, train[:4], num_classes=3, version="7")

def none(): ...

def floats():
    return of_examples("own", [(np.zeros((2, 3)), 0)], [], num_classes=3, version="7")
"""
