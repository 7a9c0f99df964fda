"""Metrics of a run: metrics.jsonl, TensorBoard event files, and progress lines."""

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
    """Writes metrics.jsonl, one JSON object per line, and TensorBoard event files; used by rank 0 only.

    Args:
      workdir: the folder for both.
      resume_step: the step from which the run resumes. Lines of later steps, which the run will write again, are
        dropped, and so is the summary.
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
        """Writes a line with the step and these values. Numbers, also those in mappings, go to TensorBoard as well."""
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
    """Reads the lines of metrics.jsonl, without a last line that a killed job left incomplete."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class ProgressLine:
    """Shows the progress of the run: as a progress bar on a terminal, as plain lines elsewhere.

    Args:
      total_steps: number of steps of the run.
      first_step: number of steps done by earlier jobs.
      bar: show a progress bar, for output that goes to a terminal.
      out: output stream; standard output if not given.
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
        """Shows the metrics of a step, and the time left at `seconds_per_step`."""
        left = datetime.timedelta(seconds=round((self._total - step) * seconds_per_step))
        # If all steps of an interval were skipped, there are no losses to average.
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
        """Prints a line above the progress bar, or as a plain line."""
        if self._bar is None:
            print(text, file=self._out, flush=True)
        else:
            self._bar.write(text, file=self._out)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TrainLog:
    """Averages training metrics, and measures the time per step, between two lines of metrics.

    Each metric is averaged over the steps that report it.

    Args:
      batch_size: number of images per step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._values: dict[str, list[float]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes what was just done (an evaluation, a save) from the time per step."""
        self._clock = time.perf_counter()
        self._timed_steps = 0

    def add(self, values: dict[str, Any]) -> None:
        """Adds the metrics of one step."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(float(value))
        self._timed_steps += 1

    def take(self) -> tuple[dict[str, float], float]:
        """Returns the means, with `images_per_second`, and the seconds per step, and resets."""
        assert self._values, "a line of metrics needs at least one step"
        seconds_per_step = (time.perf_counter() - self._clock) / max(self._timed_steps, 1)
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values = {}
        self.restart_clock()
        return means | {"images_per_second": self._batch_size / seconds_per_step}, seconds_per_step
