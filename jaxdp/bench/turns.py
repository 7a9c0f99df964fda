"""Lets several jobs take turns in being measured; ranks that wait sleep, so that they do not compete for cores.

Depends on the standard library only, because baseline programs without jaxdp use it too. All ranks of a job share one
folder. The file `NUMBER.turn` names what to measure, and each rank writes its result, usually seconds, to
`NUMBER.RANK`.
"""

import pathlib
import time
from collections.abc import Callable, Mapping

_POLL_S = 0.01
_END = "end"


class Turns:
    """The turns of one job.

    Args:
      folder: folder used by this job only.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._number = folder, 0

    def call(self, what: str, ranks: int, is_over: Callable[[], bool]) -> list[float]:
        """Lets the job take one measurement and returns the result of every rank.

        Args:
          what: name of the measurement, a key of the `measures` that the ranks serve.
          ranks: number of ranks of the job.
          is_over: returns whether the job has ended.

        Raises:
          RuntimeError: the job has ended without a result.
        """
        self._number += 1
        _write(self._folder / f"{self._number}.turn", what)
        answers = [self._folder / f"{self._number}.{rank}" for rank in range(ranks)]
        while not all(path.exists() for path in answers):
            if is_over():
                raise RuntimeError("a job ended before it was measured: see its output above")
            time.sleep(_POLL_S)
        return [float(path.read_text()) for path in answers]

    def end(self) -> None:
        """Tells the job to end."""
        self._number += 1
        _write(self._folder / f"{self._number}.turn", _END)

    def serve(self, rank: int, measures: Mapping[str, Callable[[], float]]) -> None:
        """Takes the requested measurements on one rank until the job is told to end.

        Args:
          rank: this rank.
          measures: functions that return a result, usually seconds, by name.
        """
        while True:
            self._number += 1
            turn = self._folder / f"{self._number}.turn"
            while not turn.exists():
                time.sleep(_POLL_S)
            what = turn.read_text()
            if what == _END:
                return
            _write(self._folder / f"{self._number}.{rank}", repr(measures[what]()))


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically, so that no reader sees a partial one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)
