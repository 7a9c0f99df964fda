"""What the study of large batches compares, and what its runs say; see docs/large_batch.md."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from jaxdp.config import Config
from jaxdp.data.order import even_bounds, permutation
from jaxdp.study.statistics import Interval, corrected_interval


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is compared; settled before the first run.

    Attributes:
      multiples: of the small batch.
      rates: the base rates of every arm, at the small batch.
      warmup_epochs: of the arms with a warmup.
      folds: of the cross-validation; one is tested on, the next one chooses the rate, the others are trained on.
      repeats: of all of it, each with folds, parameters and orders of its own.
    """

    multiples: tuple[int, ...] = (1, 4, 8, 16)
    rates: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
    warmup_epochs: float = 5.0
    folds: int = 5
    repeats: int = 3


# What each changes of the small batch's config.
METHODS = {
    "unchanged": "rate unchanged",
    "scaled": "rate scaled",
    "warmup": "rate scaled, warmup",
    "lars": "rate scaled, warmup, LARS",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A batch, a multiple of the small one, and what is done about it."""

    multiple: int
    method: str

    def config(self, small: Config, protocol: Protocol) -> Config:
        """That of its runs, but for seed and rate."""
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
    """All of them; at the small batch there is nothing to scale."""
    return [
        Arm(multiple, method)
        for multiple in protocol.multiples
        for method in METHODS
        if not (multiple == 1 and method == "scaled")
    ]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a network.

    Attributes:
      multiple, method: of its arm.
      base_rate: at the small batch.
      repeat: which repetition: the seed of folds, parameters and order.
      fold: that is tested on.
    """

    multiple: int
    method: str
    base_rate: float
    repeat: int
    fold: int

    @property
    def arm(self) -> Arm:
        return Arm(self.multiple, self.method)


def runs(protocol: Protocol) -> Iterator[Run]:
    """All of them, arm after arm."""
    for arm in arms(protocol):
        for repeat in range(protocol.repeats):
            for fold in range(protocol.folds):
                for rate in protocol.rates:
                    yield Run(arm.multiple, arm.method, rate, repeat, fold)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to: on the examples that choose the rate, and on those of its fold."""

    validation_accuracy: float
    validation_loss: float
    test_accuracy: float
    test_loss: float


def split(num_examples: int, protocol: Protocol, *, repeat: int, fold: int) -> tuple[np.ndarray, ...]:
    """The examples to train on, to choose the rate by, and to test on."""
    order, bounds = permutation(num_examples, seed=repeat, epoch=0), even_bounds(num_examples, protocol.folds)
    parts = [order[bounds[part] : bounds[part + 1]] for part in range(protocol.folds)]
    test, validation = fold, (fold + 1) % protocol.folds
    train = np.concatenate([parts[part] for part in range(protocol.folds) if part not in (test, validation)])
    return train, parts[validation], parts[test]


def best(outcomes: dict[Run, Outcome], run: Run, protocol: Protocol) -> Run:
    """Of the same run at all base rates, that with the best validation accuracy; if several have it, the least loss."""
    same = [dataclasses.replace(run, base_rate=rate) for rate in protocol.rates]

    def merit(run: Run) -> tuple[float, float]:
        loss = outcomes[run].validation_loss
        return outcomes[run].validation_accuracy, -loss if np.isfinite(loss) else -np.inf

    return max(same, key=merit)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an arm came to.

    Attributes:
      arm: which.
      accuracy: on the folds, at the rates chosen for each.
      difference: to the small batch at the unchanged rate, fold by fold; None for that itself.
      chosen: base rates, and for how many folds.
      by_rate: for each base rate the mean accuracy on the folds.
    """

    arm: Arm
    accuracy: Interval
    difference: Interval | None
    chosen: dict[float, int]
    by_rate: dict[float, float]


def summarise(outcomes: dict[Run, Outcome], protocol: Protocol, num_examples: int) -> list[Summary]:
    """An entry an arm, from the outcomes of all runs."""
    folds = [(repeat, fold) for repeat in range(protocol.repeats) for fold in range(protocol.folds)]
    interval = functools.partial(
        corrected_interval,
        num_test=num_examples / protocol.folds,
        num_train=num_examples * (protocol.folds - 2) / protocol.folds,
    )

    def chosen_of(arm: Arm) -> list[Run]:
        firsts = (Run(arm.multiple, arm.method, protocol.rates[0], *place) for place in folds)
        return [best(outcomes, run, protocol) for run in firsts]

    def tested(chosen: list[Run]) -> np.ndarray:
        return np.array([outcomes[run].test_accuracy for run in chosen])

    small = Arm(1, "unchanged")
    reference = tested(chosen_of(small))
    summaries = []
    for arm in arms(protocol):
        chosen = chosen_of(arm)
        rates = [run.base_rate for run in chosen]
        mean_at = {
            rate: float(
                np.mean([outcomes[Run(arm.multiple, arm.method, rate, *place)].test_accuracy for place in folds])
            )
            for rate in protocol.rates
        }
        difference = None if arm == small else interval((tested(chosen) - reference).tolist())
        counted = {rate: rates.count(rate) for rate in protocol.rates if rate in rates}
        summaries.append(Summary(arm, interval(tested(chosen).tolist()), difference, counted, mean_at))
    return summaries
