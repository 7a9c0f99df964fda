"""The allreduce algorithms: each one a pure function from a number of ranks to a schedule."""

from jaxdp.collectives.algorithms.multicolor import multicolor

ALGORITHMS = {"multicolor": multicolor}

__all__ = ["ALGORITHMS", "multicolor"]
