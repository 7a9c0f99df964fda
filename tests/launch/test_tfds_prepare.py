"""TensorFlow Datasets that launch/prepare prepares in an environment with TensorFlow."""

import dataclasses
import io
import pathlib
import subprocess
import tarfile

import pytest
import tensorflow_datasets as tfds
from jobs import TAKES_LONG
from PIL import Image

from jaxdp.data.catalog import open_source
from tests.data.sets import CONFIG, World, held

ROOT = pathlib.Path(__file__).parent.parent.parent
AS_TFRECORDS = """
import sys, tensorflow_datasets as tfds
shards = tfds.download.DownloadConfig(num_shards=3)
tfds.builder("imagenet2012", data_dir=sys.argv[1]).download_and_prepare(download_config=shards)
"""
CLASSES = tfds.builder_cls("imagenet2012").pkg_dir_path / "labels.txt"


def prepare(*words):
    return subprocess.run([ROOT / "launch" / "prepare", *words], capture_output=True, text=True, check=False)


def add(archive, name, content):
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def jpeg(shade):
    content = io.BytesIO()
    Image.new("RGB", (40 + shade, 32), (shade,) * 3).save(content, "JPEG")
    return content.getvalue()


def write_archives(folder):
    """Writes the archives that TFDS expects for ImageNet: 3 images of each of 20 classes, and 40 validation images."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for label, name in enumerate(CLASSES.read_text().split()[:20]):
            of_class = io.BytesIO()
            with tarfile.open(fileobj=of_class, mode="w") as inner:
                for index in range(3):
                    add(inner, f"{name}_{index}.JPEG", jpeg(10 * label + index))
            add(train, f"{name}.tar", of_class.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as validation:
        for index in range(40):
            add(validation, f"ILSVRC2012_val_{index + 1:08}.JPEG", jpeg(index))


def shades(folder, split):
    """Returns the gray values and labels of the images that jaxdp reads, sorted."""
    config = dataclasses.replace(
        CONFIG, name="imagenet2012", dir=str(folder), test_split="validation", stored_size=32, mean=(0.5,), std=(0.2,)
    )
    share = held(open_source(config), split, World())
    return sorted(zip(share.images.images_NHWC[:, 16, 16, 0].tolist(), share.labels_N.tolist(), strict=True))


@TAKES_LONG
def test_imagenet_is_prepared_from_archives_and_from_tfrecords(tmp_path):
    write_archives(tmp_path / "own" / "downloads" / "manual")
    ended = prepare("imagenet2012", f"--dir={tmp_path / 'own'}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].endswith("imagenet2012/5.1.0: train 60, validation 40 examples")
    train = shades(tmp_path / "own", "train")
    assert train == [(10 * label + index, label) for label in range(20) for index in range(3)]

    write_archives(tmp_path / "other" / "downloads" / "manual")
    subprocess.run([ROOT / ".venv-tfds" / "bin" / "python", "-c", AS_TFRECORDS, tmp_path / "other"], check=True)
    with pytest.raises(
        ValueError, match=r"is in tfrecord: convert it with launch/prepare imagenet2012 --dir=OTHER --from="
    ):
        shades(tmp_path / "other", "train")
    words = ("imagenet2012", f"--dir={tmp_path / 'converted'}", f"--from={tmp_path / 'other'}")
    ended = prepare(*words)
    assert ended.returncode == 0, ended.stderr
    for split in ("train", "test"):
        assert shades(tmp_path / "converted", split) == shades(tmp_path / "own", split)

    (folder,) = (tmp_path / "converted" / "imagenet2012").iterdir()
    first, *others = sorted(folder.glob("*array_record*"))
    assert len(others) == 5
    first.rename(first.with_name(f"{first.name}.half"))
    begun = folder.rename(folder.with_name(f"{folder.name}.incomplete"))
    written = {path: path.stat().st_mtime_ns for path in begun.glob("*-of-*3")}
    assert prepare(*words).returncode == 0
    assert {path: (folder / path.name).stat().st_mtime_ns for path in written} == written
    assert shades(tmp_path / "converted", "train") == train
    assert "a data set already exists in" in prepare(*words).stderr
    assert "--from needs tfrecord format, but" in prepare("imagenet2012", f"--from={tmp_path / 'own'}").stderr


@TAKES_LONG
def test_data_set_that_cannot_be_prepared_is_named(tmp_path):
    for words, message in [
        (("imagenet2012", f"--dir={tmp_path}"), "Manual directory"),
        (("imagenet2012", f"--from={tmp_path}"), "there is no such data set in"),
        (("of_nobody", f"--dir={tmp_path}"), "DatasetNotFoundError"),
    ]:
        ended = prepare(*words)
        assert ended.returncode == 1
        said = ended.stderr[ended.stderr.index("launch/prepare: error: ") :]
        assert said.startswith(f"launch/prepare: error: {words[0]!r} cannot be prepared: ")
        assert message in said
        assert "Traceback" not in ended.stderr
