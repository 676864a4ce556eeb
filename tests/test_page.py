"""The page that explains photos by itself: what it computes in Chromium, and what it never asks for."""

import functools
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from torch import nn

from guided_backprop import DeconvNet, GuidedBackprop, MissingExtraError, ModelError, OptionError, Saliency
from guided_backprop.commands.main import command
from guided_backprop.models import Measured, ResizeCrop, VisionModel
from guided_backprop.models.preprocessing import Resampling
from guided_backprop.models.recipe import recipe_of
from guided_backprop.page.engine import Engine
from guided_backprop.page.page import write_page
from guided_backprop.render import magnitude, overlay

NAMES = ["cat</script><script>alert(1)</script>", "dog", "owl, a bird", "eel", "fox"]
RECIPE = ResizeCrop((40, 56), crop=0.875, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def vision() -> VisionModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return VisionModel("<small>", nn.Sequential(*layers, nn.Linear(32, 5)).eval(), RECIPE, NAMES)


@pytest.fixture(scope="module")
def written(vision: VisionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as one file."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert write_page(path, vision, {"noise.png": noise(90, 70)}) == [path]
    return path


class Visit:
    """One look at a page, which notes what it asks for, and what goes wrong."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.tab: Page = self.context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.goto(address)

    def upload(self, path: Path, label: int) -> None:
        self.tab.locator("[data-file]").set_input_files(path)
        self.wait(label)

    def wait(self, label: int) -> None:
        self.tab.locator(f"body[data-explained='{label}']").wait_for(timeout=60_000)

    def map(self) -> np.ndarray:
        with self.tab.expect_download() as download:
            self.tab.get_by_role("button", name="Save the numbers").click()
        return np.load(download.value.path())


@pytest.fixture(scope="module")
def visit(browser: Browser, written: Path) -> Iterator[Visit]:
    """The page from disk, without a network."""
    looking = Visit(browser, written.as_uri(), offline=True, viewport={"width": 390, "height": 900})
    yield looking
    looking.context.close()


@pytest.mark.parametrize("size", [(61, 47), (200, 151)])
def test_photos_become_what_pillow_makes_of_them(visit, size):
    photo = noise(*size)
    given = {"width": size[0], "height": size[1], "pixels": np.asarray(photo).ravel().tolist()}
    recipes = [
        ResizeCrop((24, 31), crop, by, 1.0, channels_last=True) for by in get_args(Resampling) for crop in (None, 0.7)
    ]
    abouts = [{"size": [24, 31], "crop": recipe.crop, "resampling": recipe.resampling} for recipe in recipes]
    script = "([photo, abouts]) => abouts.map((about) => [...cut(photo, about).pixels])"
    cuts = visit.tab.evaluate(script, [given, abouts])
    for recipe, cut in zip(recipes, cuts, strict=True):
        assert_array_equal(np.reshape(cut, (24, 31, 3)), recipe(photo), err_msg=str(recipe))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_are_scaled_as_the_recipe_says(visit, grey, channels_last):
    recipe = ResizeCrop(
        (9, 7), None, "nearest", 1 / 255, (0.4, 0.5, 0.6)[: 1 if grey else 3], (0.2,), channels_last, grey
    )
    about = {"scale": 1 / 255, "mean": recipe.mean, "std": recipe.std, "channels_last": channels_last, "grey": grey}
    seen = {"width": 7, "height": 9, "pixels": np.asarray(noise(7, 9)).ravel().tolist()}
    scaled = visit.tab.evaluate("([seen, about]) => [...scaled(seen, about)]", [seen, about])
    assert_array_equal(np.float32(scaled), recipe(noise(7, 9)).ravel())


def test_a_photo_is_explained_in_the_page(visit, vision, tmp_path):
    """Offline, from disk: the maps are the library's, by each method, and of another class too."""
    photo = noise(133, 91)
    photo.save(tmp_path / "photo.png")
    images = vision.images([photo])
    wanted = GuidedBackprop(vision.network).explain(images)
    top = int(wanted.labels[0])
    visit.upload(tmp_path / "photo.png", top)
    names = visit.tab.locator("[data-classes] button")
    shares = torch.softmax(torch.from_numpy(wanted.outputs[0]), 0).numpy()
    assert names.all_text_contents() == [
        f"{vision.class_name(label)} {100 * shares[label]:.1f} %" for label in np.argsort(-shares)
    ]
    assert_allclose(visit.map(), wanted.attribution[0], rtol=0, atol=1e-5 * wanted.attribution.abs().max())
    other = int(np.argsort(-shares)[1])
    names.nth(1).click()
    visit.wait(other)
    for method in (DeconvNet, Saliency, GuidedBackprop):
        visit.tab.locator(f"input[value='{method.__name__}']").check()
        expected = method(vision.network).explain(images, [other]).attribution[0].numpy()
        # A planted fault: the map of the class before is another one.
        found, before = visit.map(), method(vision.network).explain(images, [top]).attribution[0].numpy()
        assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert np.abs(found - before).max() > 1e-2 * np.abs(expected).max()
    # How alike the maps of the next classes are, in numbers.
    rivals = [label for label in np.argsort(-shares) if label != other][:2]
    maps = [GuidedBackprop(vision.network).explain(images, [int(k)]).attribution.flatten() for k in (other, *rivals)]
    for rival in maps[1:]:
        cosine = float(torch.nn.functional.cosine_similarity(maps[0], rival, dim=0))
        assert f"{cosine:.3f}" in visit.tab.locator("[data-believe]").text_content()
    # The line between photo and map is there where both are.
    slider, line = visit.tab.locator("[data-range]"), visit.tab.locator(".edge")
    for at, is_there in (("100", False), ("40", True), ("0", False)):
        slider.fill(at)
        assert line.is_visible() == is_there
    assert visit.wrong == []
    assert all(url.startswith(("file:", "blob:", "data:")) for url in visit.asked)


def test_the_picture_is_the_overlay(visit, vision, tmp_path):
    photo = noise(80, 60)
    photo.save(tmp_path / "photo.png")
    found = GuidedBackprop(vision.network).explain(vision.images([photo]))
    visit.upload(tmp_path / "photo.png", int(found.labels[0]))
    with visit.tab.expect_download() as download:
        visit.tab.get_by_role("button", name="Save the picture").click()
    drawn = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    seen = ResizeCrop(RECIPE.size, RECIPE.crop, scale=1.0, channels_last=True)(photo)
    # The library stretches what it draws over: give it the ends of the scale.
    attribution = found.attribution[0].permute(1, 2, 0).numpy()
    with_ends = np.concatenate([seen, np.zeros_like(seen[:1]), np.full_like(seen[:1], 255)])
    padded = np.concatenate([attribution, attribution[:2] * 0])
    full = np.percentile(np.abs(attribution).max(-1), 99)
    scaled = np.clip(padded, -full, full)
    expected = overlay(with_ends, scaled, 100)[:-2].astype(int)
    assert np.abs(drawn - expected).max() <= 1
    assert np.abs(drawn - magnitude(attribution).astype(int)).max() > 50


def test_what_goes_wrong_is_said(visit, vision, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    noise(600, 10).save(tmp_path / "thin.png")
    status = visit.tab.locator("[data-status]")
    for name, said in {"broken.png": "broken.png is no image", "thin.png": "50 times as long as wide"}.items():
        visit.tab.locator("[data-file]").set_input_files(tmp_path / name)
        expect(status).to_contain_text(said)
    # Any class is found by its name; names are text.
    visit.tab.locator("[data-example]").click()
    top = int(GuidedBackprop(vision.network).explain(vision.images([noise(90, 70)])).labels[0])
    visit.tab.locator("[data-explained]").wait_for()
    search = visit.tab.get_by_label("Any class")
    search.fill(vision.class_name((top + 3) % 5))
    search.press("Enter")
    visit.wait((top + 3) % 5)
    assert visit.tab.locator("h1").count() == 1
    assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.wrong == []


def test_the_camera_s_picture_is_explained(visit, vision):
    camera = visit.tab.locator("[data-camera]")
    camera.click()
    expect(camera).to_have_text("Take this picture")
    visit.tab.wait_for_function("document.querySelector('[data-video]').videoWidth > 0")
    visit.tab.evaluate("document.body.removeAttribute('data-explained')")
    camera.click()
    visit.tab.locator("body[data-explained]").wait_for(timeout=60_000)
    assert "The camera's picture" in visit.tab.locator("[data-shown]").text_content()
    label = int(visit.tab.locator("body").get_attribute("data-explained"))
    pixels = np.float32(visit.tab.evaluate("[...now.seen.pixels]")).reshape(*RECIPE.size, 3)
    # The test picture is coloured, and not black, as that of a camera that was stopped too soon.
    assert pixels.std() > 10
    mean, std = np.float32(RECIPE.mean), np.float32(RECIPE.std)
    images = torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None])
    wanted = GuidedBackprop(vision.network).explain(images)
    assert int(wanted.labels[0]) == label
    visit.tab.locator("input[value='GuidedBackprop']").check()
    assert_allclose(visit.map(), wanted.attribution[0], rtol=0, atol=1e-5 * wanted.attribution.abs().max())
    assert visit.tab.evaluate("document.querySelector('[data-video]').srcObject") is None
    assert visit.wrong == []


def test_a_folder_for_a_web_host(browser, vision, tmp_path):
    """The same page with files beside it, which come from its own host and from nowhere else."""
    result = CliRunner().invoke(
        command(), ["page", "--output", str(tmp_path / "site"), "--model", f"{__file__}:built", "--random-weights"]
    )
    assert result.exit_code == 0, result.output
    assert "index.html and 6 files beside it" in result.output
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        looking = Visit(browser, address)
        expect(looking.tab.locator("[data-status]")).to_have_text("Ready.")
        noise(70, 50).save(tmp_path / "photo.png")
        explained = GuidedBackprop(vision.network).explain(vision.images([noise(70, 50)]))
        looking.upload(tmp_path / "photo.png", int(explained.labels[0]))
        assert_allclose(looking.map(), explained.attribution[0], rtol=0, atol=1e-5 * explained.attribution.abs().max())
        assert all(url.startswith((address, f"blob:{address}", "data:")) for url in looking.asked)
        looking.context.close()
        server.shutdown()


def built() -> VisionModel:
    """Make the network of these tests, for the command line."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return VisionModel("small", nn.Sequential(*layers, nn.Linear(32, 5)).eval(), RECIPE, NAMES)


def test_the_same_weights_are_there_once(vision, written):
    text = written.read_text()
    assert text.count("<script") == 2 + 1 + 6
    assert "alert(1)</script>" not in text
    assert "connect-src" not in text
    weights = sum(4 * parameter.numel() for parameter in vision.network.parameters())
    assert weights < 10_000


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
def test_the_recipe_of_a_function_is_found(resampling):
    recipe = ResizeCrop((32, 32), 0.8, resampling, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    found = recipe_of(Measured(recipe.__call__))
    for photo in (noise(311, 203), noise(57, 64)):
        assert_allclose(found(photo), recipe(photo), atol=1e-4, rtol=0)


def test_a_function_without_a_recipe_is_refused():
    def mirrored(photo: Image.Image) -> np.ndarray:
        return RECIPE(photo)[..., ::-1]

    for function in (
        Measured(mirrored),
        Measured(lambda photo: np.sqrt(np.abs(RECIPE(photo)))),
        ResizeCrop((8, 8), further=np.abs),
    ):
        with pytest.raises(ModelError, match="preprocess must be resizing, cutting and scaling"):
            recipe_of(function)


def test_the_engine_is_known_by_its_checksum(tmp_path, monkeypatch):
    engine = Engine.found()
    package = tmp_path / "onnxruntime-web" / "dist"
    package.mkdir(parents=True)
    for name, data in {"ort.wasm.min.js": engine.script, "ort-wasm-simd-threaded.mjs": engine.module}.items():
        (package / name).write_bytes(data)
    with pytest.raises(OptionError, match="which has no ort-wasm-simd-threaded.wasm"):
        Engine.found(package.parent)
    (package / "ort-wasm-simd-threaded.wasm").write_bytes(engine.binary)
    assert Engine.found(package.parent) == engine == Engine.found(package)
    (package / "ort.wasm.min.js").write_bytes(engine.script + b" ")
    with pytest.raises(OptionError, match=r"whose ort\.wasm\.min\.js is another"):
        Engine.found(package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="received no npm to fetch it"):
        Engine.found()


def test_what_is_no_classifier_is_refused(tmp_path, vision):
    with pytest.raises(ModelError, match=r"a page needs a classifier.*\(1, 6, 19, 27\)"):
        write_page(tmp_path / "page.html", VisionModel("part", vision.network[:2], RECIPE))
    assert list(tmp_path.iterdir()) == []


def test_the_example_in_the_page_is_the_photo(written):
    source = written.read_text().partition('<img src="data:image/png;base64,')[2].partition('"')[0]
    import base64

    assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))), np.asarray(noise(90, 70)))
