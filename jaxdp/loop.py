"""A run's life, in its order: build, restore, step, evaluate, save, sum up."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from jaxdp import __version__, compat
from jaxdp.checkpoint import Checkpoints, Position
from jaxdp.collectives.buckets import Buckets
from jaxdp.config import Config
from jaxdp.data import feed
from jaxdp.data.augment import Augmentation
from jaxdp.data.catalog import open_source
from jaxdp.data.decode import Decoder, RandomCrop
from jaxdp.data.load import check_memory, read
from jaxdp.data.nodes import Group
from jaxdp.data.order import Deal, Order
from jaxdp.data.partition import Partitions
from jaxdp.data.source import Source
from jaxdp.data.split import Split
from jaxdp.data.tfds_source import prepare_digits
from jaxdp.engines import Engine, make_engine
from jaxdp.evaluation import Evaluation
from jaxdp.metrics import read_metrics
from jaxdp.models.network import Network
from jaxdp.named import find
from jaxdp.optim.factory import make_optimizer
from jaxdp.optim.schedules import make_schedule
from jaxdp.plan import Plan
from jaxdp.report import Report, banner, evaluation_line, on_terminal
from jaxdp.state import TrainState
from jaxdp.step import Batch, Task, checked_leaves, reduced_order, reduced_shapes
from jaxdp.workdir import claim_workdir
from jaxdp.world import UserError, World


@dataclasses.dataclass(frozen=True)
class Run:
    """All parts of a run, built from its config and not changed by it.

    Attributes:
      groups: of ranks, those that hold each split between them.
      first_state: before the first step, on this rank's host.
      layout: the buckets of what crosses between ranks in a step.
    """

    config: Config
    world: World
    plan: Plan
    source: Source
    engine: Engine
    deal: Deal
    groups: dict[str, Group]
    task: Task
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    first_state: TrainState
    layout: Buckets

    def evaluation(self, split: Split) -> Evaluation:
        """Of this rank's share of a split, in batches as large as those of training."""
        size = self.deal.per_device * self.engine.num_devices
        return Evaluation(self.task, self.engine, split, batch_size=size, world=self.world)

    @property
    def partitions(self) -> Partitions | None:
        """Of the training split, if that is how it is shuffled."""
        data, size = self.config.data, self.plan.num_examples
        if data.shuffle != "partition":
            return None
        assert data.partitions is not None
        return Partitions(size, data.partitions, data.exchange_every, self.config.batch_size, self.config.seed)

    @property
    def order(self) -> Order:
        """Of the examples in training."""
        of_epoch = None if self.partitions is None else self.partitions.order
        return Order(self.plan.num_examples, self.config.batch_size, self.config.seed, of_epoch)

    def read(self, split: str, *, holdings: np.ndarray | None = None, bar: bool = False) -> Split:
        """Reads a split, see `load.read`."""
        decoder = None
        if self.config.data.storage == "encoded":
            decoder = self._training_decoder if split == "train" else Decoder(self.source.image_shape)
        group = self.groups[split]
        return read(self.source, split, self.world, group, decoder=decoder, holdings=holdings, bar=bar)

    @property
    def _training_decoder(self) -> Decoder:
        data = self.config.data
        if data.crop != "resized":
            return Decoder(self.source.image_shape)
        crop = RandomCrop(self.config.seed, data.crop_area, data.crop_ratio)
        return Decoder(self.task.augmentation.shape(self.source.image_shape), crop)

    def check_memory(self) -> None:
        """Checks that the data fits, see `load.check_memory`."""
        rows = int(np.diff(self.deal.rank_bounds).max()) * self.config.data.exchange_steps
        encoded = self.config.data.storage == "encoded"
        check_memory(self.source, self.world, self.groups, encoded=encoded, rows_ahead=rows)

    @property
    def position_at_start(self) -> Position:
        return Position(0, self.config.seed, self.source.fingerprint, self.plan.num_examples, self.config.batch_size)


