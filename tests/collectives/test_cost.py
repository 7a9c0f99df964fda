import dataclasses

import numpy as np
import pytest

from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.cost import Link, Network, counts, simulate
from jaxdp.collectives.schedule import Move, Schedule
from tests.collectives.test_algorithms import schedules

# 500 Mbit/s, and a core that adds 5 GB/s; shared memory inside nodes.
LINK = Link(alpha=1e-4, beta=8 / 0.5e9, gamma=2e-10)
SHARED_MEMORY = Link(alpha=2e-6, beta=1 / 5e9, gamma=2e-10)
FLAT = Network.flat(LINK)
SIZES = [1e3, 1e6, 25e6]


def test_a_message_costs_alpha_and_beta_and_its_addition_gamma():
    there_and_back = Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True)], [Move(1, 0, 0, False)]])
    seconds = simulate(there_and_back, 1e6, Network.flat(Link(1.0, 1e-6, 1e-7)))
    assert seconds == pytest.approx((1 + 1) + 0.1 + (1 + 1))


def test_a_link_sends_and_receives_at_once_but_one_message_each():
    exchange = Schedule.from_rounds(2, 2, [[Move(0, 1, 0, True), Move(1, 0, 1, True)]])
    assert simulate(exchange, 2e6, Network.flat(Link(0.0, 1e-6, 0.0))) == pytest.approx(1)
    two_into_one = Schedule.from_rounds(3, 1, [[Move(1, 0, 0, True), Move(2, 0, 0, True)]])
    assert simulate(two_into_one, 1e6, Network.flat(Link(0.0, 1e-6, 0.0))) == pytest.approx(2)


def test_segments_let_a_chain_send_on_what_it_has():
    chain = ALGORITHMS["multicolor"].schedule(5, colors=1, arity=1)
    network = Network.flat(Link(0.0, 1e-6, 0.0))
    assert simulate(chain, 1e6, network) == pytest.approx(8)
    # 8 rounds and 9 segments more; a rank in the middle sends and receives twice in a step once the pipeline is full.
    assert simulate(chain, 1e6, network, num_segments=10) < 3


def test_half_the_bytes_on_the_wire_halve_beta_only():
    schedule = ALGORITHMS["ring"].schedule(4)
    halved = simulate(schedule, 1e6, Network.flat(dataclasses.replace(LINK, beta=LINK.beta / 2)))
    assert simulate(schedule, 1e6, FLAT, wire_ratio=0.5) == pytest.approx(halved)
    profile = ALGORITHMS["ring"].profile(4)
    assert profile.predict(1e6, FLAT, wire_ratio=0.5) == pytest.approx(halved)


def test_the_closed_forms_of_firecaffe():
    """Section 4: the server takes time in proportion to p, the tree to log p; t = 2 W log2(p) / BW for the tree."""
    bandwidth = Network.flat(Link(0.0, 1.0, 0.0))
    for levels in range(1, 15):
        tree = ALGORITHMS["binomial"].profile(2**levels)
        assert tree.predict(1.0, bandwidth) == pytest.approx(2 * levels)
        server = ALGORITHMS["parameter_server"].profile(2**levels)
        assert server.predict(1.0, bandwidth) == pytest.approx(2 * (2**levels - 1))


def tolerance(name, options, num_ranks, num_segments):
    """The closed form lets every step wait for its busiest rank; the simulation lets ranks run ahead."""
    if name == "hierarchical":
        return 0.5
    if name == "multicolor":
        return 0.12 if options["arity"] >= options["colors"] and num_segments > 1 else 0.5
    return 0.2 if name == "halving_doubling" and num_ranks & (num_ranks - 1) else 1e-9


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 7, 8, 13, 16, 33, 64])
def test_the_closed_form_is_that_of_the_simulation(num_ranks):
    for name, options, schedule in schedules(num_ranks):
        profile = ALGORITHMS[name].profile(num_ranks, **options)
        assert profile.table.shape[1] == schedule.num_rounds
        for num_bytes in SIZES:
            for num_segments in (1, 3, 16):
                if schedule.num_moves * num_segments > 20_000:
                    continue
                network = Network(LINK, SHARED_MEMORY, options.get("ranks_per_node", 1))
                simulated = simulate(schedule, num_bytes, network, num_segments=num_segments)
                predicted = profile.predict(num_bytes, network, num_segments=num_segments)
                assert predicted == pytest.approx(simulated, rel=tolerance(name, options, num_ranks, num_segments))


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 13, 100])
def test_the_roles_of_the_closed_form_are_those_of_the_busiest_ranks(num_ranks):
    for name, options, schedule in schedules(num_ranks):
        profile = ALGORITHMS[name].profile(num_ranks, **options)
        _, received, _, sent, added = profile.table.sum(axis=1).max(axis=0)
        found = counts(schedule)
        assert received == pytest.approx(found.received.max())
        assert sent == pytest.approx(found.sent.max())
        adds = np.bincount(schedule.dst[schedule.reduce], minlength=num_ranks) / schedule.num_chunks
        assert added == pytest.approx(adds.max())


def test_the_closed_form_serves_worlds_of_any_size():
    options = {"colors": 4, "arity": 4, "inner": "ring", "outer": "multicolor", "ranks_per_node": 8}
    for algorithm in ALGORITHMS.values():
        profile = algorithm.profile(20_000, **{name: options[name] for name in algorithm.options})
        seconds = profile.predict(25e6, FLAT, num_segments=8)
        assert 0 < seconds < 1e5
