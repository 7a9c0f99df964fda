"""The command `jaxdp`: its table, the help of every command, and errors reported once."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from jobs import BOTH_MPIS

from jaxdp.bench.__main__ import BENCHMARKS
from jaxdp.cli import command
from jaxdp.cli.command import COMMANDS
from jaxdp.runtime import exit_codes
from jaxdp.study.__main__ import STUDIES

ROOT = pathlib.Path(__file__).parent.parent.parent
# Every command with options, as words of the command line.
LEAVES = [
    *([name] for name in COMMANDS if name not in ("bench", "study")),
    *(["bench", name] for name in BENCHMARKS),
    *(["study", name] for name in STUDIES),
    ["faults", "endurance"],
]
MODULES = (
    *(f"jaxdp.{name}" for name in COMMANDS),
    "jaxdp.data.prepare",
    "jaxdp.data.tfds_prepare",
    "jaxdp.faults.endurance",
)


def run_module(module, *words):
    """Runs `python -m MODULE WORDS`."""
    return subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_help_lists_all_commands(capsys):
    command.main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: jaxdp COMMAND ...\n")
    for name, listed in COMMANDS.items():
        assert f"\n  {name:9}  {listed.summary}\n" in out
    assert out.endswith(f"\n{exit_codes.SUMMARY}\n")


@pytest.mark.parametrize("words", [[], ["-h"], ["bench"], ["bench", "--help"], ["study"]])
def test_table_of_commands_is_the_default(capsys, words):
    command.main(words)
    assert " is one of:\n" in capsys.readouterr().out


@pytest.mark.parametrize("table", [COMMANDS, BENCHMARKS, STUDIES])
def test_every_listed_module_has_a_main(table):
    for listed in table.values():
        assert callable(importlib.import_module(listed.module).main)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_help_has_usage_options_with_defaults_and_an_example(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "1000")
    command.main([*words, "--help"])
    name = f"jaxdp {' '.join(words)}"
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {name} ")
    (listed,) = re.findall(r"^options:\n(.*?)\n\n", out, re.MULTILINE | re.DOTALL)
    options = re.split(r"^  (?=-)", listed, flags=re.MULTILINE)[2:]
    assert options
    for option in options:
        assert re.match(r"--[\w.]+ .*(default: \S|required)", option, re.DOTALL), option
    assert re.search(rf"^examples?:\n(  .*\n)*  .*{name}\b", out, re.MULTILINE)
    assert out.endswith(f"\n{exit_codes.SUMMARY}\n")


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_commands_run_with_python_m(module):
    ended = run_module(module, "--help")
    assert ended.returncode == 0, ended.stderr
    assert re.search("jaxdp|launch/prepare", ended.stdout)


def test_python_m_jaxdp_is_the_command():
    ended = run_module("jaxdp", "bench", "schedule", "--ranks=4")
    assert ended.returncode == 0, ended.stderr
    assert "rounds" in ended.stdout


def test_help_imports_no_command():
    code = (
        "import sys; from jaxdp.cli.command import main; main(['--help']); "
        "assert not {'jax', 'flax', 'mpi4py', 'absl', 'jaxdp.train', 'jaxdp.bench'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'? (see --help)"),
        (["xyz"], f"unknown command 'xyz': choose from {', '.join(COMMANDS)}"),
        (["--config=x"], f"unknown command '--config=x': choose from {', '.join(COMMANDS)}"),
        (["bench", "stepp"], "unknown benchmark 'stepp': did you mean 'step'? (see --help)"),
        (["study", "small"], "unknown study 'small': choose from large_batch"),
    ],
)
def test_unknown_command_is_a_usage_error(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"jaxdp: error: {message}\n"


def test_current_folder_is_searched_for_objects_of_users(tmp_path, monkeypatch):
    """The script `jaxdp` starts with its own folder in sys.path, where `python -m` has the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/usr/local/bin", *[path for path in sys.path if path not in ("", str(ROOT))]])
    command.main(["--help"])
    assert sys.path[:2] == [str(tmp_path), "/usr/local/bin"]


def test_explain_is_train_with_explain(jobs):
    explained = jobs.run(0, "-m", "jaxdp", "explain", "--config.batch_size=32")
    assert (explained.code, explained.err) == (0, "")
    assert "batch 32: " in explained.out
    assert explained.out == jobs.run(0, "-m", "jaxdp.train", "--explain", "--config.batch_size=32").out


@BOTH_MPIS
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["doctor", "--help"], 0),
        (["prepare", "--help"], 0),
        (["trian"], 2),
        (["doctor", "--bogus"], 2),
        (["prepare", "--bogus"], 2),
    ],
)
def test_one_rank_speaks_under_mpirun(jobs, words, code):
    ended = jobs.run(2, "-m", "jaxdp", *words)
    assert ended.code == code, ended.err
    if code == 0:
        assert ended.out.count("usage: jaxdp ") == 1
        assert "jaxdp: error: " not in ended.err
    else:
        assert ended.err.count("jaxdp: error: ") == 1
        assert ended.out == ""
