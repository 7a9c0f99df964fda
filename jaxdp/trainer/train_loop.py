"""The training loop: runs steps and, after each, whatever is due (metrics, evaluation, checkpoints)."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import jax

from jaxdp.collectives.allreduce import BucketSum
from jaxdp.data import feed
from jaxdp.data.batch import Batch
from jaxdp.runtime.activity import COMPUTE
from jaxdp.runtime.preemption import Preemption
from jaxdp.runtime.world import UserError
from jaxdp.step.forward_backward import reduced_shapes
from jaxdp.step.state import TrainState, leaf_name
from jaxdp.step.update import checked_leaves
from jaxdp.trainer.assemble import Run
from jaxdp.trainer.checkpoint import Checkpoints, Position
from jaxdp.trainer.divergence import DivergenceCheck
from jaxdp.trainer.evaluation import Evaluation
from jaxdp.trainer.reporter import Reporter
from jaxdp.trainer.stragglers import Pace


class InFlight(NamedTuple):
    """A step that was dispatched and may still be running.

    Attributes:
      step: number of the step.
      values: results of the step other than the state, possibly not computed yet.
      dispatched_s: time at which the step was dispatched, by time.perf_counter.
      input_s: seconds spent waiting for its batch.
    """

    step: int
    values: dict[str, Any]
    dispatched_s: float
    input_s: float


class TrainLoop:
    """Trains from a position to the last step of the job; all ranks run the steps together.

    Args:
      run: the built run.
      allreduce: sums the gradient buckets over all ranks.
      position: position at which the job starts.
      end: last step of this job.
      evaluation: evaluates the test split.
      preemption: reports whether the job has been asked to stop.
      workdir: folder of the run.
      checkpoints: checkpoints of the run on rank 0; None on other ranks.
      report: report of the job on rank 0; None on other ranks.
      profiled: first and last step that JAX's profiler records on rank 0; None for no profile.

    Attributes:
      end: last step of this job; earlier than requested if the job was preempted.
      is_preempted: whether the job was preempted.
      results: results of the last evaluation.
      state_hash: hash of all bits of the state at the last comparison, see `DivergenceCheck.check`.
    """

    def __init__(
        self,
        run: Run,
        allreduce: BucketSum,
        position: Position,
        end: int,
        *,
        evaluation: Evaluation,
        preemption: Preemption,
        workdir: pathlib.Path,
        checkpoints: Checkpoints | None,
        report: Reporter | None,
        profiled: tuple[int, int] | None,
    ):
        self.end, self.is_preempted = end, False
        self.results: dict[str, float] = {}
        self.state_hash = ""
        self._run, self._position, self._evaluation, self._preemption = run, position, evaluation, preemption
        self._checkpoints, self._report, self._activity = checkpoints, report, run.world.activity
        self._trace = workdir / "profile"
        self._profiled: tuple[int | None, int | None] = profiled if profiled is not None else (None, None)
        self._train_step = run.placement.train_step(run.task, run.optimizer, run.layout, allreduce)
        dump = workdir / "divergence" if run.config.safety.on_divergence == "dump" else None
        self._divergence_check = DivergenceCheck(run.first_state, run.world, dump=dump)
        self._pace = Pace(run.world, allreduce)
        self._in_flight: InFlight | None = None

    def train(self, state: TrainState, prefetcher: feed.Prefetcher[Batch], gate: feed.ExchangeGate) -> None:
        """Runs the steps.

        Args:
          state: state at the position.
          prefetcher: the batches from the position on.
          gate: gate that the exchanges of the batches pass.
        """
        first = self._position.step + 1
        steps = enumerate(prefetcher, first)
        for step, batch in steps:
            self._activity.enter_program(COMPUTE, step)
            if step == self._profiled[0]:
                self._settle()
                jax.profiler.start_trace(self._trace)
            # Dispatch the next step before waiting for the previous one, so that devices stay busy.
            dispatched_s = time.perf_counter()
            state, values = self._train_step(state, batch)
            self._settle()
            self._in_flight = InFlight(step, values, dispatched_s, prefetcher.take_waited())
            self._preemption.has_begun()
            self.is_preempted = self._preemption.is_agreed() and step < self.end
            self._after_step(step, state)
            if step == self._profiled[1]:
                self._settle()
                jax.profiler.stop_trace()
            if self.is_preempted:
                self.end = step
                gate.close(self._run.world)
                # Complete the exchanges that have begun on any rank; their batches are discarded.
                for _ in steps:
                    pass
            # By the second step, the first one, which included compilation, has finished.
            if step > first:
                self._activity.has_compiled(COMPUTE)
            self._activity.enter("input", step + 1)
        self._preemption.finish()
        if self.end == self._run.lengths.total_steps:
            # A run that was killed between its last save and its summary has no step left.
            self.results = self.results or self._evaluation(state)
            self.state_hash = self.state_hash or self._divergence_check.check(state, self.end)

    def _after_step(self, step: int, state: TrainState) -> None:
        lengths = self._run.lengths
        saves = step in lengths.save_steps or step == self.end or self.is_preempted
        if saves or step % self._run.config.safety.compare_every_steps == 0:
            self._settle(is_saved=saves)
            self._activity.enter_program("comparison", step)
            self.state_hash = self._divergence_check.check(state, step)
            self._activity.has_compiled("comparison")
        accuracy = None
        if step in lengths.eval_steps:
            self._settle()
            self._activity.enter_program("evaluation", step)
            self.results = self._evaluation(state)
            self._activity.has_compiled("evaluation")
            accuracy = self.results["test_accuracy"]
            if self._report is not None:
                self._report.evaluated(step, self.results)
        if saves:
            self._activity.enter("save", step)
            if self._checkpoints is not None:
                now = dataclasses.replace(self._position, step=step, test_accuracy=accuracy)
                self._checkpoints.save(self._run.placement.host_copy(state), now)
            if self._report is not None:
                self._report.restart_clock()

    def _settle(self, *, is_saved: bool = False) -> None:
        """Waits for the step in flight, if there is one, and reports it."""
        flight, self._in_flight = self._in_flight, None
        if flight is None:
            return
        config, step, values = self._run.config, flight.step, dict(flight.values)
        jax.block_until_ready(values)
        self._pace.step_is_done(dispatched_s=flight.dispatched_s, input_s=flight.input_s)
        norms = values.pop("norms", None)
        values = check_skipped(self._run, step, values)
        # Every save also writes a line: a run that resumes there cannot know the metrics of earlier steps.
        is_due = step % config.log_every_steps == 0 or is_saved
        times = self._pace.take() if is_due else None
        if self._report is None:
            return
        self._report.trained(values | {"input_seconds": flight.input_s})
        if is_due:
            self._report.line(step, times)
        if config.norms_every_steps is not None and step % config.norms_every_steps == 0:
            self._report.norms(step, norms)


def check_skipped(run: Run, step: int, values: dict[str, Any]) -> dict[str, float]:
    """Metrics to report for a step; for a skipped step, only `skipped`.

    Raises:
      UserError: on rank 0, if too many steps in a row were skipped.
    """
    values = {name: float(value) for name, value in values.items()}
    culprit, skipped = int(values.pop("culprit")), int(values.pop("skipped"))
    if not skipped:
        return values | {"skipped": 0.0}
    if skipped >= run.config.stop_after_skipped_steps and run.world.is_root:
        path, _ = checked_leaves(reduced_shapes(run.first_state))[culprit]
        raise UserError(
            f"{skipped} steps in a row, up to step {step}, had non-finite values, first in {leaf_name(path)}: lower "
            "the learning rate (config.schedule.base_rate), lengthen the warmup, or clip gradients "
            "(config.optimizer.clip_norm)"
        )
    return {"skipped": 1.0}
