"""Reports of rank 0 about a run: printed lines and metrics."""

from __future__ import annotations

import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxdp import __version__
from jaxdp.runtime import launcher
from jaxdp.step.state import named_leaves
from jaxdp.trainer.metrics import MetricsWriter, ProgressLine, TrainLog
from jaxdp.trainer.stragglers import Stragglers

if TYPE_CHECKING:
    from jaxdp.config.run_lengths import RunLengths
    from jaxdp.data.split import Split
    from jaxdp.trainer.assemble import Run
    from jaxdp.trainer.checkpoint import Position


class Reporter:
    """Prints progress and writes metrics.jsonl and TensorBoard event files; used on rank 0 only.

    Args:
      run: the run.
      workdir: the run's folder.
      first_step: number of steps done by earlier jobs.
      end_step: the last step of this job.
      hosts: host names of all ranks.
    """

    def __init__(self, run: Run, workdir: pathlib.Path, *, first_step: int, end_step: int, hosts: Sequence[str]):
        self._run, self._workdir, self._first_step, self._end_step = run, workdir, first_step, end_step
        self._writer = MetricsWriter(workdir, resume_step=first_step)
        self._progress = ProgressLine(run.lengths.total_steps, first_step=first_step, bar=on_terminal())
        self._log = TrainLog(run.config.batch_size)
        self._stragglers = Stragglers(hosts)
        self._started = time.perf_counter()

    def trained(self, values: dict[str, Any]) -> None:
        """Records the metrics of a finished step."""
        self._log.add(values)

    def line(self, step: int, times: np.ndarray | None) -> None:
        """Writes a line of metrics about the steps since the last line.

        Args:
          step: the last of these steps.
          times: the step times of all ranks, as returned by `Pace.take`; None if they are not measured.
        """
        run = self._run
        means, seconds_per_step = self._log.take()
        means["learning_rate"] = float(run.learning_rate(step - 1))
        of_ranks = {} if times is None else self._stragglers.add(times)
        self._writer.write(step, epoch=run.lengths.epoch(step), **means, **of_ranks)
        self._progress.update(step, epoch=run.lengths.epoch(step), values=means, seconds_per_step=seconds_per_step)

    def norms(self, step: int, values: dict[str, Any]) -> None:
        """Writes the per-array norms of a step, as returned by `step.update.layer_norms`."""
        names = named_leaves(self._run.first_state.params)
        # JSON cannot represent non-finite numbers.
        finite = {
            kind: [norm if math.isfinite(norm) else None for norm in np.asarray(norms).tolist()]
            for kind, norms in values.items()
        }
        self._writer.write(step, **{kind: dict(zip(names, norms, strict=True)) for kind, norms in finite.items()})

    def evaluated(self, step: int, results: dict[str, float]) -> None:
        """Reports an evaluation of the test split."""
        self._writer.write(step, epoch=self._run.lengths.epoch(step), **results)
        self._progress.say(evaluation_line(step, self._run.lengths, results))
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes what was just done (an evaluation, a save) from the time per step."""
        self._log.restart_clock()

    def finished(self, results: dict[str, float], *, state_hash: str) -> None:
        """Writes the summary at the end of the run.

        Args:
          results: results of the last evaluation.
          state_hash: hash of all bits of the final state.
        """
        seconds = time.perf_counter() - self._started
        rate = (self._end_step - self._first_step) * self._run.config.batch_size / seconds
        of_ranks = self._stragglers.summary()
        measured = {"seconds": seconds, "images_per_second": rate} | of_ranks
        self._writer.write(self._end_step, summary=True, **results, state_hash=state_hash, **measured)
        self._close(
            f"finished: test accuracy {results['test_accuracy']:.4f}, {seconds:.1f} s, {rate:.0f} images/s, "
            f"state hash {state_hash}, metrics in {self._workdir / 'metrics.jsonl'}"
        )

    def stopped(self, step: int) -> None:
        """Reports that the job was asked to stop before the end of the run."""
        self._close(f"stopped at step {step} as requested: start the job again to resume")

    def _close(self, last_words: str) -> None:
        self._progress.close()
        self._writer.close()
        if slowest := self._stragglers.sentence():
            print(slowest, flush=True)
        print(last_words, flush=True)


def on_terminal() -> bool:
    """Whether the output of this process ends up on a terminal."""
    # An MPI launcher forwards output through its own pipe or terminal, so only its caller knows.
    return os.environ.get("JAXDP_PROGRESS") == "bar" or (sys.stdout.isatty() and launcher.launch_info() is None)


def banner(run: Run, allreduce: str, workdir: pathlib.Path, train: Split, test: Split, position: Position) -> str:
    """The lines printed at the start of a job: the configuration of the run and its hardware."""
    world, lengths = run.world, run.lengths
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.first_state.params))
    per_rank = run.batch_split.rank_bounds[1:] - run.batch_split.rank_bounds[:-1]
    rows = f"{per_rank.max()}" if per_rank.min() == per_rank.max() else f"{per_rank.min()} to {per_rank.max()}"
    memory = (train.nbytes + test.nbytes) / 2**20
    held = f"{memory:.1f} MiB of RAM per node" + (
        f", shared by {world.local_size} ranks" if world.local_size > 1 else ""
    )
    ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
    lines = [
        ("world", f"{ranks}, {world.local_size} on {world.host}, {world.threads} threads per rank"),
        ("devices", run.placement.description),
        ("MPI", world.library),
        ("allreduce", allreduce),
        ("model", f"{run.config.model.name}, {parameters:,} parameters"),
        (
            "data",
            f"{run.source.name}, {lengths.num_examples:,} + {test.num_examples:,} images, {held}",
        ),
        ("batch", f"{lengths.batch_size} = {rows} per rank, peak rate {lengths.peak_rate:.4g}"),
        ("steps", f"{lengths.total_steps} = {run.config.epochs:g} epochs, {lengths.warmup_steps} of warmup"),
        ("workdir", f"{workdir}"),
    ]
    if position.step:
        lines.append(("resume", f"from step {position.step}, epoch {lengths.epoch(position.step):.2f}"))
    return "\n".join([f"jaxdp {__version__}", *(f"  {name:10}{text}" for name, text in lines)])


def evaluation_line(step: int, lengths: RunLengths, results: dict[str, float]) -> str:
    """Formats the results of an evaluation as a line of text."""
    return (
        f"step {step}  epoch {lengths.epoch(step):.2f}  test loss {results['test_loss']:.4f}  "
        f"test accuracy {results['test_accuracy']:.4f}, top 5 {results['test_top5_accuracy']:.4f}"
    )
