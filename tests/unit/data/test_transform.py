"""Views: where squares are cut, that they depend on the picture alone, and what [-1, 1] means."""

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config import DataSettings, load_settings
from dreambooth_core.data import transform
from dreambooth_core.data.transform import View
from tests.paths import PARAMS

SHA = "0123456789abcdef" * 4


def settings(**changed: object) -> DataSettings:
    return load_settings(PARAMS).data.model_copy(update={"resolution": 64, **changed})


def test_centre_crop_takes_the_middle_of_the_scaled_picture() -> None:
    views = transform.views_of((192, 128), settings(center_crop=True), sha256=SHA)
    assert views == (View(left=16, top=0, mirrored=False),)  # 96 x 64 after scaling


def test_square_photo_has_one_view_for_any_number_of_crops() -> None:
    crops = settings(center_crop=False, crops_per_image=8)
    assert transform.views_of((200, 200), crops, sha256=SHA) == (View(0, 0, False),)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_wide_photo_has_as_many_views_as_asked_for(num: int) -> None:
    crops = settings(center_crop=False, crops_per_image=num)
    assert len(transform.views_of((640, 64), crops, sha256=SHA)) == num


def test_every_view_has_its_mirror_image_when_flips_are_on() -> None:
    views = transform.views_of(
        (256, 64), settings(center_crop=False, crops_per_image=3, random_flip=True), sha256=SHA
    )
    assert len(views) == 6
    assert [v.mirrored for v in views] == [False, True] * 3
    assert [v.left for v in views[::2]] == [v.left for v in views[1::2]]


def test_crops_depend_on_the_image_and_stay_when_more_follow() -> None:
    wide = (640, 64)
    few = transform.views_of(wide, settings(center_crop=False, crops_per_image=3), sha256=SHA)
    many = transform.views_of(wide, settings(center_crop=False, crops_per_image=6), sha256=SHA)
    other = transform.views_of(wide, settings(center_crop=False, crops_per_image=3), sha256=SHA[1:])
    assert many[:3] == few != other
    assert all(0 <= view.left <= 640 - 64 and view.top == 0 for view in many)


def test_random_crops_cover_the_room_evenly() -> None:
    one_crop = settings(center_crop=False, crops_per_image=1)
    lefts = [
        transform.views_of((128, 64), one_crop, sha256=f"{i:015x}")[0].left for i in range(400)
    ]
    # Uniform on 0..64: mean 32, standard error 18.8 / sqrt(400) = 0.94.
    assert abs(np.mean(lefts) - 32) < 4
    assert (min(lefts), max(lefts)) == (0, 64)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (64, 64)), ((100, 50), (128, 64)), ((50, 101), (64, 129)), ((640, 641), (64, 64))],
)
def test_the_shorter_side_becomes_the_resolution(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert transform.scaled_size(size, resolution=64) == expected


def test_a_mirrored_views_place_is_that_in_the_mirrored_picture() -> None:
    ramp = np.zeros((64, 128, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(128)
    picture = Image.fromarray(ramp)
    flips = settings(center_crop=False, crops_per_image=1, random_flip=True)
    (plain, mirrored) = transform.sizes_of(picture, flips, sha256=SHA).tolist()
    left = plain[3]
    assert plain[:3] == mirrored[:3] == [64, 128, 0]
    assert mirrored[3] == 128 - 64 - left
    cut = transform.cut(picture, View(int(left), 0, mirrored=True), resolution=64)
    begin = int(mirrored[3])
    assert np.array_equal(np.asarray(cut), ramp[:, ::-1][:, begin : begin + 64])


def test_cut_takes_the_pixels_that_the_view_names() -> None:
    ramp = np.zeros((64, 128, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(128)
    picture = Image.fromarray(ramp)
    square = np.asarray(transform.cut(picture, View(10, 0, False), resolution=64))
    mirrored = np.asarray(transform.cut(picture, View(10, 0, True), resolution=64))
    assert square.shape == (64, 64, 3)
    assert square[0, :, 0].tolist() == list(range(10, 74))
    assert np.array_equal(mirrored, square[:, ::-1])


def test_pixels_become_minus_one_to_one() -> None:
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((1, 0), (255, 51, 0))
    tensor = transform.to_tensor(picture)
    assert tensor.shape == (3, 1, 2)
    assert tensor[:, 0, 0].tolist() == [-1.0, -1.0, -1.0]
    torch.testing.assert_close(tensor[:, 0, 1], torch.tensor([1.0, -0.6, -1.0]))
