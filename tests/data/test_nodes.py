import numpy as np
import pytest

from jaxdp.data.nodes import Nodes

LEADERS = [(0,), (0, 0, 0), (0, 1, 2), (0, 0, 2, 2), (0, 1, 0, 1, 0), (0, 0, 0, 3)]


@pytest.mark.parametrize("leaders", LEADERS)
@pytest.mark.parametrize("num_examples", [0, 1, 7, 100])
def test_ranks_of_a_node_together_read_its_share(leaders, num_examples):
    nodes = Nodes(leaders)
    bounds = nodes.bounds(num_examples)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, num_examples, nodes.count + 1)
    for node in range(nodes.count):
        read = [nodes.part_of(rank, num_examples) for rank in np.flatnonzero(nodes.of_rank == node)]
        rows = [row for part in read for row in range(part.start, part.stop)]
        assert rows == list(range(bounds[node + 1] - bounds[node]))
    sizes = [part.stop - part.start for part in (nodes.part_of(rank, num_examples) for rank in range(len(leaders)))]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("leaders", LEADERS)
def test_ranks_of_a_node_share_sending_evenly(leaders):
    nodes = Nodes(leaders)
    examples = np.arange(60)
    for node in range(nodes.count):
        ranks, counts = np.unique(nodes.senders(np.full(60, node), examples), return_counts=True)
        assert ranks.tolist() == np.flatnonzero(nodes.of_rank == node).tolist()
        assert len(set(counts.tolist())) == 1
