import pathlib
import sys

import pytest

from jaxdp.cli import train_flags

CONFIG = "--config=configs/digits.py"


def test_default_config_is_digits():
    arguments = train_flags.parse_train(["train"])
    assert arguments.config.data.name == "digits"
    assert arguments.workdir == pathlib.Path("runs/digits")
    assert arguments.stop_at_step is None


@pytest.mark.parametrize(
    "words",
    [
        ["--config.epochs=3.0", "--workdir=x", "--stop_at_step=7"],
        ["--workdir", "x", "--config.epochs=3.0", CONFIG, "--stop_at_step", "7"],
        [CONFIG, "--stop_at_step=7", "--workdir=x", "--config.epochs", "3.0"],
        ["--config.epochs=3.0", "--stop_at_step=7", "--config", "configs/digits.py", "--workdir=x"],
    ],
)
def test_flags_may_come_in_any_order(words):
    arguments = train_flags.parse_train(["train", *words])
    assert (arguments.config.epochs, arguments.workdir, arguments.stop_at_step) == (3.0, pathlib.Path("x"), 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=nosuch.py"], r"there is no config nosuch\.py"),
        (["--config.lr=3"], r"config\.lr is not a setting of configs/digits\.py"),
        (["--config.model.with=3"], "config"),
        (["--config.optimizer.momentumm=3"], r'momentumm is not a setting of .*Did you mean "momentum"'),
        (["--config.batch_size=x"], "invalid literal for int"),
        (["--stop_at_step=0"], "stop_at_step"),
        (["--stop_at_stop=3"], "stop_at_stop"),
        (["--profile_steps=100"], "the first and the last step to record, e.g. 100:110, not '100'"),
        (["digits"], "'digits' is not a flag"),
    ],
)
def test_invalid_command_line_is_rejected(words, message):
    with pytest.raises(ValueError, match=message):
        train_flags.parse_train(["train", *words])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"the config .*config\.py cannot be run: SyntaxError"),
        ("import nosuch", "cannot be run: ModuleNotFoundError: No module named 'nosuch'"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return 3", r"must return an ml_collections\.ConfigDict"),
        ("def get_config():\n    return {}.x", "is not a setting of|cannot be run"),
        (
            "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})",
            r"config\.deterministic is missing",
        ),
    ],
)
def test_invalid_config_file_is_rejected(tmp_path, monkeypatch, text, message):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections keeps the last one here
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        train_flags.parse_train(["train", f"--config={path}"])


def test_evaluate_requires_a_workdir():
    assert train_flags.parse_evaluate(["evaluate", "--workdir=x"]).workdir == pathlib.Path("x")
    with pytest.raises(ValueError, match=r"no run given: pass its folder, e\.g\. --workdir=runs/digits"):
        train_flags.parse_evaluate(["evaluate"])
