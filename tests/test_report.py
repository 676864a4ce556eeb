"""The page that ``guided-backprop report`` writes: its figures, and the page itself in a real browser.

The figures are compared with others computed here from the definitions. The browser is Chromium without a screen: a
mouse drags the slider, and what is then shown is compared pixel by pixel. Screenshots are left in out/report.
"""

import base64
import gc
import html
import io
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest
import skimage
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import guided_backprop
import networks
from guided_backprop import GuidedBackprop, ImageError, OptionError, OutputExistsError, Saliency, sanity_check
from guided_backprop.commands.main import command
from guided_backprop.models import ResizeCrop, VisionModel, load
from guided_backprop.render import colour_picture, overlay
from guided_backprop.report import Report, randomised
from guided_backprop.report.pages import Entry, Map, Pages
from guided_backprop.show.colours import as_bytes, dimmed
from guided_backprop.show.embed import data_uri
from guided_backprop.show.place import Place
from guided_backprop.trust.likeness import Likeness, Rival, Trust, cosine, edge_correlation, summaries
from networks_torch import to_torch
from test_cli import MODEL, photos, process  # noqa: F401 (a fixture)
from test_cli import run as run_explain
from test_targets import FRAMEWORKS

ROOT = Path(__file__).parents[1]
SCREENS = ROOT / "out" / "report"
EVIL = "<img src=x onerror=alert(1)>.png"
EVIL_CLASS = '"><script>alert(2)</script>&amp;'
MINUS = "\N{MINUS SIGN}"


def run(*arguments: str) -> Any:
    return run_explain(*arguments, command_name="report")


def network(channels: int = 3, outputs: int = 4) -> torch.nn.Module:
    """Return a small network, the same each time; its layer "2" is a convolution."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(channels, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(6 * 8 * 8, outputs)).eval()


def images(count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 12, 12, generator=torch.Generator().manual_seed(1))


# The figures


def test_the_cosine_similarity_of_maps():
    one, other = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    expected = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    assert_allclose(cosine(one, other), expected, rtol=1e-12)
    with pytest.raises(AssertionError):
        assert_allclose(cosine(np.abs(one), other), expected, rtol=1e-12)
    assert_allclose(cosine(one, -3 * one), -1)
    assert_allclose(cosine(1e300 * one, 1e-300 * other), expected)
    assert cosine(one, 0 * one) is None
    assert_allclose(cosine(np.array([60000, 0], np.float16), np.array([60000, 60000], np.float16)), 0.5**0.5)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return each value's rank, the mean of the ranks for equal values."""
    flat = values.ravel()
    return np.array([(flat < value).sum() + ((flat == value).sum() - 1) / 2 for value in flat])


def sobel(grey: np.ndarray) -> np.ndarray:
    """Return the magnitude of Sobel's two derivatives, the image reflected at its border."""
    padded = np.pad(grey, 1, mode="symmetric")
    smooth, height, width = (1, 2, 1), *grey.shape
    down, right = np.zeros((2, *grey.shape))
    for row in range(3):
        for column in range(3):
            part = padded[row : row + height, column : column + width]
            down += (row - 1) * smooth[column] * part
            right += (column - 1) * smooth[row] * part
    return np.hypot(down, right)


def test_the_correlation_with_edges():
    rng = np.random.default_rng(0)
    image, attribution = rng.normal(size=(2, 9, 8, 3))
    pair = ranks(sobel(image.mean(axis=2))), ranks(np.abs(attribution).sum(axis=2))
    expected = np.corrcoef(*pair)[0, 1]
    assert_allclose(edge_correlation(image, attribution), expected, rtol=1e-9)
    with pytest.raises(AssertionError):
        assert_allclose(edge_correlation(image, attribution[::-1]), expected, rtol=1e-9)
    assert_allclose(edge_correlation(image, -(sobel(image.mean(axis=2)) ** 3)[..., None]), 1)
    assert edge_correlation(np.ones((4, 4, 1)), attribution[:4, :4]) is None
    assert edge_correlation(image, np.zeros((9, 8, 1))) is None


def likeness(*values: float | None, edges: float | None = 0.1) -> Likeness:
    rivals = [Rival(f"{row} dog, hound", value, 0.25) for row, value in enumerate(values)]
    return Likeness("7 cat, puss", rivals, edges, None if edges is None else -0.2)


def test_what_the_figures_say_in_words():
    same, edges = likeness(0.99958, 0.9).sentences()
    assert same.startswith(
        "The guided maps of 7 cat, 0 dog and 1 dog are nearly one picture (cosine similarity 0.900 or"
    )
    assert "0.999 or more" in likeness(0.99958).sentences()[0]  # rounded down
    assert "does not tell these classes apart" in same
    assert "rank correlation of 0.10 with the guided map, and of \N{MINUS SIGN}0.20 with Saliency. 1 would be" in edges
    some = likeness(0.95, 0.2).sentences()[0]
    assert some == "The guided maps of 7 cat and 0 dog are nearly one picture; those of the other classes differ."
    assert likeness(0.3, -0.5).sentences()[0].startswith("The guided map of 7 cat differs from")
    assert "Most of what the guided map shows are edges" in likeness(edges=0.5).sentences()[0]
    assert likeness(None, edges=None).sentences() == []


