"""What a process is doing at the moment, for the watchdog."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

# The phase that may legitimately take long without visible progress.
COMPILE = "compile"
# The phases of a step; in the second one this rank waits for other ranks.
COMPUTE, ALLREDUCE = "compute", "allreduce"


@dataclasses.dataclass
class Activity:
    """The current phase and the progress of a process, which its own code records and the watchdog reads.

    Attributes:
      phase: name of the current phase.
      step: current training step.
      beats: counter that grows whenever work has been done.
      allreduces: returns the numbers of finished and of pending allreduces.
    """

    phase: str = "start"
    step: int = 0
    beats: int = 0
    allreduces: Callable[[], tuple[int, int]] = lambda: (0, 0)
    _compiled: set[str] = dataclasses.field(default_factory=set)

    def beat(self) -> None:
        """Records that work has been done."""
        self.beats += 1

    def enter(self, phase: str, step: int | None = None) -> None:
        """Enters another phase, at the same step unless another one is given."""
        self.phase, self.step = phase, self.step if step is None else step
        self.beat()

    def enter_program(self, phase: str, step: int) -> None:
        """Enters a phase that runs a compiled program; it counts as COMPILE until `has_compiled` is called."""
        self.enter(phase if phase in self._compiled else COMPILE, step)

    def has_compiled(self, phase: str) -> None:
        """Records that the program of a phase has run once."""
        self._compiled.add(phase)

    def now(self) -> tuple[str, int, int]:
        """Returns the phase, the step, and a counter that grows as long as work is done."""
        over, under_way = self.allreduces()
        return ALLREDUCE if self.phase == COMPUTE and under_way else self.phase, self.step, self.beats + over
