"""The examples that a run has used, over all of its jobs."""

import json
import os
import re
import signal

import numpy as np
from jobs import TAKES_LONG

from jaxdp.runtime.exit_codes import REQUEUE

NUM_EXAMPLES, EPOCHS = 1437, 3
ARGUMENTS = (
    f"--config.epochs={EPOCHS}.0",
    "--config.checkpoint.every_steps=5",
    "--config.log_every_steps=1",
    "--config.data.exchange_steps=4",
)


def noted(folder):
    """Returns, for each step of a job, the examples that its ranks were given and their epochs."""
    ranks = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")]
    # Some ranks may not have started the last step.
    return [np.concatenate([of_rank[step] for of_rank in ranks], axis=1) for step in range(min(map(len, ranks)))]


def test_each_example_is_used_once_per_epoch_despite_restarts_and_rescaling(jobs):
    """Three jobs on different numbers of ranks are killed or preempted; a fourth job finishes the run."""
    workdir = jobs.folder / "history"
    history = []
    for attempt, (ranks, past_step, how) in enumerate(
        [(3, 9, signal.SIGKILL), (1, 23, signal.SIGKILL), (2, 40, signal.SIGUSR1), (4, None, None)]
    ):
        ids = jobs.folder / "history-ids" / str(attempt)
        with jobs.start(ranks, "tests/recording_job.py", str(ids), *ARGUMENTS, f"--workdir={workdir}") as job:
            if past_step is not None:
                jobs.wait_for_step("history", past_step)
                os.kill(job.pid if how == signal.SIGUSR1 else jobs.processes("history")[ranks - 1], how)
            out, err = job.communicate(timeout=60)
        assert (job.returncode == 0) == (past_step is None), err
        begins = re.search(r"resume    from step (\d+)", out)
        assert (begins is None) == (attempt == 0)
        # A job repeats the steps after the checkpoint that it resumes from.
        history = history[: int(begins[1]) if begins else 0] + noted(ids)
        assert len(history) > (past_step or 0) - 2
    seen, epochs = np.concatenate(history, axis=1)
    for epoch in range(EPOCHS):
        np.testing.assert_array_equal(np.sort(seen[epochs == epoch]), np.arange(NUM_EXAMPLES))
    begun = seen[epochs == EPOCHS]
    assert len(set(begun.tolist())) == len(begun) == len(history) * 64 - EPOCHS * NUM_EXAMPLES


@TAKES_LONG
def test_examples_of_a_step_do_not_depend_on_rank_count(jobs):
    """Also covers a run that is resumed on another number of ranks."""

    def given(ranks, workdir, *, until=None):
        """Runs a job. Returns the sorted examples of each step and the step from which the job resumed."""
        ids = jobs.folder / "given" / f"{workdir}-{ranks}"
        command = ("tests/recording_job.py", str(ids), *ARGUMENTS, f"--workdir={jobs.folder / workdir}")
        with jobs.start(ranks, *command) as job:
            if until is not None:
                jobs.wait_for_step(workdir, until)
                job.send_signal(signal.SIGUSR1)
            out, err = job.communicate(timeout=120)
        assert job.returncode == (0 if until is None else REQUEUE), err
        begins = re.search(r"resume    from step (\d+)", out)
        return [sorted(examples.tolist()) for examples, _ in noted(ids)], int(begins[1]) if begins else 0

    alone, _ = given(1, "given-1")
    assert len(alone) == -(-EPOCHS * NUM_EXAMPLES // 64)
    for ranks in (2, 3, 4, 8):
        assert given(ranks, f"given-{ranks}") == (alone, 0)
    first, _ = given(4, "given-moved", until=30)
    rest, begins = given(3, "given-moved")
    assert 30 <= begins <= len(first) < len(alone)
    assert begins * 64 % NUM_EXAMPLES != 0
    assert first[:begins] + rest == alone
