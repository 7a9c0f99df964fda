"""Runs third-party baselines in a separate Python environment, interleaved with the measurements of jaxdp."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from jaxdp.runtime import launcher
from jaxdp.runtime.world import UserError


class Peers:
    """A running baseline program, `peer_loaders.py` or `peer_steps.py`.

    Attributes:
      ways: what the program can measure, as "NAME: SETTING".
    """

    def __init__(self, process: subprocess.Popen[str], lacks: str):
        self._process = process
        self.ways = [": ".join(way) for way in json.loads(self._answer())]
        if not self.ways:
            raise UserError(f"the Python of --peers has {lacks}: create one with launch/peers")

    def measure(self, way: str) -> float:
        """Returns the seconds for one measurement, named by an element of `ways`."""
        assert self._process.stdin is not None, "the process must be started with a pipe for its input"
        print(self.ways.index(way), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None, "the process must be started with a pipe for its output"
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the baseline run by --peers ended without a result: see its output above")
        return answer


def check_python(python: pathlib.Path | None) -> None:
    """Raises ValueError if --peers is not a file, or is used under mpirun."""
    if python is not None and (launcher.launch_info() is not None or not python.is_file()):
        raise ValueError(
            f"cannot use --peers={str(python)!r}: give a Python made by launch/peers, and start without mpirun"
        )


@contextlib.contextmanager
def running_loaders(python: pathlib.Path, images_NHWC: np.ndarray, batch: int, steps: int) -> Iterator[Peers]:
    """Runs `peer_loaders.py` on a copy of the images.

    Args:
      python: the Python to run it with.
      images_NHWC: images, uint8.
      batch: number of images in a batch.
      steps: number of batches per measurement.
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
    """Runs `peer_steps.py` with a model and a random batch; each measurement is one step.

    Args:
      python: the Python to run it with.
      model: torchvision name of the model.
      batch: number of images in the batch.
      image_size: height and width in pixels.
      dtype: compute dtype, "float32" or "bfloat16".
      threads: number of CPU threads.
    """
    words = [model, str(batch), str(image_size), dtype, str(threads)]
    with _running(python, "peer_steps.py", words, "no torch with torchvision") as peers:
        yield peers


@contextlib.contextmanager
def _running(python: pathlib.Path, program: str, words: Sequence[str], lacks: str) -> Iterator[Peers]:
    command = [str(python), str(pathlib.Path(__file__).with_name(program)), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Peers(process, lacks)
        assert process.stdin is not None, "the process must be started with a pipe for its input"
        process.stdin.close()
