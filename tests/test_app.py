"""The page of ``guided-backprop app``: what it computes, and the page itself, in a real browser with a real upload.

What it computes is compared with the library's own maps. Screenshots are left in out/app.
"""

import contextlib
import gc
import http.client
import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import guided_backprop
from guided_backprop import GuidedBackprop, GuidedGradCAM, ImageError, LabelError, OptionError, Saliency
from guided_backprop.commands.local_page import METHODS, Question, answer, examples, look
from guided_backprop.models import VisionModel, read_image
from guided_backprop.render import colour_picture, diverging, magnitude, overlay, picture
from guided_backprop.trust.likeness import cosine
from test_cli import process, run
from test_report import FLAGS

SCREENS = Path(__file__).parents[1] / "out" / "app"
NETWORKS = """
import numpy as np
import torch
from torch import nn
from guided_backprop.models import VisionModel


def pixels(image):
    return np.asarray(image.resize((16, 16)), np.float32).transpose(2, 0, 1) / 255


def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(6, 7)).eval()
    return VisionModel("small", network, pixels, [f"<b>beast {id_}</b>" for id_ in range(7)])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("app")
    (made / "small_nets.py").write_text(NETWORKS)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(made / "photo.png")
    (made / "broken.png").write_bytes((made / "photo.png").read_bytes()[:200])
    return made


@pytest.fixture(scope="module")
def vision(folder: Path) -> VisionModel:
    namespace: dict[str, object] = {}
    exec(NETWORKS, namespace)
    return namespace["make"]()


def batch(vision: VisionModel, path: Path) -> torch.Tensor:
    return torch.from_numpy(vision.preprocess(read_image(path)))[None]


def last(values: torch.Tensor) -> np.ndarray:
    return values[0].permute(1, 2, 0).numpy()


def test_what_the_network_says(vision, folder):
    shares = torch.softmax(vision.network(batch(vision, folder / "photo.png")).detach()[0].double(), 0).numpy()
    seen = look(vision, folder / "photo.png")
    order = np.argsort(-shares)[:5]
    assert list(seen.best) == [f"{id_} <b>beast {id_}</b>" for id_ in order]
    assert_allclose(list(seen.best.values()), shares[order], rtol=1e-6)
    assert [id_ for _, id_ in seen.classes] == [*order, *sorted({*range(7)} - {*order})]
    no_classes = VisionModel("", torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU()), vision.preprocess)
    no_classes.network.eval()
    assert look(no_classes, folder / "photo.png").classes == []
    assert len(answer(no_classes, folder / "photo.png", Question()).pictures) == 3


@pytest.mark.parametrize("view", ["colour", "diverging", "magnitude", "overlay"])
def test_a_class_is_drawn_by_each_method(vision, folder, view):
    path = folder / "photo.png"
    found = answer(vision, path, Question(3, layer="3", methods=METHODS, view=view))
    assert [caption for _, caption in found.pictures] == ["network's input", *METHODS]
    images = batch(vision, path)
    assert_array_equal(found.pictures[0][0], picture(last(images)))
    for name, shown in zip(METHODS, found.pictures[1:], strict=True):
        method = GuidedGradCAM(vision.network, "3") if name == "GuidedGradCAM" else None
        method = method or getattr(guided_backprop, name)(vision.network)
        attribution = last(method.explain(images, 3).attribution)
        expected = {
            "colour": lambda a: colour_picture(a),
            "diverging": lambda a: diverging(a),
            "magnitude": lambda a: magnitude(a),
            "overlay": lambda a: overlay(last(images), a),
        }[view]
        assert_allclose(shown[0], expected(attribution), rtol=0, atol=1)
        with pytest.raises(AssertionError):
            assert_allclose(shown[0], expected(attribution[::-1]), rtol=0, atol=1)


def test_what_is_said_of_a_class(vision, folder):
    images = batch(vision, folder / "photo.png")
    scores = vision.network(images).detach()[0].numpy()
    label, rival = (int(id_) for id_ in np.argsort(-scores)[:2])
    lines = answer(vision, folder / "photo.png", Question(label, methods=("GuidedBackprop",))).text.splitlines()
    assert lines[0].startswith(f"Class {label} <b>beast {label}</b>: score ")
    assert lines[1] == "GuidedBackprop: relu x2 guided"
    one, other = (last(GuidedBackprop(vision.network).explain(images, id_).attribution) for id_ in (label, rival))
    assert f"of {rival} <b>beast {rival}</b>, the next class" in lines[2]
    said = float(re.search(r"similarity of (\S+):", lines[2])[1].replace("\N{MINUS SIGN}", "-"))
    assert_allclose(said, cosine(one, other), rtol=0, atol=5.1e-5)
    assert "cosine" not in answer(vision, folder / "photo.png", Question(label, methods=("Saliency",))).text


def test_a_neuron_is_explained_where_it_is_strongest(vision, folder):
    images = batch(vision, folder / "photo.png")
    found = answer(vision, folder / "photo.png", Question(0, "2", 5, ("Saliency", "GuidedBackprop")))
    strongest = vision.network[:3](images).detach()[0, 5].max().item()
    assert found.text.splitlines()[0].endswith(f"it is strongest: {strongest:.4g}".replace("-", "\N{MINUS SIGN}"))
    expected = Saliency(vision.network, output_layer="2").explain(images, (5, "max"))
    assert_array_equal(found.pictures[1][0], colour_picture(last(expected.attribution)))
    assert "next class" not in found.text


def test_what_cannot_be_explained_is_refused(vision, folder):
    path = folder / "photo.png"
    for question, kind, message in [
        (Question(methods=()), OptionError, "Tick one"),
        (Question(channel=1), OptionError, "Choose a layer"),
        (Question(1, methods=("GuidedGradCAM",)), OptionError, "Choose the last layer"),
        (Question(1, "2", 1, ("GuidedGradCAM",)), OptionError, "Take it away"),
        (Question(1, "2", 99), LabelError, "99"),
        (Question(99), LabelError, "99"),
    ]:
        with pytest.raises(kind, match=message):
            answer(vision, path, question)
    with pytest.raises(ImageError, match="broken.png"):
        look(vision, folder / "broken.png")


# The page


def refused(folder: Path, port: str) -> str:
    """Return what the command says, in this process, of a port that is taken."""
    with contextlib.chdir(folder), warnings.catch_warnings():
        # Gradio leaves it to the garbage collector to close the socket that it tried.
        warnings.simplefilter("ignore", ResourceWarning)
        result = run("--model", "small_nets:make", "--port", port, command_name="app")
        status, said = result.exit_code, result.stderr
        del result
        gc.collect()
    assert status == 2
    assert f"received port={port}" in said
    return said


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "guided_backprop", "app", "--model", "small_nets:make", "--port", port]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            line = running.stdout.readline()
            assert line == f"small at http://127.0.0.1:{port}/ (Ctrl+C ends it)\n", line + running.stdout.read()
            # Bound to loopback alone: the machine's other addresses do not answer.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", int(port)), timeout=5)
            assert refused(folder, port).endswith("which is not. Pass another one with --port.\n")
            yield f"http://127.0.0.1:{port}/"
        finally:
            running.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "The tests need Chromium. Run: make browser."
    # A machine that does much else may take long.
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1200, "height": 1100})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def shown(tab: Page, name: str) -> np.ndarray:
    """Return the pixels of the picture that the page shows under a name."""
    source = tab.locator(f".maps img[alt='{name}']").first.get_attribute("src")
    data = tab.request.get(source).body()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def choose(tab: Page, field: str, text: str) -> None:
    tab.get_by_label(field, exact=False).first.click()
    tab.get_by_role("option", name=text, exact=True).click()


def test_a_photo_is_uploaded_and_explained(tab, address, folder, vision):
    hosts = set()
    tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    tab.goto(address)
    with tab.expect_file_chooser() as chooser:
        tab.get_by_text("Click to Upload").first.click()
    chooser.value.set_files(folder / "photo.png")
    seen = look(vision, folder / "photo.png")
    for name in seen.best:
        expect(tab.get_by_text(name).first).to_be_visible()
    label = seen.classes[0][1]
    tab.get_by_role("button", name="Explain", exact=True).click()
    expect(tab.locator(".maps img")).to_have_count(4)
    images = batch(vision, folder / "photo.png")
    expected = colour_picture(last(GuidedBackprop(vision.network).explain(images, label).attribution))
    assert_array_equal(shown(tab, "GuidedBackprop"), expected)
    with pytest.raises(AssertionError):
        assert_array_equal(shown(tab, "Saliency"), expected)
    said = tab.get_by_label("What was done")
    expect(said).to_have_value(re.compile("GuidedBackprop: relu x2 guided\n.*the next class, have a cosine"))
    SCREENS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENS / "desktop.png", full_page=True)

    # A neuron
    tab.get_by_label("neuron", exact=True).check()
    choose(tab, "Layer", "2")
    tab.get_by_label("Channel").fill("5")
    tab.get_by_role("button", name="Explain", exact=True).click()
    expect(said).to_have_value(re.compile("^Channel 5 of 2, where"))
    neuron = GuidedBackprop(vision.network, output_layer="2").explain(images, (5, "max"))
    assert_array_equal(shown(tab, "GuidedBackprop"), colour_picture(last(neuron.attribution)))
    tab.set_viewport_size({"width": 390, "height": 844})
    time.sleep(0.5)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.screenshot(path=SCREENS / "phone.png", full_page=True)
    assert hosts == {"127.0.0.1"}


def test_a_damaged_photo_is_refused_in_a_sentence(tab, address, folder):
    tab.goto(address)
    said, upload = tab.get_by_label("What was done"), tab.locator("input[type=file]").first
    upload.set_input_files(folder / "photo.png")
    expect(tab.get_by_text("beast").first).to_be_visible()
    tab.get_by_role("button", name="Explain", exact=True).click()
    expect(tab.locator(".maps img")).to_have_count(4)
    tab.get_by_label("Clear").first.click()
    # Nothing of a photo that is gone stays.
    expect(tab.locator(".maps img")).to_have_count(0)
    upload.set_input_files(folder / "broken.png")
    refused = re.compile(r"^image must be a readable image file; received path='broken.png'")
    expect(said).to_have_value(refused)
    tab.get_by_role("button", name="Explain", exact=True).click()
    expect(said).to_have_value(refused)
    tab.screenshot(path=SCREENS / "damaged.png")
    assert tab.get_by_text("Traceback").count() == tab.get_by_text("beast").count() == 0


def test_an_upload_that_is_too_large_is_refused(tab, address, folder):
    (folder / "large.png").write_bytes(bytes(21 * 2**20))
    tab.goto(address)
    tab.locator("input[type=file]").first.set_input_files(folder / "large.png")
    expect(tab.get_by_text("exceed the maximum allowed size of 20").first).to_be_visible()
    assert tab.get_by_label("What was done").input_value() == ""


def test_other_names_of_this_computer_are_refused(address):
    for host, status in (("evil.example", 400), ("127.0.0.1", 200)):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=10)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_without_gradio_the_error_says_what_to_install():
    code = "import sys; sys.modules['gradio'] = None; from guided_backprop.commands.main import main; main()"
    result = process("app", code=code)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip().endswith("without gradio. Run: pip install 'guided-backprop[app]'.")


def test_the_examples_are_photos():
    assert [path.name for path in examples()][:2] == ["chelsea.png", "coffee.png"]
    assert all(read_image(path).mode == "RGB" for path in examples())
