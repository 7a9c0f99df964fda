"""A batch of examples, on the host or on devices.

Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of examples, on the host or on devices.

    Attributes:
      image_BHWC: images, uint8.
      about_B4: int32; for each example its label, 1 (0 for padding), its id, and the epoch in which it is seen. They
        share one array, because a small array takes as long to transfer to a device as a large one.
    """

    image_BHWC: Any
    about_B4: Any

    @property
    def label_B(self) -> Any:
        """Labels, int32."""
        return self.about_B4[:, 0]

    @property
    def mask_B(self) -> Any:
        """Whether each example is real, bool; False for padding."""
        return self.about_B4[:, 1] != 0

    @property
    def id_B(self) -> Any:
        """Ids of the examples, int32."""
        return self.about_B4[:, 2]

    @property
    def epoch_B(self) -> Any:
        """Epoch in which each example is seen, int32."""
        return self.about_B4[:, 3]
