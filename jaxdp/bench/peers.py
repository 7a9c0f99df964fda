"""Starts a program of others' code with another Python, and has it measure beside us."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from jaxdp import launcher
from jaxdp.world import UserError


class Peers:
    """A running `peer_loaders.py` or `peer_steps.py`.

    Attributes:
      ways: what it can measure, as "NAME: SETTING".
    """

    def __init__(self, process: subprocess.Popen[str], lacks: str):
        self._process = process
        self.ways = [": ".join(way) for way in json.loads(self._answer())]
        if not self.ways:
            raise UserError(f"the Python of --peers has {lacks}: launch/peers makes one that has")

    def measure(self, way: str) -> float:
        """Seconds for what the program is asked to do in that way."""
        assert self._process.stdin is not None
        print(self.ways.index(way), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the program that --peers runs ended without an answer: what it said is above")
        return answer


def check_python(python: pathlib.Path | None) -> None:
    """Raises ValueError for a --peers that is none, or in a job of several ranks."""
    if python is not None and (launcher.place() is not None or not python.is_file()):
        raise ValueError(
            f"--peers is a Python (launch/peers makes one), for one rank without mpirun, not {str(python)!r}"
        )


@contextlib.contextmanager
def running_loaders(python: pathlib.Path, images_NHWC: np.ndarray, batch: int, steps: int) -> Iterator[Peers]:
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
        words = [str(path), str(batch), str(steps)]
        with _running(python, "peer_loaders.py", words, "neither Grain nor torch") as peers:
            yield peers


@contextlib.contextmanager
def running_steps(
    python: pathlib.Path, *, model: str, batch: int, image_size: int, dtype: str, threads: int
) -> Iterator[Peers]:
    """A peer_steps.py with a model and a batch of its own; each measure is of one step.

    Args:
      python: to run it.
      model: by torchvision's name.
      batch: images.
      image_size: height and width.
      dtype: in which it computes.
      threads: of a CPU.
    """
    words = [model, str(batch), str(image_size), dtype, str(threads)]
    with _running(python, "peer_steps.py", words, "no torch with torchvision") as peers:
        yield peers


@contextlib.contextmanager
def _running(python: pathlib.Path, program: str, words: Sequence[str], lacks: str) -> Iterator[Peers]:
    command = [str(python), str(pathlib.Path(__file__).with_name(program)), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Peers(process, lacks)
        assert process.stdin is not None
        process.stdin.close()