def test_what_several_images_say_together():
    classes, edges = summaries([likeness(0.95, 0.99), likeness(0.2, None, edges=None)])
    assert "In 2 of 3 comparisons" in classes.sentence
    assert "not why it chose a class" in classes.sentence
    assert classes.rows[0] == {"method": "GuidedBackprop", "lowest": "0.200", "median": "0.950", "highest": "0.990"}
    assert edges.rows[1]["median"] == "\N{MINUS SIGN}0.200"
    assert "chose" not in summaries([likeness(0.2)])[0].sentence
    assert summaries([likeness(edges=None)]) == []


def test_the_page_has_the_figures_of_separate_explanations(tmp_path):
    model = network()
    report = Report(tmp_path / "report.html", model)
    report.add(images(), ["a", "b"], [2, 0])
    page = report.finish().read_text("utf-8")
    outputs = model(images()).detach().numpy()
    wrong = []
    for row, label in enumerate([2, 0]):
        for other in set(range(4)) - {label}:
            for method in (GuidedBackprop, Saliency):
                one, two = (
                    method(model).explain(images()[row][None], each).attribution.numpy() for each in (label, other)
                )
                value = f"{cosine(one, two):.4f}".replace("-", MINUS)
                assert f'<td class="number">{value}</td>' in page
                wrong.append(f"{cosine(one, images()[row]):.4f}".replace("-", MINUS))
        shares = np.exp(outputs[row]) / np.exp(outputs[row]).sum()
        assert all(f"{100 * share:.1f} %" in page for share in shares)
        assert f"score {outputs[row, label]:.4g}".replace("-", MINUS) in page
    assert not any(f'<td class="number">{value}</td>' in page for value in wrong)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_models_of_few_outputs(tmp_path, outputs):
    report = Report(tmp_path / "report.html", network(outputs=outputs))
    report.add(images(), ["a", "b"])
    page = report.finish().read_text("utf-8")
    assert ("What the model says" in page) == (outputs > 1)
    assert page.count("the lowest score of all") == 0
    assert page.count("Cosine similarity of the maps") == (2 if outputs > 1 else 0)
    rows = page.split("Cosine similarity of the maps")[1].split("</table>")[0].count("<tr>") if outputs > 1 else 1
    assert rows == outputs  # and one for the heading


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_of_other_channels_and_grad_cam(tmp_path, channels):
    report = Report(tmp_path / "report.html", network(channels), name="Net", layer="2", class_names={0: "zero"})
    found = report.add(images(1, channels), ["folder/a"], 0)
    assert [each.method for each in found] == ["Saliency", "DeconvNet", "GuidedBackprop", "GradCAM", "GuidedGradCAM"]
    page = report.finish().read_text("utf-8")
    assert page.count('class="tile"') == 6
    assert "GradCAM of a for 0 zero: overlay: magnitude over the photo" in page
    assert "GuidedGradCAM of a for 0 zero: colour: signed, grey is 0" in page


def test_grad_cam_lies_where_it_is(tmp_path):
    """Its maps have no channels, which once turned them about the diagonal."""
    report = Report(tmp_path / "report.html", network(), layer="2")
    found = report.add(images(1), ["a"], 0)
    page = report.finish().read_text("utf-8")
    cam = found[3].attribution.numpy()[0]
    tile = re.search(r'src="data:image/png;base64,([^"]*)" alt="GradCAM of a', page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile[1]))))
    image = images(1)[0].numpy().transpose(1, 2, 0)
    assert_array_equal(shown, overlay(image, cam))
    with pytest.raises(AssertionError):
        assert_array_equal(shown, overlay(image, cam.T))


def pixels_of(page: str, alt: str) -> np.ndarray:
    """Return the picture that a page shows under a text."""
    data = re.search(f'src="data:image/png;base64,([^"]*)" alt="{re.escape(alt)}"', page)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_maps_lie_at_their_place_on_the_photo(tmp_path):
    """Of a photo of 48 x 12 the network saw the middle; around it the photo is dimmed, beyond a line of one pixel."""
    vision = VisionModel("small", network(), ResizeCrop((12, 12)))
    photo = np.random.default_rng(0).integers(0, 256, (12, 48, 3), np.uint8)
    photo[0, 18:20] = [[0] * 3, [255] * 3]
    given = [Image.fromarray(photo), Image.fromarray(photo[:, 18:30])]
    report = Report(tmp_path / "report.html", vision.network)
    with pytest.raises(OptionError, match="places must be one per image; received 1 for 2"):
        report.add(images(), ["a", "b"], places=[None])
    found = report.add(vision.images(given), ["wide", "square"], 1, places=[vision.place(one) for one in given])
    page = report.finish().read_text("utf-8")
    assert_array_equal(pixels_of(page, "wide"), photo)
    attribution = found[2].attribution[0].permute(1, 2, 0).numpy()
    over = pixels_of(page, "GuidedBackprop of wide for class 1: overlay: magnitude over the photo").astype(int)
    signed = pixels_of(page, "GuidedBackprop of wide for class 1: colour: signed, grey is 0").astype(int)
    assert_allclose(over[:, 18:30], overlay(photo[:, 18:30], attribution), rtol=0, atol=1)
    assert_allclose(signed[:, 18:30], colour_picture(attribution), rtol=0, atol=1)
    for shown in (over, signed):
        assert_array_equal(shown[:, :17], as_bytes(dimmed(photo))[:, :17])
        assert_array_equal(shown[:, 31:], as_bytes(dimmed(photo))[:, 31:])
    with pytest.raises(AssertionError):
        assert_allclose(signed[:, 19:31], colour_picture(attribution), rtol=0, atol=1)
    with pytest.raises(AssertionError):
        assert_array_equal(over[:, :17], photo[:, :17])
    assert "wide. The model saw what the maps lie on, as 12 \N{MULTIPLICATION SIGN} 12 pixels; the rest" in page
    assert "square. The model saw all of it" in page
    assert page.count("the network saw 25% of the photo: the rest of it is not explained") == 1


