"""What this process is at, for those who watch over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

# The phase in which a process may be for long without a sign of it getting on.
COMPILE = "compile"
# A step: that of other ranks is waited for in the second one.
COMPUTE, ALLREDUCE = "compute", "allreduce"


@dataclasses.dataclass
class Progress:
    """Of this process.

    Attributes:
      phase: a word for what it does.
      step: of the training, that it is at.
      beats: grows whenever something has been done.
      allreduces: how many are over, and how many under way.
    """

    phase: str = "start"
    step: int = 0
    beats: int = 0
    allreduces: Callable[[], tuple[int, int]] = lambda: (0, 0)
    _compiled: set[str] = dataclasses.field(default_factory=set)

    def beat(self) -> None:
        """Something has been done."""
        self.beats += 1

    def enter(self, phase: str, step: int | None = None) -> None:
        """Begins another phase, of the same step if no other is given."""
        self.phase, self.step = phase, self.step if step is None else step
        self.beat()

    def enter_program(self, phase: str, step: int) -> None:
        """Begins a phase in which a program runs: until `has_compiled` it is the compiler's."""
        self.enter(phase if phase in self._compiled else COMPILE, step)

    def has_compiled(self, phase: str) -> None:
        """The program of a phase has run once."""
        self._compiled.add(phase)

    def now(self) -> tuple[str, int, int]:
        """Phase, step, and a number that grows as long as something is done."""
        over, under_way = self.allreduces()
        return ALLREDUCE if self.phase == COMPUTE and under_way else self.phase, self.step, self.beats + over


MINE = Progress()
