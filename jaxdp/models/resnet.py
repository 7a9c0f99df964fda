"""ResNet (He et al. 2015, arXiv 1512.03385), version 1.5: 18, 34, 50, 101 and 152 layers.

Version 1.5 halves the image in the 3x3 convolution of a bottleneck, not in the 1x1 convolution before it (Goyal et al.
2017, section 5.1). Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdp.models.cpu.pooling import max_pool
from jaxdp.models.layers import BatchNorm, Conv

Layer = Callable[..., Any]

STEMS = ("imagenet", "cifar")

_conv = functools.partial(Conv, use_bias=False, kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"))


class _Block(nnx.Module):
    """A residual block; the shortcut is projected if the shape changes.

    Args:
      kernels: size, output channels and stride of each convolution.
      channels: number of input channels.
      conv, norm: functions that create convolutions and normalisations.
      zero_gamma: initialise the scale of the last normalisation to 0, so that the block begins as the identity (Goyal
        et al. 2017, section 5.1).
      rngs: random number generators of the initial parameters.
    """

    def __init__(
        self,
        kernels: Sequence[tuple[int, int, int]],
        channels: int,
        *,
        conv: Layer,
        norm: Layer,
        zero_gamma: bool,
        rngs: nnx.Rngs,
    ):
        convs, norms, before = [], [], channels
        for index, (size, after, stride) in enumerate(kernels):
            convs.append(conv(before, after, (size, size), strides=stride, padding=size // 2, rngs=rngs))
            zero = zero_gamma and index == len(kernels) - 1
            norms.append(norm(after, scale_init=nnx.initializers.zeros if zero else nnx.initializers.ones, rngs=rngs))
            before = after
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        stride = max(stride for _, _, stride in kernels)
        self.projects = stride != 1 or channels != before
        if self.projects:
            self.project = conv(channels, before, (1, 1), strides=stride, padding=0, rngs=rngs)
            self.project_norm = norm(before, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, *, train: bool, mask_B111: jax.Array | None) -> jax.Array:
        options: dict[str, Any] = {"use_running_average": not train, "mask": mask_B111}
        y_BHWC = x_BHWC
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            y_BHWC = norm(conv(y_BHWC), relu=True, **options)
        if self.projects:
            x_BHWC = self.project_norm(self.project(x_BHWC), **options)
        return self.norms[-1](self.convs[-1](y_BHWC), shortcut_BX=x_BHWC, relu=True, **options)


def _basic(width: int, stride: int) -> list[tuple[int, int, int]]:
    return [(3, width, stride), (3, width, 1)]


def _bottleneck(width: int, stride: int) -> list[tuple[int, int, int]]:
    return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]


_BLOCKS = {"basic": _basic, "bottleneck": _bottleneck}


class ResNet(nnx.Module):
    """A residual network.

    Args:
      image_shape: (H, W, C).
      num_classes: number of classes, K.
      stage_sizes: number of blocks per stage; every stage after the first halves the image and doubles the channels.
      block: "basic" for two 3x3 convolutions, or "bottleneck" for 1x1, 3x3 and 1x1 convolutions, of which the last has
        four times the channels.
      width: number of channels of the first stage.
      stem: "imagenet" (7x7 of stride 2, then 3x3 max pooling of stride 2) or "cifar" (3x3 of stride 1).
      zero_gamma: initialise the scale of the last normalisation of each block to 0, so that the block begins as the
        identity (Goyal et al. 2017, section 5.1).
      norm_momentum: momentum of the running batch statistics; 0.9 keeps nine tenths of them in each step.
      norm_epsilon: added to the variance in normalisations.
      dtype: dtype of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      rngs: random number generators of the initial parameters.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        stage_sizes: Sequence[int],
        block: str = "basic",
        width: int = 64,
        stem: str,
        zero_gamma: bool,
        norm_momentum: float,
        norm_epsilon: float,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if stem not in STEMS:
            raise ValueError(f"config.model.stem must be one of {', '.join(STEMS)}, not {stem!r}")
        if block not in _BLOCKS:
            raise ValueError(f"config.model.block must be one of {', '.join(_BLOCKS)}, not {block!r}")
        conv = functools.partial(_conv, dtype=dtype)
        norm = functools.partial(BatchNorm, momentum=norm_momentum, epsilon=norm_epsilon, dtype=dtype)
        self.pools = stem == "imagenet"
        size, stride, padding = (7, 2, 3) if self.pools else (3, 1, 1)
        self.stem = conv(image_shape[2], width, (size, size), strides=stride, padding=padding, rngs=rngs)
        self.stem_norm = norm(width, rngs=rngs)
        blocks = []
        channels = width
        for stage, num_blocks in enumerate(stage_sizes):
            for index in range(num_blocks):
                kernels = _BLOCKS[block](width * 2**stage, 2 if stage > 0 and index == 0 else 1)
                blocks.append(_Block(kernels, channels, conv=conv, norm=norm, zero_gamma=zero_gamma, rngs=rngs))
                channels = kernels[-1][1]
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, image_BHWC: jax.Array, *, train: bool, mask_B: jax.Array | None = None, key_B: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, K]. In training, batch statistics include only examples whose mask is True."""
        del key_B
        mask_B111 = None if mask_B is None else mask_B[:, None, None, None]
        x_BHWC = self.stem_norm(self.stem(image_BHWC), use_running_average=not train, mask=mask_B111, relu=True)
        if self.pools:
            x_BHWC = max_pool(x_BHWC, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x_BHWC = block(x_BHWC, train=train, mask_B111=mask_B111)
        return self.head(jnp.mean(x_BHWC, axis=(1, 2)))


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block="basic")
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block="basic")
ResNet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block="bottleneck")
ResNet101 = functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), block="bottleneck")
ResNet152 = functools.partial(ResNet, stage_sizes=(3, 8, 36, 3), block="bottleneck")
