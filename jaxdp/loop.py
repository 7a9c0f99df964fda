"""A run's life, in its order: build, restore, step, evaluate, save, sum up."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from jaxdp.build import Run, build
from jaxdp.checkpoint import Checkpoints, Position
from jaxdp.config import Config
from jaxdp.data import feed
from jaxdp.data.split import Split
from jaxdp.metrics import read_metrics
from jaxdp.plan import Plan
from jaxdp.preemption import REQUEUE, Preemption
from jaxdp.progress import COMPILE, COMPUTE, MINE
from jaxdp.report import Report, banner, evaluation_line, on_terminal
from jaxdp.saved import begin_from
from jaxdp.sentinel import Sentinel
from jaxdp.state import TrainState
from jaxdp.step import Batch, checked_leaves, reduced_shapes
from jaxdp.stragglers import Pace
from jaxdp.workdir import CHECKPOINTS, Labels, claim_workdir, write_labels
from jaxdp.world import AgreedExit, UserError, World


def train(
    config: Config,
    workdir: pathlib.Path,
    world: World,
    *,
    preemption: Preemption,
    stop_at_step: int | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Trains to the end of the config's epochs, from the latest checkpoint in the workdir if there is one.

    Args:
      config: of the run.
      workdir: a folder for this run alone; rank 0 writes to it.
      world: all ranks call this together.
      preemption: tells when to make room.
      stop_at_step: save and end before the end of the run, once so many steps are done.
      profile_steps: the first and the last step that JAX's profiler records, on rank 0, into the workdir.
    """
    MINE.enter(COMPILE)
    run = build(config, world)
    run.check_memory()
    checkpoints = None
    with world.together():
        if world.is_root:
            run = _begun(run, workdir / CHECKPOINTS)
            claim_workdir(config, workdir)
            source = run.source
            write_labels(Labels(source.image_shape, source.num_classes, source.class_names), workdir)
            keep, keep_best = config.checkpoint.keep, config.checkpoint.keep_best
            checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=keep, keep_best=keep_best)
    state, position = restore(run, checkpoints)
    MINE.enter("load")
    bar = world.is_root and on_terminal()
    train_split = run.read("train", holdings=_holdings(run, position.step), bar=bar)
    test_split = run.read("test", bar=bar)
    allreduce = run.engine.make_allreduce(config.allreduce, world, run.layout, position.chosen)
    position = dataclasses.replace(position, chosen=allreduce.chosen)
    end = min(run.plan.total_steps, stop_at_step or run.plan.total_steps)
    if world.is_root:
        print(banner(run, allreduce.description, workdir, train_split, test_split, position), flush=True)
    if world.bcast(world.is_root and _nothing_left(workdir, position, run.plan, end)):
        if checkpoints is not None:
            print(f"nothing to do: step {position.step} of {run.plan.total_steps} is done already", flush=True)
            checkpoints.close()
        return

    with world.together():
        if profile_steps is not None and not position.step < profile_steps[0] <= profile_steps[1] <= end:
            first, last = profile_steps
            raise ValueError(
                f"this job does the steps {position.step + 1} to {end}: --profile_steps={first}:{last} does not lie "
                "between them"
            )
    first_profiled, last_profiled = profile_steps if profile_steps is not None and world.is_root else (None, None)
    hosts = world.allgather(world.host)
    report = Report(run, workdir, first_step=position.step, end_step=end, hosts=hosts) if world.is_root else None
    train_step = run.engine.train_step(run.task, run.optimizer, run.layout, allreduce)
    evaluate = run.evaluation(test_split)
    dump = workdir / "divergence" if config.safety.on_divergence == "dump" else None
    sentinel = Sentinel(run.first_state, world, dump=dump)
    pace = Pace(world, allreduce)
    in_flight: tuple[int, dict[str, Any], float, float] | None = None
    results: dict[str, float] = {}

    def settle(*, is_saved: bool = False) -> None:
        """Waits for the step in flight, and has it reported."""
        nonlocal in_flight
        if in_flight is not None:
            (step, values, dispatched_s, input_s), in_flight = in_flight, None
            jax.block_until_ready(values)
            pace.step_is_done(dispatched_s=dispatched_s, input_s=input_s)
            norms = values.pop("norms", None)
            values = heed_skipped(run, step, values)
            # One is due at every save too: a run that goes on from it cannot know the metrics of the steps before.
            is_due = step % config.log_every_steps == 0 or is_saved
            times = pace.take() if is_due else None
            if report is not None:
                report.trained(values | {"input_seconds": input_s})
                if is_due:
                    report.line(step, times)
                every = config.norms_every_steps
                if every is not None and step % every == 0:
                    report.norms(step, norms)

    gate = feed.Gate()
    ahead = _batches(run, train_split, position.step, end, gate)
    is_preempted = False
    steps = enumerate(ahead, position.step + 1)
    for done, batch in steps:
        MINE.enter_program(COMPUTE, done)
        if done == first_profiled:
            settle()
            jax.profiler.start_trace(workdir / "profile")
        # Step n is on its way before step n - 1 is waited for, so that devices never idle.
        dispatched_s = time.perf_counter()
        state, values = train_step(state, batch)
        settle()
        in_flight = done, values, dispatched_s, ahead.take_waited()
        preemption.has_begun()
        is_preempted = preemption.is_agreed() and done < end
        saves = done in run.plan.save_steps or done == end or is_preempted
        if saves or done % config.safety.compare_every_steps == 0:
            settle(is_saved=saves)
            MINE.enter_program("comparison", done)
            sentinel.check(state, done)
            MINE.has_compiled("comparison")
        if done in run.plan.eval_steps:
            settle()
            MINE.enter_program("evaluation", done)
            results = evaluate(state)
            MINE.has_compiled("evaluation")
            if report is not None:
                report.evaluated(done, results)
        if saves:
            MINE.enter("save", done)
            if checkpoints is not None:
                accuracy = results["test_accuracy"] if done in run.plan.eval_steps else None
                now = dataclasses.replace(position, step=done, test_accuracy=accuracy)
                checkpoints.save(run.engine.host_copy(state), now)
            if report is not None:
                report.restart_clock()
        if done == last_profiled:
            settle()
            jax.profiler.stop_trace()
        if is_preempted:
            end = done
            gate.close(world)
            # The exchanges that are under way are taken to their end, for nothing.
            for _ in steps:
                pass
        # The second step waits for the first one, which was compiled.
        if done > position.step + 1:
            MINE.has_compiled(COMPUTE)
        MINE.enter("input", done + 1)
    preemption.finish()

    if end == run.plan.total_steps and not results:
        results = evaluate(state)
    if checkpoints is not None:
        checkpoints.close()
    if report is not None:
        if end == run.plan.total_steps:
            report.finished(results)
        else:
            report.stopped(end)
    world.barrier()
    if is_preempted:
        raise AgreedExit(REQUEUE)


