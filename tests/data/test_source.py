import dataclasses
import pathlib

import numpy as np
import pytest

from jaxdp.data.catalog import open_source
from jaxdp.data.decode import Decoder, fitted, image_of
from jaxdp.data.nodes import Group
from jaxdp.data.storage import BLOCK_BYTES
from jaxdp.data.tfds_source import prepare_digits
from tests.data.sets import CONFIG, World, held, make_data_set


def test_digits_contain_every_example_once(digits):
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
    prepare_digits(digits, World())
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(digits.dir).glob("**/*")} == before


@pytest.mark.parametrize("num_ranks", [1, 3, 40])
def test_tfds_set_loads_by_name_in_shares(tmp_path, num_ranks):
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


def test_missing_set_error_names_the_remedy(tmp_path):
    config = dataclasses.replace(CONFIG, name="mnist", dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no data set 'mnist' in .*: prepare it with launch/prepare mnist"):
        open_source(config)


def test_set_is_found_in_a_version_unknown_to_tfds(tmp_path):
    config = make_data_set(tmp_path, "mnist")
    assert open_source(config).name == "mnist/2.0.0"
    assert open_source(dataclasses.replace(config, name="mnist:2.*.*")).name == "mnist/2.0.0"
    with pytest.raises(ValueError, match=r"there is no data set 'mnist:3\.0\.1'"):
        open_source(dataclasses.replace(config, name="mnist:3.0.1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_format": "riegeli"}, "in array_record format, but 'odd' in .* is in riegeli: prepare it with"),
        (
            {"file_format": "tfrecord"},
            "'odd' in .* is in tfrecord: convert it with launch/prepare odd --dir=OTHER",
        ),
        ({"splits": ("train", "validation")}, r"test_split is 'test', but 'odd' has the splits train, validation"),
        ({"label": False}, r"needs data sets with the features 'image' and 'label' .*, but 'odd' has image: choose"),
        ({"shape": (None, None, 3)}, r"of 'odd' differ in size, \(None, None, 3\): set config.data.stored_size"),
        ({"shape": (5, 6, 4)}, "give one value, or one per channel"),
    ],
)
def test_unusable_set_is_refused_with_the_reason(tmp_path, options, message):
    if options.get("file_format"):
        config = make_data_set(tmp_path, "odd")
        info = tmp_path / "odd" / "2.0.0" / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", options["file_format"]))
    else:
        config = dataclasses.replace(make_data_set(tmp_path, "odd", **options), mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        open_source(config)


def test_damaged_record_is_reported(tmp_path):
    config = make_data_set(tmp_path, "broken")
    (shard,) = (tmp_path / "broken" / "2.0.0").glob("*train*.array_record*")
    content = bytearray(shard.read_bytes())
    half = len(content) // 2
    content[half - 200 : half + 200] = bytes(400)
    shard.write_bytes(content)
    source = open_source(config)
    with pytest.raises(
        ValueError, match=r"cannot read examples 0 to 22 of the split 'train' of broken/2\.0\.0 .* prepare the data"
    ):
        held(source, "train", World())


def test_missing_shard_is_reported(tmp_path):
    source = open_source(make_data_set(tmp_path, "holey"))
    (shard,) = (tmp_path / "holey" / "2.0.0").glob("*train*.array_record*")
    shard.unlink()
    with pytest.raises(ValueError, match=r"cannot read .* of holey/2\.0\.0 in .*prepare the data set again"):
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
def test_encoded_storage_gives_the_same_pixels(tmp_path, stored_size):
    source = open_source(dataclasses.replace(make_data_set(tmp_path, "kept"), stored_size=stored_size))
    for split, size in source.sizes.items():
        as_pixels = held(source, split, World())
        as_files = held(source, split, World(), decoder=Decoder(source.image_shape))
        rows, out = np.arange(size), np.empty_like(as_pixels.images.images_NHWC)
        as_files.images.fill(rows, rows, rows, out, rows)
        np.testing.assert_array_equal(out, as_pixels.images.images_NHWC)
        np.testing.assert_array_equal(as_files.labels_N, as_pixels.labels_N)
        assert as_files.lengths.sum() * BLOCK_BYTES <= as_files.nbytes


def test_file_without_an_image_header_is_reported(tmp_path):
    source = open_source(make_data_set(tmp_path, "headless"))
    files = [{"image": b"no image", "label": 0}] * 23

    class Files:
        def __getitems__(self, examples):
            return [files[example] for example in examples]

    source = dataclasses.replace(source, files=lambda _: Files())
    with pytest.raises(ValueError, match=r"cannot read examples 0 to 22 of .* headless/2\.0\.0 "):
        held(source, "train", World(), decoder=Decoder(source.image_shape))


def test_groups_hold_whole_nodes_and_excess_groups_are_refused():
    groups = [Group.of(World(rank, 5), 2) for rank in range(5)]
    assert [group.ranks.tolist() for group in groups] == [[0, 1]] * 2 + [[2, 3, 4]] * 3
    assert [group.rank for group in groups] == [0, 1, 0, 1, 2]
    with pytest.raises(ValueError, match=r"config\.data\.groups is 6 and the job has 5 nodes: set it to 5 or less"):
        Group.of(World(0, 5), 6)


def test_fitting_keeps_the_centre_of_an_image():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (fitted(image_of(wide), (10, 10, 3)) == 255).all()
    grey = fitted(image_of(wide[..., :1]), (5, 5, 1))
    assert grey.shape == (5, 5, 1)
    assert grey[:, 1:-1].min() > 250


def test_view_larger_than_the_images_is_refused(digits):
    with pytest.raises(ValueError, match=r"config\.data\.image_size is 9, but images are stored as"):
        open_source(dataclasses.replace(digits, image_size=9))


def test_changed_data_set_has_another_fingerprint(tmp_path):
    before = open_source(make_data_set(tmp_path / "one", "same")).fingerprint
    assert open_source(make_data_set(tmp_path / "two", "same")).fingerprint == before
    info = tmp_path / "two" / "same" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"23"', '"22"'))
    changed = open_source(dataclasses.replace(CONFIG, name="same", dir=str(tmp_path / "two"))).fingerprint
    assert changed != before
    assert changed.startswith("same/2.0.0 ")


def test_test_split_can_be_chosen(tmp_path):
    config = make_data_set(tmp_path, "named", splits=("train", "validation"))
    source = open_source(dataclasses.replace(config, test_split="validation"))
    assert source.sizes == {"train": 23, "test": 7}
    assert sorted(held(source, "test", World()).images.images_NHWC[:, 0, 0, 0].tolist()) == list(range(7))


def test_synthetic_data_is_the_same_for_any_number_of_ranks():
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
def test_invalid_synthetic_name_is_refused(name):
    with pytest.raises(ValueError, match="not a valid synthetic data set: write synthetic:TRAIN:TEST:SIZE:CLASSES"):
        open_source(dataclasses.replace(CONFIG, name=name))


def test_user_data_set_is_read_and_fingerprinted(tmp_path, monkeypatch):
    (tmp_path / "ownset.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(CONFIG, name="ownset:make")
    source = open_source(config)
    assert (source.sizes, source.image_shape, source.num_classes) == ({"train": 9, "test": 4}, (2, 3, 1), 3)
    assert source.fingerprint.startswith("own/7 ")
    parts = [held(source, "train", World(rank, 2)) for rank in range(2)]
    assert [image.max() for part in parts for image in part.images.images_NHWC] == list(range(9))
    for name, message in [
        ("ownset:none", "which returned NoneType instead of a Source: it must return"),
        ("ownset:nothing", "'ownset:nothing', but module 'ownset' has no attribute 'nothing'"),
        ("ownset:floats", r"uint8 images of shape \[H, W, C\], but those of 'own' are float64 of shape \(2, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(dataclasses.replace(config, name=name))
    with pytest.raises(ValueError, match="'encoded' needs image files, but 'ownset:make' has none"):
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
