"""Writes the shards of a data set with several workers, each shard completely or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[Any]:
    """Opens a record file for writing; it gets its final name only when all records are written."""
    from array_record.python.array_record_module import ArrayRecordWriter

    half = path.with_name(f"{path.name}.half")
    writer = ArrayRecordWriter(str(half), "group_size:1")
    yield writer
    writer.close()
    half.rename(path)


def results(
    pool: concurrent.futures.Executor, pending: dict[concurrent.futures.Future[Any], int], *, unit: str
) -> list[Any]:
    """Waits for the tasks of a pool and returns their results; if one fails, cancels those that have not begun.

    Shows a progress bar on a terminal.

    Args:
      pool: pool that runs the tasks.
      pending: tasks, with the size of each.
      unit: unit of the sizes, for the progress bar.
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
