"""All uses of private or version-dependent APIs of Orbax."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@contextlib.contextmanager
def orbax_alone() -> Iterator[None]:
    """Context in which Orbax runs in this process alone, however many processes JAX knows of (engine xla).

    Orbax has an option for this, active_processes, and its barriers respect it. Its comparison of directories does not
    (orbax-checkpoint 0.12) and would wait forever for all ranks.
    """
    import absl.logging
    from orbax.checkpoint import v1 as ocp
    from orbax.checkpoint._src.multihost import multihost as before_v1
    from orbax.checkpoint.experimental.v1._src.synchronization import multihost

    for module in (before_v1, multihost):
        module.process_count = _one
    # Orbax's threads log their exceptions with tracebacks; the result of the save raises the same exceptions.
    absl.logging.set_verbosity(absl.logging.FATAL)
    _ignore_late_writes()
    context = ocp.Context()
    context.multiprocessing.active_processes = {0}
    context.multiprocessing.barrier_sync_key_prefix = "jaxdp"
    with context:
        yield


def _one() -> int:
    return 1


@functools.cache
def _ignore_late_writes() -> None:
    """Silences errors from TensorStore threads that outlive a failed save."""
    tell = sys.unraisablehook

    def tell_others(found: sys.UnraisableHookArgs) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            tell(found)

    sys.unraisablehook = tell_others
