"""Does the large-batch recipe keep the accuracy of the small batch? Digits, cross-validated; docs/large_batch.md.

Every arm trains for the same number of epochs, at the same base rates. Of each fold's base rates the one with the best
accuracy on other, validating examples counts, and it counts by its accuracy on the fold. Ranks share the runs; what is
done is kept in the workdir, and the study goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxdp import compat, parse, workdir
from jaxdp.config import Config
from jaxdp.data.order import even_bounds, permutation
from jaxdp.study.statistics import Interval, corrected_interval
from jaxdp.world import World


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


def main(words: Sequence[str], world: World) -> None:
    """Does what is left of the study, and has rank 0 print and write what it shows."""
    parser = parse.Parser("jaxdp.study large_batch", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    default = pathlib.Path("runs/large_batch")
    parser.add_argument("--workdir", type=pathlib.Path, default=default, help="for the outcomes; default %(default)s")
    parser.add_argument("--table", type=pathlib.Path, help="a file for the tables, in Markdown")
    parser.add_argument("--plot", type=pathlib.Path, help="a file for the picture")
    arguments = parse.on_all_ranks(parser, words, lambda given: parse.check_writable(given.table, given.plot), world)
    if arguments is None:
        return
    compat.prepare_process(threads=world.threads, gpus=world.gpus)
    from configs.study_large_batch import get_config

    small, protocol = Config.from_dict(get_config().to_dict()), Protocol()
    summaries = carry_out(small, protocol, arguments.workdir, world)
    with world.together():
        if world.is_root:
            text = tables(summaries, small)
            print(text, flush=True)
            if arguments.table:
                parse.write_text(arguments.table, text)
            if arguments.plot:
                from jaxdp.study import plots

                plots.large_batch(summaries, small, arguments.plot)


def carry_out(small: Config, protocol: Protocol, folder: pathlib.Path, world: World) -> list[Summary]:
    """Does the runs that are left of this study; all ranks call it together.

    Args:
      small: the config of the small batch.
      protocol: of the study.
      folder: for the outcomes, of this study alone.
      world: among whose ranks the runs are shared out.
    """
    from jaxdp.data.catalog import open_source
    from jaxdp.data.tfds_source import prepare_digits
    from jaxdp.study import training

    compat.use_compilation_cache(rank=world.rank, size=world.size)
    prepare_digits(small.data, world)
    with world.together():
        examples = training.Examples.of(open_source(small.data))
    num_examples = len(examples.labels_N)
    outcomes = Outcomes(folder)
    with world.together():
        if world.is_root:
            outcomes.claim(small, protocol)
    done = world.bcast(outcomes.gathered() if world.is_root else None)
    left = [run for run in runs(protocol) if run not in done]
    # Neighbours share a program: every rank has its part of each arm.
    mine = left[world.rank :: world.size]
    if world.is_root:
        print(f"{len(done)} runs are done, {len(left)} are left, {len(mine)} of them are mine", flush=True)

    @functools.lru_cache(maxsize=1)
    def program_of(arm: Arm, num_train: int) -> training.Training:
        return training.Training(arm.config(small, protocol), examples, num_train)

    with outcomes.adding(world.rank) as add:
        for number, run in enumerate(mine, 1):
            train, validation, test = split(num_examples, protocol, repeat=run.repeat, fold=run.fold)
            program = program_of(run.arm, len(train))
            state = program(seed=run.repeat, peak_rate=run.arm.peak_rate(run.base_rate), train=train)
            add(run, Outcome(*program.evaluate(state, validation), *program.evaluate(state, test)))
            if world.is_root and number % 50 == 0:
                print(f"{number} of {len(mine)}", flush=True)
    world.barrier()
    found = world.bcast(outcomes.gathered() if world.is_root else None)
    return summarise(found, protocol, num_examples)


class Outcomes:
    """What is known of a study, in a folder: each rank adds to a file of its own, rank 0 gathers them in one.

    Args:
      folder: of this study alone.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def claim(self, small: Config, protocol: Protocol) -> None:
        """Makes the folder this study's.

        Raises:
          ValueError: it is another one's, or cannot be written.
        """
        workdir.check_workdir(small, self._folder)
        path, mine = self._folder / "protocol.json", json.dumps(dataclasses.asdict(protocol))
        if path.exists() and path.read_text() != mine:
            raise ValueError(f"{self._folder} holds a study by another protocol: choose another --workdir")
        workdir.claim_workdir(small, self._folder)
        path.write_text(mine)

    @contextlib.contextmanager
    def adding(self, rank: int) -> Iterator[Callable[[Run, Outcome], None]]:
        """What adds an outcome, which is kept whatever becomes of the job."""
        with (self._folder / f"outcomes-{rank}.jsonl").open("a", buffering=1) as file:
            yield lambda run, outcome: print(_line(run, outcome), file=file)

    def gathered(self) -> dict[Run, Outcome]:
        """All that there are, from now on in one file."""
        found, of_ranks = {}, sorted(self._folder.glob("outcomes-*.jsonl"))
        for path in (self._folder / "outcomes.jsonl", *of_ranks):
            # A last line that a killed job left half-written is left out.
            for line in path.read_text().split("\n")[:-1] if path.exists() else ():
                entry = json.loads(line)
                found[Run(**entry["run"])] = Outcome(**entry["outcome"])
        whole = self._folder / "outcomes.tmp"
        whole.write_text("".join(_line(run, outcome) + "\n" for run, outcome in found.items()))
        whole.replace(self._folder / "outcomes.jsonl")
        for path in of_ranks:
            path.unlink()
        return found


def _line(run: Run, outcome: Outcome) -> str:
    return json.dumps({"run": dataclasses.asdict(run), "outcome": dataclasses.asdict(outcome)})


def tables(summaries: Sequence[Summary], small: Config) -> str:
    """The arms, and each at every base rate, in Markdown."""
    rates = list(summaries[0].by_rate)
    text = [
        "| batch | what is done | accuracy, % | difference to the small batch, points | base rates chosen |",
        "|---|---|---|---|---|",
    ]
    for entry in summaries:
        chosen = ", ".join(f"{rate:g} ({times})" for rate, times in entry.chosen.items())
        accuracy, difference = (_percent(of) for of in (entry.accuracy, entry.difference))
        text.append(f"| {_who(entry.arm, small)} | {accuracy} | {difference} | {chosen} |")
    text += [
        "",
        "| batch | what is done | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|---|" + "---|" * len(rates),
    ]
    for entry in summaries:
        cells = " | ".join(f"{100 * entry.by_rate[rate]:.2f}" for rate in rates)
        text.append(f"| {_who(entry.arm, small)} | {cells} |")
    return "\n".join(text)


def _who(arm: Arm, small: Config) -> str:
    return f"{small.batch_size * arm.multiple} | {METHODS[arm.method]}"


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
