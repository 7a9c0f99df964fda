import io

import numpy as np
import pytest
from PIL import Image

from jaxdp.data.decode import Decoder, RandomCrop, fitted, image_of

CROP = RandomCrop(seed=3, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3))


def file_of(pixels, kind="PNG"):
    data = io.BytesIO()
    image_of(pixels).save(data, kind)
    return data.getvalue()


def test_crop_stays_inside_and_respects_area_and_ratio():
    boxes = np.array([CROP.box(300, 200, example=example, epoch=0) for example in range(500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 300 + 1e-9).all()
    assert (bottom <= 200 + 1e-9).all()
    area, ratio = (right - left) * (bottom - top) / 60_000, (right - left) / (bottom - top)
    assert 0.08 <= area.min() < 0.1
    # In an image this wide, the largest crop with an allowed ratio (4/3) covers 8/9 of the area.
    assert 0.8 < area.max() <= 8 / 9
    assert 3 / 4 - 1e-9 <= ratio.min() < 0.78
    assert 1.28 < ratio.max() <= 4 / 3 + 1e-9
    assert left.std() > 20
    assert top.std() > 10


def test_crop_depends_only_on_seed_epoch_and_example():
    box = CROP.box(30, 20, example=5, epoch=2)
    assert box == CROP.box(30, 20, example=5, epoch=2)
    others = [
        CROP.box(30, 20, example=6, epoch=2),
        CROP.box(30, 20, example=5, epoch=3),
        RandomCrop(4, CROP.area, CROP.ratio).box(30, 20, example=5, epoch=2),
    ]
    assert box not in others


def test_largest_square_is_taken_if_no_crop_fits():
    left, top, right, bottom = RandomCrop(0, (1.0, 1.0), (1.0, 1.0)).box(1000, 10, example=1, epoch=0)
    assert (right - left, top, bottom) == pytest.approx((10, 0, 10))


@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_file_equals_its_fitted_pixels(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, channels), np.uint8)
    data = file_of(pixels)
    for shape in [(9, 14, channels), (5, 5, channels), (20, 20, channels)]:
        found = Decoder(shape)(data + bytes(63), example=0, epoch=0)
        np.testing.assert_array_equal(found, fitted(image_of(pixels), shape))
    np.testing.assert_array_equal(Decoder((9, 14, channels))(data, example=0, epoch=0), pixels)


def test_crop_of_the_whole_image_resizes_it():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    everything = Decoder((6, 6, 3), RandomCrop(0, (1.0, 1.0), (1.0, 1.0)))
    expected = np.asarray(Image.fromarray(pixels).resize((6, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(everything(file_of(pixels), example=0, epoch=0), expected)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("CMYK", 3), ("P", 3), ("RGBA", 3), ("RGB", 1)])
def test_files_in_other_color_modes_are_converted(mode, channels):
    data = io.BytesIO()
    Image.new("RGB", (5, 5), (200, 200, 200)).convert(mode).save(data, "TIFF")
    found = Decoder((5, 5, channels))(data.getvalue(), example=0, epoch=0)
    assert found.shape == (5, 5, channels)
    assert np.abs(found.astype(int) - 200).max() < 8
