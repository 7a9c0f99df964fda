"""Keeps a run going on hosts that come and go, where no scheduler does: starts it, and starts it again.

  launch/supervise --hostfile=hosts -- --config=configs/resnet50_imagenet.py --workdir=runs/resnet50

The file names a host a line, with its ranks behind it ("node07 slots=4", or node07:4; one rank without). Before every
start each host is asked whether it answers, and the job is started on those that do. If it fails, it goes on from its
last save, after a while that grows. When a host that was left out answers again, the job is asked to save and is
started on all of them. The global batch, the order of the data and the rate are the same on any number of hosts.

Signals to make room (SIGUSR1, SIGTERM) are handed on, and end it too, by code 75.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from jaxdp import cli, parse
from jaxdp.checkpoint import Checkpoints
from jaxdp.preemption import REQUEUE
from jaxdp.workdir import CHECKPOINTS
from jaxdp.world import INTERNAL_ERROR, USER_ERROR

_LINE = re.compile(r"(?P<host>[^\s:#]+)(?:\s+slots\s*=\s*|:|\s+)?(?P<ranks>\d+)?\s*(?:#.*)?")
_EXPORTED = ("TFDS_DATA_DIR", "JAXDP_CACHE_DIR", "XLA_FLAGS")
_POLL_S = 0.5
_PROBE_S = 10.0
_LONGEST_BACK_OFF_S = 300.0


@dataclasses.dataclass(frozen=True)
class Policy:
    """When to do what.

    Attributes:
      most_failures: in a row, without a save between them, after which it gives up.
      back_off_s: before the second start; twice as long before every further one without a save.
      look_every_s: how often the hosts that were left out are asked again.
    """

    most_failures: int = 5
    back_off_s: float = 5.0
    look_every_s: float = 30.0


def read_hosts(path: pathlib.Path) -> dict[str, int]:
    """The ranks of each host of a file.

    Raises:
      ValueError: there is none, or a line cannot be understood.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"the hostfile {path} cannot be read: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.split("#")[0].strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None or found["ranks"] == "0":
            raise ValueError(
                f"line {number} of the hostfile {path} is {line.strip()!r}: write it as 'node07 slots=4', with 1 rank "
                "or more"
            )
        if found["host"] in hosts:
            raise ValueError(f"line {number} of the hostfile {path} names {found['host']} again: name each host once")
        hosts[found["host"]] = int(found["ranks"] or 1)
    if not hosts:
        raise ValueError(f"the hostfile {path} names no host: write one a line, as 'node07 slots=4'")
    return hosts


def start_command(hosts: Mapping[str, int], *, launcher: Sequence[str], shell: str, is_hydra: bool) -> list[str]:
    """What starts a command on these hosts.

    Args:
      hosts: the ranks of each.
      launcher: the first words: mpiexec, and whatever it is to be told.
      shell: by which hosts are reached, as ssh.
      is_hydra: whether the launcher is MPICH's; Open MPI's if not.
    """
    of_hosts, ranks = ",".join(f"{host}:{count}" for host, count in hosts.items()), str(sum(hosts.values()))
    if is_hydra:
        return [*launcher, "-launcher", "ssh", "-launcher-exec", shell, "-hosts", of_hosts, "-n", ranks]
    # Version 5 of Open MPI has another name for the shell; either takes variables to other hosts only if it is told to.
    by_shell = ["env", f"OMPI_MCA_plm_rsh_agent={shell}", f"PRTE_MCA_plm_ssh_agent={shell}"]
    exports = [word for name in _EXPORTED if name in os.environ for word in ("-x", name)]
    # Where ranks may outnumber cores (launch/environment.sh) version 5 would start them all on the first host.
    return [*by_shell, *launcher, *exports, "--map-by", "slot", "--host", of_hosts, "-n", ranks]


