"""Jobs that take turns in being measured: a rank that waits for its turn sleeps, and takes no core from the others.

Needs nothing but Python, as programs of others use it too. All ranks of a job see one folder: `NUMBER.turn` says what
is to be measured, `NUMBER.RANK` is how long it took that rank, in seconds.
"""

import pathlib
import time
from collections.abc import Callable, Mapping

_POLL_S = 0.01
_END = "end"


class Turns:
    """Of one job.

    Args:
      folder: of its own.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._number = folder, 0

    def call(self, what: str, ranks: int, is_over: Callable[[], bool]) -> list[float]:
        """Has the job measure something; the seconds of every rank.

        Args:
          what: a name that its ranks know.
          ranks: of the job.
          is_over: whether the job has ended.

        Raises:
          RuntimeError: it has, without an answer.
        """
        self._number += 1
        _write(self._folder / f"{self._number}.turn", what)
        answers = [self._folder / f"{self._number}.{rank}" for rank in range(ranks)]
        while not all(path.exists() for path in answers):
            if is_over():
                raise RuntimeError("a job that was to be measured has ended, what it said is above")
            time.sleep(_POLL_S)
        return [float(path.read_text()) for path in answers]

    def end(self) -> None:
        """Lets the job end."""
        self._number += 1
        _write(self._folder / f"{self._number}.turn", _END)

    def serve(self, rank: int, measures: Mapping[str, Callable[[], float]]) -> None:
        """A rank's part: measures what it is told to until it is told to end."""
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
    """So that nobody finds half of it."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)