def test_a_photo_is_made_smaller_together_with_its_place():
    """A corner of the box is where it was, to a pixel; small photos stay, and boxes beyond a photo too."""
    photo = Image.effect_noise((900, 600), 50)
    for box in ((150, 0, 750, 600), (-300, 60, 1200, 480), (0, 0, 1, 1)):
        place = Place.of(photo, box, (3, 3), "seen")
        small = place.within(54_000)
        height, width = small.photo.shape[:2]
        assert abs(height * width - 54_000) < 1000
        assert_allclose(np.array(small.box), np.array(place.box) * width / place.photo.shape[1], atol=1)
        assert small.box[0] < small.box[2]
        assert (small.warning, small.is_whole) == ("seen", False)
        assert small.within(54_500) is small
    with pytest.raises(AssertionError):
        assert_allclose(np.array(small.box), np.array(place.box) + 2, atol=1)


def test_the_methods_that_are_drawn_are_chosen(tmp_path):
    def tiles(layer: str | None, *methods: str) -> list[tuple[str, str]]:
        report = Report(tmp_path / "report.html", network(), layer=layer, methods=methods, overwrite=True)
        report.add(images(1), ["a"], 0)
        page = report.finish().read_text("utf-8")
        assert page.count(" checked>") == 1
        assert "Cosine similarity of the maps" in page
        return re.findall('data-method="([^"]*)"><input type="radio"[^>]*?( checked)?>', page)

    assert tiles(None, "deconvnet", "saliency") == [("Saliency", " checked"), ("DeconvNet", "")]
    guided = [("GuidedBackprop", " checked"), ("GuidedBackprop", ""), ("GradCAM", "")]
    assert tiles("2", "grad-cam", "guided-backprop") == guided
    assert tiles("2", "smoothgrad", "saliency") == [("Saliency", " checked"), ("SmoothGrad", "")]
    assert "SmoothGrad(Saliency, samples=50" in (tmp_path / "report.html").read_text("utf-8")
    for wrong, said in ((["lime"], "received 'lime'"), (["grad-cam"], "must have a layer"), ([], "one at least")):
        with pytest.raises(OptionError, match=said):
            tiles(None, *wrong)


def test_a_grid_that_the_stride_leaves_is_said(tmp_path):
    """A kernel of 3 at stride 2 touches every second pixel twice; at stride 1 none. DeconvNet's map is flat here."""
    for stride in (1, 2):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 3, stride), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
        report = Report(tmp_path / f"{stride}.html", model)
        report.add(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["a", "b"], 0)
        page = report.finish().read_text("utf-8")
        said = re.findall("<p>(.*): the grid of 2 pixels is left by the network", page)
        assert [methods.split(", ") for methods in said] == [["Saliency", "GuidedBackprop"]][: stride - 1]
        assert page.count('DeconvNet</span> <span class="muted small">one flat colour') == 2


