"""Supervises a run: starts its job on the hosts that answer, and restarts it after failures."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from jaxdp.runtime.exit_codes import INTERNAL_ERROR, REQUEUE, USER_ERROR
from jaxdp.trainer.checkpoint import Checkpoints
from jaxdp.trainer.workdir import CHECKPOINTS

_LINE = re.compile(r"(?P<host>[^\s:#]+)(?:\s+slots\s*=\s*|:|\s+)?(?P<ranks>\d+)?\s*(?:#.*)?")
_EXPORTED = ("TFDS_DATA_DIR", "JAXDP_CACHE_DIR", "XLA_FLAGS")
_LONGEST_BACK_OFF_S = 300.0


@dataclasses.dataclass(frozen=True)
class Policy:
    """When to restart a job, and when to give up.

    Attributes:
      most_failures: number of consecutive failures without a new checkpoint after which the supervisor gives up.
      back_off_s: delay before a restart, in seconds; doubles with every further failure without a new checkpoint.
      look_every_s: interval between probes of missing hosts, in seconds.
      probe_s: time within which a host must answer, in seconds.
      poll_s: interval at which the supervisor looks whether the job has ended, in seconds.
    """

    most_failures: int = 5
    back_off_s: float = 5.0
    look_every_s: float = 30.0
    probe_s: float = 10.0
    poll_s: float = 0.5


def read_hosts(path: pathlib.Path) -> dict[str, int]:
    """Reads the number of ranks per host from a hostfile.

    Raises:
      ValueError: the file cannot be read or contains no host, a line is invalid, or a host is repeated.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the hostfile {path}: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.split("#")[0].strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None or found["ranks"] == "0":
            raise ValueError(
                f"line {number} of the hostfile {path} is invalid: {line.strip()!r}. Write it as 'node07 slots=4', "
                "with at least 1 rank"
            )
        if found["host"] in hosts:
            raise ValueError(f"line {number} of the hostfile {path} repeats host {found['host']}: list each host once")
        hosts[found["host"]] = int(found["ranks"] or 1)
    if not hosts:
        raise ValueError(f"the hostfile {path} contains no host: write one per line, e.g. 'node07 slots=4'")
    return hosts


def start_command(hosts: Mapping[str, int], *, launcher: Sequence[str], shell: str, is_hydra: bool) -> list[str]:
    """Returns the launcher's command line that starts a command on these hosts.

    Args:
      hosts: number of ranks per host.
      launcher: first words of the command line: mpiexec and its options.
      shell: program that reaches other hosts, e.g. ssh.
      is_hydra: whether the launcher is MPICH's (Hydra); otherwise it is Open MPI's.
    """
    of_hosts, ranks = ",".join(f"{host}:{count}" for host, count in hosts.items()), str(sum(hosts.values()))
    if is_hydra:
        return [*launcher, "-launcher", "ssh", "-launcher-exec", shell, "-hosts", of_hosts, "-n", ranks]
    # Open MPI 5 has another name for the shell. All versions pass a variable to other hosts only if it is listed.
    by_shell = ["env", f"OMPI_MCA_plm_rsh_agent={shell}", f"PRTE_MCA_plm_ssh_agent={shell}"]
    exports = [word for name in _EXPORTED if name in os.environ for word in ("-x", name)]
    # If ranks may outnumber cores (launch/environment.sh), Open MPI 5 would start all ranks on the first host.
    return [*by_shell, *launcher, *exports, "--map-by", "slot", "--host", of_hosts, "-n", ranks]


