"""Complete training runs on a small data set held on one device, for studies with many runs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxdp.config.run_lengths import RunLengths
from jaxdp.config.schema import Config
from jaxdp.data.augment import Augmentation
from jaxdp.data.batch import Batch
from jaxdp.data.order import BatchSplit, Order
from jaxdp.data.source import Source
from jaxdp.models.network import Network
from jaxdp.optim.factory import make_optimizer
from jaxdp.optim.schedules import make_schedule
from jaxdp.step.evaluate import evaluate_batch
from jaxdp.step.forward_backward import forward_backward
from jaxdp.step.state import TrainState
from jaxdp.step.task import Task
from jaxdp.step.update import apply_gradients


@dataclasses.dataclass(frozen=True)
class Examples:
    """A data set in memory.

    Attributes:
      images_NHWC: images, uint8.
      labels_N: labels, int32.
      num_classes: number of classes.
    """

    images_NHWC: np.ndarray
    labels_N: np.ndarray
    num_classes: int

    @classmethod
    def of(cls, source: Source) -> Examples:
        """Reads a whole data set, the training split first and then the test split."""
        splits = [source.records(split).__getitems__(range(source.sizes[split])) for split in ("train", "test")]
        records = [record for split in splits for record in split]
        labels_N = np.array([record["label"] for record in records], np.int32)
        return cls(np.stack([record["image"] for record in records]), labels_N, source.num_classes)


class Training:
    """Runs the steps of `jaxdp.train` on one device.

    Runs that differ only in seed, examples and peak rate share a compiled program.

    Args:
      config: config of the runs, except for the seed and the peak rate.
      examples: the data set, for training and evaluation.
      num_train: number of examples that a run trains on.

    Raises:
      ValueError: the config does not fit this number of training examples.
    """

    def __init__(self, config: Config, examples: Examples, num_train: int):
        self._config, self._examples = config, examples
        self.lengths = RunLengths.of(config, num_train)
        self._images_NHWC, self._labels_N = jax.device_put((examples.images_NHWC, examples.labels_N))
        self._first = jax.jit(self._first_state)
        self._step = jax.jit(self._next_state, donate_argnums=0)
        self._parameters = functools.lru_cache(lambda seed: self._network(seed)[1:])
        self._sums = jax.jit(self._evaluate)

    def __call__(self, *, seed: int, peak_rate: float, train: np.ndarray) -> TrainState:
        """Does one run and returns its final state.

        Args:
          seed: seed of the initial parameters and of the data order.
          peak_rate: highest learning rate of the schedule.
          train: indices of the examples to train on, int64 [num_train].
        """
        order = Order(len(train), self._config.batch_size, seed)
        assert order.num_examples == self.lengths.num_examples, (
            "the run lengths must be those of this number of examples"
        )
        numbers = order.examples(0, self.lengths.total_steps)
        epochs = order.epochs(0, self.lengths.total_steps)
        state = self._first(*self._parameters(seed))
        for of_step in zip(train[numbers], numbers, epochs, strict=True):
            state = self._step(state, peak_rate, *(values.astype(np.int32) for values in of_step))
        return state

    def evaluate(self, state: TrainState, examples: np.ndarray) -> tuple[float, float]:
        """Returns the accuracy and the mean loss on the examples with these indices, int64 [N]."""
        sums = self._sums(state, examples)
        return float(sums["hits"]) / len(examples), float(sums["loss"]) / len(examples)

    def _network(self, seed: int) -> tuple[Network, Any, Any]:
        augmentation = Augmentation.of_config(self._config.data, seed=self._config.seed)
        return Network.create(
            self._config.model.name,
            self._config.model.options,
            image_shape=augmentation.shape(self._examples.images_NHWC.shape[1:]),
            num_classes=self._examples.num_classes,
            seed=seed,
        )

    @functools.cached_property
    def _task(self) -> Task:
        network, _, _ = self._network(self._config.seed)
        return Task.of_config(
            self._config, network, BatchSplit(self._config.batch_size, 1, 1, self._config.microbatches)
        )

    def _optimizer(self, params: Any, peak_rate: Any) -> Any:
        schedule = make_schedule(self._config.schedule, dataclasses.replace(self.lengths, peak_rate=peak_rate))
        return make_optimizer(self._config.optimizer, schedule, params)

    def _first_state(self, params: Any, stats: Any) -> TrainState:
        averages = self._config.average_decay is not None
        return TrainState.create(params, stats, self._optimizer(params, 1.0), averages=averages)

    def _next_state(self, state: TrainState, peak_rate: Any, id_B: Any, number_B: Any, epoch_B: Any) -> TrainState:
        batch = self._batch(id_B, number_B, epoch_B)
        reduced = forward_backward(self._task, state.params, state.stats, batch)
        return apply_gradients(self._task, self._optimizer(state.params, peak_rate), state, reduced)[0]

    def _evaluate(self, state: TrainState, id_B: Any) -> dict[str, jax.Array]:
        return evaluate_batch(self._task, state.evaluated, state.stats, self._batch(id_B, id_B, id_B))

    def _batch(self, id_B: Any, number_B: Any, epoch_B: Any) -> Batch:
        about = [self._labels_N[id_B], np.ones(len(id_B), np.int32), number_B, epoch_B]
        return Batch(self._images_NHWC[id_B], jax.numpy.stack(about, axis=-1))
