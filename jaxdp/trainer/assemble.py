"""Builds the parts of a run from its config."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax

from jaxdp.collectives.buckets import Buckets
from jaxdp.config.run_lengths import RunLengths
from jaxdp.config.schema import Config
from jaxdp.data.augment import Augmentation
from jaxdp.data.catalog import open_source
from jaxdp.data.decode import Decoder, RandomCrop
from jaxdp.data.load import check_memory, read
from jaxdp.data.nodes import Group
from jaxdp.data.order import BatchSplit, Order
from jaxdp.data.partition import Partitions
from jaxdp.data.source import Source
from jaxdp.data.split import Split
from jaxdp.data.tfds_source import prepare_digits
from jaxdp.models.network import Network
from jaxdp.optim.factory import make_optimizer
from jaxdp.optim.schedules import make_schedule
from jaxdp.placement import Placement, make_placement
from jaxdp.runtime import jax_compat
from jaxdp.runtime.world import World
from jaxdp.step.forward_backward import reduced_order, reduced_shapes
from jaxdp.step.state import TrainState
from jaxdp.step.task import Task
from jaxdp.trainer.checkpoint import Position
from jaxdp.trainer.evaluation import Evaluation
from jaxdp.trainer.preflight import check_parts, check_software


@dataclasses.dataclass(frozen=True)
class Run:
    """All parts of a run, built from its config. A run never changes them.

    Attributes:
      groups: for each split, this rank's group; the ranks of a group hold the split together.
      first_state: state before the first step, not yet replicated.
      layout: buckets of the values that ranks sum in each step.
    """

    config: Config
    world: World
    lengths: RunLengths
    source: Source
    placement: Placement
    batch_split: BatchSplit
    groups: dict[str, Group]
    task: Task
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    first_state: TrainState
    layout: Buckets

    def evaluation(self, split: Split) -> Evaluation:
        """Evaluation of this rank's share of a split, in batches as large as in training."""
        size = self.batch_split.per_device * self.placement.num_devices
        return Evaluation(self.task, self.placement, split, batch_size=size, world=self.world)

    @property
    def partitions(self) -> Partitions | None:
        """Partitions of the training split; None unless it is shuffled by partition."""
        data, size = self.config.data, self.lengths.num_examples
        if data.shuffle != "partition":
            return None
        assert data.partitions is not None, "the config check requires the number of partitions"
        return Partitions(size, data.partitions, data.exchange_every, self.config.batch_size, self.config.seed)

    @property
    def order(self) -> Order:
        """Order in which training visits the examples."""
        of_epoch = None if self.partitions is None else self.partitions.order
        return Order(self.lengths.num_examples, self.config.batch_size, self.config.seed, of_epoch)

    def read(self, split: str, *, holdings: np.ndarray | None = None, bar: bool = False) -> Split:
        """Reads a split into memory, see `load.read`."""
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
        """Checks that the data fits into memory, see `load.check_memory`."""
        rows = int(np.diff(self.batch_split.rank_bounds).max()) * self.config.data.exchange_steps
        encoded = self.config.data.storage == "encoded"
        check_memory(self.source, self.world, self.groups, encoded=encoded, rows_ahead=rows)

    @property
    def position_at_start(self) -> Position:
        return Position(0, self.config.seed, self.source.fingerprint, self.lengths.num_examples, self.config.batch_size)


def build(config: Config, world: World) -> Run:
    """Builds every part of a run; a user error in any of them ends the job with one message."""
    check_software(world, engine=config.allreduce.engine)
    jax_compat.use_compilation_cache(rank=world.rank, size=world.size)
    placement = make_placement(config.allreduce.engine, world)
    prepare_digits(config.data, world)
    with world.agree_or_exit():
        source = open_source(config.data)
        groups = {split: Group.of(world, count) for split, count in (("train", config.data.groups), ("test", 1))}
        augmentation = Augmentation.of_config(config.data, seed=config.seed)
        network, params, stats = Network.create(
            config.model.name,
            config.model.options,
            image_shape=augmentation.shape(source.image_shape),
            num_classes=source.num_classes,
            seed=config.seed,
        )
    check_parts(world, params=params, num_devices=placement.num_devices, data=source.fingerprint)
    with world.agree_or_exit():
        lengths = RunLengths.of(config, source.sizes["train"])
    batch_split = BatchSplit(config.batch_size, world.size, placement.num_devices, config.microbatches)
    learning_rate = jax.jit(make_schedule(config.schedule, lengths))
    optimizer = make_optimizer(config.optimizer, learning_rate, params)
    first_state = TrainState.create(params, stats, optimizer, averages=config.average_decay is not None)
    task = Task.of_config(config, network, batch_split)
    if config.batch_statistics == "world":
        task = dataclasses.replace(task, batch_sums=placement.make_batch_sums(world))
    order = reduced_order(task, first_state, source.image_shape)
    return Run(
        config=config,
        world=world,
        lengths=lengths,
        source=source,
        placement=placement,
        batch_split=batch_split,
        groups=groups,
        task=task,
        learning_rate=learning_rate,
        optimizer=optimizer,
        first_state=first_state,
        layout=Buckets.plan(reduced_shapes(first_state), bucket_bytes=config.allreduce.bucket_bytes, order=order),
    )