def train(config: Config, workdir: pathlib.Path, world: World, *, stop_at_step: int | None = None) -> None:
    """Trains to the end of the config's epochs, from the latest checkpoint in the workdir if there is one.

    Args:
      config: of the run.
      workdir: a folder for this run alone; rank 0 writes to it.
      world: all ranks call this together.
      stop_at_step: save and end before the end of the run, once so many steps are done.
    """
    run = build(config, world)
    run.check_memory()
    checkpoints = None
    with world.together():
        if world.is_root:
            claim_workdir(config, workdir)
            checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    state, position = restore(run, checkpoints)
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

    report = Report(run, workdir, first_step=position.step, end_step=end) if world.is_root else None
    train_step = run.engine.train_step(run.task, run.optimizer, run.layout, allreduce)
    evaluate = run.evaluation(test_split)
    in_flight: tuple[int, dict[str, Any]] | None = None
    results: dict[str, float] = {}

    def settle() -> None:
        """Waits for the step in flight, and has it reported."""
        nonlocal in_flight
        if in_flight is not None:
            (step, values), in_flight = in_flight, None
            jax.block_until_ready(values)
            values = heed_skipped(run, step, values)
            if report is not None:
                report.trained(step, values)

    ahead = _batches(run, train_split, position.step, end)
    for done, batch in enumerate(ahead, position.step + 1):
        # Step n is on its way before step n - 1 is waited for, so that devices never idle.
        state, values = train_step(state, batch)
        settle()
        in_flight = done, values | {"input_seconds": ahead.take_waited()}
        if done in run.plan.eval_steps:
            settle()
            results = evaluate(state)
            if report is not None:
                report.evaluated(done, results)
        if done in run.plan.save_steps or done == end:
            settle()
            if checkpoints is not None:
                checkpoints.save(run.engine.host_copy(state), dataclasses.replace(position, step=done))
            if report is not None:
                report.restart_clock()

    if end == run.plan.total_steps and not results:
        results = evaluate(state)
    if checkpoints is not None:
        checkpoints.close()
    if report is not None:
        if end == run.plan.total_steps:
            report.finished(results)
        else:
            report.stopped()
    world.barrier()


def evaluate_run(config: Config, workdir: pathlib.Path, world: World) -> None:
    """Restores the latest checkpoint in the workdir and evaluates it on the whole test split."""
    run = build(config, world)
    test_split = run.read("test")
    with world.together():
        checkpoints = Checkpoints(workdir / "checkpoints") if world.is_root else None
        if checkpoints is not None and checkpoints.latest_step() is None:
            raise ValueError(f"there is no checkpoint in {workdir}: train first")
    state, position = restore(run, checkpoints)
    results = run.evaluation(test_split)(state)
    if checkpoints is not None:
        checkpoints.close()
        print(evaluation_line(position.step, run.plan, results), flush=True)


def build(config: Config, world: World) -> Run:
    """Makes every part that the config names; a user's mistake in any of them ends the job with one message."""
    compat.use_compilation_cache(rank=world.rank, size=world.size)
    engine = make_engine(config.allreduce.engine, world)
    prepare_digits(config.data, world)
    with world.together():
        source = open_source(config.data)
        groups = {split: Group.of(world, count) for split, count in (("train", config.data.groups), ("test", 1))}
        augmentation = make_augmentation(config)
        network, params, stats = Network.create(
            config.model.name,
            config.model.options,
            image_shape=augmentation.shape(source.image_shape),
            num_classes=source.num_classes,
            seed=config.seed,
        )
    world.require_equal("number of local devices", engine.num_devices)
    world.require_equal("version of jaxdp", __version__)
    world.require_equal("data set", source.fingerprint)
    with world.together():
        plan = Plan.of(config, source.sizes["train"])
    deal = Deal(config.batch_size, world.size, engine.num_devices, config.microbatches)
    learning_rate = jax.jit(make_schedule(config.schedule, plan))
    optimizer = make_optimizer(config.optimizer, learning_rate, params)
    first_state = TrainState.create(params, stats, optimizer, averages=config.average_decay is not None)
    task = make_task(config, network, deal)
    order = reduced_order(task, first_state, source.image_shape)
    return Run(
        config=config,
        world=world,
        plan=plan,
        source=source,
        engine=engine,
        deal=deal,
        groups=groups,
        task=task,
        learning_rate=learning_rate,
        optimizer=optimizer,
        first_state=first_state,
        layout=Buckets.plan(reduced_shapes(first_state), bucket_bytes=config.allreduce.bucket_bytes, order=order),
    )


def make_task(config: Config, network: Network, deal: Deal) -> Task:
    """The constants of the step."""
    return Task(
        network=network,
        mean=config.data.mean,
        std=config.data.std,
        batch_size=config.batch_size,
        padded=deal.padded,
        augmentation=make_augmentation(config),
        microbatches=config.microbatches,
        label_smoothing=config.label_smoothing,
        average_decay=config.average_decay,
    )


def make_augmentation(config: Config) -> Augmentation:
    """What the config says of it."""
    data = config.data
    # Files are cropped as they are decoded.
    crop = "none" if data.storage == "encoded" and data.crop == "resized" else data.crop
    return Augmentation(
        seed=config.seed,
        image_size=data.image_size,
        crop=crop,
        padding=data.crop_padding,
        area=data.crop_area,
        ratio=data.crop_ratio,
        flip=data.flip,
        own=find("config.data.augment", data.augment) if data.augment is not None else None,
    )


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
    return {"input_seconds": values["input_seconds"], "skipped": 1.0}


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


def _batches(run: Run, split: Split, first: int, end: int) -> feed.Ahead[Batch]:
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
