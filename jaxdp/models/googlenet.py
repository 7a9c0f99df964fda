"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842), in its original form and with batch normalisation.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdp.models.cpu.pooling import max_pool
from jaxdp.models.layers import BatchNorm, Conv, dropout, local_response_norm

# Table 1 of the paper: channels of 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection. Between these modules come
# pooling layers and auxiliary heads.
_POOL, _HEAD = "pool", "head"
_INCEPTIONS: list[tuple[int, int, int, int, int, int] | str] = [
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    _POOL,
    (192, 96, 208, 16, 48, 64),
    _HEAD,
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    _HEAD,
    (256, 160, 320, 32, 128, 128),
    _POOL,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
]
_SMALLEST = 32


class _Conv(nnx.Module):
    """A convolution with a bias, or with batch normalisation instead of the bias, followed by a ReLU."""

    def __init__(self, channels: int, width: int, size: int, *, stride: int = 1, norm: Any, dtype: str, rngs: nnx.Rngs):
        self.conv = Conv(
            *(channels, width, (size, size)),
            strides=stride,
            padding=size // 2,
            use_bias=norm is None,
            kernel_init=nnx.initializers.xavier_uniform() if norm is None else nnx.initializers.he_normal(),
            bias_init=nnx.initializers.constant(0.2),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = None if norm is None else norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, *, train: bool, mask_B111: jax.Array | None) -> jax.Array:
        x_BHWC = self.conv(x_BHWC)
        if self.norm is None:
            return nnx.relu(x_BHWC)
        return self.norm(x_BHWC, use_running_average=not train, mask=mask_B111, relu=True)


class _Inception(nnx.Module):
    """Four parallel branches, figure 2(b) of the paper."""

    def __init__(self, channels: int, widths: tuple[int, ...], *, large: int, conv: Any, rngs: nnx.Rngs):
        one, before_three, three, before_five, five, pooled = widths
        self.width = one + three + five + pooled
        self.one = conv(channels, one, 1, rngs=rngs)
        self.before_three = conv(channels, before_three, 1, rngs=rngs)
        self.three = conv(before_three, three, 3, rngs=rngs)
        self.before_five = conv(channels, before_five, 1, rngs=rngs)
        self.five = conv(before_five, five, large, rngs=rngs)
        self.pooled = conv(channels, pooled, 1, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, **options: Any) -> jax.Array:
        pooled = max_pool(x_BHWC, (3, 3), strides=(1, 1), padding="SAME")
        return jnp.concatenate(
            [
                self.one(x_BHWC, **options),
                self.three(self.before_three(x_BHWC, **options), **options),
                self.five(self.before_five(x_BHWC, **options), **options),
                self.pooled(pooled, **options),
            ],
            axis=-1,
        )


