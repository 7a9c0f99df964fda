"""The config in a workdir, as this and earlier versions of jaxdp have written it."""

import json

import pytest

from jaxdp.config.schema import Config
from jaxdp.configs.digits import get_config
from jaxdp.trainer.workdir import check_workdir, claim_workdir, read_config

CONFIG = Config.from_dict(get_config().to_dict())


def as_first_written():
    """The document of a run of the first version: the settings alone, under the names of then."""
    settings = CONFIG.to_dict()
    settings["optimizer"]["vectors_too"] = settings["optimizer"].pop("decay_biases_and_norms")
    return settings


def write(workdir, document):
    (workdir / "config.json").write_text(json.dumps(document))


def test_config_comes_back_as_it_was_written(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    assert read_config(tmp_path) == CONFIG
    assert json.loads((tmp_path / "config.json").read_text())["version"] == 2


def test_run_of_the_first_version_is_read_under_old_names(tmp_path, capsys):
    write(tmp_path, as_first_written())
    assert read_config(tmp_path) == CONFIG
    check_workdir(CONFIG, tmp_path)
    warning = "config.optimizer.vectors_too is now called config.optimizer.decay_biases_and_norms"
    assert capsys.readouterr().err.count(warning) == 2


def test_run_saved_before_a_setting_existed_gets_its_default(tmp_path):
    settings = as_first_written()
    del settings["label_smoothing"], settings["data"]["augment"], settings["safety"]
    write(tmp_path, settings)
    assert read_config(tmp_path) == CONFIG


def test_run_with_another_value_of_a_setting_is_refused(tmp_path):
    write(tmp_path, as_first_written() | {"label_smoothing": 0.1})
    with pytest.raises(ValueError, match=r"another config: config\.label_smoothing is 0\.1 there and 0\.0 here"):
        check_workdir(CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"version": 3, "config": {}}, "was written by a newer jaxdp: its version is 3, and this jaxdp reads up to 2"),
        ({"version": 2, "config": {"seed": 1}}, r"invalid config in .*: config\.batch_size is missing"),
        ([], r"cannot read .*config\.json: it holds list in place of an object"),
        ({"version": 2}, r"invalid config in .*: config must be a group of settings, not None"),
        ({"version": "x"}, r"was written by a newer jaxdp: its version is x"),
    ],
)
def test_unusable_config_is_refused(tmp_path, document, message):
    write(tmp_path, document)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)
