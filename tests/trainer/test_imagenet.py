"""Trains the ImageNet configs on a small data set in the same format: 1,000 classes, JPEG files of any size."""

import colorsys
import math
import tempfile

import numpy as np
import pytest
from jobs import TAKES_LONG, Jobs
from PIL import Image

from jaxdp.data.preparation import prepare

SIZES = ((500, 375), (375, 500), (300, 300), (640, 480), (200, 150))
# The classes that have images, out of 1,000. The color of an image tells its class.
CLASSES = range(0, 1000, 125)
BATCH = 16
# The batch size divides neither number of images. The steps cover more than two epochs.
IMAGES = {"train": 3 * BATCH + 5, "val": 19}
STEPS = 8


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Returns the folder with the prepared data set imagenet2012."""
    folder, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in IMAGES.items():
        for label in range(1000):
            (folder / split / f"n{label:08}").mkdir(parents=True)
        for index in range(count):
            width, height = SIZES[index % len(SIZES)]
            color = 255 * np.array(colorsys.hsv_to_rgb(index % len(CLASSES) / len(CLASSES), 0.8, 0.8))
            pixels = random.normal(color, 25, (height // 8, width // 8, 3)).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).resize((width, height))
            image.save(folder / split / f"n{CLASSES[index % len(CLASSES)]:08}" / f"{index}.JPEG")
    prepare(folder, "imagenet2012", folder / "sets")
    return folder / "sets"


def train(jobs: Jobs, sets, ranks, name, *arguments):
    """Runs a training job. Returns the metrics of its steps and those of its evaluations."""
    workdir = tempfile.mkdtemp(dir=jobs.folder)
    given = (f"--config=configs/{name}.py", f"--config.data.dir={sets}", f"--config.batch_size={BATCH}")
    jobs.train(ranks, workdir, *given, "--config.log_every_steps=1", *arguments, timeout=400)
    metrics = jobs.metrics(workdir)
    return [line for line in metrics if "loss" in line], [line for line in metrics if "test_loss" in line]


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        (2, "nin_imagenet"),
        pytest.param(2, "googlenet_imagenet", marks=TAKES_LONG),
        pytest.param(3, "resnet50_imagenet", marks=TAKES_LONG),
        pytest.param(2, "resnet50_imagenet_lars", marks=TAKES_LONG),
    ],
)
def test_config_trains_for_several_steps(jobs, sets, ranks, name):
    steps, evaluations = train(jobs, sets, ranks, name, f"--stop_at_step={STEPS}")
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["loss"]) and line["skipped"] == 0 for line in steps)
    # An untrained network rates all classes equally. GoogLeNet has two auxiliary heads with a weight of 0.3 each.
    heads = 1.6 if name == "googlenet_imagenet" else 1.0
    assert steps[0]["loss"] == pytest.approx(heads * math.log(1000), rel=0.05)
    first, second = (line["test_loss"] for line in evaluations)
    assert math.isfinite(first)
    assert math.isfinite(second)
    assert first != second


@TAKES_LONG
@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_resnet50_learns(jobs, sets, storage):
    """Covers crops of the stored pixels and the published recipes' crops of the files (see docs/data.md)."""
    shorter = ("--config.epochs=6.0", "--config.schedule.warmup_epochs=2.0", "--config.schedule.warmup_init_rate=0.0")
    rates = ("--config.schedule.boundaries_epochs=(5.0,)", f"--config.data.storage={storage}")
    _, evaluations = train(jobs, sets, 2, "resnet50_imagenet", *shorter, *rates)
    assert evaluations[-1]["test_accuracy"] == 1.0
