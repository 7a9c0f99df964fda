import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.data.augment import NO_AUGMENTATION, Augmentation

PLAIN = Augmentation(seed=1, image_size=None, crop="none", padding=2, area=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=False)
IDS = jnp.arange(40, dtype=jnp.uint32)
EPOCHS = jnp.zeros(40, jnp.uint32)


def images(size=8):
    """Returns float32 [40, size, size, 2]; each value encodes its example, row, column and channel."""
    place = np.arange(40)[:, None, None, None] * 1000 + np.arange(size)[None, :, None, None] * 20
    return jnp.asarray(place + np.arange(size)[None, None, :, None] + np.arange(2) / 2, jnp.float32)


def test_images_are_unchanged_without_augmentation():
    for augmentation in (PLAIN, NO_AUGMENTATION):
        np.testing.assert_array_equal(augmentation.train_view(images(), IDS, EPOCHS), images())
        np.testing.assert_array_equal(augmentation.test_view(images()), images())


def test_smaller_view_is_the_centre_of_the_image():
    augmentation = dataclasses.replace(PLAIN, image_size=4)
    assert augmentation.shape((8, 8, 2)) == (4, 4, 2)
    for view in (augmentation.test_view(images()), augmentation.train_view(images(), IDS, EPOCHS)):
        np.testing.assert_array_equal(view, images()[:, 2:6, 2:6])


@pytest.mark.parametrize(
    "change",
    [
        {"crop": "padded"},
        {"crop": "resized", "image_size": 5},
        {"flip": True},
        {"user_function": lambda image, key: image + jax.random.uniform(key)},
    ],
)
def test_training_view_depends_only_on_seed_epoch_and_example(change):
    """Neither the position in the batch nor the rest of the batch changes the view."""
    augmentation = dataclasses.replace(PLAIN, **change)
    seen = jax.jit(augmentation.train_view)(images(), IDS, EPOCHS)
    part = np.array([17, 3, 30])
    np.testing.assert_allclose(augmentation.train_view(images()[part], IDS[part], EPOCHS[part]), seen[part], rtol=1e-6)
    for other in (
        augmentation.train_view(images(), IDS, EPOCHS + 1),
        dataclasses.replace(augmentation, seed=2).train_view(images(), IDS, EPOCHS),
    ):
        different = np.any(np.asarray(other) != np.asarray(seen), axis=(1, 2, 3))
        assert 8 < different.sum() <= 40


def test_padded_crops_are_windows_of_the_zero_padded_image():
    seen = np.asarray(dataclasses.replace(PLAIN, crop="padded").train_view(images() + 1, IDS, EPOCHS))
    whole = np.pad(np.asarray(images() + 1), ((0, 0), (2, 2), (2, 2), (0, 0)))
    corners = set()
    for index in range(40):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (whole[index, top : top + 8, left : left + 8] == seen[index]).all()
        ]
        assert len(matches) == 1
        corners.add(matches[0])
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(5))


def test_about_half_of_the_images_are_mirrored():
    seen = np.asarray(dataclasses.replace(PLAIN, flip=True).train_view(images(), IDS, EPOCHS))
    straight = (seen == images()).all(axis=(1, 2, 3))
    mirrored = (seen == images()[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (straight ^ mirrored).all()
    assert 8 < mirrored.sum() < 32


@pytest.mark.parametrize("shape", [(16, 16), (30, 10)])
def test_resized_crops_stay_inside_and_respect_area_and_ratio(shape):
    """The pixels hold their coordinates, which stay linear under resizing, so the crop can be computed from them."""
    height, width = shape
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    picture = jnp.asarray(np.broadcast_to(np.stack([rows, columns], axis=-1), (40, *shape, 2)), jnp.float32)
    augmentation = dataclasses.replace(PLAIN, crop="resized", image_size=64, area=(0.2, 0.6))
    seen = np.asarray(augmentation.train_view(picture, IDS, EPOCHS))
    middle = seen[:, 24:40, 24:40]
    steps = np.stack([middle[:, 1, 0, 0] - middle[:, 0, 0, 0], middle[:, 0, 1, 1] - middle[:, 0, 0, 1]], axis=1) * 64
    centres = middle.mean(axis=(1, 2))
    assert (centres - steps / 2 > -0.01).all()
    assert (centres + steps / 2 < np.array(shape) + 0.01).all()
    area, ratio = steps.prod(axis=1) / (height * width), steps[:, 1] / steps[:, 0]
    assert (area > 0.19).all()
    assert (area < 0.61).all()
    assert (ratio > 0.74).all()
    assert (ratio < 1.35).all()
    assert len({tuple(np.round(step, 3)) for step in steps}) > 30


def test_user_augmentation_runs_last_with_a_key_per_example():
    seen = dataclasses.replace(PLAIN, flip=True, user_function=lambda image, key: image + jax.random.uniform(key))
    flipped = dataclasses.replace(PLAIN, flip=True).train_view(images(), IDS, EPOCHS)
    added = seen.train_view(images(), IDS, EPOCHS) - flipped
    assert (np.ptp(added, axis=(1, 2, 3)) < 1e-2).all()
    assert len(np.unique(np.round(added[:, 0, 0, 0], 2))) > 20
    np.testing.assert_array_equal(seen.test_view(images()), images())
