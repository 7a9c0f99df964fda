"""Complete jobs under mpirun that fail: within seconds, with one clear message and an exit code."""

import re
import time

import numpy as np
import pytest
from jobs import BOTH_MPIS, SHORT

# Only rank 0 saves checkpoints.
FAILURES = [
    ("feed", 0, "native"),
    ("exit", 0, "native"),
    ("save", 0, "native"),
    pytest.param("step", 2, "native", marks=BOTH_MPIS),
    pytest.param("step", 2, "mpi4jax", marks=BOTH_MPIS),
    ("exit", 2, "mpi4jax"),
    ("step", 2, "xla"),
    ("exit", 0, "xla"),
]


@pytest.mark.parametrize(("where", "rank", "engine"), FAILURES)
def test_failing_rank_ends_the_job(jobs, where, rank, engine):
    workdir = jobs.folder / f"fails-{where}-{rank}-{engine}"
    arguments = ["--config.epochs=12.0", f"--config.allreduce.engine={engine}", f"--workdir={workdir}"]
    begin = time.time()
    ended = jobs.run(3, "tests/failing_job.py", where, str(rank), *arguments, timeout=60)
    failed_at = float((workdir / "failed-at").read_text())
    assert ended.code != 0
    assert begin + ended.seconds - failed_at < 10
    assert f"jaxdp: error: rank {rank} of 3 on" in ended.err


def test_undecodable_file_ends_the_job_with_one_message(jobs):
    workdir = jobs.folder / "fails-decode"
    arguments = ["--config.epochs=12.0", "--config.data.storage=encoded", f"--workdir={workdir}"]
    begin = time.time()
    ended = jobs.run(3, "tests/failing_job.py", "decode", "1", *arguments, timeout=60)
    assert begin + ended.seconds - float((workdir / "failed-at").read_text()) < 10
    assert ended.code == 2
    assert ended.err.count("jaxdp: error: ") == 1
    assert (
        "cannot be decoded as an image: OSError: broken data stream: prepare the data set again (rank 1 of" in ended.err
    )
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("algorithm", ["multicolor", "auto"])
def test_wrong_schedule_ends_the_job_before_its_first_step(jobs, algorithm):
    """With 16 bits on the wire, `auto` cannot choose MPI's own allreduce, which has no schedule."""
    allreduce = (f"--config.allreduce.algorithm={algorithm}", "--config.allreduce.wire=bfloat16")
    workdir = jobs.folder / f"wrong-schedule-{algorithm}"
    ended = jobs.run(
        2, "tests/failing_job.py", "schedule", "-1", *SHORT, *allreduce, f"--workdir={workdir}", timeout=60
    )
    assert ended.code == 1
    assert ended.err.count("jaxdp: error: ") == 1
    assert re.search(r"the schedule of .* for 2 ranks is wrong: .* bug in jaxdp: report it.* \(rank 0 of 2", ended.err)
    assert "Traceback" not in ended.err
    assert "allreduce" not in ended.out
    assert not (workdir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("ranks", "drifts", "told"), [(3, 0, 0), (2, 1, 1)])
def test_replica_that_differs_by_one_bit_is_named(jobs, ranks, drifts, told):
    """With two replicas neither is in the minority, and the second one is named."""
    workdir = jobs.folder / f"drifts-{drifts}-of-{ranks}"
    dump = ("--config.safety.compare_every_steps=15", "--config.safety.on_divergence=dump")
    ended = jobs.run(ranks, "tests/failing_job.py", "bit", str(drifts), *SHORT, *dump, f"--workdir={workdir}")
    assert ended.code == 1
    assert ended.err.count("jaxdp: error: ") == 1
    assert (
        "replicas differ after step 15: params.conv2.kernel on device 0 of this rank is not that of most replicas"
        in ended.err
    )
    assert f"(rank {told} of {ranks} on " in ended.err
    assert "Traceback" not in ended.err
    states = [dict(np.load(workdir / "divergence" / f"step-15-rank-{rank}.npz")) for rank in range(ranks)]
    others = {rank for rank in range(ranks) if rank != drifts}
    assert all(
        not np.array_equal(states[drifts]["params.conv2.kernel"], states[rank]["params.conv2.kernel"])
        for rank in others
    )


@pytest.mark.parametrize(
    ("what", "rank", "told"),
    [
        (
            "code",
            1,
            r"all ranks need the same code of jaxdp: rank 1 has 0123456789ab, 2 of 3 have \w+: use one environment",
        ),
        (
            "array",
            0,
            r"the same parameter conv2\.kernel: rank 0 has float16\[3, 3, 48, 48\], 2 of 3 have float32\[3, 3, 48",
        ),
    ],
)
def test_differing_ranks_are_named_before_anything_is_written(jobs, what, rank, told):
    workdir = jobs.folder / f"differs-{what}"
    ended = jobs.run(3, "tests/failing_job.py", what, str(rank), *SHORT, f"--workdir={workdir}", timeout=60)
    assert ended.code == 2
    assert ended.err.count("jaxdp: error: ") == 1
    assert re.search(told, ended.err), ended.err
    assert not workdir.exists()


def test_different_cpu_causes_only_a_warning(jobs):
    workdir = jobs.folder / "other-cpu"
    ended = jobs.run(3, "tests/failing_job.py", "cpu", "2", "--stop_at_step=2", f"--workdir={workdir}")
    assert ended.code == 0, ended.err
    assert (
        ended.err.count("jaxdp: warning: the CPU model is not the same on all ranks: rank 2 has Another One, 2 ") == 1
    )


def test_diverged_run_ends_and_names_the_first_bad_array(jobs):
    workdir = jobs.folder / "diverges"
    ended = jobs.run(
        2,
        *("-m", "jaxdp.train", "--config.schedule.base_rate=1e38", "--config.schedule.warmup_epochs=0.0"),
        *("--config.stop_after_skipped_steps=4", "--config.log_every_steps=1", f"--workdir={workdir}"),
    )
    assert ended.code == 2
    assert ended.err.count("jaxdp: error: 4 steps in a row, up to step ") == 1
    assert re.search(
        r"had non-finite values, first in gradient\.\w+\.(bias|kernel): lower the learning rate", ended.err
    )
    assert "Traceback" not in ended.err
    assert "NaN" not in ended.err
    lines = jobs.metrics("diverges")
    assert lines[0]["skipped"] == 0
    assert lines[-1]["skipped"] == 1
    assert "loss" not in lines[-1]
