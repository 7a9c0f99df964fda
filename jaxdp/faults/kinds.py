"""The faults that can be injected into a job, and how the job must react to each."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from jaxdp.bench import netcluster
from jaxdp.faults.job import Job
from jaxdp.faults.trial import STEPS, WATCHDOG_S, FaultResult, Trial
from jaxdp.runtime.exit_codes import INTERNAL_ERROR, REQUEUE, USER_ERROR
from jaxdp.trainer.workdir import CHECKPOINTS

# Time within which a job must exit after it has lost a rank or was asked to stop.
_SOON_S = 10.0
# A silent rank is detected after the watchdog's timeout. If rank 0 is silent, the other ranks detect it one by one.
_MISSED_S = WATCHDOG_S + 12.0
_PAUSE_S = 2.0
_DISK_BYTES = 12 * 2**20


class Fault(NamedTuple):
    """A kind of fault.

    Attributes:
      what: description of the fault, for the table.
      must: description of the required reaction of the job, for the table.
      inject: injects the fault into a run, checks the reaction and repairs the damage.
      impossible: returns why the fault cannot be injected on this machine, or None if it can.
      on_hosts: whether the ranks must run on two hosts of `launch/netcluster`.
    """

    what: str
    must: str
    inject: Callable[[Trial], FaultResult]
    impossible: Callable[[], str | None] = lambda: None
    on_hosts: bool = False


def _killed(caught: Callable[[Trial], Job]) -> Callable[[Trial], FaultResult]:
    def inject(trial: Trial) -> FaultResult:
        job = caught(trial)
        victim = trial.some_process(job)
        return trial.ends(job, lambda: os.kill(victim, signal.SIGKILL), within=_SOON_S)

    return inject


def _stopped(trial: Trial) -> FaultResult:
    job = trial.at_a_step()
    victim = trial.some_process(job)
    return trial.ends(job, lambda: os.kill(victim, signal.SIGSTOP), within=_MISSED_S)


def _paused(trial: Trial) -> FaultResult:
    job = trial.at_a_step()
    moment, victim = job.where, trial.some_process(job)
    os.kill(victim, signal.SIGSTOP)
    time.sleep(_PAUSE_S)
    os.kill(victim, signal.SIGCONT)
    return FaultResult(moment, None, trial.goes_on(job))


def _asked(trial: Trial) -> FaultResult:
    job = trial.at_any_moment()
    return trial.ends(job, lambda: os.kill(job.launcher, signal.SIGUSR1), within=_SOON_S, code=REQUEUE)


def _flip_a_bit(path: pathlib.Path, trial: Trial) -> None:
    content = bytearray(path.read_bytes())
    content[trial.chance.randrange(len(content))] ^= 1 << trial.chance.randrange(8)
    path.write_bytes(content)


def _cut_off(path: pathlib.Path, trial: Trial) -> None:
    os.truncate(path, trial.chance.randrange(path.stat().st_size))


def _damaged(damage: Callable[[pathlib.Path, Trial], None]) -> Callable[[Trial], FaultResult]:
    def inject(trial: Trial) -> FaultResult:
        step = trial.chance.randrange(20, STEPS)
        if why_not := trial.goes_on(trial.start(f"--stop_at_step={step}")):
            return FaultResult("", None, why_not)
        files = [path for path in (trial.workdir / CHECKPOINTS / str(step)).rglob("*") if path.is_file()]
        # Weighted by size, because damage on a disk is more likely to hit a large file.
        (victim,) = trial.chance.choices(files, [path.stat().st_size for path in files])
        damage(victim, trial)
        begin, job = time.monotonic(), trial.start()
        told = job.wait_until(lambda: "kept aside" in job.said or job.last_step > step)
        seconds = time.monotonic() - begin if "kept aside" in job.said else None
        # Some bits of a file have no meaning. Flipping one of them does no damage, so nothing is reported.
        return FaultResult(f"step {step}, {victim.name}", seconds, trial.goes_on(job) if told else job.error)

    return inject


def _record_cut_off(trial: Trial) -> FaultResult:
    data = trial.folder / "data"
    shutil.copytree(trial.environment["TFDS_DATA_DIR"], data)
    trial = dataclasses.replace(trial, arguments=(f"--config.data.dir={data}",))
    job = trial.at_a_step()
    where = job.where
    job.close()
    (victim, *_) = trial.chance.sample(sorted(data.rglob("*.array_record*")), 1)
    _cut_off(victim, trial)
    job = trial.start()
    result = trial.ends(job, lambda: None, within=_SOON_S + trial.baseline.ends_s, code=USER_ERROR)
    why_not = result.why_not or (None if str(victim.parent) in job.error else f"unrelated error: {job.error}")
    return result._replace(moment=f"{where}, {victim.name}", why_not=why_not)


def _disk_full(trial: Trial) -> FaultResult:
    trial.workdir.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", trial.workdir], check=True)
    trial.afterwards.callback(subprocess.check_call, ["umount", "--lazy", trial.workdir])
    ballast = trial.workdir / "ballast"

    def fill() -> None:
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            return

    job = trial.at_a_step()
    result = trial.ends(job, fill, within=2 * _SOON_S, code=INTERNAL_ERROR)
    ballast.unlink()
    return result._replace(why_not=result.why_not or ("it printed a traceback" if "Traceback" in job.said else None))


def _link_cut(trial: Trial) -> FaultResult:
    result = trial.ends(trial.at_a_step(), lambda: netcluster.run("cut", "h1"), within=_MISSED_S)
    netcluster.run("mend", "h1")
    return result


def why_no_mount() -> str | None:
    """Returns why a small disk cannot be mounted on this machine, or None if it can."""
    return None if os.geteuid() == 0 else "mounting a small disk needs root"


_ENDS = f"exits within {_SOON_S:g} s"
FAULTS = {
    "kill": Fault("SIGKILL of a rank at a random time", _ENDS, _killed(Trial.at_any_moment)),
    "kill-loading": Fault("SIGKILL of a rank before the first step", _ENDS, _killed(Trial.while_loading)),
    "kill-saving": Fault("SIGKILL of a rank during a save", _ENDS, _killed(Trial.while_saving)),
    "kill-evaluating": Fault("SIGKILL of a rank during an evaluation", _ENDS, _killed(Trial.while_evaluating)),
    "stop": Fault("SIGSTOP of a rank", f"exits within {_MISSED_S:g} s (watchdog: {WATCHDOG_S:g} s)", _stopped),
    "pause": Fault(f"SIGSTOP of a rank, SIGCONT {_PAUSE_S:g} s later", "continues", _paused),
    "preempt": Fault("SIGUSR1 to mpirun at a random time", f"{_ENDS}, with code {REQUEUE} if training", _asked),
    "save-flipped": Fault(
        "a bit flip in the newest checkpoint", "resumes from the previous checkpoint", _damaged(_flip_a_bit)
    ),
    "save-cut-off": Fault(
        "a truncated file in the newest checkpoint", "resumes from the previous checkpoint", _damaged(_cut_off)
    ),
    "record-cut-off": Fault("a truncated file of the data set", f"exits with code {USER_ERROR}", _record_cut_off),
    "disk-full": Fault(
        "a full disk", f"exits within {2 * _SOON_S:g} s with code {INTERNAL_ERROR}", _disk_full, why_no_mount
    ),
    "link-cut": Fault(
        "the network link of a host cut", f"exits within {_MISSED_S:g} s", _link_cut, netcluster.why_not, on_hosts=True
    ),
}
