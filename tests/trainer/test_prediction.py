"""Uses of a finished run: predictions, and new runs that start from its weights."""

import json
import shutil

import numpy as np
import pytest
from jobs import SHORT
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def trained(jobs):
    """A run of 8 epochs on digits that also averages its parameters."""
    arguments = ("--config.epochs=8.0", "--config.average_decay=0.9")
    jobs.train(2, "trained", *arguments)
    return jobs.folder / "trained"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 digits as PNG files in two folders. File names end with the label."""
    folder, digits = tmp_path_factory.mktemp("photos"), load_digits()
    for index in range(40):
        path = folder / ("a" if index < 20 else "b") / f"{index:02}-{digits.target[index]}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.round(digits.images[index] * (255 / 16)).astype(np.uint8)).save(path)
    return folder


def test_predictions_do_not_depend_on_the_number_of_ranks(jobs, trained, photos, tmp_path):
    found = {}
    for ranks in (0, 3):
        path = tmp_path / f"{ranks}.json"
        images = (str(photos / "a"), *map(str, sorted((photos / "b").iterdir())))
        ended = jobs.run(ranks, "-m", "jaxdp.predict", f"--workdir={trained}", "--top=10", f"--json={path}", *images)
        assert ended.code == 0, ended.err
        found[ranks] = [json.loads(line) for line in path.read_text().splitlines()]
        assert ended.out.count(".png ") == 40
    assert [line["image"] for line in found[3]] == [str(path) for path in sorted(photos.rglob("*.png"))]
    right = 0
    for line, alone in zip(found[3], found[0], strict=True):
        names, shares = zip(*line["classes"], strict=True)
        assert sorted(names) == sorted("0123456789")
        assert list(shares) == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert line["image"] == alone["image"]
        assert shares == pytest.approx([share for _, share in alone["classes"]], abs=1e-5)
        right += names[0] == line["image"][-5]
    assert right >= 37


def test_prediction_error_is_one_message(jobs, trained, photos, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for workdir, image, message in [
        (trained, tmp_path / "notes.txt", "notes.txt is not an image that can be decoded"),
        (trained / "checkpoints" / "1", photos, "there is no checkpoint in"),
    ]:
        ended = jobs.run(2, "-m", "jaxdp.predict", f"--workdir={workdir}", str(image))
        assert ended.code == 2
        assert ended.err.count("jaxdp: error: ") == 1
        assert message in ended.err
        assert "Traceback" not in ended.err


def test_run_starts_from_the_weights_of_another_run(jobs, trained):
    """The new run can be resumed after the other one has been deleted."""
    given = shutil.copytree(trained, jobs.folder / "given")
    begin = (*SHORT, f"--config.init_from={given}", "--config.log_every_steps=1", "--config.schedule.base_rate=1e-6")
    begin = (*begin, "--config.schedule.warmup_init_rate=1e-6")
    jobs.train(2, "begun", *begin, "--stop_at_step=3")
    evaluated = [line for line in jobs.metrics("trained") if "test_accuracy" in line][-1]
    shutil.rmtree(given)
    jobs.train(2, "begun", *begin)
    lines = jobs.metrics("begun")
    assert lines[0]["loss"] < 0.5
    assert lines[-1]["test_accuracy"] == pytest.approx(evaluated["test_accuracy"], abs=1 / 360)
    # A skipped head starts from random values. Seed 1, because the features fit even the untrained head of seed 0.
    saved = [
        "--config.seed=1",
        f"--config.init_from={trained / 'checkpoints' / str(evaluated['step'])}",
        "--config.init_skip=('head',)",
    ]
    jobs.train(0, "begun-but-the-head", *SHORT, *saved, "--config.log_every_steps=1", "--stop_at_step=1")
    assert jobs.metrics("begun-but-the-head")[0]["loss"] > 1.5
