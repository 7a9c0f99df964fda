import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.models.network import Network

NORM = {"norm_momentum": 0.9, "norm_epsilon": 1e-5}
RESNET = {"stage_sizes": (1, 1), "width": 4, "stem": "cifar", "zero_gamma": False} | NORM


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "options", "image_shape", "num_classes", "parameters", "statistics"),
    [
        # torchvision's resnet18; statistics: two a channel of every normalisation.
        ("resnet18", {"stem": "imagenet", "zero_gamma": True} | NORM, (224, 224, 3), 1000, 11_689_512, 9_600),
        # The same with a 3x3 stem and 10 classes: 3 x 64 x (49 - 9) and 513 x 990 fewer.
        ("resnet18", {"stem": "cifar", "zero_gamma": True} | NORM, (32, 32, 3), 10, 11_173_962, 9_600),
        ("cnn", {"width": 48}, (8, 8, 1), 10, 221_722, 0),
    ],
)
def test_parameters_are_as_published(name, options, image_shape, num_classes, parameters, statistics):
    _, params, stats = Network.create(name, options, image_shape=image_shape, num_classes=num_classes, seed=0)
    assert (count(params), count(stats)) == (parameters, statistics)


def test_a_residual_block_with_zero_gamma_begins_as_the_identity():
    _, params, _ = Network.create(
        "resnet", RESNET | {"zero_gamma": True}, image_shape=(8, 8, 3), num_classes=10, seed=0
    )
    for block in params["blocks"].values():
        assert not block["norm2"]["scale"].any()
        assert (block["norm1"]["scale"] == 1).all()


def test_padding_changes_neither_the_logits_nor_the_statistics():
    network, params, stats = Network.create("resnet", RESNET, image_shape=(8, 8, 3), num_classes=10, seed=0)
    images = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype(np.float32)
    junk = np.full((2, 8, 8, 3), 1e3, np.float32)
    mask = jnp.arange(8) < 6
    logits, after = network.apply(params, stats, images, train=True)
    padded = np.concatenate([images, junk])
    logits_padded, after_padded = network.apply(params, stats, padded, train=True, mask_B=mask)
    np.testing.assert_allclose(logits_padded[:6], logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after_padded, after)
    logits_unmasked, _ = network.apply(params, stats, padded, train=True)
    assert not np.allclose(logits_unmasked[:6], logits, rtol=1e-2)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    network, params, stats = Network.create("resnet", RESNET, image_shape=(8, 8, 3), num_classes=10, seed=0)
    images = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    logits, after = network.apply(params, stats, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, after, stats)
    one, _ = network.apply(params, stats, images[:1], train=False)
    np.testing.assert_allclose(one, logits[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, r"config\.model\.widht is not a setting of cnn: known are width"),
        ({}, r"config\.model\.width is missing: the model cnn needs it"),
        ({"width": "wide"}, "the model cnn cannot be made with"),
    ],
)
def test_a_mistake_in_the_settings_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Network.create("cnn", options, image_shape=(8, 8, 1), num_classes=10, seed=0)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="needs images of 4x4 or more, not 3x9"):
        Network.create("cnn", {"width": 4}, image_shape=(3, 9, 1), num_classes=10, seed=0)
