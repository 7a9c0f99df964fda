"""The commands, configs and code in the README work as written."""

import os
import pathlib
import re
import subprocess

import pytest

from jaxdp.bench.allreduce import make_parser as allreduce_parser
from jaxdp.cli import train_flags

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = "\n".join(blocks("bash")).splitlines()
    return [line.split("#")[0].split() for line in lines if line]


def test_first_readme_command_trains(jobs):
    """Runs the command as written, except for fewer epochs and a temporary workdir."""
    command = next(words for words in commands() if words[0] == "./launch/train")
    shorter = ["--config.epochs=3.0", f"--workdir={jobs.folder / 'readme'}"]
    ended = subprocess.run(
        [*command, *shorter], cwd=ROOT, env=jobs.environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "finished: test accuracy" in ended.stdout


def test_ci_runs_the_readme_test_command():
    assert ["./launch/test"] in commands()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec ./launch/test")


@pytest.mark.parametrize(
    ("name", "parse"),
    [
        ("jaxdp.train", train_flags.parse_train),
        ("jaxdp.evaluate", train_flags.parse_evaluate),
        ("allreduce", allreduce_parser().parse_args),
    ],
)
def test_readme_cluster_commands_can_be_parsed(name, parse):
    found = [words[words.index(name) + 1 :] for words in commands() if name in words]
    assert found
    for words in found:
        parse(words)


def test_readme_config_is_valid(tmp_path, monkeypatch):
    (code,) = (block for block in blocks("python") if "get_config" in block)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(ROOT)
    assert train_flags.parse_train([f"--config={tmp_path / 'mine.py'}"]).config.optimizer.name == "lars"


def test_readme_training_loop_trains(jobs, tmp_path):
    (code,) = (block for block in blocks("python") if "jaxdp.run" in block)
    (tmp_path / "loop.py").write_text(code)
    ended = jobs.run(2, str(tmp_path / "loop.py"))
    assert ended.code == 0, ended.err
    (said,) = re.findall(r"it says `(loss [\d.]+ on 2 ranks)`", README)
    assert ended.out.strip() == said


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_readme_links_exist(target):
    assert (ROOT / target).exists()


def test_scripts_are_executable():
    for path in [*(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK) or path.suffix == ".sh"


def test_readme_drawing_matches_the_multicolor_trees():
    from jaxdp.collectives.algorithms import multicolor

    schedule = multicolor(6, colors=2, arity=2)
    up = {(move.chunk, move.dst, move.src) for index in range(2) for move in schedule.round(index)}
    first = {(0, 0, 1), (0, 0, 2), (0, 1, 3), (0, 1, 4), (0, 2, 5)}
    second = {(1, 3, 4), (1, 3, 5), (1, 4, 0), (1, 4, 1), (1, 5, 2)}
    assert up == first | second


def test_readme_model_data_and_augmentation_train(jobs, tmp_path, monkeypatch):
    code = [block for block in blocks("python") if "class Linear" in block or "class Stripes" in block]
    (tmp_path / "mine.py").write_text("\n".join(code))
    (tmp_path / "config.py").write_text(CONFIG_OF_ONES_OWN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    jobs.train(2, "own", f"--config={tmp_path / 'config.py'}")
    summary = jobs.metrics("own")[-1]
    assert summary["test_accuracy"] > 0.95
    assert summary["test_top5_accuracy"] == 1.0


CONFIG_OF_ONES_OWN = """
from jaxdp.configs.digits import get_config as digits


def get_config():
    config = digits()
    config.epochs = 10.0
    config.data.name = "mine:stripes"
    config.data.augment = "mine:fade"
    config.model = {"name": "mine:Linear", "bias": True}
    return config
"""
