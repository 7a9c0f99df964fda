"""Baseline of `jaxdp.bench step`: a training step in PyTorch.

A standalone program, because the Python that has torch may not have jaxdp:

  python jaxdp/bench/peer_steps.py MODEL BATCH IMAGE_SIZE DTYPE THREADS

MODEL is the torchvision name. The program prints the available settings as a JSON list of [name, setting]. For each
line of input, the index of a setting, it does one step and prints the seconds. The images are already on the device,
which is a GPU if torch has one.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4


def ways_of(model: str, batch: int, image_size: int, dtype: str, threads: int) -> dict[str, Callable[[], float]]:
    """Returns functions that time one step on random images: forward, backward, SGD with momentum; channels_last."""
    import torch
    import torchvision

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Let cuDNN choose the fastest convolution algorithms.
    torch.backends.cudnn.benchmark = True
    images = torch.rand(batch, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)

    def way(compiled: bool) -> Callable[[], float]:
        network = getattr(torchvision.models, model)(weights=None).to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        forward: Any = torch.compile(network) if compiled else network

        def step() -> float:
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        return step

    return {"compiled": way(True), "eager": way(False)}


def main() -> None:
    model, dtype = sys.argv[1], sys.argv[4]
    try:
        ways = ways_of(model, int(sys.argv[2]), int(sys.argv[3]), dtype, int(sys.argv[5]))
    except ImportError:
        ways = {}
    print(json.dumps([["torch", setting] for setting in ways]), flush=True)
    for line in sys.stdin:
        print(list(ways.values())[int(line)](), flush=True)


if __name__ == "__main__":
    main()