def test_every_framework_has_one_page(tmp_path):
    pages, figures = {}, {}
    with jax.enable_x64(True):
        for name, (convert, given, _) in FRAMEWORKS.items():
            model, batch = convert(networks.NETWORKS["convolutional"]), given(networks.IMAGES)
            report = Report(tmp_path / f"{name}.html", model, name="Net")
            found = report.add(batch, list("abcd"), networks.LABELS)
            pages[name] = report.finish().read_text("utf-8").split("How to make this page again")[0]
            figures[name] = [np.asarray(axes.get_images()[0].get_array()) for axes in found[2].plot().axes[:16]]
            assert found[2]._repr_html_().count("<img") == 12
    assert pages["torch"] == pages["tensorflow"] == pages["jax"]
    assert pages["torch"].count("data:image/png") == 4 * 5
    for name in ("tensorflow", "jax"):
        for one, other in zip(figures["torch"], figures[name], strict=True):
            assert_allclose(one, other, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_allclose(figures["torch"][1], figures["jax"][5], atol=1e-6)


def test_only_the_lowest_score_is_called_so(tmp_path):
    model = network()
    order = model(images(1)).detach().numpy()[0].argsort()
    for label, is_there in ((order[3], True), (order[0], False)):
        report = Report(tmp_path / "report.html", model, overwrite=True)
        report.add(images(1), ["a"], int(label))
        page = report.finish().read_text("utf-8")
        assert (f'class {order[0]} <span class="muted">(the lowest score of all)' in page) == is_there
        assert page.count("the lowest score of all") == is_there


def test_a_segmentation_has_no_other_classes(tmp_path):
    model = to_torch(networks.positions(5)).float()
    report = Report(tmp_path / "report.html", model)
    report.add(images(), ["a", "b"], 1)
    assert "Cosine" not in report.finish().read_text("utf-8")


def entries(count: int) -> Iterator[Entry]:
    """Yield what pages show of so many images: every third is a cat, and scores go up."""
    uri = data_uri(np.zeros((1, 1, 3), np.uint8))
    maps = [Map("Saliency", "signed, grey is 0", uri), Map("GuidedBackprop", "signed, grey is 0", uri, is_first=True)]
    for row in range(count):
        label = "7 dog" if row % 3 else "3 cat"
        rest = (label, float(row - 5), (1, 1), True, [(0.5, label)], uri, maps, likeness(0.95), "")
        yield Entry(f"photos/a#{row}.png", *rest)


ABOUT = {"head": None, "methods": ["Saliency", "GuidedBackprop"], "model": "Net"}
END = {
    "command": None,
    "coverage": [],
    "layer": None,
    "made_by": [],
    "percentile": 99.0,
    "remarks": [],
    "trust": [],
    "versions": {},
}


def written(path: Path, count: int, *, overwrite: bool = False) -> None:
    pages = Pages(path, overwrite=overwrite)
    for entry in entries(count):
        pages.add(entry, ABOUT)
    pages.finish(ABOUT, END)


def test_many_images_are_on_several_pages_with_an_index(browser, tmp_path):
    """Of 200 images there is one page, of 201 an index beside two, whose links lead to each image."""
    written(tmp_path / "one.html", 200)
    assert [path.name for path in tmp_path.iterdir()] == ["one.html"]
    folder = tmp_path / "many"
    written(folder / "r é%.html", 201)
    assert sorted(path.name for path in folder.iterdir()) == ["r é%-1.html", "r é%-2.html", "r é%.html"]
    index = (folder / "r é%.html").read_text()
    for page in (1, 2):
        assert f"r é%-{page}.html, {(folder / f'r é%-{page}.html').stat().st_size / 1e3:.0f} kB" in index
    assert index.count("data:image") == 0
    with Visit(browser, folder / "r é%.html") as visit:
        page = visit.page
        assert page.locator("nav li").count() == 201
        page.get_by_label("Class", exact=True).select_option("3 cat")
        page.get_by_label("Sort by").select_option("highest")
        assert page.get_by_role("status").inner_text() == "67 of 201 images"
        visible = "[...document.querySelectorAll('nav li:not([hidden]) a')].map((each) => each.textContent)"
        assert page.evaluate(visible) == [f"a#{row}.png" for row in range(198, -1, -3)]
        assert visit.noted == []
        page.get_by_role("link", name="a#198.png", exact=True).click()
        expect(page.locator("#image-199 h2")).to_have_text("a#198.png")
        assert unquote(urlsplit(page.url).path).endswith("/r é%-1.html")
        assert page.locator("article").count() == 200
        page.get_by_role("link", name="Images after").first.click()
        expect(page.locator("article h2")).to_have_text(["a#200.png"])
        assert page.get_by_role("link", name="Images before").first.get_attribute("href") == "r%20%C3%A9%25-1.html"
        page.get_by_role("link", name="how far to believe").click()
        expect(page.locator("#trust")).to_be_visible()


def test_several_pages_appear_together_or_not_at_all(tmp_path):
    taken = tmp_path / "report-2.html"
    taken.write_text("mine")
    with pytest.raises(OutputExistsError, match="report-2.html"):
        written(tmp_path / "report.html", 201)
    gc.collect()
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_text() == "mine"
    written(tmp_path / "report.html", 201, overwrite=True)
    assert "a#200.png" in taken.read_text()
    assert len([*tmp_path.iterdir()]) == 3


# What is refused


def test_a_report_needs_pictures_one_name_and_one_label(tmp_path):
    report = Report(tmp_path / "new" / "report.html", network())
    with pytest.raises(OptionError, match="at least one image"):
        report.finish()
    with pytest.raises(OptionError, match="received 1 names"):
        report.add(images(), ["a"])
    with pytest.raises(OptionError, match=r"labels of shape \(2, 2\)"):
        report.add(images(), ["a", "b"], "top2")
    series = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    with pytest.raises(ImageError, match=r"received images of shape \(1, 2, 9\)"):
        Report(tmp_path / "report.html", series).add(torch.rand(1, 2, 9), ["a"])
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("mine")
    with pytest.raises(OutputExistsError, match="path must not exist yet"):
        Report(target, network())
    with pytest.raises(OutputExistsError, match="which is a folder"):
        Report(tmp_path, network(), overwrite=True)
    target.unlink()
    report = Report(target, network())
    report.add(images(1), ["a"])
    target.write_text("made in the meantime")
    with pytest.raises(OutputExistsError):
        report.finish()
    assert target.read_text() == "made in the meantime"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("package", "name"), [("jinja2", "Jinja2"), ("skimage.filters", "scikit-image")])
