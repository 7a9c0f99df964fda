import dataclasses

import numpy as np
import pytest

from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.cost import Link, counts, simulate
from jaxdp.collectives.schedule import Move, Schedule
from tests.collectives.test_algorithms import schedules

# 500 Mbit/s, and a core that adds 5 GB/s.
LINK = Link(alpha=1e-4, beta=8 / 0.5e9, gamma=2e-10)
SIZES = [1e3, 1e6, 25e6]


def test_a_message_costs_alpha_and_beta_and_its_addition_gamma():
    there_and_back = Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True)], [Move(1, 0, 0, False)]])
    seconds = simulate(there_and_back, 1e6, Link(1.0, 1e-6, 1e-7))
    assert seconds == pytest.approx((1 + 1) + 0.1 + (1 + 1))


def test_a_link_sends_and_receives_at_once_but_one_message_each():
    exchange = Schedule.from_rounds(2, 2, [[Move(0, 1, 0, True), Move(1, 0, 1, True)]])
    assert simulate(exchange, 2e6, Link(0.0, 1e-6, 0.0)) == pytest.approx(1)
    two_into_one = Schedule.from_rounds(3, 1, [[Move(1, 0, 0, True), Move(2, 0, 0, True)]])
    assert simulate(two_into_one, 1e6, Link(0.0, 1e-6, 0.0)) == pytest.approx(2)


def test_segments_let_a_chain_send_on_what_it_has():
    chain = ALGORITHMS["multicolor"].schedule(5, colors=1, arity=1)
    link = Link(0.0, 1e-6, 0.0)
    assert simulate(chain, 1e6, link) == pytest.approx(8)
    # 8 rounds and 9 segments more; a rank in the middle sends and receives twice in a step once the pipeline is full.
    assert simulate(chain, 1e6, link, num_segments=10) < 3


def test_half_the_bytes_on_the_wire_halve_beta_only():
    schedule = ALGORITHMS["ring"].schedule(4)
    halved = simulate(schedule, 1e6, dataclasses.replace(LINK, beta=LINK.beta / 2))
    assert simulate(schedule, 1e6, LINK, wire_ratio=0.5) == pytest.approx(halved)
    profile = ALGORITHMS["ring"].profile(4)
    assert profile.predict(1e6, LINK, wire_ratio=0.5) == pytest.approx(halved)


def test_the_closed_forms_of_firecaffe():
    """Section 4: the server takes time in proportion to p, the tree to log p; t = 2 W log2(p) / BW for the tree."""
    bandwidth = Link(0.0, 1.0, 0.0)
    for levels in range(1, 15):
        tree = ALGORITHMS["binomial"].profile(2**levels)
        assert tree.predict(1.0, bandwidth) == pytest.approx(2 * levels)
        server = ALGORITHMS["parameter_server"].profile(2**levels)
        assert server.predict(1.0, bandwidth) == pytest.approx(2 * (2**levels - 1))


def tolerance(name, options, num_ranks, num_segments):
    """The closed form lets every step wait for its busiest rank; the simulation lets ranks run ahead."""
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
                simulated = simulate(schedule, num_bytes, LINK, num_segments=num_segments)
                predicted = profile.predict(num_bytes, LINK, num_segments=num_segments)
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
    for name, algorithm in ALGORITHMS.items():
        options = {"colors": 4, "arity": 4} if name == "multicolor" else {}
        seconds = algorithm.profile(20_000, **options).predict(25e6, LINK, num_segments=8)
        assert 0 < seconds < 1e5
