"""A small convolutional network for small images, without batch statistics.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdp.models.cpu.pooling import max_pool
from jaxdp.models.layers import Conv


class CNN(nnx.Module):
    """Two pairs of 3x3 convolutions, each pair followed by 2x2 max pooling, and two dense layers.

    Args:
      image_shape: (H, W, C); H and W are at least 4.
      num_classes: number of classes, K.
      width: number of channels of the first pair; the second pair has 2 * width, the hidden layer 4 * width.
      dtype: dtype of the computation, "float32" or "bfloat16"; parameters are float32.
      rngs: random number generators of the initial parameters.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, width: int, dtype: str = "float32", rngs: nnx.Rngs
    ):
        height, image_width, channels = image_shape
        if min(height, image_width) < 4:
            raise ValueError(f"the model cnn needs images of 4x4 or more, not {height}x{image_width}")
        self.conv1 = Conv(channels, width, (3, 3), dtype=dtype, rngs=rngs)
        self.conv2 = Conv(width, width, (3, 3), dtype=dtype, rngs=rngs)
        self.conv3 = Conv(width, 2 * width, (3, 3), dtype=dtype, rngs=rngs)
        self.conv4 = Conv(2 * width, 2 * width, (3, 3), dtype=dtype, rngs=rngs)
        self.hidden = nnx.Linear((height // 4) * (image_width // 4) * 2 * width, 4 * width, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(4 * width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, image_BHWC: jax.Array, *, train: bool, mask_B: jax.Array | None = None, key_B: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, K]. The mask is not needed, because examples do not interact."""
        del train, mask_B, key_B
        x_BHWC = nnx.relu(self.conv2(nnx.relu(self.conv1(image_BHWC))))
        x_BHWC = max_pool(x_BHWC, (2, 2), strides=(2, 2))
        x_BHWC = nnx.relu(self.conv4(nnx.relu(self.conv3(x_BHWC))))
        x_BHWC = max_pool(x_BHWC, (2, 2), strides=(2, 2))
        return self.head(nnx.relu(self.hidden(jnp.reshape(x_BHWC, (x_BHWC.shape[0], -1)))))
