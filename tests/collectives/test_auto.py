import numpy as np
import pytest

from jaxdp.collectives.auto import candidates, finalists
from jaxdp.collectives.cost import Link, NetworkModel
from jaxdp.collectives.verify import verify


@pytest.mark.parametrize(
    ("num_ranks", "ranks_per_node"), [(2, 1), (2, 2), (3, None), (4, 2), (7, 7), (12, 4), (64, 8), (120, 8)]
)
def test_every_candidate_is_an_allreduce_with_few_messages(num_ranks, ranks_per_node):
    found = candidates(num_ranks, ranks_per_node, "float16")
    assert len(found) == len(set(found))
    assert {choice.wire for choice in found} == {"float16"}
    for choice in {choice.algorithm: choice for choice in found}.values():
        schedule = choice.schedule(num_ranks)
        verify(schedule)
    for choice in found:
        schedule = choice.schedule(num_ranks)
        pairs = [np.unique(schedule.table(index)[:, :2], axis=0) for index in range(schedule.num_rounds)]
        messages = np.bincount(np.concatenate(pairs)[:, 0]).max()
        assert messages * choice.num_segments(num_ranks, 25_000_000) <= 200


def test_slow_messages_favour_algorithms_of_few_rounds():
    """Of 16 ranks, each sends 2 log2 16 = 8 messages in halving_doubling, but 2 * 15 in ring and in direct."""
    found = finalists(4000, "float32", 16, None, NetworkModel.flat(Link(alpha=1.0, beta=0.0, gamma=0.0)))
    seconds = {choice.algorithm: predicted for predicted, choice in found}
    assert list(seconds.values()) == sorted(seconds.values())
    assert seconds["halving_doubling"] == pytest.approx(8)
    assert not {"ring", "direct"} & set(seconds)


def test_slow_bytes_favour_algorithms_that_send_the_fewest():
    """Each of 16 ranks must send at least 2 * 15 / 16 payloads; the root of a binomial tree sends 4."""
    size = 16_000_000
    found = finalists(size, "float32", 16, None, NetworkModel.flat(Link(alpha=0.0, beta=1.0, gamma=0.0)))
    assert found[0][0] == pytest.approx(size * 2 * 15 / 16)
    assert "binomial" not in {choice.algorithm for _, choice in found}
