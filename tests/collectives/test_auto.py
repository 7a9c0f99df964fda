import numpy as np
import pytest

from jaxdp.collectives.auto import candidates
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
