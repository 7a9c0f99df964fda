"""Baselines of `jaxdp.bench input`: Grain and PyTorch's DataLoader, over records in RAM.

A standalone program, because the Python that has these loaders may not have jaxdp:

  python jaxdp/bench/peer_loaders.py IMAGES.npy BATCH STEPS

It prints the available settings as a JSON list of [loader, setting]. For each line of input, the index of a setting, it
prints the seconds for STEPS shuffled batches. Grain's batches end on JAX's device, torch's are tensors in RAM.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Loader = Callable[[], Iterable[Any]]


class Rows:
    """Records by index."""

    def __init__(self, images: Any, labels: Any):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.images[row], self.labels[row]


def of_grain(images: np.ndarray, labels: np.ndarray, batch: int, steps: int) -> dict[str, Loader]:
    """Returns settings of Grain: by record, or by batch with a map over batch indices; with threads or processes."""
    import absl.flags
    import grain
    import jax

    # Worker processes of Grain read absl flags, which nothing has parsed here.
    absl.flags.FLAGS.mark_as_parsed()
    order = np.random.default_rng(0).permutation(len(labels))

    def cut(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.take(order, np.arange(step * batch, (step + 1) * batch), mode="wrap")
        return images[rows], labels[rows]

    def on_device(batches: Iterable[Any]) -> Iterator[Any]:
        return map(jax.device_put, batches)

    by_record = grain.MapDataset.source(Rows(images, labels)).shuffle(seed=0).repeat().batch(batch)
    by_batch = grain.MapDataset.range(steps).map(cut)
    ways: dict[str, Loader] = {}
    for name, data in (("records", by_record), ("batches", by_batch)):
        for threads in (1, 2, 16):
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
            ways[f"{name}, {threads} threads"] = lambda data=data, options=options: on_device(  # type: ignore[misc]
                data.to_iter_dataset(options)
            )
    processes = grain.MultiprocessingOptions(num_workers=2)
    ways["records, 2 processes"] = lambda: on_device(by_record.to_iter_dataset().mp_prefetch(processes))
    return ways


def of_torch(images: np.ndarray, labels: np.ndarray, batch: int, steps: int) -> dict[str, Loader]:
    """Returns settings of torch's DataLoader: by record or by batch, in this process or in workers."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    ways: dict[str, Loader] = {}
    for workers in (0, 2):
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        ways[f"records, {workers} processes"] = lambda options=options: DataLoader(  # type: ignore[misc]
            Rows(*tensors), batch, shuffle=True, **options
        )
        ways[f"batches, {workers} processes"] = lambda options=options: DataLoader(  # type: ignore[misc]
            Many(*tensors),
            batch_size=None,
            sampler=BatchSampler(RandomSampler(range(len(labels)), num_samples=batch * steps), batch, drop_last=True),
            **options,
        )
    return ways


class Many(Rows):
    """Records by batch: indexed with all rows of a batch at once."""

    def __getitem__(self, rows: Any) -> tuple[Any, Any]:
        import torch

        chosen = torch.as_tensor(rows)
        return self.images.index_select(0, chosen), self.labels.index_select(0, chosen)


def main() -> None:
    images = np.load(sys.argv[1])
    batch, steps = map(int, sys.argv[2:])
    labels = np.zeros(len(images), np.int32)
    ways: list[tuple[str, str, Loader]] = []
    for name, find in (("Grain", of_grain), ("torch DataLoader", of_torch)):
        try:
            found = find(images, labels, batch, steps)
        except ImportError:
            continue
        ways += [(name, setting, loader) for setting, loader in found.items()]
    print(json.dumps([way[:2] for way in ways]), flush=True)
    for line in sys.stdin:
        print(measure(ways[int(line)][2], steps), flush=True)


def measure(loader: Loader, steps: int) -> float:
    """Returns the seconds for `steps` batches, scaled from the time between the first batch and the last one."""
    batches = iter(loader())
    next(batches)
    start, count = time.perf_counter(), 0
    for _, (images, _) in zip(range(steps - 1), batches, strict=False):
        count += 1
        if hasattr(images, "block_until_ready"):
            images.block_until_ready()
    return (time.perf_counter() - start) * steps / count


if __name__ == "__main__":
    main()
