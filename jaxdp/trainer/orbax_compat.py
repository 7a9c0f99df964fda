"""All uses of private or version-dependent APIs of Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType


@contextlib.contextmanager
def orbax_alone() -> Iterator[None]:
    """Context in which Orbax runs in this process alone, however many processes JAX knows of (engine xla).

    Everything is restored at the end, so a save in the background needs the context until it is complete.

    Orbax has an option for this, active_processes, and its barriers respect it. Its comparison of directories does not
    (orbax-checkpoint 0.12) and would wait forever for all ranks.
    """
    from orbax.checkpoint import v1 as ocp
    from orbax.checkpoint._src.multihost import multihost as before_v1
    from orbax.checkpoint.experimental.v1._src.synchronization import multihost

    context = ocp.Context()
    context.multiprocessing.active_processes = {0}
    context.multiprocessing.barrier_sync_key_prefix = "jaxdp"
    with _one_process(before_v1), _one_process(multihost), context:
        yield


@contextlib.contextmanager
def _one_process(module: ModuleType) -> Iterator[None]:
    before = module.process_count
    module.process_count = lambda: 1  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.process_count = before  # type: ignore[attr-defined]


def silence_orbax_for_good() -> None:
    """Silences Orbax's log and late errors of TensorStore, for the rest of the process; further calls change nothing.

    Threads of a failed save log tracebacks and outlive the save, so there is no moment at which to restore anything.
    The result of the save raises the same errors. The log and the errors of other libraries are still reported.
    """
    import absl.logging

    absl.logging.get_absl_logger().addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/checkpoint/" not in record.pathname


@dataclasses.dataclass(frozen=True)
class _WithoutLateWrites:
    """A `sys.unraisablehook` that ignores writes of TensorStore after the event loop of a failed save has ended."""

    report: Callable[[sys.UnraisableHookArgs], object]

    def __call__(self, found: sys.UnraisableHookArgs) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            self.report(found)
