import numpy as np
import pytest
from mpi4py import MPI

from jaxdp.data.audit import Audit
from jaxdp.data.order import Order

ORDER = Order(10, 4, seed=3)


def deliver(first, end, spoil=lambda ids: ids):
    audit = Audit(ORDER, first)
    for step in range(first, end):
        ids, epochs = ORDER.examples(step, step + 1), ORDER.epochs(step, step + 1)
        given = spoil(ids.ravel().copy())
        audit.add(given, np.resize(epochs, given.size))
        audit.settle(step + 1, MPI.COMM_SELF)


@pytest.mark.parametrize("first", [0, 1, 3, 7])
def test_correct_delivery_passes_from_any_first_step(first):
    deliver(first, 20)


def duplicate(ids):
    ids[0] = ids[1]
    return ids


def swap_for_a_pair_of_equal_sum(ids):
    ids[:2] += [1, -1]
    return ids


@pytest.mark.parametrize(
    "spoil", [duplicate, swap_for_a_pair_of_equal_sum, lambda ids: ids[:-1], lambda ids: np.append(ids, ids[0])]
)
def test_missing_or_duplicate_example_stops_the_run(spoil):
    with pytest.raises(RuntimeError, match="must be delivered once per epoch, but in epoch 0 the ranks"):
        deliver(0, 3, spoil)