class Supervisor:
    """Runs the jobs of one run, one after another.

    Args:
      hosts: number of ranks per host, for all hosts that may be used.
      answers: returns whether a host answers.
      start: starts a job on some of the hosts.
      saved: returns the step of the last checkpoint of the run.
      policy: when to restart a job, and when to give up.
      say: prints a status line.
    """

    def __init__(
        self,
        hosts: Mapping[str, int],
        *,
        answers: Callable[[str], bool],
        start: Callable[[Mapping[str, int]], subprocess.Popen[bytes]],
        saved: Callable[[], int],
        policy: Policy,
        say: Callable[[str], None],
    ):
        self._hosts, self._answers, self._start, self._saved = hosts, answers, start, saved
        self._policy, self._say = policy, say
        self._asked: int | None = None
        self._job: subprocess.Popen[bytes] | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: forwards it to the job, and starts no further job."""
        del frame
        self._asked = number
        if self._job is not None:
            self._tell(self._job)

    def _tell(self, job: subprocess.Popen[bytes]) -> None:
        # Not SIGTERM, on which Open MPI's mpirun ends all ranks at once.
        job.send_signal(signal.SIGINT if self._asked == signal.SIGINT else signal.SIGUSR1)

    def run(self) -> int:
        """Runs jobs until the run is complete or must be given up; returns the exit code."""
        failures, back_off = 0, self._policy.back_off_s
        while not self._is_asked():
            before = self._saved()
            hosts = self._present(self._hosts)
            code = self._watched(hosts) if hosts else None
            if code in (0, USER_ERROR):
                return code
            if self._is_asked():
                break
            if code == REQUEUE:
                continue
            if self._saved() > before:
                failures, back_off = 0, self._policy.back_off_s
            failures += 1
            what = "no host answers" if code is None else f"the job ended with exit code {code}"
            if failures == self._policy.most_failures:
                self._say(f"{what}: giving up after {failures} failures without a new checkpoint")
                return INTERNAL_ERROR
            self._say(f"{what}: restarting in {back_off:g} s from step {self._saved()}")
            self._wait(back_off)
            back_off = min(2 * back_off, _LONGEST_BACK_OFF_S)
        return 128 + signal.SIGINT if self._asked == signal.SIGINT else REQUEUE

    def _is_asked(self) -> bool:
        return self._asked is not None

    def _present(self, hosts: Mapping[str, int]) -> dict[str, int]:
        """Returns the hosts that answer, and prints the names of the hosts that do not."""
        with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
            present = dict(zip(hosts, pool.map(self._answers, hosts), strict=True))
        if silent := [host for host, is_there in present.items() if not is_there]:
            self._say(f"no answer from {', '.join(silent)}")
        return {host: ranks for host, ranks in hosts.items() if present[host]}

    def _watched(self, hosts: Mapping[str, int]) -> int:
        """Runs a job and returns its exit code; asks the job to save and stop once a missing host answers again."""
        ranks = sum(hosts.values())
        self._say(f"starting {ranks} ranks on {', '.join(hosts)}, from step {self._saved()}")
        self._job = self._start(hosts)
        if self._is_asked():
            self._tell(self._job)
        missing = [host for host in self._hosts if host not in hosts]
        look, is_asked = time.monotonic() + self._policy.look_every_s, False
        while (code := self._job.poll()) is None:
            time.sleep(self._policy.poll_s)
            if missing and not is_asked and time.monotonic() > look:
                if back := [host for host in missing if self._answers(host)]:
                    self._say(f"{', '.join(back)} available again: asking the job to save and stop")
                    self._job.send_signal(signal.SIGUSR1)
                    is_asked = True
                look = time.monotonic() + self._policy.look_every_s
        self._job = None
        return code

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._is_asked():
            time.sleep(min(self._policy.poll_s, seconds))


def supervise(
    hosts: Mapping[str, int],
    workdir: pathlib.Path,
    arguments: Sequence[str],
    *,
    launcher: Sequence[str],
    shell: str,
    policy: Policy,
) -> int:
    """Runs `jaxdp.train` on these hosts until its run is complete or must be given up.

    Signals to this process end the supervision, once the job has saved and stopped.

    Args:
      hosts: number of ranks per host.
      workdir: folder of the run.
      arguments: command line of `jaxdp.train`.
      launcher: first words of the command line that starts ranks: mpiexec and its options.
      shell: command that reaches a host, e.g. ssh.
      policy: when to restart a job, and when to give up.

    Returns:
      The exit code.
    """
    version = subprocess.run([launcher[0], "--version"], capture_output=True, text=True, check=False).stdout
    nowhere = subprocess.DEVNULL

    def answers(host: str) -> bool:
        probe = [*shlex.split(shell), host, "true"]
        try:
            return subprocess.call(probe, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=policy.probe_s) == 0
        except subprocess.TimeoutExpired:
            return False

    def start(some: Mapping[str, int]) -> subprocess.Popen[bytes]:
        command = start_command(some, launcher=launcher, shell=shell, is_hydra="HYDRA" in version)
        # In a separate session, so that signals reach the job only through this process.
        return subprocess.Popen(
            [*command, sys.executable, "-m", "jaxdp.train", *arguments], stdin=nowhere, start_new_session=True
        )

    supervisor = Supervisor(
        hosts,
        answers=answers,
        start=start,
        saved=lambda: Checkpoints(workdir / CHECKPOINTS).latest_step() or 0,
        policy=policy,
        say=lambda text: print(f"jaxdp supervise: {text}", file=sys.stderr, flush=True),
    )
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.hear)
    return supervisor.run()