class _Head(nnx.Module):
    """An auxiliary classifier (section 5 of the paper) on intermediate activations, pooled to 4x4."""

    def __init__(
        self, channels: int, num_classes: int, *, rate: float, layer: int, conv: Any, dtype: str, rngs: nnx.Rngs
    ):
        self.rate, self.layer = rate, layer
        self.conv = conv(channels, 128, 1, rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 128, 1024, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(1024, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, *, key_B: jax.Array | None, **options: Any) -> jax.Array:
        size = x_BHWC.shape[1:3]
        # For 14x14 maps (of 224x224 images), 5x5 pooling of stride 3 gives 4x4; other sizes are resized to 4x4.
        if size == (14, 14):
            x_BHWC = nnx.avg_pool(x_BHWC, (5, 5), strides=(3, 3))
        else:
            x_BHWC = jax.image.resize(x_BHWC, (x_BHWC.shape[0], 4, 4, x_BHWC.shape[3]), "linear")
        x_BHWC = self.conv(x_BHWC, **options)
        hidden = nnx.relu(self.hidden(x_BHWC.reshape(len(x_BHWC), -1)))
        return self.out(dropout(hidden, self.rate, key_B, layer=self.layer))


class GoogLeNet(nnx.Module):
    """The network of table 1 of the paper.

    Args:
      image_shape: (H, W, C); H and W are at least 32.
      num_classes: number of classes, K.
      normalised: use batch normalisation after every convolution, 3x3 instead of 5x5 convolutions, and neither
        convolution biases nor local response normalisation.
      auxiliary: whether the network has the two auxiliary heads, for training.
      auxiliary_weight: weight of the loss of each auxiliary head.
      dropout: dropout rate before the last layer.
      auxiliary_dropout: dropout rate before the last layer of each auxiliary head.
      norm_momentum: momentum of the running batch statistics, if `normalised`; 0.9 keeps nine tenths of them in each
        step.
      norm_epsilon: added to the variance in normalisations, if `normalised`.
      dtype: dtype of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      rngs: random number generators of the initial parameters.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        normalised: bool,
        auxiliary: bool,
        auxiliary_weight: float = 0.3,
        dropout: float,
        auxiliary_dropout: float = 0.7,
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-3,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if min(image_shape[:2]) < _SMALLEST:
            raise ValueError(f"googlenet needs images of {_SMALLEST}x{_SMALLEST} or more, not {image_shape[:2]}")
        norm = functools.partial(BatchNorm, momentum=norm_momentum, epsilon=norm_epsilon) if normalised else None
        conv = functools.partial(_Conv, norm=norm, dtype=dtype)
        self.normalised, self.weight, self.rate = normalised, auxiliary_weight, dropout
        self.stem = conv(image_shape[2], 64, 7, stride=2, rngs=rngs)
        self.before_second = conv(64, 64, 1, rngs=rngs)
        self.second = conv(64, 192, 3, rngs=rngs)
        stages: list[Any] = []
        channels = 192
        for widths in _INCEPTIONS:
            if isinstance(widths, tuple):
                inception = _Inception(channels, widths, large=3 if normalised else 5, conv=conv, rngs=rngs)
                stages.append(inception)
                channels = inception.width
            elif widths == _POOL:
                stages.append(None)
            elif auxiliary:
                options: dict[str, Any] = {"rate": auxiliary_dropout, "layer": len(stages), "dtype": dtype}
                stages.append(_Head(channels, num_classes, conv=conv, rngs=rngs, **options))
        self.stages = nnx.List(stages)
        self.head = nnx.Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, image_BHWC: jax.Array, *, train: bool, mask_B: jax.Array | None = None, key_B: jax.Array | None = None
    ) -> Any:
        """Logits [B, K]; in training, with auxiliary heads, (logits, [(logits, weight of their loss), ...])."""
        options: dict[str, Any] = {"train": train, "mask_B111": None if mask_B is None else mask_B[:, None, None, None]}
        x_BHWC = _pool(self.stem(image_BHWC, **options))
        x_BHWC = self.before_second(self._respond(x_BHWC), **options)
        x_BHWC = _pool(self._respond(self.second(x_BHWC, **options)))
        auxiliary = []
        for stage in self.stages:
            if stage is None:
                x_BHWC = _pool(x_BHWC)
            elif isinstance(stage, _Inception):
                x_BHWC = stage(x_BHWC, **options)
            elif train:
                auxiliary.append((stage(x_BHWC, key_B=key_B, **options), self.weight))
        mean_BC = jnp.mean(x_BHWC, axis=(1, 2))
        logits_BK = self.head(dropout(mean_BC, self.rate, key_B, layer=0))
        return (logits_BK, auxiliary) if auxiliary else logits_BK

    def _respond(self, x_BHWC: jax.Array) -> jax.Array:
        return x_BHWC if self.normalised else local_response_norm(x_BHWC, size=5, alpha=1e-4, beta=0.75)


def _pool(x_BHWC: jax.Array) -> jax.Array:
    return max_pool(x_BHWC, (3, 3), strides=(2, 2), padding="SAME")


GoogLeNetBN = functools.partial(GoogLeNet, normalised=True)
GoogLeNetOriginal = functools.partial(GoogLeNet, normalised=False)
