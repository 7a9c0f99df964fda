"""Jobs that take turns, and what is made of their times."""

import threading

import pytest

from jaxdp.bench import weak
from jaxdp.bench.turns import Turns


def test_a_job_measures_what_it_is_told_to_until_the_end(tmp_path):
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


def test_a_job_that_is_over_is_not_waited_for(tmp_path):
    with pytest.raises(RuntimeError, match="a job that was to be measured has ended"):
        Turns(tmp_path).call("alone", 2, lambda: True)


def test_efficiency_is_the_median_of_the_rounds():
    row = weak._row("native", 2, 8, [(1.0, 1.25), (1.0, 2.0), (2.0, 2.5)], transfer=0.1)
    assert row.efficiencies == [0.8, 0.5, 0.8]
    assert (row.efficiency, row.alone_s, row.together_s, row.images_per_second) == (0.8, 1.0, 2.0, 8.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frameworks=horovod"], "'horovod' is unknown: known are native, mpi4jax, xla, torch"),
        (["--frameworks=torch"], "torch needs --python"),
        (["--frameworks=torch", "--model=cnn"], "torch has no model 'cnn' here: use --model=resnet18"),
        (["--hosts=0"], "these numbers are 1 or more"),
        (["--json=nosuch/rows.json"], "there is no folder nosuch"),
    ],
)
def test_a_mistake_is_one_message(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        weak.main(words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxdp: error: ")
    assert message in err
