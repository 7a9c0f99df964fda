"""Real jobs, as a user starts them."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

# The suite has 20 minutes: others show nearly the same as these.
TAKES_LONG = pytest.mark.skipif(
    "JAXDP_LONG_TESTS" not in os.environ, reason="takes long: JAXDP_LONG_TESTS=1 ./launch/test has it run too"
)
# Of a job that trains for little.
SHORT = ("--config.epochs=2.0", "--config.schedule.warmup_epochs=1.0", "--config.eval_every_epochs=1.0")
# Of all that needs ranks, what shows most: launch/test has the other MPI of MPICH and Open MPI pass it as well.
BOTH_MPIS = pytest.mark.both_mpis
ROOT = pathlib.Path(__file__).parent.parent
# Tests spend their time compiling small programs that run briefly: three times as fast so.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0"


@functools.cache
def is_open_mpi() -> bool:
    """Whether that is what mpirun belongs to."""
    return "Open MPI" in subprocess.check_output(["mpirun", "--version"], text=True)


@dataclasses.dataclass(frozen=True)
class Jobs:
    """Starts commands of jaxdp on some ranks, with a data folder and a cache of their own.

    Attributes:
      folder: for the data, the cache and the runs.
    """

    folder: pathlib.Path

    def environment(self, *, devices: int = 1) -> dict[str, str]:
        """With so many CPU devices a rank."""
        environment = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
        environment["TFDS_DATA_DIR"] = str(self.folder / "data")
        environment["JAXDP_CACHE_DIR"] = str(self.folder / "cache")
        flags = [COMPILE_QUICKLY]
        if devices > 1:
            flags.append(f"--xla_force_host_platform_device_count={devices}")
        return environment | {"XLA_FLAGS": " ".join(flags)}

    def start(self, ranks: int, *command: str, **environment: Any) -> subprocess.Popen:
        """`mpirun -n RANKS python COMMAND`, or without mpirun for 0 ranks."""
        launcher = ["mpirun", "-n", str(ranks)] if ranks else []
        return subprocess.Popen(
            [*launcher, sys.executable, *command],
            cwd=ROOT,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, ranks: int, *command: str, timeout: float = 120, **environment: Any) -> "Ended":
        """The same, to its end; a job that takes longer is killed and fails the test."""
        begin = time.monotonic()
        with self.start(ranks, *command, **environment) as job:
            try:
                out, err = job.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                job.kill()
                raise
        return Ended(job.returncode, out, err, time.monotonic() - begin)

    def train(self, ranks: int, workdir: str, *arguments: str, **environment: Any) -> "Ended":
        """A training job that must succeed."""
        command = ("-m", "jaxdp.train", *arguments, f"--workdir={self.folder / workdir}")
        ended = self.run(ranks, *command, **environment)
        assert ended.code == 0, ended.err
        return ended

    def metrics(self, workdir: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / workdir / "metrics.jsonl").read_text().splitlines()]

    def wait_for_step(
        self, workdir: str, step: int, *, seconds: float = 60, as_long_as: Callable[[], bool] = lambda: True
    ) -> None:
        """Until the metrics of a job that is running have a line of this step or a later one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and as_long_as():
            try:
                if any(line["step"] >= step for line in self.metrics(workdir)):
                    return
            except (FileNotFoundError, json.JSONDecodeError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"step {step} was not reached")

    def processes(self, workdir: str) -> dict[int, int]:
        """Of a training job that is running, by rank."""
        from jaxdp.faults.job import processes

        return processes(self.folder / workdir)

    def saved(self, workdir: str, step: int) -> dict:
        """What was saved beside the state after so many steps: among it the hash of all its bits."""
        from jaxdp.checkpoint import Checkpoints

        return Checkpoints(self.folder / workdir / "checkpoints").noted(step)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that has ended."""

    code: int
    out: str
    err: str
    seconds: float
