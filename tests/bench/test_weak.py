"""Tests of the weak-scaling benchmark: jobs that take turns, and the efficiency computed from their times."""

import threading

import pytest

from jaxdp.bench import weak
from jaxdp.bench.turns import Turns


def test_job_measures_on_request_until_turns_end(tmp_path):
    measures = {"alone": lambda: 1.5, "together": lambda: 2.5}
    ranks = [threading.Thread(target=Turns(tmp_path).serve, args=(rank, measures)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    turns = Turns(tmp_path)
    for what, seconds in [("together", 2.5), ("alone", 1.5), ("together", 2.5)]:
        assert turns.call(what, 2, lambda: False) == [seconds] * 2
    turns.end()
    for rank in ranks:
        rank.join(timeout=10)
        assert not rank.is_alive()


def test_finished_job_raises_instead_of_blocking(tmp_path):
    with pytest.raises(RuntimeError, match="a job ended before it was measured"):
        Turns(tmp_path).call("alone", 2, lambda: True)


def test_efficiency_is_the_median_over_rounds():
    row = weak.row_of("native", 2, 8, [(1.0, 1.25), (1.0, 2.0), (2.0, 2.5)], transfer=0.1)
    assert row.efficiencies == [0.8, 0.5, 0.8]
    assert (row.efficiency, row.alone_s, row.together_s, row.images_per_second) == (0.8, 1.0, 2.0, 8.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frameworks=horovod"], "unknown framework 'horovod': choose from native, mpi4jax, xla, torch"),
        (["--frameworks=torch"], "torch needs --python"),
        (["--frameworks=torch", "--model=cnn"], "the torch baseline has no model 'cnn': use --model=resnet18"),
        (["--hosts=0"], "numbers must be 1 or more, not '0'"),
        (["--json=nosuch/rows.json"], "there is no folder nosuch"),
    ],
)
def test_usage_error_prints_one_message(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        weak.main(words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxdp: error: ")
    assert message in err
