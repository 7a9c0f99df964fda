"""Protocol of the large-batch study: its arms, runs, data splits and summaries. See docs/large_batch.md."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from jaxdp.config.schema import Config
from jaxdp.data.order import even_bounds, permutation
from jaxdp.study.statistics import Interval, corrected_interval


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings of the study, fixed before the first run.

    Attributes:
      multiples: batch sizes, as multiples of the small batch.
      rates: base rates of every arm, before they are scaled to the batch size.
      warmup_epochs: length of the warmup in the arms with warmup.
      folds: number of folds of the cross-validation. One fold is the test set, the next one is used to choose the base
        rate, and the remaining folds are the training set.
      repeats: number of repetitions of the cross-validation, each with different folds, initial parameters and data
        order.
    """

    multiples: tuple[int, ...] = (1, 4, 8, 16)
    rates: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
    warmup_epochs: float = 5.0
    folds: int = 5
    repeats: int = 3


# Changes that each method makes to the config of the small batch.
METHODS = {
    "unchanged": "rate unchanged",
    "scaled": "rate scaled",
    "warmup": "rate scaled, warmup",
    "lars": "rate scaled, warmup, LARS",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of the study: a batch size, as a multiple of the small batch, and a method to adapt training to it."""

    multiple: int
    method: str

    def config(self, small: Config, protocol: Protocol) -> Config:
        """Returns the config of the runs of this arm, except for the seed and the rate."""
        warms = self.method in ("warmup", "lars")
        return dataclasses.replace(
            small,
            batch_size=small.batch_size * self.multiple,
            schedule=dataclasses.replace(small.schedule, warmup_epochs=protocol.warmup_epochs if warms else 0.0),
            optimizer=dataclasses.replace(small.optimizer, name="lars" if self.method == "lars" else "sgd"),
        )

    def peak_rate(self, base_rate: float) -> float:
        return base_rate if self.method == "unchanged" else base_rate * self.multiple


def arms(protocol: Protocol) -> list[Arm]:
    """Returns all arms. At the small batch there is no "scaled" arm, because scaling by 1 changes nothing."""
    return [
        Arm(multiple, method)
        for multiple in protocol.multiples
        for method in METHODS
        if not (multiple == 1 and method == "scaled")
    ]


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One training run.

    Attributes:
      multiple, method: the arm of the run.
      base_rate: learning rate before it is scaled to the batch size.
      repeat: index of the repetition, and the seed of the folds, the initial parameters and the data order.
      fold: index of the test fold.
    """

    multiple: int
    method: str
    base_rate: float
    repeat: int
    fold: int

    @property
    def arm(self) -> Arm:
        return Arm(self.multiple, self.method)


def runs(protocol: Protocol) -> Iterator[StudyRun]:
    """Yields all runs, arm by arm."""
    for arm in arms(protocol):
        for repeat in range(protocol.repeats):
            for fold in range(protocol.folds):
                for rate in protocol.rates:
                    yield StudyRun(arm.multiple, arm.method, rate, repeat, fold)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Accuracy and mean loss of a run on the validation fold, which decides the rate, and on the test fold."""

    validation_accuracy: float
    validation_loss: float
    test_accuracy: float
    test_loss: float


def split(num_examples: int, protocol: Protocol, *, repeat: int, fold: int) -> tuple[np.ndarray, ...]:
    """Returns the indices of the training, validation and test examples."""
    order, bounds = permutation(num_examples, seed=repeat, epoch=0), even_bounds(num_examples, protocol.folds)
    parts = [order[bounds[part] : bounds[part + 1]] for part in range(protocol.folds)]
    test, validation = fold, (fold + 1) % protocol.folds
    train = np.concatenate([parts[part] for part in range(protocol.folds) if part not in (test, validation)])
    return train, parts[validation], parts[test]


def best(outcomes: dict[StudyRun, Outcome], run: StudyRun, protocol: Protocol) -> StudyRun:
    """Returns the run at the best base rate: that with the highest validation accuracy, ties broken by lowest loss."""
    same = [dataclasses.replace(run, base_rate=rate) for rate in protocol.rates]

    def merit(run: StudyRun) -> tuple[float, float]:
        loss = outcomes[run].validation_loss
        return outcomes[run].validation_accuracy, -loss if np.isfinite(loss) else -np.inf

    return max(same, key=merit)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of one arm.

    Attributes:
      arm: the arm.
      accuracy: test accuracy at the base rate chosen for each fold.
      difference: paired difference in accuracy, fold by fold, from the small batch at the unchanged rate; None for that
        arm itself.
      chosen: number of folds for which each base rate was chosen.
      by_rate: mean test accuracy at each base rate.
    """

    arm: Arm
    accuracy: Interval
    difference: Interval | None
    chosen: dict[float, int]
    by_rate: dict[float, float]


def summarise(outcomes: dict[StudyRun, Outcome], protocol: Protocol, num_examples: int) -> list[Summary]:
    """Summarises each arm from the outcomes of all runs."""
    folds = [(repeat, fold) for repeat in range(protocol.repeats) for fold in range(protocol.folds)]
    interval = functools.partial(
        corrected_interval,
        num_test=num_examples / protocol.folds,
        num_train=num_examples * (protocol.folds - 2) / protocol.folds,
    )

    def chosen_of(arm: Arm) -> list[StudyRun]:
        firsts = (StudyRun(arm.multiple, arm.method, protocol.rates[0], *place) for place in folds)
        return [best(outcomes, run, protocol) for run in firsts]

    def tested(chosen: list[StudyRun]) -> np.ndarray:
        return np.array([outcomes[run].test_accuracy for run in chosen])

    small = Arm(1, "unchanged")
    reference = tested(chosen_of(small))
    summaries = []
    for arm in arms(protocol):
        chosen = chosen_of(arm)
        rates = [run.base_rate for run in chosen]
        mean_at = {
            rate: float(
                np.mean([outcomes[StudyRun(arm.multiple, arm.method, rate, *place)].test_accuracy for place in folds])
            )
            for rate in protocol.rates
        }
        difference = None if arm == small else interval((tested(chosen) - reference).tolist())
        counted = {rate: rates.count(rate) for rate in protocol.rates if rate in rates}
        summaries.append(Summary(arm, interval(tested(chosen).tolist()), difference, counted, mean_at))
    return summaries
