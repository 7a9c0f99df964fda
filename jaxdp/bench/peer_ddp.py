"""One rank of the baseline of `jaxdp.bench weak`: PyTorch's DistributedDataParallel over gloo.

A standalone program, because the Python that has torch may not have jaxdp:

  python jaxdp/bench/peer_ddp.py FOLDER RANK RANKS ADDRESS MODEL BATCH IMAGE_SIZE STEPS

MODEL is the torchvision name of a ResNet, which is built with the CIFAR stem and 10 classes. FOLDER is the folder of
`Turns`, ADDRESS the host of rank 0.
"""

import os
import pathlib
import sys
import time
from typing import Any

RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
PORT = 29_400


def main() -> None:
    import torch
    import torchvision
    from turns import Turns

    folder, rank, ranks, address = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    model, batch, image_size, steps = sys.argv[5], *map(int, sys.argv[6:9])
    # Bind each rank to one core; ranks share cores if there are too few.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    store = f"tcp://{address}:{PORT}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    images = torch.rand(batch, 3, image_size, image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def network() -> Any:
        made = getattr(torchvision.models, model)(weights=None, num_classes=10)
        made.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        made.maxpool = torch.nn.Identity()
        return made.to(memory_format=torch.channels_last).train()

    def measured(trained: Any) -> float:
        optimizer = optimizers[trained]
        torch.distributed.barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(trained(images), labels).backward()
            optimizer.step()
        return (time.perf_counter() - begin) / steps

    alone = network()
    together = torch.nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    optimizers = {
        trained: torch.optim.SGD(trained.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for trained in (alone, together)
    }
    Turns(folder).serve(
        rank,
        {
            "parameters": lambda: sum(parameter.numel() for parameter in alone.parameters()),
            "alone": lambda: measured(alone),
            "together": lambda: measured(together),
        },
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
