"""Shards of a data set: written by several workers at once, each there whole or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[Any]:
    """The writer of a file of records, which has its name when all of them are in it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    half = path.with_name(f"{path.name}.half")
    writer = ArrayRecordWriter(str(half), "group_size:1")
    yield writer
    writer.close()
    half.rename(path)


def results(
    pool: concurrent.futures.Executor, pending: dict[concurrent.futures.Future, int], *, unit: str
) -> list[Any]:
    """Of all that the pool has to do, with a bar on a terminal; where one fails, those that wait are not begun.

    Args:
      pool: of workers.
      pending: what it does, and how much each is.
      unit: in which that is counted.
    """
    with tqdm(total=sum(pending.values()), unit=f" {unit}", disable=None) as progress:
        try:
            for one in concurrent.futures.as_completed(pending):
                one.result()
                progress.update(pending[one])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [one.result() for one in pending]
