import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdp.data.catalog import open_source
from jaxdp.data.folders import listed
from jaxdp.data.preparation import SHARD_BYTES, Shard, prepare, write_shard
from tests.data.sets import CONFIG, World, held


def write(path, shade, *, size=(12, 9), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path):
    """Folders of images whose shade identifies class and example: PNG and JPEG, RGB and grey, of several sizes."""
    source = tmp_path / "photos"
    for index in range(10):
        write(source / "train/cat" / f"{index}.png", index, size=(12 + index, 9))
        write(source / "train/dog/deep" / f"{index}.JPG", 100 + index, mode="L" if index % 2 else "RGB")
    write(source / "val/cat/a.jpeg", 50)
    write(source / "val/dog/b.png", 150)
    (source / "train/cat/notes.txt").write_text("no image, by its name")
    write(source / "test/without_a_class.png", 1)
    return source


def read(folder, name, split):
    config = dataclasses.replace(CONFIG, name=name, dir=str(folder), test_split="validation", stored_size=4)
    source = open_source(config)
    share = held(source, split, World())
    return source, sorted(zip(share.images.images_NHWC[:, 2, 2, 0].tolist(), share.labels_N.tolist(), strict=True))


@pytest.mark.parametrize(("processes", "shard_bytes"), [(1, 2000), (2, SHARD_BYTES)])
def test_folders_become_a_data_set(photos, tmp_path, processes, shard_bytes):
    said = prepare(photos, "pets", tmp_path / "sets", processes=processes, shard_bytes=shard_bytes)
    source, train = read(tmp_path / "sets", "pets", "train")
    assert said.endswith("MiB")
    assert "train 20, validation 2 images of 2 classes" in said
    assert source.num_classes == 2
    assert train == [(index, 0) for index in range(10)] + [(100 + index, 1) for index in range(10)]
    assert read(tmp_path / "sets", "pets", "test")[1] == [(50, 0), (150, 1)]
    names = {path.name for path in (tmp_path / "sets/pets/1.0.0").iterdir()}
    shards = {name for name in names if "array_record" in name}
    assert names - shards == {"dataset_info.json", "features.json", "label.labels.txt"}
    assert len(shards) > 2 if processes == 1 else len(shards) == 2
    with pytest.raises(ValueError, match=r"a data set already exists in .*: delete it"):
        prepare(photos, "pets", tmp_path / "sets")


def test_unreadable_images_are_skipped_counted_and_listed(photos, tmp_path):
    whole = (photos / "train/cat/3.png").read_bytes()
    (photos / "train/cat/3.png").write_bytes(whole[: len(whole) // 2])
    (photos / "train/dog/empty.jpg").touch()
    said = prepare(photos, "pets", tmp_path / "sets")
    assert "train 19, validation 2 images" in said
    assert "skipped 2 files that are not readable images" in said
    noted = (tmp_path / "sets/pets/1.0.0/unreadable.txt").read_text()
    for name in ("3.png", "empty.jpg"):
        assert name in said
        assert name in noted
    assert (3, 0) not in read(tmp_path / "sets", "pets", "train")[1]


def test_larger_images_are_resized(photos, tmp_path):
    prepare(photos, "small", tmp_path / "sets", size=6)
    source, _ = read(tmp_path / "sets", "small", "train")
    shapes = {record["image"].shape for record in source.records("test").__getitems__(range(2))}
    assert shapes == {(6, 8, 3)}


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_interrupted_preparation_resumes(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.folder_dataset, "write_metadata", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(photos, "pets", tmp_path / "sets", shard_bytes=2000)
    monkeypatch.undo()
    begun = tmp_path / "sets/pets/1.0.0.begun"
    first, *others = sorted(path for path in begun.iterdir() if path.name[-5:].isdigit())
    assert others
    kept = {path: path.stat().st_mtime_ns for path in others}
    first.rename(first.with_name(f"{first.name}.half"))

    # A partly prepared data set is not found.
    with pytest.raises(ValueError, match="there is no data set 'pets'"):
        read(tmp_path / "sets", "pets", "train")
    write(photos / "val/dog/new.png", 1)
    with pytest.raises(ValueError, match="was started with other files or another --size: delete it"):
        prepare(photos, "pets", tmp_path / "sets", shard_bytes=2000)
    (photos / "val/dog/new.png").unlink()
    prepare(photos, "pets", tmp_path / "sets", shard_bytes=2000)
    folder = tmp_path / "sets/pets/1.0.0"
    assert {path: (folder / path.name).stat().st_mtime_ns for path in kept} == kept
    assert len(read(tmp_path / "sets", "pets", "train")[1]) == 20


def test_interrupted_shard_leaves_no_file(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", interrupted)
    classes, splits = listed(photos)
    shard = Shard("train", 0, 1, tuple(splits["train"]), tmp_path, None)
    with pytest.raises(KeyboardInterrupt):
        write_shard(shard, "pets", classes)
    assert not shard.path("pets").exists()
    monkeypatch.undo()
    assert write_shard(shard, "pets", classes).examples == 20
    assert json.loads(shard.path("pets").with_name(f"{shard.path('pets').name}.json").read_text())["examples"] == 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda source: (source / "train").rename(source / "trains"),
            "must contain exactly one folder named train with a subfolder per class, but has none",
        ),
        (
            lambda source: write(source / "test/cat/a.png", 1),
            "exactly one folder named test or validation or val with a subfolder per class, but has test and val",
        ),
        (lambda source: write(source / "val/bird/a.png", 1), "bird is a class that .*train does not have"),
        (lambda source: [path.unlink() for path in source.glob("val/*/*")], "no images found in .*val/CLASS"),
        (
            lambda source: [path.write_text("") for path in source.glob("val/*/*")],
            "no image of the split 'validation' can be read",
        ),
    ],
)
def test_invalid_folder_layout_is_refused(photos, tmp_path, spoil, message):
    spoil(photos)
    with pytest.raises(ValueError, match=message):
        prepare(photos, "pets", tmp_path / "sets")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source=nowhere", "--name=pets"], "jaxdp: error: there is no folder nowhere"),
        (["--source=.", "--name=My-Pets"], "jaxdp: error: --name=My-Pets is not a valid name of a data set: use lower"),
        (["--name=pets"], "jaxdp: error: invalid command line: "),
    ],
)
def test_usage_error_prints_one_message(words, message):
    ended = subprocess.run(
        [sys.executable, "-m", "jaxdp.data.prepare", *words], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert ended.stderr.startswith(message)
