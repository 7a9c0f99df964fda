"""Types of options, --help, and usage errors."""

import argparse
import json
import pathlib

import pytest

from jaxdp.cli import parsing
from jaxdp.runtime import exit_codes


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("4096", 4096), ("64K", 64_000), ("25M", 25_000_000), ("1g", 10**9), ("1.5K", 1500)]
)
def test_size_is_read_in_powers_of_1000(text, num_bytes):
    assert parsing.size(text) == num_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64X", "'64X' is not a size: write it as 4096, 64K, 25M or 1G"),
        ("", "'' is not a size"),
        ("K", "'K' is not a size"),
        ("0", "a size must be 1 byte or more, not '0'"),
        ("-1M", "a size must be 1 byte or more, not '-1M'"),
        ("0.1", "a size must be 1 byte or more, not '0.1'"),
    ],
)
def test_invalid_size_is_rejected(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parsing.size(text)


def test_lists_are_separated_by_commas():
    assert parsing.sizes("64K,1M") == [64_000, 1_000_000]
    assert parsing.numbers("2,4") == [2, 4]
    assert parsing.names("ring,direct") == ["ring", "direct"]
    assert parsing.number("7") == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "'x' is not a list of numbers: write it as 2,4"),
        ("2,", "'2,' is not a list of numbers"),
        ("1.5", "'1.5' is not a list of numbers"),
        ("4,0", "numbers must be 1 or more, not '4,0'"),
    ],
)
def test_invalid_numbers_are_rejected(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parsing.numbers(text)


def test_program_is_split_into_words():
    assert parsing.program("sh -c 'exit 3'") == ["sh", "-c", "exit 3"]


@pytest.mark.parametrize(("command", "name"), [("no-such-program -n 2", "no-such-program"), ("", "")])
def test_missing_program_is_rejected(command, name):
    with pytest.raises(ValueError, match=f"the program '{name}' is not on the PATH: install it"):
        parsing.program(command)


def test_files_in_missing_folders_are_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsing.check_writable(None, pathlib.Path("rows.json"), tmp_path / "rows.json")
    with pytest.raises(ValueError, match=r"no/rows\.json cannot be written: there is no folder no$"):
        parsing.check_writable(pathlib.Path("rows.json"), pathlib.Path("no/rows.json"))


def test_json_is_one_line(tmp_path):
    document = {"rows": [1, 2.5, "three\n"]}
    parsing.write_json(tmp_path / "rows.json", document)
    (line,) = (tmp_path / "rows.json").read_text().splitlines()
    assert json.loads(line) == document
    with pytest.raises(ValueError, match=r"cannot be written: .*Is a directory"):
        parsing.write_json(tmp_path, document)


def make_parser():
    parser = parsing.Parser("try", "Tries it.\n\n  as written", examples=("jaxdp try --size=1M", "jaxdp try now"))
    parser.add_argument("when", help="time of day")
    parser.add_argument("--size", type=parsing.size, default="25M", help="size of a bucket")
    parser.add_argument("--rates", default=[0.5, 1], help="rates, 100%% first")
    parser.add_argument("--delay", type=float, default=5.0, help="seconds")
    parser.add_argument("--json", help="write rows here")
    parser.add_argument("--fast", action="store_true", help="try less")
    parser.add_argument("--folder", required=True, help="where to try")
    parser.add_argument("--share", default="50%", help="share of hosts")
    parser.add_argument("--cores", default=8, help="cores; default: all of them")
    return parser


def test_help_has_usage_description_examples_and_exit_codes():
    lines = make_parser().format_help().splitlines()
    assert lines[0].startswith("usage: jaxdp try [-h] ")
    assert "  as written" in lines
    assert lines[-5:] == ["examples:", "  jaxdp try --size=1M", "  jaxdp try now", "", exit_codes.SUMMARY]


def test_one_example_is_headed_in_the_singular():
    text = parsing.Parser("try", "Tries it.", examples=("jaxdp try",)).format_help()
    assert "\nexample:\n  jaxdp try\n" in text


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("when", "time of day"),
        ("--size SIZE", "size of a bucket; default: 25M"),
        ("--rates RATES", "rates, 100% first; default: 0.5,1"),
        ("--delay DELAY", "seconds; default: 5"),
        ("--json JSON", "write rows here; default: none"),
        ("--fast", "try less; default: off"),
        ("--folder FOLDER", "where to try; required"),
        ("--share SHARE", "share of hosts; default: 50%"),
        ("--cores CORES", "cores; default: all of them"),
    ],
)
def test_help_states_the_default_of_each_option(option, text):
    described = [" ".join(line.split()) for line in make_parser().format_help().splitlines()]
    assert f"{option} {text}" in described


@pytest.mark.parametrize("words", [["-h"], ["now", "--help"]])
def test_help_is_printed_by_rank_0_only(capsys, monkeypatch, words):
    parser = make_parser()
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    assert parser.has_helped(words)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("PMI_RANK", "0")
    assert parser.has_helped(words)
    assert capsys.readouterr().out == parser.format_help()


def test_no_help_is_printed_unasked(capsys):
    assert not make_parser().has_helped(["now", "--folder=help"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["now"], "the following arguments are required: --folder"),
        (["now", "--folder=x", "--size=64X"], "argument --size: '64X' is not a size"),
        (["now", "--folder=x", "--siz=64K"], "unrecognized arguments: --siz=64K"),
        (["now", "--folder=x", "--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_usage_error_is_a_value_error(words, message):
    with pytest.raises(ValueError, match=rf"^invalid command line: .*{message}.* \(see --help\)$"):
        make_parser().parse_args(words)


def test_defaults_are_parsed_like_options():
    arguments = make_parser().parse_args(["now", "--folder=x"])
    assert (arguments.size, arguments.fast) == (25_000_000, False)
