"""What this process is at, for those who watch over it."""

from __future__ import annotations

import dataclasses
import time

# The phase in which a process may be for long without a sign of it getting on.
COMPILE = "compile"


@dataclasses.dataclass
class Progress:
    """Of this process.

    Attributes:
      phase: a word for what it does.
      step: of the training, that it is at.
      beats: grows whenever something has been done.
      since: when it grew last, by time.monotonic.
    """

    phase: str = "start"
    step: int = 0
    beats: int = 0
    since: float = dataclasses.field(default_factory=time.monotonic)

    def beat(self) -> None:
        """Something has been done."""
        self.beats += 1
        self.since = time.monotonic()

    def enter(self, phase: str, step: int | None = None) -> None:
        """Begins another phase, of the same step if no other is given."""
        self.phase, self.step = phase, self.step if step is None else step
        self.beat()


MINE = Progress()