class Supervisor:
    """Starts jobs of one run, one after the other.

    Args:
      hosts: the ranks of each, all that there may be.
      answers: tells of a host whether it does.
      start: starts a job on some of them.
      saved: the step of the last save of the run.
      policy: when to do what.
      say: where lines go.
    """

    def __init__(
        self,
        hosts: Mapping[str, int],
        *,
        answers: Callable[[str], bool],
        start: Callable[[Mapping[str, int]], subprocess.Popen],
        saved: Callable[[], int],
        policy: Policy,
        say: Callable[[str], None],
    ):
        self._hosts, self._answers, self._start, self._saved = hosts, answers, start, saved
        self._policy, self._say = policy, say
        self._asked: int | None = None
        self._job: subprocess.Popen | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Of a signal: the job is told, and no other one is started."""
        del frame
        self._asked = number
        if self._job is not None:
            self._tell(self._job)

    def _tell(self, job: subprocess.Popen) -> None:
        # SIGTERM to Open MPI's mpirun would end all ranks at once.
        job.send_signal(signal.SIGINT if self._asked == signal.SIGINT else signal.SIGUSR1)

    def run(self) -> int:
        """Goes on until the run is done, or cannot go on; the code to exit with."""
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
            what = "no host answers" if code is None else f"the job ended with code {code}"
            if failures == self._policy.most_failures:
                self._say(f"{what}: {failures} failures without a save between them, giving up")
                return INTERNAL_ERROR
            self._say(f"{what}: starting again in {back_off:g} s, from step {self._saved()}")
            self._wait(back_off)
            back_off = min(2 * back_off, _LONGEST_BACK_OFF_S)
        return 128 + signal.SIGINT if self._asked == signal.SIGINT else REQUEUE

    def _is_asked(self) -> bool:
        return self._asked is not None

    def _present(self, hosts: Mapping[str, int]) -> dict[str, int]:
        """Those of the hosts that answer; the others are named."""
        with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
            present = dict(zip(hosts, pool.map(self._answers, hosts), strict=True))
        if silent := [host for host, is_there in present.items() if not is_there]:
            self._say(f"no answer from {', '.join(silent)}")
        return {host: ranks for host, ranks in hosts.items() if present[host]}

    def _watched(self, hosts: Mapping[str, int]) -> int:
        """A job's code; it is asked to make room once a host that is not among its own answers again."""
        ranks = sum(hosts.values())
        self._say(f"starting {ranks} ranks on {', '.join(hosts)}, from step {self._saved()}")
        self._job = self._start(hosts)
        if self._is_asked():
            self._tell(self._job)
        missing = [host for host in self._hosts if host not in hosts]
        look, is_asked = time.monotonic() + self._policy.look_every_s, False
        while (code := self._job.poll()) is None:
            time.sleep(_POLL_S)
            if missing and not is_asked and time.monotonic() > look:
                if back := [host for host in missing if self._answers(host)]:
                    self._say(f"{', '.join(back)} is back: the job is asked to save and to make room")
                    self._job.send_signal(signal.SIGUSR1)
                    is_asked = True
                look = time.monotonic() + self._policy.look_every_s
        self._job = None
        return code

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._is_asked():
            time.sleep(min(_POLL_S, seconds))


def main(words: Sequence[str]) -> int:
    """The command; the code to exit with."""
    split = words.index("--") if "--" in words else len(words)
    own, of_train = words[:split], words[split + 1 :]
    parser = parse.Parser("launch/supervise", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    defaults = Policy()
    parser.add_argument("--hostfile", type=pathlib.Path, required=True, help="a host a line, with its ranks")
    parser.add_argument(
        "--launcher", default="mpiexec", help="what starts ranks, with its options; default %(default)s"
    )
    parser.add_argument("--shell", default="ssh", help="what reaches a host; default %(default)s")
    parser.add_argument(
        "--most_failures",
        type=parse.number,
        default=defaults.most_failures,
        help="without a save between them, after which it gives up; default %(default)s",
    )
    for name, value, what in [
        ("back_off", defaults.back_off_s, "before a job that has failed is started again"),
        ("probe", _PROBE_S, "that a host has to answer in"),
        ("look_every", defaults.look_every_s, "after which hosts that were left out are asked again"),
    ]:
        parser.add_argument(f"--{name}", type=float, default=value, help=f"seconds {what}; default %(default)g")
    try:
        arguments = parser.parse_args(own)
        hosts = read_hosts(arguments.hostfile)
        workdir = cli.parse_train(["train", *of_train]).workdir
        launcher, shell = parse.program(arguments.launcher), parse.program(arguments.shell)
    except ValueError as error:
        print(f"jaxdp: error: {error}", file=sys.stderr)
        return USER_ERROR
    version = subprocess.run([launcher[0], "--version"], capture_output=True, text=True, check=False).stdout
    is_hydra = "HYDRA" in version

    def answers(host: str) -> bool:
        asked = [*shell, host, "true"]
        nowhere = subprocess.DEVNULL
        try:
            return subprocess.call(asked, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=arguments.probe) == 0
        except subprocess.TimeoutExpired:
            return False

    def start(some: Mapping[str, int]) -> subprocess.Popen:
        command = start_command(some, launcher=launcher, shell=arguments.shell, is_hydra=is_hydra)
        # In a session of its own: signals reach it by way of this process.
        return subprocess.Popen(
            [*command, sys.executable, "-m", "jaxdp.train", *of_train], stdin=subprocess.DEVNULL, start_new_session=True
        )

    supervisor = Supervisor(
        hosts,
        answers=answers,
        start=start,
        saved=lambda: Checkpoints(workdir / CHECKPOINTS).latest_step() or 0,
        policy=Policy(arguments.most_failures, arguments.back_off, arguments.look_every),
        say=lambda text: print(f"launch/supervise: {text}", file=sys.stderr, flush=True),
    )
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.hear)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
