"""Runs a job from start to end: build, restore, load the data, train, report."""

from __future__ import annotations

import dataclasses
import pathlib

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
from jaxdp.progress import COMPILE, MINE
from jaxdp.report import Report, banner, evaluation_line, on_terminal
from jaxdp.saved import begin_from
from jaxdp.state import TrainState
from jaxdp.step import Batch
from jaxdp.steps import Steps
from jaxdp.workdir import CHECKPOINTS, Labels, claim_workdir, write_labels
from jaxdp.world import AgreedExit, World


def train(
    config: Config,
    workdir: pathlib.Path,
    world: World,
    *,
    preemption: Preemption,
    stop_at_step: int | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Trains to the end of the run, resuming from the latest checkpoint in the workdir if one exists.

    Args:
      config: config of the run.
      workdir: folder for this run alone; only rank 0 writes to it.
      world: all ranks; they call this function together.
      preemption: reports whether the job has been asked to stop.
      stop_at_step: save and end the job after this step, even if the run is longer.
      profile_steps: first and last step that JAX's profiler records, on rank 0, into the workdir.
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
            print(f"nothing to do: step {position.step} of {run.plan.total_steps} is already done", flush=True)
            checkpoints.close()
        return

    with world.together():
        if profile_steps is not None and not position.step < profile_steps[0] <= profile_steps[1] <= end:
            first, last = profile_steps
            raise ValueError(
                f"this job runs steps {position.step + 1} to {end}: --profile_steps={first}:{last} is outside that "
                "range"
            )
    report = Report(run, workdir, first_step=position.step, end_step=end, hosts=world.hosts) if world.is_root else None
    steps = Steps(
        run,
        allreduce,
        position,
        end,
        evaluation=run.evaluation(test_split),
        preemption=preemption,
        workdir=workdir,
        checkpoints=checkpoints,
        report=report,
        profiled=profile_steps if world.is_root else None,
    )
    gate = feed.Gate()
    steps.train(state, _batches(run, train_split, position.step, end, gate), gate)
    if checkpoints is not None:
        checkpoints.close()
    preemption.close()
    if report is not None:
        if steps.end == run.plan.total_steps:
            report.finished(steps.results)
        else:
            report.stopped(steps.end)
    world.barrier()
    if steps.is_preempted:
        raise AgreedExit(REQUEUE)


def _begun(run: Run, checkpoints: pathlib.Path) -> Run:
    """Loads the initial weights from `config.init_from`, if that is set and the run has no checkpoint."""
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


def restore(run: Run, checkpoints: Checkpoints | None) -> tuple[TrainState, Position]:
    """Restores the latest checkpoint, or takes the first state, and copies it to every device of every rank.

    Rank 0 broadcasts its state, so that all devices hold the same bits.

    Args:
      run: the built run.
      checkpoints: checkpoints of the run on rank 0; None on other ranks.

    Returns:
      The replicated state and the position in the data.
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
                        f"cannot resume from the checkpoint in {checkpoints.folder}: its {name} is {there!r}, "
                        f"but this run uses {here!r}. Use another --workdir"
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
    """The example in each slot at the start of a step; None if slot i holds example i."""
    partitions = run.partitions
    return None if partitions is None else partitions.holdings(partitions.period_at(step))


def _nothing_left(workdir: pathlib.Path, position: Position, plan: Plan, end: int) -> bool:
    if position.step < plan.total_steps:
        return position.step >= end
    # A job that was killed after its last save has not written its summary yet.
    return any(line.get("summary") for line in read_metrics(workdir))