def test_without_an_extra_the_install_line_is_printed(tmp_path, package, name):
    code = f"import sys; sys.modules[{package!r}] = None\nfrom guided_backprop.commands.main import main; main()"
    result = process("report", "any.png", "--output", str(tmp_path / "report.html"), code=code)
    assert result.returncode == 1
    assert result.stderr == (
        f"Error: a report needs {name}; received an environment without it. "
        "Run: pip install 'guided-backprop[report]'.\n"
    )


# The command


@pytest.mark.usefixtures("photos")
def test_the_command_writes_a_page_that_says_how_to_make_it_again():
    options = ("--labels", "0,1,2", "--method", "saliency,deconvnet")
    result = run("photos", "--output", "report.html", *MODEL, *options, "--batch-size", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith("3 of 3 images reported in report.html (0.")
    page = Path("report.html").read_text("utf-8")
    assert page.count("The model saw all of it, as ") == 3
    text = page.split("<code>")[1].split("</code>")[0]
    assert text == f"guided-backprop report --output report.html --model nets:make {' '.join(options)} -- photos"
    assert page.count('class="tile"') == 2 * 3
    Path("report.html").unlink()
    assert run("--batch-size", "2", *shlex.split(text)[2:]).exit_code == 0
    assert Path("report.html").read_text("utf-8") == page


@pytest.mark.usefixtures("photos")
def test_the_checks_are_on_the_page():
    result = run("photos", "broken.png", "--output", "report.html", *MODEL, "--labels", "1", "--check")
    assert result.exit_code == 1
    assert "broken.png" in result.stderr
    page = Path("report.html").read_text("utf-8")
    assert "--check -- photos broken.png</code>" in page
    vision = load("nets:make")
    (batch,) = vision.batches(sorted(Path("photos").iterdir()), 50)
    check = sanity_check(GuidedBackprop(vision.network), batch.images, 1)
    found = randomised(check)
    assert found.sentence == check.sentence
    assert found.sentence in html.unescape(page)
    columns = "GuidedBackprop, layers randomised", "rank correlation of magnitudes"
    table = {row[columns[0]]: row[columns[1]] for row in found.rows}
    assert list(table) == [*(f"{name}, and all above" for name in check.names), "edges in the image", "random maps"]
    last = check.row("cascading", check.names[-1])
    assert table[f"{check.names[-1]}, and all above"] == f"{last.mean:.2f}".replace("-", "\N{MINUS SIGN}")
    # A planted fault: another class has another sentence.
    assert sanity_check(GuidedBackprop(vision.network), batch.images, 0).sentence not in html.unescape(page)
    with Image.open(io.BytesIO(found.picture)) as figure:
        assert figure.format == "PNG"
        assert len(figure.getcolors(1 << 24)) > 50


@pytest.mark.usefixtures("photos")
def test_photos_that_cannot_be_read_are_reported():
    result = run("photos/a.png", "broken.png", "photos/b.png", "--output", "report.html", *MODEL, "--labels", "0,1,2")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: image must be a readable image file; received path='broken.png'")
    assert "2 of 3 images reported" in result.stdout
    page = Path("report.html").read_text("utf-8")
    assert "photos/a.png: class 0; photos/b.png: class 2" in page


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("broken.png",), 1, "at least one image must be readable; received 1 that are not"),
        (("photos", "--labels", "0,1,9", "--batch-size", "1"), 2, "received labels[2]=9"),
        (("photos", "--model", "nets:without_relu"), 1, "needs at least one ReLU between score and image"),
        (("photos", "--layer", "nowhere"), 2, "nowhere"),
        (("photos", "--method", "saliency, grad-cam"), 2, "'grad-cam' must have a layer"),
        (("photos", "--output", "nets.py"), 1, "path must not exist yet; received path='nets.py'"),
    ],
)
def test_if_something_is_wrong_nothing_is_written(photos, arguments, status, message):  # noqa: F811
    before = {path.name for path in photos.iterdir()}
    result = run("--output", "report.html", *MODEL, *arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert {path.name for path in photos.iterdir()} - {"__pycache__"} == before


def test_the_command_says_what_it_takes():
    text = CliRunner().invoke(command(), ["report", "--help"]).output
    for option in ("--output", "--model", "--labels", "--layer", "--batch-size", "--overwrite"):
        assert option in text


# The page in a browser


@pytest.fixture(scope="module")
def report_of_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two photos by the default model, with Grad-CAM."""
    folder = tmp_path_factory.mktemp("report")
    names = [str(Path(skimage.data_dir) / name) for name in ("chelsea.png", "coffee.png")]
    result = run(*names, "--output", str(folder / "report.html"), "--layer", "_bn1")
    assert result.exit_code == 0, result.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which each name is HTML, and each is long."""
    picture = io.BytesIO()
    Image.new("RGB", (900, 60), "teal").save(picture, "PNG")
    rows = [{"cascade": EVIL_CLASS, "x" * 40: 1.5, "y" * 40: 2.5}]
    trust = [Trust(EVIL, EVIL_CLASS, rows, picture.getvalue()), Trust("Without a table", "Nothing.")]
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    report = Report(path, network(), name=EVIL_CLASS, class_names=[EVIL_CLASS, "n" * 200, "c", "d"])
    report.add(images(3), [EVIL, "w" * 300 + ".jpg", "a folder/\udcff\x1b.png"], [0, 1, 2])
    return report.finish(trust=trust, command=f"guided-backprop report '{EVIL}'")


class Visit:
    """One look at a page, which notes what should not be: requests, errors, dialogs."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, **options: Any) -> None:
        self._context = browser.new_context(viewport={"width": width, "height": 1100}, **options)
        self.page: Page = self._context.new_page()
        self.noted: list[str] = []
        self.page.on("console", lambda message: self.noted.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.noted.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.noted.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self._note(request.url, path))
        self.page.goto(path.as_uri())

    def _note(self, url: str, path: Path) -> None:
        if not url.startswith("data:") and url != path.as_uri():
            self.noted.append(f"request: {url}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def stage(self) -> np.ndarray:
        """Return the first picture's pixels, as the screen has them."""
        png = self.page.locator(".stage").first.screenshot()
        with Image.open(io.BytesIO(png)) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def value(self) -> int:
        return int(self.page.locator("input[type=range]").first.input_value())


def parts(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture's parts left and right of where the slider begins, without the line itself."""
    width = pixels.shape[1]
    return pixels[:, : int(0.45 * width)], pixels[:, int(0.55 * width) : int(0.85 * width)]


def test_a_mouse_drags_the_slider(browser, report_of_photos):
    with Visit(browser, report_of_photos) as visit:
        mouse, before = visit.page.mouse, visit.stage()
        assert visit.value() == 50
        assert_array_equal(visit.stage(), before)  # what is compared below does not change by itself
        box = visit.page.locator("input[type=range]").first.bounding_box()
        mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        mouse.down()
        mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2, steps=5)
        mouse.move(box["x"] + 0.97 * box["width"], box["y"] + box["height"] / 2, steps=5)
        mouse.up()
        after = visit.stage()
        assert visit.value() > 90
        assert_array_equal(parts(after)[0], parts(before)[0])  # the map was there already
        assert np.abs(parts(after)[1] - parts(before)[1]).mean() > 20  # here was the photo, and is the map
        # The photo is warm and bright, the map is grey.
        assert np.ptp(parts(before)[1].mean(axis=(0, 1))) > 30
        assert np.ptp(parts(after)[1].mean(axis=(0, 1))) < 10
        # On the picture itself, back to the photo.
        box = visit.page.locator(".stage").first.bounding_box()
        mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 50)
        mouse.down()
        mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 60, steps=5)
        mouse.up()
        assert visit.value() < 5
        assert np.abs(parts(visit.stage())[0] - parts(before)[0]).mean() > 20
        mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 50)
        assert visit.value() < 5  # let go
        assert visit.noted == []


