"""Tests of the properties that every algorithm has, and of those that its docstring claims."""

import collections

import numpy as np
import pytest
from jobs import TAKES_LONG

from jaxdp.collectives import run_numpy
from jaxdp.collectives.algorithms import ALGORITHMS, INNER, OUTER, hierarchical, multicolor
from jaxdp.collectives.cost import counts
from jaxdp.collectives.verify import verify

SAMPLED = [100, 127, 256, pytest.param(500, marks=TAKES_LONG)]


def settings(name, num_ranks):
    """Returns the combinations of options with which an algorithm is tested on `num_ranks` ranks."""
    if name == "hierarchical":
        return [
            {"inner": inner, "outer": outer, "ranks_per_node": size, "colors": min(2, num_ranks // size), "arity": 2}
            for size in range(1, num_ranks + 1)
            if num_ranks % size == 0 and (num_ranks <= 16 or size in (2, 8))
            for inner in (INNER if num_ranks <= 8 else ("ring", "halving_doubling"))
            for outer in (OUTER if num_ranks <= 8 else ("multicolor", "direct"))
        ]
    if name != "multicolor":
        return [{}]
    return [
        {"colors": colors, "arity": arity}
        for colors in sorted({1, 2, 3, 4, 7, num_ranks} & set(range(1, min(num_ranks, 9) + 1)))
        for arity in sorted({1, 2, colors})
    ]


def schedules(num_ranks, names=tuple(ALGORITHMS)):
    for name in names:
        for options in settings(name, num_ranks):
            yield name, options, ALGORITHMS[name].schedule(num_ranks, **options)


@pytest.mark.parametrize("wire_rounds", [False, True])
@pytest.mark.parametrize("num_ranks", [*range(1, 65), *SAMPLED])
def test_every_algorithm_is_an_allreduce(num_ranks, wire_rounds):
    for _, _, schedule in schedules(num_ranks):
        verify(schedule, wire_rounds=wire_rounds)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_an_allreduce_on_1024_ranks(name):
    algorithm = ALGORITHMS[name]
    options = {"colors": 4, "arity": 4, "inner": "ring", "outer": "multicolor", "ranks_per_node": 8}
    verify(algorithm.schedule(1024, **{option: options[option] for option in algorithm.options}))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("num_elements", [1, 3, 50])
def test_oracle_sums_integers_exactly_on_every_rank(num_ranks, num_elements):
    payloads = [np.random.default_rng(rank).integers(-99, 99, num_elements) for rank in range(num_ranks)]
    for _, _, schedule in schedules(num_ranks):
        results = run_numpy.allreduce(schedule, payloads)
        assert all((result == np.sum(payloads, axis=0)).all() for result in results)


@pytest.mark.parametrize("wire", [np.float32, np.float16])
@pytest.mark.parametrize("num_ranks", [2, 3, 7])
def test_replicas_are_bit_identical_despite_rounding(num_ranks, wire):
    payloads = [np.random.default_rng(rank).standard_normal(1000, np.float32) for rank in range(num_ranks)]
    for _, _, schedule in schedules(num_ranks):
        results = run_numpy.allreduce(schedule, payloads, on_wire=lambda x: x.astype(wire).astype(x.dtype))
        assert all(result.tobytes() == results[0].tobytes() for result in results)
        tolerance = 1e-5 if wire == np.float32 else 1e-2
        np.testing.assert_allclose(results[0], np.sum(payloads, axis=0), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_ranks", [*range(2, 34), *SAMPLED[:2]])
def test_bytes_respect_the_lower_bound_and_optimal_algorithms_attain_it(num_ranks):
    for name, options, schedule in schedules(num_ranks):
        found = counts(schedule)
        assert found.lower_bound == 2 * (num_ranks - 1) / num_ranks
        for bytes_of_rank in (found.sent, found.received):
            assert bytes_of_rank.max() >= found.lower_bound - 1e-9
        power_of_two = num_ranks & (num_ranks - 1) == 0
        if name in ("ring", "direct") or (name == "halving_doubling" and power_of_two):
            np.testing.assert_allclose(found.sent, found.lower_bound, rtol=1e-12)
            np.testing.assert_allclose(found.received, found.lower_bound, rtol=1e-12)
        if not options:
            assert found.fan_in == (num_ranks - 1 if name == "parameter_server" else 1)


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 13, 64])
def test_multicolor_with_one_color_per_rank_meets_the_lower_bound(num_ranks):
    found = counts(multicolor(num_ranks, colors=num_ranks, arity=num_ranks))
    np.testing.assert_allclose(found.sent, found.lower_bound, rtol=1e-12)
    assert (found.rounds, found.fan_in) == (2, num_ranks - 1)


@pytest.mark.parametrize("num_ranks", [*range(1, 66), 500])
def test_round_counts_match_the_docstrings(num_ranks):
    p = num_ranks
    q, log_q = 1, 0
    while 2 * q <= p:
        q, log_q = 2 * q, log_q + 1
    ceil_log_p = log_q + (p > q)
    for name, rounds in [
        ("ring", 2 * (p - 1)),
        ("direct", 2 * (p - 1)),
        ("halving_doubling", 2 * log_q + 2 * (p > q)),
        ("binomial", 2 * ceil_log_p),
        ("parameter_server", 2 if p > 1 else 0),
    ]:
        assert counts(ALGORITHMS[name].schedule(p)).rounds == rounds, name


@pytest.mark.parametrize("num_ranks", [2, 3, 6, 8, 13, 64, 100])
def test_byte_counts_match_the_docstrings(num_ranks):
    p = num_ranks
    rank = np.arange(p)

    found = counts(ALGORITHMS["parameter_server"].schedule(p))
    np.testing.assert_array_equal(found.sent, np.where(rank == 0, p - 1, 1))
    np.testing.assert_array_equal(found.received, found.sent)

    found = counts(ALGORITHMS["binomial"].schedule(p))
    children = [sum(r % (2 * 2**i) == 0 and r + 2**i < p for i in range(10)) for r in range(p)]
    np.testing.assert_array_equal(found.sent, children + (rank > 0))
    np.testing.assert_array_equal(found.received, found.sent)
    assert found.sent[0] == (p - 1).bit_length()

    found = counts(ALGORITHMS["halving_doubling"].schedule(p))
    q = 1 << (p.bit_length() - 1)
    expected = np.where(rank < q, 2 * (q - 1) / q + (rank < p - q), 1)
    np.testing.assert_allclose(found.sent, expected, rtol=1e-12)
    np.testing.assert_allclose(found.received, expected, rtol=1e-12)


@pytest.mark.parametrize("num_ranks", [*range(1, 34), 48, 64, 100, 257])
def test_multicolor_rounds_and_moves_match_its_docstring(num_ranks):
    for _, options, schedule in schedules(num_ranks, ["multicolor"]):
        depth, last = 0, num_ranks - 1
        while last > 0:
            depth, last = depth + 1, (last - 1) // options["arity"]
        assert schedule.num_rounds == 2 * depth
        assert schedule.num_moves == 2 * (num_ranks - 1) * options["colors"]
        assert counts(schedule).fan_in <= options["arity"] * options["colors"]


@pytest.mark.parametrize("num_ranks", [*range(1, 34), 48, 64, 100, 257])
def test_multicolor_spreads_internal_roles_as_evenly_as_possible(num_ranks):
    for _, options, schedule in schedules(num_ranks, ["multicolor"]):
        colors, arity = options["colors"], options["arity"]
        parents = set(zip(schedule.dst[schedule.reduce], schedule.chunk[schedule.reduce], strict=True))
        roles = collections.Counter(int(rank) for rank, _ in parents)
        internal = -(-(num_ranks - 1) // arity)
        assert len(parents) == internal * colors
        role_counts = [roles[rank] for rank in range(num_ranks)]
        assert min(role_counts) == internal * colors // num_ranks
        assert max(role_counts) == -(-internal * colors // num_ranks)
        if arity == colors and num_ranks > 1:
            assert (max(role_counts) <= 1) == (num_ranks % colors in (0, 1))


@pytest.mark.parametrize("num_ranks", [*range(1, 34), 48, 64, 100, 257])
def test_multicolor_byte_counts_match_its_docstring(num_ranks):
    for _, options, schedule in schedules(num_ranks, ["multicolor"]):
        found = counts(schedule)
        adds = schedule.reduce
        not_root = np.bincount(schedule.src[adds], minlength=num_ranks)
        children = np.bincount(schedule.dst[adds], minlength=num_ranks)
        np.testing.assert_allclose(found.sent, (not_root + children) / options["colors"], rtol=1e-12)
        np.testing.assert_allclose(found.received, (not_root + children) / options["colors"], rtol=1e-12)


def test_two_binary_trees_share_no_internal_rank():
    schedule = multicolor(8, colors=2, arity=2)
    first, second = (set(schedule.dst[schedule.reduce & (schedule.chunk == color)]) for color in (0, 1))
    assert first.isdisjoint(second)


@pytest.mark.parametrize("colors", [0, -1, 5])
def test_invalid_number_of_colors_is_refused(colors):
    with pytest.raises(ValueError, match=r"set allreduce\.colors to a number from 1 to 4"):
        multicolor(4, colors=colors, arity=2)


def test_arity_below_one_is_refused():
    with pytest.raises(ValueError, match=r"set allreduce\.arity to 1 or more"):
        multicolor(4, colors=2, arity=0)


@pytest.mark.parametrize(("num_nodes", "ranks_per_node"), [(2, 2), (4, 3), (3, 8), (8, 4)])
def test_hierarchical_spreads_internode_traffic_evenly_over_ranks(num_nodes, ranks_per_node):
    p = num_nodes * ranks_per_node
    for inner in ("ring", "direct"):
        schedule = hierarchical(p, inner=inner, outer="ring", ranks_per_node=ranks_per_node)
        crosses = schedule.src // ranks_per_node != schedule.dst // ranks_per_node
        sent = np.bincount(schedule.src[crosses], minlength=p) / schedule.num_chunks
        np.testing.assert_allclose(sent, 2 * (num_nodes - 1) / num_nodes / ranks_per_node, rtol=1e-12)
        assert schedule.num_rounds == 2 * (ranks_per_node - 1) + 2 * (num_nodes - 1)
        # Both levels send the minimum number of bytes, so their combination does too.
        np.testing.assert_allclose(counts(schedule).sent, 2 * (p - 1) / p, rtol=1e-12)


def test_uneven_nodes_and_unknown_levels_are_refused():
    with pytest.raises(
        ValueError,
        match=r"6 ranks cannot be divided into nodes of 4: set config\.allreduce\.ranks_per_node to a divisor",
    ):
        hierarchical(6, inner="ring", outer="ring", ranks_per_node=4)
    with pytest.raises(ValueError, match=r"allreduce\.inner must be one of ring, direct, .*, not 'multicolor'"):
        hierarchical(6, inner="multicolor", outer="ring", ranks_per_node=2)
    with pytest.raises(ValueError, match=r"allreduce\.outer must be one of multicolor, ring, .*, not 'hierarchical'"):
        hierarchical(6, inner="ring", outer="hierarchical", ranks_per_node=2)
