import pathlib

import pytest

from jaxdp.cli import train_flags

CONFIG = "--config=configs/digits.py"


def test_default_config_is_digits():
    arguments = train_flags.parse_train([])
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
    arguments = train_flags.parse_train(words)
    assert (arguments.config.epochs, arguments.workdir, arguments.stop_at_step) == (3.0, pathlib.Path("x"), 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=nosuch.py"], r"there is no config nosuch\.py"),
        (["--config.lr=3"], r"^config\.lr is not a setting of digits: jaxdp/config/schema\.py lists all settings$"),
        (["--config.data.mean[3]=0.2"], r"invalid command line: tuple index out of range \(see --help\)"),
        (["--config.seed", "-1"], r"^config\.seed must be 0 or more, not -1$"),
        (
            ["--config.model.qqqq=3"],
            r"model\.qqqq is not a setting .*: flags change those options of the model that the",
        ),
        (
            ["--config.model.with=3"],
            r"config\.model\.with is not a setting of digits: did you mean config\.model\.width\?",
        ),
        (
            ["--config.optimizer.momentumm=3", CONFIG],
            r"momentumm is not a setting of configs/digits\.py: did you mean config\.optimizer\.momentum\?",
        ),
        (["--config.batch_size=x"], "invalid literal for int"),
        (["--stop_at_step=0"], r"argument --stop_at_step: numbers must be 1 or more, not '0'"),
        (["--stop_at_stop=3"], r"unrecognized arguments: --stop_at_stop=3 \(see --help\)"),
        (["--profile_steps=100"], r"give the first and the last step to record, such as 100:110, not '100'"),
        (["digits"], r"unrecognized arguments: digits \(see --help\)"),
    ],
)
def test_invalid_command_line_is_rejected(words, message):
    with pytest.raises(ValueError, match=message):
        train_flags.parse_train(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"the config .*config\.py cannot be run: SyntaxError"),
        ("import nosuch", "cannot be run: ModuleNotFoundError: No module named 'nosuch'"),
        ("x = 1", r"cannot be run: AttributeError: .* has no attribute 'get_config'"),
        ("def get_config():\n    return 3", r"must return an ml_collections\.ConfigDict"),
        ("def get_config():\n    return {}.x", "cannot be run: AttributeError: 'dict' object has no attribute 'x'"),
        (
            "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})",
            r"config\.batch_size is missing: set it in the config",
        ),
    ],
)
def test_invalid_config_file_is_rejected(tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        train_flags.parse_train([f"--config={path}"])


def test_configs_of_jaxdp_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    # A folder `configs` of the user's own must not hide jaxdp's.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = train_flags.parse_train(["--config=resnet50_imagenet_lars", "--config.optimizer.momentum=0.8"])
    assert (arguments.config.model.name, arguments.config.optimizer.momentum) == ("resnet50", 0.8)
    assert arguments.workdir == pathlib.Path("runs/resnet50_imagenet_lars")


def test_config_file_may_take_an_argument(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxdp.configs.digits import get_config as digits\n"
        "def get_config(epochs):\n    config = digits()\n    config.epochs = float(epochs)\n    return config\n"
    )
    assert train_flags.parse_train([f"--config={path}:7"]).config.epochs == 7.0


def test_every_setting_can_be_set_by_a_flag_although_the_file_leaves_it_out(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config():\n    return ml_collections.ConfigDict({\n"
        "        'batch_size': 8, 'epochs': 1.0, 'model': {'name': 'cnn'}, 'schedule': {'base_rate': 0.1},\n"
        "        'data': {'name': 'digits', 'mean': (0.5,), 'std': (0.5,)},\n    })\n"
    )
    words = [f"--config={path}", "--config.optimizer.clip_norm=2.5", "--config.data.partitions=3"]
    config = train_flags.parse_train(words).config
    assert (config.optimizer.clip_norm, config.data.partitions, config.allreduce.engine) == (2.5, 3, "native")


@pytest.mark.parametrize("words", [["--config.optimizer.vectors_too=True"], ["--config.optimizer.vectors_too"]])
def test_old_name_of_a_setting_still_works_with_a_warning(words):
    arguments = train_flags.parse_train(words)
    assert arguments.config.optimizer.decay_biases_and_norms is True
    assert arguments.warnings == (
        "config.optimizer.vectors_too is now called config.optimizer.decay_biases_and_norms: use the new name",
    )


def test_old_name_of_a_setting_in_a_config_file_still_works(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxdp.configs.digits import get_config as digits\n"
        "def get_config():\n    config = digits()\n    config.optimizer.vectors_too = True\n    return config\n"
    )
    arguments = train_flags.parse_train([f"--config={path}"])
    assert arguments.config.optimizer.decay_biases_and_norms is True
    assert len(arguments.warnings) == 1
    for flag in ("--config.optimizer.decay_biases_and_norms=False", "--config.optimizer.vectors_too=False"):
        assert train_flags.parse_train([f"--config={path}", flag]).config.optimizer.decay_biases_and_norms is False


def test_locked_config_may_leave_settings_out(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxdp.configs.digits import get_config as digits\n"
        "def get_config():\n    config = digits()\n    del config['safety']\n    return config.lock()\n"
    )
    config = train_flags.parse_train([f"--config={path}", "--config.safety.watchdog_seconds=7"]).config
    assert config.safety.watchdog_seconds == 7


def test_evaluate_requires_a_workdir():
    assert train_flags.parse_evaluate(["--workdir=x"]).workdir == pathlib.Path("x")
    with pytest.raises(ValueError, match=r"no run given: pass its folder, e\.g\. --workdir=runs/digits"):
        train_flags.parse_evaluate([])
