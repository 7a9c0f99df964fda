"""A run's life, in its order: build, restore, step, evaluate, save, sum up."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
import optax

from jaxdp import __version__, compat
from jaxdp.checkpoint import Checkpoints, Position
from jaxdp.collectives.allreduce import make_allreduce
from jaxdp.config import Config
from jaxdp.data import feed
from jaxdp.data.order import Deal, Order
from jaxdp.data.source import Source, Split, open_source, prepare_digits
from jaxdp.engine import LocalEngine
from jaxdp.evaluation import Evaluation
from jaxdp.metrics import MetricsWriter, Progress, TrainLog, read_metrics
from jaxdp.models.network import Network
from jaxdp.optim.factory import make_optimizer
from jaxdp.optim.schedules import make_schedule
from jaxdp.plan import Plan
from jaxdp.state import TrainState
from jaxdp.step import Task
from jaxdp.workdir import claim_workdir
from jaxdp.world import World


@dataclasses.dataclass(frozen=True)
class Run:
    """All parts of a run, built from its config and not changed by it.

    Attributes:
      first_state: before the first step, on this rank's host.
    """

    config: Config
    world: World
    plan: Plan
    source: Source
    engine: LocalEngine
    deal: Deal
    task: Task
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    first_state: TrainState

    def evaluation(self, split: Split) -> Evaluation:
        """Of this rank's share of a split, in batches as large as those of training."""
        size = self.deal.per_device * self.engine.num_devices
        return Evaluation(self.task, self.engine, split, batch_size=size, world=self.world)

    @property
    def position_at_start(self) -> Position:
        return Position(0, self.config.seed, self.plan.num_examples, self.config.batch_size)


def train(config: Config, workdir: pathlib.Path, world: World, *, stop_at_step: int | None = None) -> None:
    """Trains to the end of the config's epochs, from the latest checkpoint in the workdir if there is one.

    Args:
      config: of the run.
      workdir: a folder for this run alone; rank 0 writes to it.
      world: all ranks call this together.
      stop_at_step: save and end before the end of the run, once so many steps are done.
    """
    run = build(config, world)
    with world.together():
        train_split = run.source.read("train", rank=world.rank, num_ranks=world.size)
        test_split = run.source.read("test", rank=world.rank, num_ranks=world.size)
    checkpoints = None
    with world.together():
        if world.is_root:
            claim_workdir(config, workdir)
            checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    state, position = restore(run, checkpoints)
    end = min(run.plan.total_steps, stop_at_step or run.plan.total_steps)
    if world.is_root:
        print(_banner(run, workdir, train_split, test_split, position), flush=True)
    if world.bcast(_nothing_left(workdir, position, run.plan, end)):
        if world.is_root:
            print(f"nothing to do: step {position.step} of {run.plan.total_steps} is done already", flush=True)
        if checkpoints is not None:
            checkpoints.close()
        return

    writer = MetricsWriter(workdir, resume_step=position.step) if world.is_root else None
    progress = Progress(run.plan.total_steps, first_step=position.step) if world.is_root else None
    train_step = run.engine.train_step(run.task, run.optimizer, state, bucket_bytes=config.allreduce.bucket_bytes)
    evaluate = run.evaluation(test_split)
    log = TrainLog(config.batch_size)
    started = time.perf_counter()
    previous: tuple[int, dict[str, Any]] | None = None
    results: dict[str, float] = {}

    def settle() -> None:
        """Waits for the step before; rank 0 notes its metrics, and writes a line where one is due."""
        nonlocal previous
        if previous is None:
            return
        (step, values), previous = previous, None
        jax.block_until_ready(values)
        if writer is None or progress is None:
            return
        log.add(values)
        if step % config.log_every_steps == 0 or step == end:
            means, seconds_per_step = log.take()
            means["learning_rate"] = float(run.learning_rate(step - 1))
            writer.write(step, epoch=run.plan.epoch(step), **means)
            progress.update(step, epoch=run.plan.epoch(step), values=means, seconds_per_step=seconds_per_step)

    for done, batch in enumerate(_batches(run, train_split, position.step, end), position.step + 1):
        # Step n is on its way before the metrics of step n - 1 are waited for, so that devices never idle.
        state, values = train_step(state, batch)
        settle()
        previous = (done, values)
        evaluates, saves = done in run.plan.eval_steps, done in run.plan.save_steps or done == end
        if evaluates or saves:
            settle()
            if evaluates:
                results = evaluate(state)
                if writer is not None and progress is not None:
                    writer.write(done, epoch=run.plan.epoch(done), **results)
                    progress.say(_evaluation_line(done, run.plan, results))
            if saves and checkpoints is not None:
                checkpoints.save(state, dataclasses.replace(position, step=done))
            log.restart_clock()

    if end == run.plan.total_steps and not results:
        results = evaluate(state)
    if checkpoints is not None:
        checkpoints.close()
    if writer is not None and progress is not None:
        seconds = time.perf_counter() - started
        progress.close()
        if end == run.plan.total_steps:
            rate = (end - position.step) * config.batch_size / seconds
            writer.write(end, summary=True, **results, seconds=seconds, images_per_second=rate)
            print(_summary_line(results, seconds, rate, workdir), flush=True)
        else:
            print(f"stopped at step {end} as asked: start again to go on from there", flush=True)
        writer.close()
    world.barrier()


