"""Tests of the large-batch study: data splits, arms, choice of rates, statistics, and resuming."""

import dataclasses
import json
import math

import numpy as np
import pytest
from jobs import TAKES_LONG

from jaxdp.config.schema import Config
from jaxdp.configs.study_large_batch import get_config
from jaxdp.study.large_batch import tables
from jaxdp.study.protocol import Arm, Outcome, Protocol, StudyRun, arms, best, runs, split, summarise
from jaxdp.study.statistics import corrected_interval

SMALL = Config.from_dict(get_config().to_dict())
PROTOCOL = Protocol(multiples=(1, 16), rates=(0.01, 0.02), folds=5, repeats=2)


def test_folds_test_each_example_once_and_never_train_on_it():
    tested = []
    for fold in range(5):
        parts = split(1797, PROTOCOL, repeat=1, fold=fold)
        train, validation, test = map(set, parts)
        assert sum(map(len, parts)) == len(train | validation | test) == 1797
        assert sorted(map(len, parts)) in ([359, 359, 1079], [359, 360, 1078], [360, 360, 1077])
        tested += test
    assert sorted(tested) == list(range(1797))
    other = split(1797, PROTOCOL, repeat=0, fold=4)[2]
    assert set(other) != test


def test_each_arm_changes_only_the_settings_it_names():
    assert [(arm.multiple, arm.method) for arm in arms(PROTOCOL)] == [
        *((1, method) for method in ("unchanged", "warmup", "lars")),
        *((16, method) for method in ("unchanged", "scaled", "warmup", "lars")),
    ]
    assert len(list(runs(Protocol()))) == (3 + 3 * 4) * 7 * 5 * 3
    changes = {}
    for arm in arms(PROTOCOL):
        config, there = arm.config(SMALL, PROTOCOL), SMALL.to_dict()
        flat = {
            (group, name): value
            for group, values in config.to_dict().items()
            if isinstance(values, dict)
            for name, value in values.items()
            if value != there[group][name]
        }
        changes[arm] = (config.batch_size, arm.peak_rate(0.01), flat)
    warmup, lars = {("schedule", "warmup_epochs"): 5.0}, {("optimizer", "name"): "lars"}
    assert changes == {
        Arm(1, "unchanged"): (32, 0.01, {}),
        Arm(1, "warmup"): (32, 0.01, warmup),
        Arm(1, "lars"): (32, 0.01, warmup | lars),
        Arm(16, "unchanged"): (512, 0.01, {}),
        Arm(16, "scaled"): (512, 0.16, {}),
        Arm(16, "warmup"): (512, 0.16, warmup),
        Arm(16, "lars"): (512, 0.16, warmup | lars),
    }


def test_rate_is_chosen_on_validation_examples():
    first = StudyRun(1, "lars", 0.01, 0, 0)
    low, middle, high = (dataclasses.replace(first, base_rate=rate) for rate in (0.01, 0.02, 0.04))
    protocol = dataclasses.replace(PROTOCOL, rates=(0.01, 0.02, 0.04))
    outcomes = {
        low: Outcome(0.9, 0.3, 1.0, 0.0),
        middle: Outcome(0.9, 0.2, 0.5, 9.0),
        high: Outcome(0.8, 0.1, 1.0, 0.0),
    }
    assert best(outcomes, low, protocol) == middle
    outcomes[middle] = Outcome(0.9, math.nan, 0.5, 9.0)
    assert best(outcomes, low, protocol) == low


