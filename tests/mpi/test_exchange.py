import concurrent.futures
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from jaxdp.data.decode import Decoder
from jaxdp.data.exchange import exchange, rearrange
from jaxdp.data.feed import batches
from jaxdp.data.nodes import Group, Nodes
from jaxdp.data.order import BatchSplit, Order
from jaxdp.data.partition import Partitions
from jaxdp.data.split import Split
from jaxdp.data.storage import BLOCK_BYTES, Encoded, Files, Pixels


def all_nodes(world):
    """One node per rank; one node for all; ranks alternating between two nodes; all but the last rank on one node."""
    size = world.size
    yield Nodes(tuple(range(size)))
    yield Nodes((0,) * size)
    yield Nodes(tuple(rank % 2 for rank in range(size)))
    yield Nodes((0,) * (size - 1) + (size - 1,))


def whole_world(world, nodes):
    return Group(np.arange(world.size), nodes, world.rank, world.data_comm)


def share(world, nodes, num_examples):
    """Returns a split whose rows encode the numbers of their examples."""
    bounds, node = nodes.bounds(num_examples), int(nodes.of_rank[world.rank])
    ids = np.arange(bounds[node], bounds[node + 1])
    images = np.stack([ids % 251, ids // 251], axis=-1).astype(np.uint8).reshape(-1, 2, 1, 1)
    return Split(bounds, node, Pixels(images, 1), ids.astype(np.int32), nodes.part_of(world.rank, num_examples))


def encoded_share(world, nodes, num_examples):
    """Same as `share`, but with PNG files of different lengths."""
    split = share(world, nodes, num_examples)
    every, files, of_node = [], Files(), Files()
    for example in range(num_examples):
        file = io.BytesIO()
        Image.fromarray(np.array([[example % 251], [example // 251]], np.uint8)).save(file, "PNG")
        every.append(file.getvalue() + bytes(example % 100))
    files.add(every)
    of_node.add(every[split.first : split.first + len(split.labels_N)])
    lengths = np.array(files.lengths)
    bounds = np.concatenate([[0], np.cumsum(of_node.lengths)]).astype(np.int64)
    blocks = np.zeros((bounds[-1], BLOCK_BYTES), np.uint8)
    of_node.move_to(blocks)
    storage = Encoded(blocks, bounds, Decoder((2, 1, 1)), concurrent.futures.ThreadPoolExecutor(2), 1)
    return Split(split.bounds, split.node, storage, split.labels_N, split.mine, lengths=lengths)


class Counting:
    """A communicator that counts the rows that are sent to other ranks."""

    def __init__(self, comm):
        self.comm, self.rows = comm, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Alltoallv(self, sent, received):
        self.rows += int(np.sum(sent[1])) - int(sent[1][self.comm.rank])
        self.comm.Alltoallv(sent, received)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(100, 8), (7, 4), (1000, 37), (2, 5), (40, 64)])
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("share_of", [share, encoded_share])
def test_every_rank_gets_its_rows_of_every_batch(world, num_examples, batch_size, devices, share_of):
    batch_size = max(batch_size, world.size)
    bounds = BatchSplit(batch_size, world.size, devices).rank_bounds
    ids = Order(num_examples, batch_size, seed=3).examples(2, 9)
    mine = ids[:, bounds[world.rank] : bounds[world.rank + 1]]
    places = np.arange(mine.shape[1])[::-1] + 1
    for nodes in all_nodes(world):
        delivery = exchange(share_of(world, nodes, num_examples), ids, bounds, nodes, world.data_comm)
        np.testing.assert_array_equal(delivery.ids, mine)
        np.testing.assert_array_equal(delivery.labels, mine)
        for step, wanted in enumerate(mine):
            images = np.full((len(places) + 1, 2, 1, 1), 255, np.uint8)
            delivery.fill(step, np.zeros_like(wanted), images, places)
            np.testing.assert_array_equal(images[places, 0, 0, 0], wanted % 251)
            np.testing.assert_array_equal(images[places, 1, 0, 0], wanted // 251)
            assert (images[0] == 255).all()


def test_no_rows_are_sent_between_ranks_of_a_node(world):
    batch_split, ids = BatchSplit(8, world.size, 1), Order(100, 8, seed=3).examples(0, 20)
    for nodes in all_nodes(world):
        comm = Counting(world.data_comm)
        exchange(share(world, nodes, 100), ids, batch_split.rank_bounds, nodes, comm)
        taker = np.searchsorted(batch_split.rank_bounds, np.arange(8), side="right") - 1
        holder = np.searchsorted(nodes.bounds(100), ids, side="right") - 1
        # Three arrays are sent: images, labels and ids.
        assert sum(world.allgather(comm.rows)) == 3 * np.sum(holder != nodes.of_rank[taker])


@pytest.mark.parametrize("steps_per_exchange", [1, 4, 100])
def test_examples_of_a_step_depend_only_on_the_seed(world, steps_per_exchange):
    order = Order(50, 12, seed=1)
    batch_split = BatchSplit(12, world.size, 2)
    steps = range(3, 17)
    for nodes in all_nodes(world):
        fed = batches(
            share(world, nodes, 50),
            order=order,
            batch_split=batch_split,
            rank=world.rank,
            group=whole_world(world, nodes),
            comm=world.data_comm,
            steps=steps,
            steps_per_exchange=steps_per_exchange,
        )
        for step, batch in zip(steps, fed, strict=True):
            assert len(batch.label_B) == batch_split.per_device * 2
            real = batch.mask_B
            mine = list(zip(batch.label_B[real], batch.id_B[real], batch.epoch_B[real], strict=True))
            everyones = [example for examples in world.allgather(mine) for example in examples]
            ids = order.examples(step, step + 1)[0].tolist()
            assert everyones == list(zip(ids, ids, order.epochs(step, step + 1)[0], strict=True))


def shared_share(world, nodes, num_examples, holdings):
    """Same as `share`, but with the examples in `holdings`, in memory that the ranks share as if placed on `nodes`."""
    bounds, node = nodes.bounds(num_examples), int(nodes.of_rank[world.rank])
    everything = world.shared_array((num_examples, 2, 1, 1), np.uint8), world.shared_array((num_examples,), np.int32)
    images, labels = (array[bounds[node] : bounds[node + 1]] for array in everything)
    ids = holdings[bounds[node] : bounds[node + 1]]
    labels[:] = ids
    images[:] = np.stack([ids % 251, ids // 251], axis=-1).reshape(-1, 2, 1, 1)
    world.barrier()
    return Split(bounds, node, Pixels(images, 1), labels, nodes.part_of(world.rank, num_examples), holdings)


@pytest.mark.parametrize("at_once", [7, 1000])
def test_examples_are_rearranged_in_place(world, at_once):
    rng = np.random.default_rng(0)
    for nodes in all_nodes(world):
        split = shared_share(world, nodes, 100, rng.permutation(100))
        for _ in range(2):
            split = rearrange(split, rng.permutation(100), nodes, world.data_comm, at_once=at_once)
            ids = split.examples_at(np.arange(len(split.labels_N)))
            np.testing.assert_array_equal(split.labels_N, ids)
            np.testing.assert_array_equal(split.images.images_NHWC[:, 0, 0, 0], ids % 251)
            np.testing.assert_array_equal(split.slots_of(ids), np.arange(len(ids)) + split.first)
        world.barrier()


@pytest.mark.parametrize(("num_partitions", "first"), [(1, 0), (4, 0), (3, 11)])
def test_batches_of_partitions_do_not_depend_on_the_rank_count(world, num_partitions, first):
    partitions = Partitions(50, num_partitions, exchange_every=2, batch_size=12, seed=1)
    order, batch_split = Order(50, 12, 1, partitions.order), BatchSplit(12, world.size, 1)
    steps = range(first, 30)
    for nodes in all_nodes(world):
        holdings = partitions.holdings(partitions.period(first * 12 // 50))
        fed = batches(
            shared_share(world, nodes, 50, holdings),
            order=order,
            batch_split=batch_split,
            rank=world.rank,
            group=whole_world(world, nodes),
            comm=world.data_comm,
            steps=steps,
            steps_per_exchange=4,
            partitions=partitions,
        )
        for step, batch in zip(steps, fed, strict=True):
            mine = batch.label_B[batch.mask_B].tolist()
            everyones = [example for examples in world.allgather(mine) for example in examples]
            assert everyones == order.examples(step, step + 1)[0].tolist()


def test_rows_leave_nodes_only_when_partitions_exchange(world):
    nodes, batch_split = Nodes(tuple(range(world.size))), BatchSplit(4 * world.size, world.size, 1)
    partitions = Partitions(40 * world.size, world.size, exchange_every=3, batch_size=4 * world.size, seed=1)
    order, comm = Order(40 * world.size, 4 * world.size, 1, partitions.order), Counting(world.data_comm)
    exchange(share(world, nodes, 40 * world.size), order.examples(0, 30), batch_split.rank_bounds, nodes, comm)
    assert comm.rows == 0
    exchange(share(world, nodes, 40 * world.size), order.examples(30, 40), batch_split.rank_bounds, nodes, comm)
    assert comm.rows > 0


class Placed:
    """The world with its ranks placed on other nodes."""

    def __init__(self, world, nodes):
        self.rank, self.leaders = world.rank, nodes.leaders


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_groups_of_nodes_give_the_same_batches_without_mutual_traffic(world, num_groups):
    order, batch_split = Order(50, 12, seed=1), BatchSplit(12, world.size, 2)
    for nodes in all_nodes(world):
        if nodes.count < num_groups:
            continue
        group = Group.of(Placed(world, nodes), num_groups).opened(world.data_comm)
        counting = Counting(group.comm)
        of_group = dataclasses.replace(group, comm=counting)
        fed = batches(
            share(counting, group.nodes, 50),
            order=order,
            batch_split=batch_split,
            rank=world.rank,
            group=of_group,
            comm=world.data_comm,
            steps=range(20),
            steps_per_exchange=4,
        )
        for step, batch in zip(range(20), fed, strict=True):
            mine = batch.label_B[batch.mask_B].tolist()
            np.testing.assert_array_equal(batch.image_BHWC[batch.mask_B][:, 0, 0, 0], mine)
            everyones = [example for examples in world.allgather(mine) for example in examples]
            assert everyones == order.examples(step, step + 1)[0].tolist()
        if group.nodes.count == 1:
            assert counting.rows == 0
        sizes = world.allgather(group.nodes.count)
        assert max(sizes) - min(sizes) <= 1
        assert len(set(world.allgather(tuple(group.ranks)))) == num_groups


def test_each_group_of_nodes_exchanges_its_partitions_internally(world):
    """Places one rank on each node, and the nodes in two groups."""
    partitions = Partitions(50, 3, exchange_every=2, batch_size=12, seed=1)
    order, batch_split = Order(50, 12, 1, partitions.order), BatchSplit(12, world.size, 1)
    group = Group.of(Placed(world, Nodes(tuple(range(world.size)))), 2).opened(world.data_comm)
    counting, holdings = Counting(group.comm), partitions.holdings(0)
    split = share(group, group.nodes, 50)
    ids = holdings[split.first : split.first + len(split.labels_N)]
    split.labels_N[:] = ids
    split.images.images_NHWC[:] = np.stack([ids % 251, ids // 251], axis=-1).reshape(-1, 2, 1, 1)
    fed = batches(
        dataclasses.replace(split, holdings=holdings),
        order=order,
        batch_split=batch_split,
        rank=world.rank,
        group=dataclasses.replace(group, comm=counting),
        comm=world.data_comm,
        steps=range(30),
        steps_per_exchange=4,
        partitions=partitions,
    )
    for step, batch in zip(range(30), fed, strict=True):
        mine = batch.label_B[batch.mask_B].tolist()
        np.testing.assert_array_equal(batch.image_BHWC[batch.mask_B][:, 0, 0, 0], mine)
        everyones = [example for examples in world.allgather(mine) for example in examples]
        assert everyones == order.examples(step, step + 1)[0].tolist()
    assert (counting.rows > 0) == (group.nodes.count > 1)


def test_ranks_of_a_node_share_one_array(world):
    shared = world.shared_array((world.local_size, 5), np.int32)
    shared[world.local_rank] = world.local_rank
    world.barrier()
    np.testing.assert_array_equal(shared, np.repeat(np.arange(world.local_size)[:, None], 5, axis=1))
    assert world.shared_array((0, 3), np.uint8).shape == (0, 3)
