"""What a person and their tools see of a run: metrics.jsonl, TensorBoard, and one line of progress."""

from __future__ import annotations

import datetime
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsWriter:
    """Writes metrics.jsonl, one JSON object a line, and TensorBoard's event files; used by rank 0 only.

    Args:
      workdir: where both go.
      resume_step: the run goes on from this step; lines of later steps, which it will write anew, are dropped, and so
        is the summary.
    """

    def __init__(self, workdir: pathlib.Path, *, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= resume_step and not line.get("summary")]
        whole = self._path.with_suffix(".tmp")
        whole.write_text("".join(json.dumps(line) + "\n" for line in kept))
        whole.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1, write_to_disk=True)

    def write(self, step: int, **values: Any) -> None:
        """One line: the step and these values; numbers, and those in mappings by name, go to TensorBoard too."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        flat = dict(values)
        for group, of_name in values.items():
            if isinstance(of_name, Mapping):
                flat |= {f"{group}/{name}": value for name, value in of_name.items()}
        for name, value in flat.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that a killed job left half-written is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class Progress:
    """Lines about the run for a person: a bar that stays in place on a terminal, plain lines elsewhere.

    Args:
      total_steps: of the run.
      first_step: steps done before.
      bar: whether `out` is a terminal.
      out: where to; standard output if not given.
    """

    def __init__(self, total_steps: int, *, first_step: int, bar: bool, out: TextIO | None = None):
        self._out = out or sys.stdout
        self._total = total_steps
        self._bar = (
            tqdm(
                total=total_steps, initial=first_step, file=self._out, bar_format="{percentage:3.0f}%|{bar:20}| {desc}"
            )
            if bar
            else None
        )

    def update(self, step: int, *, epoch: float, values: dict[str, float], seconds_per_step: float) -> None:
        """The line of this step, with the time left at this pace."""
        left = datetime.timedelta(seconds=round((self._total - step) * seconds_per_step))
        # Where all steps of a line were skipped, there is no loss of one.
        loss, accuracy = (values.get(name, math.nan) for name in ("loss", "accuracy"))
        line = (
            f"step {step}/{self._total}  epoch {epoch:.2f}  loss {loss:.4f}  "
            f"accuracy {accuracy:.4f}  rate {values['learning_rate']:.4g}  "
            f"{values['images_per_second']:.0f} images/s  {left} left"
        )
        if self._bar is None:
            self.say(line)
        else:
            self._bar.n = step
            self._bar.set_description_str(line)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is None:
            print(text, file=self._out, flush=True)
        else:
            self._bar.write(text, file=self._out)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TrainLog:
    """Means of the training metrics over the steps since the last line that have them, and the pace of these steps.

    Args:
      batch_size: images a step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._values: dict[str, list[float]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what has just been done (an evaluation, a save) out of the pace."""
        self._clock = time.perf_counter()
        self._timed_steps = 0

    def add(self, values: dict[str, Any]) -> None:
        """The metrics of one more step."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(float(value))
        self._timed_steps += 1

    def take(self) -> tuple[dict[str, float], float]:
        """The means, with images_per_second, and the seconds a step; begins anew."""
        assert self._values, "a line is about at least one step"
        seconds_per_step = (time.perf_counter() - self._clock) / max(self._timed_steps, 1)
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values = {}
        self.restart_clock()
        return means | {"images_per_second": self._batch_size / seconds_per_step}, seconds_per_step