def test_interval_is_corrected_for_repeated_cross_validation():
    """Compares with a calculation by hand: for 15 values, Student's t with 14 degrees of freedom is 2.1448."""
    values = np.random.default_rng(0).normal(0.98, 0.01, 15)
    found = corrected_interval(values.tolist(), num_test=360, num_train=1080)
    deviation = math.sqrt((1 / 15 + 1 / 3) * values.var(ddof=1))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(2.1448 * deviation, rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_differences_between_arms_are_paired_by_fold():
    def accuracy(run):
        # Accuracy differs much more between folds than between arms.
        return 0.8 + 0.04 * run.fold - (0.01 if run.multiple == 16 else 0.0) - (0.5 if run.base_rate == 0.02 else 0.0)

    outcomes = {run: Outcome(accuracy(run), 0.1, accuracy(run), 0.1) for run in runs(PROTOCOL)}
    found = {entry.arm: entry for entry in summarise(outcomes, PROTOCOL, 1797)}
    assert found[Arm(1, "unchanged")].difference is None
    assert found[Arm(1, "lars")].difference == pytest.approx((0, 0, 0), abs=1e-12)
    assert found[Arm(16, "lars")].difference == pytest.approx((-0.01, -0.01, -0.01))
    assert found[Arm(16, "lars")].accuracy.mean == pytest.approx(0.87)
    assert found[Arm(16, "lars")].accuracy.high > 0.9
    assert found[Arm(16, "lars")].chosen == {0.01: 10}
    assert found[Arm(16, "lars")].by_rate == pytest.approx({0.01: 0.87, 0.02: 0.37})
    # The variance is 0.0035556, corrected by 1/10 + 1/3; Student's t with 9 degrees of freedom is 2.2622.
    text = tables(list(found.values()), SMALL)
    assert "| 512 | rate scaled, warmup, LARS | 87.00 [78.12, 95.88] | -1.00 [-1.00, -1.00] | 0.01 (10) |" in text
    assert "| 512 | rate unchanged | 87.00 | 37.00 |" in text


@TAKES_LONG
def test_study_run_matches_the_trainer(jobs):
    """Both take the same steps on all 1,437 training examples and are evaluated on the same test split."""
    from jaxdp.data.catalog import open_source
    from jaxdp.study.training import Examples, Training

    changes = ("--config.epochs=2.0", "--config.schedule.warmup_epochs=1.0", "--config.optimizer.name=lars")
    jobs.train(0, "as-studied", "--config=configs/study_large_batch.py", *changes)
    data = dataclasses.replace(SMALL.data, dir=str(jobs.folder / "data"))
    examples = Examples.of(open_source(data))
    config = dataclasses.replace(
        Arm(1, "lars").config(SMALL, dataclasses.replace(PROTOCOL, warmup_epochs=1.0)), epochs=2.0
    )
    program = Training(config, examples, 1437)
    state = program(seed=0, peak_rate=0.01, train=np.arange(1437))
    accuracy, loss = program.evaluate(state, np.arange(1437, 1797))
    summary = jobs.metrics("as-studied")[-1]
    assert loss == pytest.approx(summary["test_loss"], rel=1e-4)
    assert accuracy == pytest.approx(summary["test_accuracy"], abs=1 / 360)


SCRIPT = """
import dataclasses, pathlib, sys
from jaxdp.runtime import world
from jaxdp.study.large_batch import carry_out, tables
from jaxdp.study.protocol import Protocol
from tests.study.test_large_batch import SMALL

small = dataclasses.replace(SMALL, epochs=1.0)
protocol = Protocol(multiples=(1,), rates=(0.01,), warmup_epochs=0.5, folds=3, repeats=1)


def job(of_world):
    summaries = carry_out(small, protocol, pathlib.Path(sys.argv[1]), of_world)
    if of_world.is_root:
        print(tables(summaries, small))


world.run(job)
"""


@TAKES_LONG
def test_killed_study_resumes_with_the_remaining_runs(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".:tests")
    (tmp_path / "study.py").write_text(SCRIPT)
    folder = tmp_path / "study"

    def study(ranks):
        ended = jobs.run(ranks, str(tmp_path / "study.py"), str(folder))
        assert ended.code == 0, ended.err
        return ended.out.splitlines()

    whole = study(2)
    assert whole[0] == "0 runs done, 9 left, 5 of them on this rank"
    lines = (folder / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 9
    # After a kill, some outcomes are gathered and others are still in the file of a rank, which ends in a cut line.
    (folder / "outcomes.jsonl").write_text("".join(line + "\n" for line in lines[:3]))
    (folder / "outcomes-1.jsonl").write_text(lines[5] + "\n" + lines[6][:20])
    again = study(3)
    assert again[0] == "4 runs done, 5 left, 2 of them on this rank"
    after = (folder / "outcomes.jsonl").read_text().splitlines()
    runs_of = [[json.loads(line)["run"] for line in some] for some in (lines, after)]
    assert sorted(map(str, runs_of[0])) == sorted(map(str, runs_of[1]))
    assert set(lines[:3] + lines[5:6]) <= set(after)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "outcomes.jsonl", "protocol.json"]
