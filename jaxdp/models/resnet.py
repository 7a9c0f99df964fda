"""ResNet (He et al. 2015, arXiv 1512.03385) with basic blocks: ResNet-18.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Norm = Callable[..., nnx.BatchNorm]

STEMS = ("imagenet", "cifar")

_conv = functools.partial(
    nnx.Conv, use_bias=False, kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes.

    Args:
      channels: of the input.
      width: channels of the output.
      stride: of the first convolution.
      norm: makes a normalisation for so many channels.
      zero_gamma: start the last normalisation's scale at 0, so that the block begins as the identity (Goyal et
        al. 2017, section 5.1).
      rngs: of the parameters.
    """

    def __init__(self, channels: int, width: int, *, stride: int, norm: Norm, zero_gamma: bool, rngs: nnx.Rngs):
        gamma = nnx.initializers.zeros if zero_gamma else nnx.initializers.ones
        self.conv1 = _conv(channels, width, (3, 3), strides=stride, padding=1, rngs=rngs)
        self.norm1 = norm(width, rngs=rngs)
        self.conv2 = _conv(width, width, (3, 3), padding=1, rngs=rngs)
        self.norm2 = norm(width, scale_init=gamma, rngs=rngs)
        self.projects = stride != 1 or channels != width
        if self.projects:
            self.project = _conv(channels, width, (1, 1), strides=stride, padding=0, rngs=rngs)
            self.project_norm = norm(width, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, *, train: bool, mask_B111: jax.Array | None) -> jax.Array:
        options: dict[str, Any] = {"use_running_average": not train, "mask": mask_B111}
        y_BHWC = nnx.relu(self.norm1(self.conv1(x_BHWC), **options))
        y_BHWC = self.norm2(self.conv2(y_BHWC), **options)
        if self.projects:
            x_BHWC = self.project_norm(self.project(x_BHWC), **options)
        return nnx.relu(x_BHWC + y_BHWC)


class ResNet(nnx.Module):
    """A residual network of basic blocks.

    Args:
      image_shape: (H, W, C).
      num_classes: K.
      stage_sizes: blocks of each stage; every stage after the first halves the image and doubles the channels.
      width: channels of the first stage.
      stem: "imagenet" (7x7 of stride 2, then 3x3 max pooling of stride 2) or "cifar" (3x3 of stride 1).
      zero_gamma: see BasicBlock.
      norm_momentum: of the running batch statistics: 0.9 keeps nine tenths of them in a step.
      norm_epsilon: added to the variance in normalisations.
      rngs: of the parameters.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        stage_sizes: Sequence[int],
        width: int = 64,
        stem: str,
        zero_gamma: bool,
        norm_momentum: float,
        norm_epsilon: float,
        rngs: nnx.Rngs,
    ):
        if stem not in STEMS:
            raise ValueError(f"config.model.stem is {stem!r}, known are {', '.join(STEMS)}")
        norm = functools.partial(nnx.BatchNorm, momentum=norm_momentum, epsilon=norm_epsilon)
        self.pools = stem == "imagenet"
        size, stride, padding = (7, 2, 3) if self.pools else (3, 1, 1)
        self.stem = _conv(image_shape[2], width, (size, size), strides=stride, padding=padding, rngs=rngs)
        self.stem_norm = norm(width, rngs=rngs)
        blocks = []
        channels = width
        for stage, num_blocks in enumerate(stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(
                    BasicBlock(channels, width * 2**stage, stride=stride, norm=norm, zero_gamma=zero_gamma, rngs=rngs)
                )
                channels = width * 2**stage
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, image_BHWC: jax.Array, *, train: bool, mask_B: jax.Array | None = None) -> jax.Array:
        """Logits [B, K]. In training, batch statistics are those of the examples whose mask is True."""
        mask_B111 = None if mask_B is None else mask_B[:, None, None, None]
        x_BHWC = self.stem_norm(self.stem(image_BHWC), use_running_average=not train, mask=mask_B111)
        x_BHWC = nnx.relu(x_BHWC)
        if self.pools:
            x_BHWC = nnx.max_pool(x_BHWC, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x_BHWC = block(x_BHWC, train=train, mask_B111=mask_B111)
        return self.head(jnp.mean(x_BHWC, axis=(1, 2)))


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