def test_keys_move_the_slider_and_choose_the_map(browser, report_of_photos):
    with Visit(browser, report_of_photos) as visit:
        page, before = visit.page, visit.stage()
        page.locator("input[type=range]").first.focus()
        page.keyboard.press("ArrowRight")
        assert visit.value() == 51
        page.keyboard.press("End")
        assert visit.value() == 100
        assert page.locator("input[type=range]").first.get_attribute("aria-valuetext") == "100 % map"
        assert np.abs(parts(visit.stage())[1] - parts(before)[1]).mean() > 20
        over, guided = page.locator(".over").first, visit.stage()
        assert over.get_attribute("alt") == "GuidedBackprop of chelsea.png for 282 tiger cat: colour: signed, grey is 0"
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowLeft")
        assert over.get_attribute("alt").startswith("DeconvNet of chelsea.png")
        assert np.abs(visit.stage() - guided).mean() > 10
        page.locator("label.tile").first.click()
        assert over.get_attribute("alt").startswith("Saliency of chelsea.png")
        # The second image has its own.
        assert page.locator(".over").nth(1).get_attribute("alt").startswith("GuidedBackprop of coffee.png")
        assert visit.noted == []


def test_a_finger_moves_the_slider(browser, report_of_photos):
    with Visit(browser, report_of_photos, 390, has_touch=True, is_mobile=True) as visit:
        box = visit.page.locator(".stage").first.bounding_box()
        visit.page.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 40)
        assert 78 <= visit.value() <= 82
        assert visit.noted == []


OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.width && box.right > innerWidth + 0.5 && !each.closest(".scroll table");
}).map((each) => each.outerHTML.slice(0, 80))"""
FAINT = """() => {
    const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, row) => sum + part * [0.2126, 0.7152, 0.0722][row], 0);
    const behind = (each) => {
        for (; each; each = each.parentElement) {
            const colour = parse(getComputedStyle(each).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
    };
    const faint = [];
    for (const each of document.querySelectorAll("body *")) {
        const has_text = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!has_text || !each.getClientRects().length) continue;
        const pair = [light(parse(getComputedStyle(each).color)), light(behind(each))].sort((a, b) => b - a);
        if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) faint.push(each.outerHTML.slice(0, 80));
    }
    return faint;
}"""
NAMELESS = """() => [
    ...[...document.querySelectorAll("img")].filter((each) => !each.alt),
    ...[...document.querySelectorAll("input, select")].filter((each) => !each.labels.length && !each.ariaLabel),
    ...[...document.querySelectorAll("th")].filter((each) => !each.scope),
].map((each) => each.outerHTML.slice(0, 80))"""


# Each page in each width and in each scheme, once.
@pytest.mark.parametrize(
    ("which", "width", "scheme"),
    [
        ("report_of_photos", 390, "dark"),
        ("report_of_photos", 1280, "light"),
        ("hostile_report", 390, "light"),
        ("hostile_report", 1280, "dark"),
    ],
)
def test_the_page_fits_and_can_be_read(browser, request, which, width, scheme):
    path = request.getfixturevalue(which)
    with Visit(browser, path, width, color_scheme=scheme) as visit:
        SCREENS.mkdir(parents=True, exist_ok=True)
        visit.page.screenshot(path=SCREENS / f"{which}-{width}-{scheme}.png", full_page=True)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate(OVERFLOWING) == []
        assert visit.page.evaluate(FAINT) == []
        assert visit.page.evaluate(NAMELESS) == []
        page_colour = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, page_colour[4:-1].split(","))) > 384) == (scheme == "light")
        assert visit.noted == []
        # These looks can fail.
        visit.page.evaluate("""() => {
            document.querySelector("h1").innerHTML = "<span>faint</span><img>";
            document.querySelector("h1 span").style.color = getComputedStyle(document.body).backgroundColor;
            document.querySelector("h1").style.width = "2000px";
        }""")
        assert visit.page.evaluate(OVERFLOWING) != []
        assert visit.page.evaluate(FAINT) != []
        assert visit.page.evaluate(NAMELESS) == ["<img>"]


def test_images_are_sorted_and_filtered(browser, hostile_report):
    """By hand: the scores and the classes that the page itself says of its three images."""
    with Visit(browser, hostile_report) as visit:
        page = visit.page
        items = {kind: page.locator(kind) for kind in ("main article", "nav li")}
        scores = [float(each.get_attribute("data-score")) for each in items["main article"].all()]
        labels = [each.get_attribute("data-label") for each in items["main article"].all()]
        assert [label[0] for label in labels] == list("012")
        by_score = sorted(range(3), key=lambda row: scores[row])
        for order, rows in (
            ("highest", by_score[::-1]),
            ("lowest", by_score),
            ("label", [0, 1, 2]),
            ("number", [0, 1, 2]),
        ):
            page.get_by_label("Sort by").select_option(order)
            for kind, found in items.items():
                assert [int(each.get_attribute("data-number")) - 1 for each in found.all()] == rows, (order, kind)
        # A class whose name is HTML is chosen by that name.
        page.get_by_label("Class", exact=True).select_option(labels[0])
        assert page.locator("main article:visible h2").all_inner_texts() == [EVIL]
        assert page.get_by_role("status").inner_text() == "1 of 3 images"
        page.get_by_label("Class", exact=True).select_option("")
        page.get_by_label("Score from").fill(f"{scores[by_score[1]]}")
        page.get_by_label("Score to").fill("1e9")
        assert page.locator("main article:visible").count() == page.locator("nav li:visible").count() == 2
        page.get_by_label("Score to").fill("-1e9")
        assert page.get_by_role("status").inner_text() == "0 of 3 images"
        assert visit.noted == []


def test_methods_are_chosen_for_all_images(browser, hostile_report):
    with Visit(browser, hostile_report) as visit:
        page, over = visit.page, visit.page.locator(".over")
        deconvnet = page.locator("[data-map] option[data-method=DeconvNet]").get_attribute("value")
        page.get_by_label("Map over the photos").select_option(deconvnet)
        assert all(each.get_attribute("alt").startswith("DeconvNet of ") for each in over.all())
        page.get_by_label("DeconvNet", exact=True).press("Space")
        # Another one takes its place; where it is not shown it cannot be chosen.
        assert all(each.get_attribute("alt").startswith("Saliency of ") for each in over.all())
        assert page.locator(".tile:visible").count() == 3 * 3
        page.get_by_label("Saliency", exact=True).uncheck()
        assert page.get_by_label("GuidedBackprop", exact=True).is_disabled()  # the last one stays
        assert all(each.get_attribute("alt").startswith("GuidedBackprop of ") for each in over.all())
        assert visit.noted == []


# Of fields and boxes one sees where they are: 3 to 1 (WCAG 2.1, 1.4.11).
EDGES = FAINT.replace("< 4.5", "< 3").replace("getComputedStyle(each).color)", "getComputedStyle(each).borderTopColor)")
EDGES = EDGES.replace('"body *"', '".fields select, .fields input"').replace("!has_text || ", "")


def test_all_is_reached_with_the_keyboard_and_seen(browser, hostile_report):
    with Visit(browser, hostile_report) as visit:
        page = visit.page
        assert page.evaluate(EDGES) == []
        reached = []
        for _ in range(60):
            page.keyboard.press("Tab")
            look = page.evaluate("""() => {
                const each = document.activeElement;
                const rings = [each, each.closest(".tile")].filter(Boolean).map((part) => getComputedStyle(part));
                const is_seen = (ring) => ring.outlineStyle !== "none" && parseFloat(ring.outlineWidth) >= 2;
                return each === document.body ? null : [each.outerHTML.slice(0, 300), rings.some(is_seen)];
            }""")
            if look is None:
                break
            reached.append(look)
        # Of radio buttons one is reached, and the others from it by arrows.
        count = page.locator("a, summary, select, input:not([type=radio]), [tabindex='0'], article").count()
        assert len({html for html, _ in reached}) == len(reached) == count
        assert [html for html, is_seen in reached if not is_seen] == []
        # The look at the edges can fail; the page's own rule forbids a style that is not its own.
        page.evaluate("""() => {
            const field = document.querySelector(".fields select");
            field.style.borderTopColor = getComputedStyle(document.querySelector(".card")).backgroundColor;
        }""")
        assert len(page.evaluate(EDGES)) == 1


def test_headings_are_in_order_and_ids_are_unique(browser, report_of_photos):
    with Visit(browser, report_of_photos) as visit:
        levels = visit.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((each) => +each.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert max(np.diff(levels)) <= 1
        ids = visit.page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
        assert len(ids) == len({*ids})
        links = visit.page.evaluate("[...document.querySelectorAll('a')].map((each) => each.getAttribute('href'))")
        assert {link.removeprefix("#") for link in links} <= {*ids}
        assert visit.page.evaluate("document.documentElement.lang") == "en"


def test_what_the_page_says_of_real_photos(browser, report_of_photos):
    with Visit(browser, report_of_photos) as visit:
        text = " ".join(visit.page.inner_text("body").split())
    assert "The guided maps of 967 espresso, 968 cup, 925 consomme and 747 punching bag are nearly one picture" in text
    assert "In 6 of 6 comparisons with another class" in text
    assert "967 espresso 95.1 %" in text
    assert "relu6 33 guided" in text
    assert f"guided-backprop {guided_backprop.__version__}" in text
    assert f"torch {torch.__version__}" in text
    said = re.search(r"one file of about (\d+) kB", text)
    assert report_of_photos.stat().st_size < 2 * 400_000
    assert_allclose(1000 * int(said[1]), report_of_photos.stat().st_size, rtol=0.1)


def test_names_are_text(browser, hostile_report):
    with Visit(browser, hostile_report) as visit:
        page = visit.page
        headings = page.evaluate("[...document.querySelectorAll('h2')].map((each) => each.textContent)")
        assert headings[:3] == [EVIL, "w" * 300 + ".jpg", "?\x1b.png"]
        assert EVIL in page.evaluate("[...document.querySelectorAll('h3')].map((each) => each.textContent)")
        assert page.inner_text(".lead b") == EVIL_CLASS
        assert page.inner_text("code") == f"guided-backprop report '{EVIL}'"
        assert page.evaluate("document.querySelectorAll('script').length") == 1
        assert page.evaluate("[...document.images].every((each) => each.src.startsWith('data:'))")
        assert page.evaluate("document.querySelector('.figure').naturalWidth") == 900
        assert page.get_by_text(EVIL_CLASS).count() > 5
        assert visit.noted == []


def test_the_page_itself_forbids_scripts_and_requests(browser, hostile_report):
    """Even if a name were taken for HTML, it could neither run nor call anybody."""
    asked: list[str] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>A page without a rule</title><p>")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    attack = f"""() => {{
        const script = document.createElement("script");
        script.textContent = "window.hacked = true";
        document.body.append(script);
        const picture = "<img src='http://127.0.0.1:{server.server_port}/x.png' onerror='window.hacked = true'>";
        document.body.insertAdjacentHTML("beforeend", picture);
    }}"""
    try:
        with Visit(browser, hostile_report) as visit:
            visit.page.evaluate(attack)
            visit.page.wait_for_timeout(300)
            assert visit.page.evaluate("window.hacked") is None
            assert asked == []
            # A page without such a rule lets both happen.
            visit.page.goto(f"http://127.0.0.1:{server.server_port}/free")
            with visit.page.expect_response("**/x.png"):
                visit.page.evaluate(attack)
            assert visit.page.evaluate("window.hacked") is True
            assert "/x.png" in asked
    finally:
        server.shutdown()
        server.server_close()


def test_without_scripts_all_maps_are_there(browser, report_of_photos):
    with Visit(browser, report_of_photos, java_script_enabled=False) as visit:
        assert visit.page.locator("label.tile img:visible").count() == 12
        assert visit.page.locator("input[type=range]:visible").count() == 0
        assert visit.page.locator(".over:visible").count() == 0
        assert visit.noted == []


def test_small_pictures_keep_their_pixels(browser, hostile_report):
    with Visit(browser, hostile_report) as visit:
        rendering = "getComputedStyle(document.querySelector('.photo')).imageRendering"
        assert visit.page.evaluate(rendering) == "pixelated"
        colours = np.unique(visit.stage()[:, 300:].reshape(-1, 3), axis=0)
        assert len(colours) <= 12 * 12


def test_importing_the_report_imports_nothing_else():
    code = (
        "import sys, guided_backprop.report\n"
        "print({'torch', 'jinja2', 'skimage', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    assert process(code=code).stdout == "set()\n"
