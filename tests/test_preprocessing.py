"""What networks are shown of a photo, and where on the photo that is.

The oracle for places is a spot: a photo that is black but for a white square, whose middle must come out where the view
says. It knows nothing of how a view is made.
"""

import torchvision_operators  # isort: skip
import random

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from torchvision import transforms
from torchvision.transforms._presets import ImageClassification

from guided_backprop.models import Measured, ResizeCrop, VisionModel
from guided_backprop.models.preprocessing import View
from spots import spot_error

assert torchvision_operators
SIZES = [(451, 300), (640, 480), (300, 1100), (900, 90), (224, 224), (50, 40), (12, 9)]
OURS = ResizeCrop(
    (224, 224), 0.875, "bilinear", 1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels_last=False
)
CHANCE = random.Random(0)
THEIRS = ImageClassification(crop_size=224, resize_size=256)


def noise(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def compose(*steps: object) -> transforms.Compose:
    return transforms.Compose([*steps, transforms.ToTensor()])


@pytest.mark.parametrize("size", SIZES)
def test_ours_shows_what_torchvisions_shows_and_where_it_is_measured(size):
    photo = noise(*size)
    assert_allclose(OURS(photo), THEIRS(photo), atol=2e-6)
    with pytest.raises(AssertionError):
        assert_allclose(OURS(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), THEIRS(photo), atol=2e-6)
    known, measured = OURS.view(*size), Measured(THEIRS).view(*size)
    step = (known.box[2] - known.box[0]) / 224
    assert_allclose(measured.box, known.box, atol=0.2 * max(step, 1))
    assert (measured.size, measured.photo) == (known.size, size)


CROPS = {
    "ours": OURS,
    "ours, stretched": ResizeCrop((60, 90), None),
    "ours, wide, at the end": ResizeCrop((64, 96), 0.7, "lanczos", 1.0, channels_last=True),
    "stretched": compose(transforms.Resize((80, 100))),
    "grey": compose(transforms.Grayscale(), transforms.Resize(96), transforms.CenterCrop(64)),
    "crop alone": compose(transforms.CenterCrop(200)),
    "padded": compose(transforms.Resize(60), transforms.Pad((20, 7))),
    "not in the middle": compose(transforms.Lambda(lambda photo: photo.crop((10, 30, 200, 240)).resize((77, 90)))),
    "of bytes": lambda photo: np.asarray(photo.resize((64, 64))),
}


@pytest.mark.parametrize("name", CROPS)
def test_a_spot_is_where_the_view_says(name):
    vision = VisionModel("any", np.sum, CROPS[name])
    for size in ((400, 300), (260, 320)):
        view = vision.view(*size)
        assert spot_error(CROPS[name], view) < 0.2
        left, top, right, bottom = view.box
        step = (right - left) / view.size[0]
        planted = View(view.photo, (left + step / 2, top, right + step / 2, bottom), view.size)
        assert spot_error(CROPS[name], planted) > 0.3


UNKNOWN = {
    "a mirror": compose(transforms.Resize((64, 64)), transforms.RandomHorizontalFlip(1.0)),
    "a turn": compose(transforms.Resize((64, 64)), transforms.RandomRotation((90, 90))),
    "a small turn": compose(transforms.Resize((64, 64)), transforms.RandomRotation((6, 6))),
    "chance": lambda photo: np.asarray(photo.crop((CHANCE.randrange(50), 0, 90, 90)).resize((64, 64))),
    "a mirror by chance": lambda photo: np.asarray(photo.resize((64, 64)))[:, :: CHANCE.choice((-1, 1))],
    "a curve": lambda photo: np.asarray(photo.resize((64, 64)), np.float32) ** 2,
    "five crops": lambda photo: np.zeros((5, 3, 64, 64)),
    "a table": lambda photo: np.asarray(photo.resize((8, 8))).ravel(),
    "nothing of the photo": lambda photo: np.zeros((3, 64, 64)),
    "a lens": lambda photo: np.asarray(photo.resize((64, 64)))[:, (np.linspace(0, 1, 64) ** 2 * 63).astype(int)],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_upright_box_has_no_view(name):
    assert VisionModel("any", np.sum, UNKNOWN[name]).view(200, 150) is None


def test_a_function_that_refuses_a_probe_has_no_view():
    def picky(photo):
        if len(set(photo.getdata())) < 3:
            raise ValueError("a photo has colours")
        return np.asarray(photo)

    assert Measured(picky).view(20, 20) is None


def test_how_much_of_a_photo_is_seen():
    assert ResizeCrop((224, 224), 1.0).view(3000, 300).share == pytest.approx(0.1)
    assert ResizeCrop((224, 224), None).view(3000, 300).share == 1
    padded = View((100, 100), (-50, -50, 150, 50), (10, 10))
    assert padded.share == 0.5


def test_preprocessing_says_all_it_does():
    assert str(OURS) == "224 x 224, bilinear, crop .875, pixels / 255, mean .485 .456 .406, std .229 .224 .225"
    assert str(ResizeCrop((64, 96), None, "nearest", 1.0)) == "96 x 64, nearest, the whole photo stretched"
    assert str(Measured(np.asarray)) == "its own preprocessing"
    vision = VisionModel("net", np.sum, ResizeCrop((8, 8), 1.0, "bicubic", 2.0, (1.0,), (0.5,)), ["cat", "dog"])
    assert str(vision) == "net: 8 x 8, bicubic, crop 1, pixels * 2, mean 1, std .5, 2 classes"


def test_photos_become_one_batch():
    vision = VisionModel("any", np.sum, ResizeCrop((8, 8), channels_last=True))
    assert vision.images([noise(20, 30), noise(9, 9)]).shape == (2, 8, 8, 3)
