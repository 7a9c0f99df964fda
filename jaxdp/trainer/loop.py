"""Runs a job from start to end: build, restore, load the data, train, report."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np

from jaxdp.config.run_lengths import RunLengths
from jaxdp.config.schema import Config
from jaxdp.data import feed
from jaxdp.data.batch import Batch
from jaxdp.data.split import Split
from jaxdp.runtime.activity import COMPILE
from jaxdp.runtime.exit_codes import REQUEUE
from jaxdp.runtime.preemption import Preemption
from jaxdp.runtime.world import AgreedExit, World
from jaxdp.step.state import TrainState
from jaxdp.trainer.assemble import Run, build
from jaxdp.trainer.checkpoint import Checkpoints, Position
from jaxdp.trainer.metrics import read_metrics
from jaxdp.trainer.reporter import Reporter, banner, evaluation_line, on_terminal
from jaxdp.trainer.saved_run import load_initial_weights
from jaxdp.trainer.train_loop import TrainLoop
from jaxdp.trainer.workdir import CHECKPOINTS, Labels, claim_workdir, write_labels


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
    world.activity.enter(COMPILE)
    run = build(config, world)
    run.check_memory()
    checkpoints = None
    with world.agree_or_exit():
        if world.is_root:
            run = _with_initial_weights(run, workdir / CHECKPOINTS)
            claim_workdir(config, workdir)
            source = run.source
            write_labels(Labels(source.image_shape, source.num_classes, source.class_names), workdir)
            keep, keep_best = config.checkpoint.keep, config.checkpoint.keep_best
            checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=keep, keep_best=keep_best)
    state, position = restore(run, checkpoints)
    world.activity.enter("load")
    bar = world.is_root and on_terminal()
    train_split = run.read("train", holdings=_holdings(run, position.step), bar=bar)
    test_split = run.read("test", bar=bar)
    allreduce = run.placement.make_allreduce(config.allreduce, world, run.layout, position.chosen)
    position = dataclasses.replace(position, chosen=allreduce.chosen)
    end = min(run.lengths.total_steps, stop_at_step or run.lengths.total_steps)
    if world.is_root:
        print(banner(run, allreduce.description, workdir, train_split, test_split, position), flush=True)
    if world.bcast(world.is_root and _nothing_left(workdir, position, run.lengths, end)):
        if checkpoints is not None:
            print(f"nothing to do: step {position.step} of {run.lengths.total_steps} is already done", flush=True)
            checkpoints.close()
        return

    with world.agree_or_exit():
        if profile_steps is not None and not position.step < profile_steps[0] <= profile_steps[1] <= end:
            first, last = profile_steps
            raise ValueError(
                f"this job runs steps {position.step + 1} to {end}: --profile_steps={first}:{last} is outside that "
                "range"
            )
    report = (
        Reporter(run, workdir, first_step=position.step, end_step=end, hosts=world.hosts) if world.is_root else None
    )
    train_loop = TrainLoop(
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
    gate = feed.ExchangeGate()
    train_loop.train(state, _batches(run, train_split, position.step, end, gate), gate)
    if checkpoints is not None:
        checkpoints.close()
    preemption.close()
    if report is not None:
        if train_loop.end == run.lengths.total_steps:
            report.finished(train_loop.results, state_hash=train_loop.state_hash)
        else:
            report.stopped(train_loop.end)
    world.barrier()
    if train_loop.is_preempted:
        raise AgreedExit(REQUEUE)


def _with_initial_weights(run: Run, checkpoints: pathlib.Path) -> Run:
    """Loads the initial weights from `config.init_from`, if that is set and the run has no checkpoint."""
    config, state = run.config, run.first_state
    if config.init_from is None or Checkpoints(checkpoints).latest_step() is not None:
        return run
    params, stats = load_initial_weights(
        pathlib.Path(config.init_from), state.params, state.stats, skip=config.init_skip
    )
    average = params if state.average else {}
    return dataclasses.replace(run, first_state=dataclasses.replace(state, params=params, stats=stats, average=average))


def evaluate_run(config: Config, workdir: pathlib.Path, world: World) -> None:
    """Restores the latest checkpoint in the workdir and evaluates it on the whole test split."""
    run = build(config, world)
    test_split = run.read("test")
    with world.agree_or_exit():
        checkpoints = Checkpoints(workdir / CHECKPOINTS) if world.is_root else None
        if checkpoints is not None and checkpoints.latest_step() is None:
            raise ValueError(f"there is no checkpoint in {workdir}: train first")
    state, position = restore(run, checkpoints)
    results = run.evaluation(test_split)(state)
    if checkpoints is not None:
        checkpoints.close()
        print(evaluation_line(position.step, run.lengths, results), flush=True)


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
    with world.agree_or_exit():
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
    return run.placement.replicate(jax.tree.unflatten(treedef, same)), world.bcast(position)


def _batches(run: Run, split: Split, first: int, end: int, gate: feed.ExchangeGate) -> feed.Prefetcher[Batch]:
    host_batches = feed.batches(
        split,
        order=run.order,
        batch_split=run.batch_split,
        rank=run.world.rank,
        group=run.groups["train"].opened(run.world.data_comm),
        comm=run.world.data_comm,
        steps=range(first, end),
        steps_per_exchange=run.config.data.exchange_steps,
        partitions=run.partitions,
        gate=gate,
    )
    return feed.Prefetcher(host_batches, run.placement.place, depth=run.config.data.prefetch)


def _holdings(run: Run, step: int) -> np.ndarray | None:
    """The example in each slot at the start of a step; None if slot i holds example i."""
    partitions = run.partitions
    return None if partitions is None else partitions.holdings(partitions.period_at(step))


def _nothing_left(workdir: pathlib.Path, position: Position, lengths: RunLengths, end: int) -> bool:
    if position.step < lengths.total_steps:
        return position.step >= end
    # A job that was killed after its last save has not written its summary yet.
    return any(line.get("summary") for line in read_metrics(workdir))
