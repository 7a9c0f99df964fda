"""scikit-learn's handwritten digits as a TFDS data set: real images that need no download."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NAME = "digits"
NUM_EXAMPLES = 1797
NUM_TEST = 360
SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS has no types.
    """1,797 images of 8x8 pixels in 17 grey levels (test set of UCI's Optical Recognition of Handwritten Digits).

    The original set is sorted by writer, so it is split at random with a fixed seed: 1,437 images for training and 360
    for testing.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        order = np.random.RandomState(SPLIT_SEED).permutation(NUM_EXAMPLES)
        return {
            "train": self._generate_examples(np.sort(order[NUM_TEST:])),
            "test": self._generate_examples(np.sort(order[:NUM_TEST])),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for index in indices.tolist():
            # Scale the levels 0..16 to 0..255, the range of other image data sets.
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            yield index, {"image": png.getvalue(), "label": int(digits.target[index])}
