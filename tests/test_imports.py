"""Importing any module starts nothing: no MPI, no JAX back end, no thread."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
CHECK = """
import importlib, sys, threading
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "mpi4py.MPI" not in sys.modules, "MPI is open"
assert "tensorflow" not in sys.modules
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "JAX has a back end"
assert threading.active_count() == 1, threading.enumerate()
"""
PURE = [
    "jaxdp.cli.train_flags",
    "jaxdp.collectives.algorithms",
    "jaxdp.collectives.phases",
    "jaxdp.collectives.run_numpy",
    "jaxdp.collectives.schedule",
    "jaxdp.collectives.verify",
    "jaxdp.config.schema",
    "jaxdp.data.order",
    "jaxdp.config.run_lengths",
]


# One pass with two microbatches, as a training step traces it.
MICROBATCHES = """
import functools, sys
import jax, numpy as np
from jaxdp.data.batch import Batch
from jaxdp.models.network import Network
from jaxdp.step.forward_backward import forward_backward
from jaxdp.step.task import Task

network, params, stats = Network.create("cnn", {"width": 4}, image_shape=(8, 8, 1), num_classes=10, seed=0)
task = Task(network, (0.5,), (0.25,), 4, padded=False, microbatches=2)
batch = Batch(np.zeros((4, 8, 8, 1), np.uint8), np.ones((4, 4), np.int32))
jax.jit(functools.partial(forward_backward, task)).lower(params, stats, batch)
assert "mpi4py.MPI" not in sys.modules, "the step has opened MPI"
"""


def modules():
    for path in sorted((ROOT / "jaxdp").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def run(code, *names):
    ended = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_importing_starts_nothing():
    run(CHECK, *modules())


def test_pure_modules_need_neither_jax_nor_mpi():
    run(CHECK + "assert not {'jax', 'mpi4py', 'flax'} & set(sys.modules)", *PURE)


def test_microbatches_of_the_step_do_not_open_mpi():
    run(MICROBATCHES)
