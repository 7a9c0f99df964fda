"""Starts real jobs the way a user does."""

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

# The suite is limited to 20 minutes, and other tests cover nearly the same behaviour as these.
TAKES_LONG = pytest.mark.skipif(
    "JAXDP_LONG_TESTS" not in os.environ, reason="slow: run with JAXDP_LONG_TESTS=1 ./launch/test"
)
# Arguments of a short training job.
SHORT = ("--config.epochs=2.0", "--config.schedule.warmup_epochs=1.0", "--config.eval_every_epochs=1.0")
# The most informative multi-rank tests: launch/test also runs them with the other MPI (MPICH or Open MPI).
BOTH_MPIS = pytest.mark.both_mpis
# Tests of what depends on JAX's version: launch/test also runs them with the newest JAX.
NEWEST_JAX = pytest.mark.newest_jax
ROOT = pathlib.Path(__file__).parent.parent
# Tests mostly compile small programs that run briefly, so this flag makes them three times as fast.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0"


@functools.cache
def is_open_mpi() -> bool:
    """Whether `mpirun` belongs to Open MPI."""
    return "Open MPI" in subprocess.check_output(["mpirun", "--version"], text=True)


@dataclasses.dataclass(frozen=True)
class Jobs:
    """Starts jaxdp commands on a number of ranks, with a separate data folder and compilation cache.

    Attributes:
      folder: folder for the data, the cache and the runs.
    """

    folder: pathlib.Path

    def environment(self, *, devices: int = 1) -> dict[str, str]:
        """Returns the environment variables of a job with this number of CPU devices per rank."""
        environment = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
        environment["TFDS_DATA_DIR"] = str(self.folder / "data")
        environment["JAXDP_CACHE_DIR"] = str(self.folder / "cache")
        flags = [COMPILE_QUICKLY]
        if devices > 1:
            flags.append(f"--xla_force_host_platform_device_count={devices}")
        return environment | {"XLA_FLAGS": " ".join(flags)}

    def start(self, ranks: int, *command: str, **environment: Any) -> subprocess.Popen:
        """Starts `mpirun -n RANKS python COMMAND`, or `python COMMAND` for 0 ranks."""
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
        """Starts a job and waits for its end. After `timeout` seconds it is killed and the test fails."""
        begin = time.monotonic()
        with self.start(ranks, *command, **environment) as job:
            try:
                out, err = job.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                job.kill()
                raise
        return Ended(job.returncode, out, err, time.monotonic() - begin)

    def train(self, ranks: int, workdir: str, *arguments: str, **environment: Any) -> "Ended":
        """Runs a training job that must succeed."""
        command = ("-m", "jaxdp.train", *arguments, f"--workdir={self.folder / workdir}")
        ended = self.run(ranks, *command, **environment)
        assert ended.code == 0, ended.err
        return ended

    def metrics(self, workdir: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / workdir / "metrics.jsonl").read_text().splitlines()]

    def wait_for_step(
        self, workdir: str, step: int, *, seconds: float = 60, as_long_as: Callable[[], bool] = lambda: True
    ) -> None:
        """Waits until the metrics of a running job have a line for this step or a later one."""
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
        """Returns the process ids of a running training job, by rank."""
        from jaxdp.faults.job import processes

        return processes(self.folder / workdir)

    def saved(self, workdir: str, step: int) -> dict:
        """Returns what the checkpoint of a step holds besides the state, including a hash of all bits of the state."""
        from jaxdp.trainer.checkpoint import Checkpoints

        return Checkpoints(self.folder / workdir / "checkpoints").noted(step)


@dataclasses.dataclass(frozen=True)
class Ended:
    """The exit code, output and duration of a job that has ended."""

    code: int
    out: str
    err: str
    seconds: float
