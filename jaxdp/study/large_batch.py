"""Cross-validated study of whether large-batch training keeps the accuracy of small batches, on the digits data set.

Every arm trains for the same number of epochs at the same base rates. For each test fold, the base rate with the best
accuracy on a separate validation fold is chosen, and its accuracy on the test fold is reported. The runs are divided
among the ranks. Finished runs are kept in the workdir, so an interrupted study resumes. See docs/large_batch.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

from jaxdp.cli import parsing, start
from jaxdp.config.schema import Config
from jaxdp.runtime import jax_compat, process
from jaxdp.runtime.world import World
from jaxdp.study.protocol import METHODS, Arm, Outcome, Protocol, StudyRun, Summary, runs, split, summarise
from jaxdp.study.statistics import Interval
from jaxdp.trainer import workdir


def main(words: Sequence[str] | None = None) -> None:
    """Completes the study on all ranks; rank 0 prints and writes the results."""
    parser = parsing.Parser(
        "study large_batch",
        __doc__,
        examples=("mpirun -n 2 jaxdp study large_batch --table=large_batch.md --plot=large_batch.png",),
    )
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/large_batch", help="output folder")
    parser.add_argument("--table", type=pathlib.Path, help="write the tables to this file, as Markdown")
    parser.add_argument("--plot", type=pathlib.Path, help="write the plot to this file")
    start.on_ranks(parser, _run, words, check=lambda given, _: parsing.check_writable(given.table, given.plot))


def _run(arguments: argparse.Namespace, world: World) -> None:
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    from jaxdp.configs.study_large_batch import get_config

    small, protocol = Config.from_dict(get_config().to_dict()), Protocol()
    summaries = carry_out(small, protocol, arguments.workdir, world)
    with world.agree_or_exit():
        if world.is_root:
            text = tables(summaries, small)
            print(text, flush=True)
            if arguments.table:
                parsing.write_text(arguments.table, text)
            if arguments.plot:
                from jaxdp.study import plots

                plots.large_batch(summaries, small, arguments.plot)


def carry_out(small: Config, protocol: Protocol, folder: pathlib.Path, world: World) -> list[Summary]:
    """Does all remaining runs of the study and summarises its arms; all ranks must call it together.

    Args:
      small: config of the small batch.
      protocol: protocol of the study.
      folder: folder of the outcomes, used by this study only.
      world: the ranks that share the runs.
    """
    from jaxdp.data.catalog import open_source
    from jaxdp.data.tfds_source import prepare_digits
    from jaxdp.study import training

    jax_compat.use_compilation_cache(rank=world.rank, size=world.size)
    prepare_digits(small.data, world)
    with world.agree_or_exit():
        examples = training.Examples.of(open_source(small.data))
    num_examples = len(examples.labels_N)
    outcomes = Outcomes(folder)
    with world.agree_or_exit():
        if world.is_root:
            outcomes.claim(small, protocol)
    done = world.bcast(outcomes.gathered() if world.is_root else None)
    left = [run for run in runs(protocol) if run not in done]
    # Runs of one arm are adjacent and share a compiled program. A stride gives every rank a part of each arm.
    mine = left[world.rank :: world.size]
    if world.is_root:
        print(f"{len(done)} runs done, {len(left)} left, {len(mine)} of them on this rank", flush=True)

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
                print(f"{number} of {len(mine)} runs done", flush=True)
    world.barrier()
    found = world.bcast(outcomes.gathered() if world.is_root else None)
    return summarise(found, protocol, num_examples)


class Outcomes:
    """The outcomes of a study in a folder: each rank appends to a separate file, and rank 0 merges the files.

    Args:
      folder: folder of this study only.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def claim(self, small: Config, protocol: Protocol) -> None:
        """Claims the folder for this study.

        Raises:
          ValueError: the folder belongs to another study or cannot be written.
        """
        workdir.check_workdir(small, self._folder)
        path, mine = self._folder / "protocol.json", json.dumps(dataclasses.asdict(protocol))
        if path.exists() and path.read_text() != mine:
            raise ValueError(f"{self._folder} contains a study with a different protocol: choose another --workdir")
        workdir.claim_workdir(small, self._folder)
        path.write_text(mine)

    @contextlib.contextmanager
    def adding(self, rank: int) -> Iterator[Callable[[StudyRun, Outcome], None]]:
        """Yields a function that appends an outcome to the file of this rank; it is kept even if the job is killed."""
        with (self._folder / f"outcomes-{rank}.jsonl").open("a", buffering=1) as file:
            yield lambda run, outcome: print(_line(run, outcome), file=file)

    def gathered(self) -> dict[StudyRun, Outcome]:
        """Returns all outcomes and merges them into one file."""
        found, of_ranks = {}, sorted(self._folder.glob("outcomes-*.jsonl"))
        for path in (self._folder / "outcomes.jsonl", *of_ranks):
            # Skip the incomplete last line that a killed job may have left.
            for line in path.read_text().split("\n")[:-1] if path.exists() else ():
                entry = json.loads(line)
                found[StudyRun(**entry["run"])] = Outcome(**entry["outcome"])
        whole = self._folder / "outcomes.tmp"
        whole.write_text("".join(_line(run, outcome) + "\n" for run, outcome in found.items()))
        whole.replace(self._folder / "outcomes.jsonl")
        for path in of_ranks:
            path.unlink()
        return found


def _line(run: StudyRun, outcome: Outcome) -> str:
    return json.dumps({"run": dataclasses.asdict(run), "outcome": dataclasses.asdict(outcome)})


def tables(summaries: Sequence[Summary], small: Config) -> str:
    """Returns two Markdown tables: the arms, and the accuracy of each arm at every base rate."""
    rates = list(summaries[0].by_rate)
    text = [
        "| batch | method | accuracy, % | difference from the small batch, points | base rates chosen |",
        "|---|---|---|---|---|",
    ]
    for entry in summaries:
        chosen = ", ".join(f"{rate:g} ({times})" for rate, times in entry.chosen.items())
        accuracy, difference = (_percent(of) for of in (entry.accuracy, entry.difference))
        text.append(f"| {_who(entry.arm, small)} | {accuracy} | {difference} | {chosen} |")
    text += [
        "",
        "| batch | method | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
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
