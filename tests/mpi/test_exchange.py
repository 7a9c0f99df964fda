import numpy as np
import pytest

from jaxdp.data.exchange import exchange
from jaxdp.data.feed import batches
from jaxdp.data.order import Deal, Order, even_bounds
from jaxdp.data.source import Split


def share(world, num_examples):
    """Rows that tell which example they are."""
    bounds = even_bounds(num_examples, world.size)
    ids = np.arange(bounds[world.rank], bounds[world.rank + 1])
    images = np.stack([ids % 251, ids // 251], axis=-1).astype(np.uint8).reshape(-1, 2, 1, 1)
    return Split(bounds, images, ids.astype(np.int32))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(100, 8), (7, 4), (1000, 37), (2, 5), (40, 64)])
@pytest.mark.parametrize("devices", [1, 3])
def test_every_rank_gets_its_rows_of_every_batch(world, num_examples, batch_size, devices):
    batch_size = max(batch_size, world.size)
    deal = Deal(batch_size, world.size, devices)
    ids = Order(num_examples, batch_size, seed=3).examples(2, 9)
    images, labels = exchange(share(world, num_examples), ids, deal, world.data_comm)
    mine = ids[:, deal.rank_bounds[world.rank] : deal.rank_bounds[world.rank + 1]]
    np.testing.assert_array_equal(labels, mine)
    np.testing.assert_array_equal(images[..., 0, 0, 0], mine % 251)
    np.testing.assert_array_equal(images[..., 1, 0, 0], mine // 251)


@pytest.mark.parametrize("steps_per_exchange", [1, 4, 100])
def test_the_examples_of_a_step_depend_on_nothing_but_the_seed(world, steps_per_exchange):
    order = Order(50, 12, seed=1)
    deal = Deal(12, world.size, 2)
    steps = range(3, 17)
    fed = batches(
        share(world, 50),
        order=order,
        deal=deal,
        comm=world.data_comm,
        steps=steps,
        steps_per_exchange=steps_per_exchange,
    )
    for step, batch in zip(steps, fed, strict=True):
        assert len(batch.label_B) == deal.per_device * 2
        mine = batch.label_B[batch.mask_B].tolist()
        everyones = [example for examples in world.allgather(mine) for example in examples]
        assert everyones == order.examples(step, step + 1)[0].tolist()