def _begun(run: Run, checkpoints: pathlib.Path) -> Run:
    """The run with the weights that it is to begin with; a run that has a checkpoint needs none."""
    config, state = run.config, run.first_state
    if config.init_from is None or Checkpoints(checkpoints).latest_step() is not None:
        return run
    params, stats = begin_from(pathlib.Path(config.init_from), state.params, state.stats, skip=config.init_skip)
    average = params if state.average else {}
    return dataclasses.replace(run, first_state=dataclasses.replace(state, params=params, stats=stats, average=average))


def evaluate_run(config: Config, workdir: pathlib.Path, world: World) -> None:
    """Restores the latest checkpoint in the workdir and evaluates it on the whole test split."""
    run = build(config, world)
    test_split = run.read("test")
    with world.together():
        checkpoints = Checkpoints(workdir / CHECKPOINTS) if world.is_root else None
        if checkpoints is not None and checkpoints.latest_step() is None:
            raise ValueError(f"there is no checkpoint in {workdir}: train first")
    state, position = restore(run, checkpoints)
    results = run.evaluation(test_split)(state)
    if checkpoints is not None:
        checkpoints.close()
        print(evaluation_line(position.step, run.plan, results), flush=True)


def heed_skipped(run: Run, step: int, values: dict[str, Any]) -> dict[str, float]:
    """What to report of a step, where all ranks have skipped it only that; too many of those in a row end the job.

    Raises:
      UserError: on rank 0.
    """
    values = {name: float(value) for name, value in values.items()}
    culprit, skipped = int(values.pop("culprit")), int(values.pop("skipped"))
    if not skipped:
        return values | {"skipped": 0.0}
    if skipped >= run.config.stop_after_skipped_steps and run.world.is_root:
        path, _ = checked_leaves(reduced_shapes(run.first_state))[culprit]
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        raise UserError(
            f"{skipped} steps in a row, up to step {step}, had values that are not finite, first in {name}: lower the "
            "rate (config.schedule.base_rate, or a longer warmup), or clip gradients (config.optimizer.clip_norm)"
        )
    return {"skipped": 1.0}


def restore(run: Run, checkpoints: Checkpoints | None) -> tuple[TrainState, Position]:
    """The state to begin with, on every device of every rank, the same bits on all of them: that of rank 0.

    Args:
      run: built.
      checkpoints: the run's, on rank 0; None elsewhere.

    Returns:
      The state of the latest checkpoint, or the first one; and the position in the data.
    """
    world, state, position = run.world, run.first_state, run.position_at_start
    with world.together():
        found = checkpoints.restore_newest(run.first_state) if checkpoints is not None else None
        if checkpoints is not None and found is not None:
            state, position = found
            for name in ("seed", "data", "num_examples", "batch_size"):
                there, here = getattr(position, name), getattr(run.position_at_start, name)
                if there != here:
                    raise ValueError(
                        f"the checkpoint in {checkpoints.folder} cannot be gone on with: its {name} is {there!r}, "
                        f"that of this run {here!r}: choose another --workdir"
                    )
    leaves, treedef = jax.tree.flatten(state)
    same = world.bcast_arrays([np.array(leaf) for leaf in leaves])
    return run.engine.replicate(jax.tree.unflatten(treedef, same)), world.bcast(position)


def _batches(run: Run, split: Split, first: int, end: int, gate: feed.Gate) -> feed.Ahead[Batch]:
    host_batches = feed.batches(
        split,
        order=run.order,
        deal=run.deal,
        rank=run.world.rank,
        group=run.groups["train"].opened(run.world.data_comm),
        comm=run.world.data_comm,
        steps=range(first, end),
        steps_per_exchange=run.config.data.exchange_steps,
        partitions=run.partitions,
        gate=gate,
    )
    return feed.Ahead(host_batches, run.engine.place, depth=run.config.data.prefetch)


def _holdings(run: Run, step: int) -> np.ndarray | None:
    """The example in each slot when a step begins; None if that is the example of its number."""
    partitions = run.partitions
    return None if partitions is None else partitions.holdings(partitions.period_at(step))


def _nothing_left(workdir: pathlib.Path, position: Position, plan: Plan, end: int) -> bool:
    if position.step < plan.total_steps:
        return position.step >= end
    # A job that is killed after its last save has not summed up yet.
    return any(line.get("summary") for line in read_metrics(workdir))
