import dataclasses
import pathlib

import pytest

from jaxdp.cli import train_flags
from jaxdp.config.recipe_warnings import recipe_warnings
from jaxdp.planning.explain import explain

CONFIGS = sorted(pathlib.Path(__file__).parents[2].glob("configs/*.py"))


def config_of(name):
    (path,) = (path for path in CONFIGS if path.stem == name)
    return train_flags.parse_train([f"--config={path}"]).config


def changed(config, **changes):
    """Returns the config with some settings changed, e.g. `optimizer__name="lars"`."""
    for name, value in changes.items():
        *groups, last = name.split("__")
        inner = dataclasses.replace(getattr(config, groups[0]) if groups else config, **{last: value})
        config = dataclasses.replace(config, **{groups[0]: inner}) if groups else inner
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_explained_without_data_and_names_its_source(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = train_flags.parse_train([f"--config={path}"]).config
    text = explain(config)
    for section in ("run", "rate", "parameters", "a step", "allreduce", "data", "warnings"):
        assert f"\n{section}\n" in f"\n{text}"
    assert text.endswith("warnings\n  none")
    about = path.read_text()
    for word in ("Source: ", "Hardware", f"--config=configs/{path.name}"):
        assert word in about


def test_resnet50_figures_match_the_paper():
    text = explain(config_of("resnet50_imagenet"))
    for line in [
        "batch 8,192: 32 per rank, 32 per device",
        "14,076 steps: 90 epochs of 1,281,167 images",
        "without communication: 48.12 min",
        "peak 3.2 = 0.1 x 8192 / 256; step",
        "step       782  epoch    5.00  3.2         end of the warmup",
        "step     4,692  epoch   30.00  0.32        boundary",
        "25,557,032 parameters, 53,120 batch statistics",
        "102.4 MB per step in 4 buckets",
        "251.9 GB in total",
        "7.872 GB of RAM per node, one copy for its 8 ranks",
        # 256 of the 8,192 images per node, 31 of 32 of them from other nodes, in 205 ms.
        "48.76 MB received and sent by each node per step: 1.902 Gbit/s",
    ]:
        assert line in text
    # He et al. 2015, table 1: 3.8e9 multiply-adds. With the strides of ResNet-50 v1.5 there are 4.1e9.
    assert "7.948 GFLOP per image forward, 23.81 forward and backward" in text
    kernel = next(line for line in text.splitlines() if line.strip().startswith("stem.kernel"))
    assert kernel.split() == ["stem.kernel", "7x7x3x64", "9,408", "yes"]
    scale = next(line for line in text.splitlines() if "stem_norm.scale" in line)
    assert scale.split() == ["stem_norm.scale", "64", "64", "no"]


def test_encoded_storage_and_groups_change_memory_and_traffic():
    config = changed(config_of("resnet50_imagenet"), data__storage="encoded", data__groups=4)
    text = explain(config)
    assert "1,281,167 images as encoded, 256x256x3, 115,439 bytes per image: 147.9 GB in total" in text
    assert "18.49 GB of RAM per node" in text
    assert "25.86 MB received and sent by each node per step" in text


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"schedule__warmup_epochs": 0.0}, "no warmup at 32 times the base batch"),
        ({"batch_size": 128}, "the rate falls during the warmup, from 0.1 to 0.05, the peak at this batch size"),
        ({"batch_size": 16_384}, "batch 16,384 with SGD"),
        ({"batch_size": 65_536}, "LARS itself lost accuracy beyond 32,768"),
        ({"optimizer__decay_biases_and_norms": True}, "weight decay applies to biases and normalisation parameters"),
        (
            {"optimizer__decay_biases_and_norms": True, "optimizer__name": "lars", "optimizer__nesterov": False},
            "LARS also scales and decays biases and normalisation parameters",
        ),
        ({"microbatches": 4}, "batch statistics are computed over only 8 images"),
        ({"schedule__decay": "constant"}, "the learning rate never falls"),
        ({"model": {"zero_gamma": False}}, "the scale of the last normalisation in each block starts at 1"),
    ],
)
def test_recipe_known_to_lose_accuracy_causes_a_warning(changes, warning):
    config = config_of("resnet50_imagenet")
    if "model" in changes:
        model = dataclasses.replace(config.model, options=config.model.options | changes["model"])
        config = dataclasses.replace(config, model=model)
    else:
        config = changed(config, **changes)
    assert list(recipe_warnings(config_of("resnet50_imagenet"), batch_a_device=32)) == []
    assert [warning in text for text in recipe_warnings(config, batch_a_device=32)].count(True) == 1


def test_unknown_data_set_or_split_is_named_in_the_error(tmp_path):
    config = changed(config_of("digits"), data__name="birds", data__dir=str(tmp_path))
    with pytest.raises(ValueError, match="there is no data set 'birds'"):
        explain(config)
    config = changed(config_of("resnet50_imagenet"), data__train_split="training", data__dir=str(tmp_path))
    with pytest.raises(ValueError, match="'training', but 'imagenet2012' has the splits train, validation"):
        explain(config)


def test_explain_prints_once_and_writes_nothing(jobs):
    ended = jobs.run(2, "-m", "jaxdp.train", "--explain", f"--workdir={jobs.folder / 'explained'}")
    assert ended.code == 0, ended.err
    assert ended.out.count("warnings\n") == 1
    assert not (jobs.folder / "explained").exists()
