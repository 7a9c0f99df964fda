"""Network-in-Network (Lin, Chen and Yan 2013, arXiv 1312.4400), as its authors trained it on ImageNet.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdp.models.cpu.pooling import max_pool
from jaxdp.models.layers import Conv, dropout

# Size, channels, stride and padding of each stage's convolution, which two 1x1 convolutions follow, as in nin_imagenet
# of Caffe's model zoo. The last stage ends with one channel per class.
_STAGES = [(11, 96, 4, 0), (5, 256, 1, 2), (3, 384, 1, 1), (3, 1024, 1, 1)]
_SMALLEST = 67


class NetworkInNetwork(nnx.Module):
    """Four convolutions, each followed by a small network of 1x1 convolutions, and a mean instead of dense layers.

    Args:
      image_shape: (H, W, C); H and W are at least 67.
      num_classes: number of classes, K.
      dropout: dropout rate before the last stage.
      dtype: dtype of the computation, "float32" or "bfloat16"; parameters are float32.
      rngs: random number generators of the initial parameters.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dropout: float,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        if min(image_shape[:2]) < _SMALLEST:
            raise ValueError(f"nin needs images of {_SMALLEST}x{_SMALLEST} or more, not {image_shape[:2]}")
        self.rate = dropout
        stages, channels = [], image_shape[2]
        for index, (size, width, stride, padding) in enumerate(_STAGES):
            last = index == len(_STAGES) - 1
            widths = [width, width, num_classes if last else width]
            convs = []
            for step, after in enumerate(widths):
                options: dict[str, Any] = {"strides": stride, "padding": padding} if step == 0 else {}
                kernel = (size, size) if step == 0 else (1, 1)
                init = nnx.initializers.normal(0.01 if last and step == 2 else 0.05)
                convs.append(Conv(channels, after, kernel, kernel_init=init, dtype=dtype, rngs=rngs, **options))
                channels = after
            stages.append(nnx.List(convs))
        self.stages = nnx.List(stages)

    def __call__(
        self, image_BHWC: jax.Array, *, train: bool, mask_B: jax.Array | None = None, key_B: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, K]. The mask is not needed, because examples do not interact."""
        del train, mask_B
        x_BHWC = image_BHWC
        for index, stage in enumerate(self.stages):
            if index == len(self.stages) - 1:
                x_BHWC = dropout(x_BHWC, self.rate, key_B, layer=0)
            for conv in stage:
                x_BHWC = nnx.relu(conv(x_BHWC))
            if index < len(self.stages) - 1:
                x_BHWC = max_pool(x_BHWC, (3, 3), strides=(2, 2))
        return jnp.mean(x_BHWC, axis=(1, 2))
