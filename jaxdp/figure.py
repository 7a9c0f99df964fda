"""Drawing with Matplotlib, which is there only where someone wants pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any


def save_figure(draw: Callable[[Any], None], path: pathlib.Path, *, size: tuple[float, float], **subplots: Any) -> None:
    """Draws a figure into a file.

    Args:
      draw: on axes, or a grid of them.
      path: of the file; its suffix says in which format.
      size: width and height in inches.
      subplots: see `matplotlib.pyplot.subplots`.

    Raises:
      ValueError: there is no Matplotlib, or the file cannot be written.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("pictures need matplotlib: install it with `pip install jaxdp[plot]`") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size, layout="constrained", **subplots)
    draw(axes)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be written: {error}") from None
    finally:
        pyplot.close(figure)
