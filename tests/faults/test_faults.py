"""A few trials of a fault campaign, and the rows and table made from trials."""

import json

import pytest
from jobs import TAKES_LONG

from jaxdp.faults import endurance
from jaxdp.faults.campaign import TrialRow, append_row, read_rows, table
from jaxdp.faults.endurance import Growth, Use
from jaxdp.faults.kinds import FAULTS


def test_trials_recover_bit_identically(jobs):
    """Uses faults that no other test injects, with a seed for which they occur on 2 ranks."""
    rows = jobs.folder / "faults.jsonl"
    words = ("--trials=2", "--faults=kill-saving,record-cut-off", "--seed=9", f"--json={rows}")
    ended = jobs.run(0, "-m", "jaxdp.faults", *words, f"--workdir={jobs.folder / 'faults'}", timeout=400)
    assert ended.code == 0, ended.out + ended.err
    assert [row.fault for row in read_rows(rows)] == ["kill-saving", "record-cut-off"]
    assert ended.out.count("recovered, bit-identical") == 2


ROW = TrialRow(0, "kill", 3, "step 5", 0.1, 4, recovered=True, bit_identical=True)
BAD = TrialRow(1, "kill", 3, "step 5", 3.0, None, recovered=True, bit_identical=False)


def test_campaign_rows_are_appended_and_read_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    for row in (ROW, BAD):
        append_row(path, row)
    assert read_rows(path) == [ROW, BAD]
    assert (ROW.is_good, BAD.is_good) == (True, False)
    path.write_text(json.dumps({"trial": 1}))
    with pytest.raises(ValueError, match=r"cannot read .*rows\.jsonl as rows of trials, one JSON object per line: "):
        read_rows(path)


def test_table_summarises_the_trials_of_each_fault():
    *_, line = table([ROW, BAD]).splitlines()
    assert line == f"| {FAULTS['kill'].what} | {FAULTS['kill'].must} | 2 | 1.6, 3.0 | 4 | 2 | 1 |"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--faults=fire"], "unknown fault 'fire': choose from kill, "),
        (["--json=nosuch/rows.jsonl"], "there is no folder nosuch"),
        (["--trials=x"], "invalid int value: 'x'"),
    ],
)
def test_usage_error_is_one_message(jobs, words, message):
    ended = jobs.run(0, "-m", "jaxdp.faults", *words)
    assert ended.code == 2
    assert ended.err.startswith("jaxdp: error: ")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1


def test_growth_is_distinguished_from_noise():
    """Memory may grow by 2 %. Files and threads may not grow, except for TensorStore's workers."""

    def uses(step):
        return {
            0: Use(300 + step % 3, 20, 10, 8 if step > 900 else 1),
            1: Use(300 + 0.02 * step, 20, 10, 0),
            2: Use(300, 20, 10 + (step > 900), 0),
            3: Use(300, 20 + step // 50, 10, 0),
        }

    rows = endurance.growth([(step, uses(step)) for step in range(0, 1000, 10)], 1000, 4)
    assert [row.is_flat for row in rows] == [True, False, False, False]
    assert rows[1].of_memory == pytest.approx(0.053, abs=0.002)
    assert (rows[2].warm.threads, rows[2].last.threads) == (10, 11)
    assert (rows[3].warm.files, rows[3].last.files) == (23, 38.5)


def by_rank(uses):
    return {int(rank): Use(*of_rank) for rank, of_rank in uses.items()}


@TAKES_LONG
def test_endurance_run_reports_every_rank(jobs):
    table = jobs.folder / "endurance.json"
    words = ("--ranks=2", "--steps=400", f"--json={table}", f"--workdir={jobs.folder / 'endurance'}")
    ended = jobs.run(0, "-m", "jaxdp.faults.endurance", *words)
    assert ended.out.startswith("2 ranks on "), ended.err
    assert len(ended.out.splitlines()) == 4
    document = json.loads(table.read_text())
    rows = [Growth(row["rank"], Use(*row["warm"]), Use(*row["last"])) for row in document["rows"]]
    assert [row.rank for row in rows] == [0, 1]
    assert all(row.warm.mib > 50 and row.warm.files > 3 and row.warm.threads > 1 for row in rows)
    assert rows == endurance.growth([(step, by_rank(uses)) for step, uses in document["samples"]], 400, 2)
    # The job is too short for flat memory, so either code is possible.
    assert ended.code == (0 if all(row.is_flat for row in rows) else 1)
