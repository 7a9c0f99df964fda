"""Starts `peer_loaders.py` with another Python, and has it measure."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np

from jaxdp.world import UserError

_PROGRAM = pathlib.Path(__file__).with_name("peer_loaders.py")


class Peers:
    """A running `peer_loaders.py`.

    Attributes:
      ways: what it can measure, as "LOADER: SETTING".
    """

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self.ways = [": ".join(way) for way in json.loads(self._answer())]
        if not self.ways:
            raise UserError("the Python of --peers has neither Grain nor torch: launch/peers makes one that has")

    def measure(self, way: str) -> float:
        """Seconds for all steps."""
        assert self._process.stdin is not None
        print(self.ways.index(way), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{_PROGRAM.name} ended without an answer: what it said is above")
        return answer


@contextlib.contextmanager
def running_peers(python: pathlib.Path, images_NHWC: np.ndarray, batch: int, steps: int) -> Iterator[Peers]:
    """A peer_loaders.py that holds a copy of these images.

    Args:
      python: to run it.
      images_NHWC: uint8.
      batch: images in a batch.
      steps: batches to be measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "images.npy")
        np.save(path, images_NHWC)
        command = [str(python), str(_PROGRAM), str(path), str(batch), str(steps)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Peers(process)
            assert process.stdin is not None
            process.stdin.close()