def evaluate_run(config: Config, workdir: pathlib.Path, world: World) -> None:
    """Restores the latest checkpoint in the workdir and evaluates it on the whole test split."""
    run = build(config, world)
    with world.together():
        test_split = run.source.read("test", rank=world.rank, num_ranks=world.size)
    with world.together():
        checkpoints = Checkpoints(workdir / "checkpoints") if world.is_root else None
        if checkpoints is not None and checkpoints.latest_step() is None:
            raise ValueError(f"there is no checkpoint in {workdir}: train first")
    state, position = restore(run, checkpoints)
    results = run.evaluation(test_split)(state)
    if checkpoints is not None:
        checkpoints.close()
        print(_evaluation_line(position.step, run.plan, results), flush=True)


def build(config: Config, world: World) -> Run:
    """Makes every part that the config names; a user's mistake in any of them ends the job with one message."""
    compat.use_compilation_cache(rank=world.rank, size=world.size)
    prepare_digits(config.data, world)
    with world.together():
        source = open_source(config.data)
        allreduce = make_allreduce(config.allreduce, world.device_comm)
        network, params, stats = Network.create(
            config.model.name,
            config.model.options,
            image_shape=source.image_shape,
            num_classes=source.num_classes,
            seed=config.seed,
        )
    engine = LocalEngine.create(allreduce)
    world.require_equal("number of local devices", engine.num_devices)
    world.require_equal("version of jaxdp", __version__)
    world.require_equal("data set", (source.name, source.num_examples("train"), source.num_examples("test")))
    plan = Plan.of(config, source.num_examples("train"))
    deal = Deal(config.batch_size, world.size, engine.num_devices)
    learning_rate = jax.jit(make_schedule(config.schedule, plan))
    optimizer = make_optimizer(config.optimizer, learning_rate, params)
    return Run(
        config=config,
        world=world,
        plan=plan,
        source=source,
        engine=engine,
        deal=deal,
        task=Task(network, config.data.mean, config.data.std, config.batch_size, deal.padded),
        learning_rate=learning_rate,
        optimizer=optimizer,
        first_state=TrainState.create(params, stats, optimizer),
    )


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
        latest = checkpoints.latest_step() if checkpoints is not None else None
        if checkpoints is not None and latest is not None:
            state, position = checkpoints.restore(latest, run.first_state)
            if position != dataclasses.replace(run.position_at_start, step=latest):
                raise ValueError(
                    f"the checkpoint in {checkpoints.folder} is of other data: it has {position}, this run begins "
                    f"with {run.position_at_start}: choose another --workdir"
                )
    leaves, treedef = jax.tree.flatten(state)
    same = world.bcast_arrays([np.array(leaf) for leaf in leaves])
    return run.engine.replicate(jax.tree.unflatten(treedef, same)), world.bcast(position)


def _batches(run: Run, split: Split, first: int, end: int) -> Any:
    host_batches = feed.batches(
        split,
        order=Order(split.num_examples, run.config.batch_size, run.config.seed),
        deal=run.deal,
        comm=run.world.data_comm,
        steps=range(first, end),
        steps_per_exchange=run.config.data.exchange_steps,
    )
    return feed.ahead(host_batches, run.engine.place, depth=run.config.data.prefetch)


def _banner(run: Run, workdir: pathlib.Path, train: Split, test: Split, position: Position) -> str:
    world, plan = run.world, run.plan
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.first_state.params))
    per_rank = run.deal.rank_bounds[1:] - run.deal.rank_bounds[:-1]
    rows = f"{per_rank.max()}" if per_rank.min() == per_rank.max() else f"{per_rank.min()} to {per_rank.max()}"
    memory = (train.nbytes + test.nbytes) / 2**20
    lines = [
        ("world", f"{world.size} ranks, {world.local_size} on {world.host}, {world.threads} threads a rank"),
        ("devices", run.engine.description),
        ("MPI", world.library),
        ("allreduce", run.engine.allreduce.description if world.size > 1 else "none: a world of one"),
        ("model", f"{run.config.model.name}, {parameters:,} parameters"),
        (
            "data",
            f"{run.source.name}, {plan.num_examples:,} + {test.num_examples:,} images, {memory:.1f} MiB a rank in RAM",
        ),
        ("batch", f"{plan.batch_size} = {rows} a rank, peak rate {plan.peak_rate:.4g}"),
        ("steps", f"{plan.total_steps} = {run.config.epochs:g} epochs, {plan.warmup_steps} of warmup"),
        ("workdir", f"{workdir}"),
    ]
    if position.step:
        lines.append(("resume", f"goes on from step {position.step}, epoch {plan.epoch(position.step):.2f}"))
    return "\n".join([f"jaxdp {__version__}", *(f"  {name:10}{text}" for name, text in lines)])


def _nothing_left(workdir: pathlib.Path, position: Position, plan: Plan, end: int) -> bool:
    if position.step < plan.total_steps:
        return position.step >= end
    # A job that is killed after its last save has not summed up yet.
    return any(line.get("summary") for line in read_metrics(workdir))


def _evaluation_line(step: int, plan: Plan, results: dict[str, float]) -> str:
    return (
        f"step {step}  epoch {plan.epoch(step):.2f}  test loss {results['test_loss']:.4f}  "
        f"test accuracy {results['test_accuracy']:.4f}"
    )


def _summary_line(results: dict[str, float], seconds: float, rate: float, workdir: pathlib.Path) -> str:
    return (
        f"finished: test accuracy {results['test_accuracy']:.4f}, {seconds:.1f} s, {rate:.0f} images/s, "
        f"metrics in {workdir / 'metrics.jsonl'}"
    )
