import concurrent.futures
import gc
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxdp.data.decode import Decoder
from jaxdp.data.rows import Buffers, aligned, copy_rows
from jaxdp.data.storage import BLOCK_BYTES, Encoded, Files, Pixels
from jaxdp.runtime.world import UserError
from tests.data.test_decode import file_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 3), (64,), (40, 40, 3), (100, 100, 3)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("offset", [0, 1])
def test_rows_are_copied_to_their_places_and_nowhere_else(shape, threads, offset):
    """Covers rows shorter than a cache line, of whole cache lines and longer than a page, aligned and unaligned."""
    source = RNG.integers(0, 256, (700, *shape), np.uint8)
    memory = aligned(500 * source[0].size + 1, ())
    memory[:] = 7
    target = memory[offset : offset + 500 * source[0].size].reshape(500, *shape)
    rows, places = RNG.integers(0, 700, 450), RNG.permutation(500)[:450]
    copy_rows(source, rows, target, places, threads=threads)
    np.testing.assert_array_equal(target[places], source[rows])
    assert (np.delete(target, places, axis=0) == 7).all()
    assert memory[0 if offset else -1] == 7


def test_concurrent_copies_are_correct():
    source = RNG.integers(0, 256, (4000, 32, 32, 3), np.uint8)

    def copy(seed):
        rows, target = np.random.default_rng(seed).integers(0, 4000, 2000), aligned(2000, (32, 32, 3))
        for _ in range(10):
            target[:] = 0
            copy_rows(source, rows, target, np.arange(2000), threads=4)
            np.testing.assert_array_equal(target, source[rows])
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(copy, range(4)))


def test_out_of_range_row_is_refused():
    images = np.zeros((3, 2), np.uint8)
    for rows, places in [([3], [0]), ([-1], [0]), ([0], [3]), ([0], [-1])]:
        with pytest.raises(IndexError, match=r"rows must be in 0\.\.2 and places in 0\.\.2, but some are outside"):
            copy_rows(images, np.array(rows), images.copy(), np.array(places), threads=1)


def test_out_of_range_row_is_refused_without_asserts():
    """`python -O` leaves asserts out."""
    code = (
        "import numpy as np; from jaxdp.data.rows import copy_rows; images = np.zeros((3, 2), np.uint8); "
        "copy_rows(images, np.array([3]), images.copy(), np.array([0]), threads=1)"
    )
    ended = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False)
    assert "IndexError: rows must be in 0..2" in ended.stderr


def test_buffer_is_reused_only_once_unreferenced():
    buffers = Buffers(4, (32, 3))
    first, second = buffers.take(), buffers.take()
    assert (first.shape, first.dtype) == ((4, 32, 3), np.uint8)
    assert not np.shares_memory(first, second)
    place = first.ctypes.data
    first[:] = 5
    on_device = jax.device_put(first)
    assert on_device.unsafe_buffer_pointer() == place
    view = first[1:]
    del first
    third = buffers.take()
    third[:] = 9
    assert third.ctypes.data != place
    del view, third
    buffers.take()[:] = 9
    assert (np.asarray(on_device) == 5).all()
    del on_device
    gc.collect()  # JAX releases unreferenced memory with a delay.
    taken = [buffers.take() for _ in range(2)]
    assert place in [array.ctypes.data for array in taken]


def encoded(images):
    files = Files(segment_bytes=1000)
    files.add([file_of(image) for image in images])
    bounds = np.concatenate([[0], np.cumsum(files.lengths)])
    blocks = np.full((bounds[-1], BLOCK_BYTES), 255, np.uint8)
    files.move_to(blocks)
    return Encoded(blocks, bounds, Decoder(images.shape[1:]), concurrent.futures.ThreadPoolExecutor(2), 1)


def pixels(images):
    return Pixels(images.copy(), 1)


@pytest.mark.parametrize("held", [pixels, encoded])
def test_batch_is_filled_from_held_and_received_images(held):
    images = RNG.integers(0, 256, (30, 7, 6, 3), np.uint8)
    images[3] = 0
    images_held = held(images)
    assert images_held.shape == (7, 6, 3)
    assert images_held.nbytes >= 30 * BLOCK_BYTES
    sent = np.array([3, 29, 0, 3])
    lengths = np.ones(4, int) if held is pixels else np.diff(images_held.bounds)[sent]
    arrived = images_held.of_units(images_held.units(sent), lengths)
    nothing = np.zeros(3, int)
    for source, rows, wanted in [(images_held, [5, 29, 3], [5, 29, 3]), (arrived, [1, 2, 3], [29, 0, 3])]:
        out = aligned(5, (7, 6, 3))
        source.fill(np.array(rows), nothing, nothing, out, np.array([4, 0, 2]))
        np.testing.assert_array_equal(out[[4, 0, 2]], images[wanted])


def test_images_are_overwritten_in_place():
    images = RNG.integers(0, 256, (9, 2, 2, 1), np.uint8)
    held = pixels(images)
    held.put(np.array([1, 8]), held.units(np.array([0, 2])))
    images[[1, 8]] = images[[0, 2]]
    np.testing.assert_array_equal(held.images_NHWC, images)


def test_undecodable_file_is_reported():
    held = encoded(RNG.integers(0, 256, (4, 20, 20, 3), np.uint8))
    held.blocks[held.bounds[2] + 3 : held.bounds[3]] = 0
    one = np.array([2])
    with pytest.raises(UserError, match=r"example 17 of the data set cannot be decoded as an image: .*: prepare"):
        held.fill(one, np.array([17]), one, aligned(1, (20, 20, 3)), np.array([0]))
