"""Saves figures with Matplotlib, which is an optional dependency."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any


def save_figure(draw: Callable[[Any], None], path: pathlib.Path, *, size: tuple[float, float], **subplots: Any) -> None:
    """Draws a figure and saves it to a file.

    Args:
      draw: draws on axes, or on a grid of axes.
      path: path of the file; its suffix selects the format.
      size: width and height in inches.
      subplots: further arguments of `matplotlib.pyplot.subplots`.

    Raises:
      ValueError: Matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("plots need matplotlib: install it with `pip install jaxdp[plot]`") from None
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
