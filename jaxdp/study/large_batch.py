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

from jaxdp import compat, parse, workdir
from jaxdp.config import Config
from jaxdp.study.protocol import METHODS, Arm, Outcome, Protocol, Run, Summary, runs, split, summarise
from jaxdp.study.statistics import Interval
from jaxdp.world import World


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
