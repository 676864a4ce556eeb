"""The page of ``guided-backprop app``: what it computes, and the page itself, in a real browser with a real upload.

What it computes is compared with the library's own maps. Screenshots are left in out/app.
"""

import contextlib
import gc
import http.client
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import guided_backprop
from guided_backprop import (
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    ImageError,
    LabelError,
    OptionError,
    Saliency,
    SmoothGrad,
)
from guided_backprop.commands.gate import HEADERS, LARGEST_REQUEST, Store
from guided_backprop.commands.layers import last_with_positions
from guided_backprop.commands.local_page import METHODS, Question, answer, examples, field_of, look, neurons
from guided_backprop.models import ResizeCrop, VisionModel, read_image
from guided_backprop.render import colour_picture, diverging, magnitude, overlay, picture
from guided_backprop.show.colours import as_bytes, dimmed
from guided_backprop.trust.likeness import cosine
from test_cli import process, run

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
    # As large as the network's input: so the whole photo is what it saw.
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    pixels[0, :2] = [[0] * 3, [255] * 3]
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
    assert [caption for _, caption in found.pictures] == ["photo", *METHODS]
    images = batch(vision, path)
    assert_array_equal(found.pictures[0][0], picture(last(images)))
    cam = GradCAM(vision.network, "3").explain(images, 3).attribution[0].numpy()
    shown_cam = dict(zip(METHODS, found.pictures[1:], strict=True))["GradCAM"][0]
    assert_allclose(shown_cam, overlay(last(images), cam), rtol=0, atol=1)
    with pytest.raises(AssertionError):
        assert_allclose(shown_cam, overlay(last(images), cam[::-1]), rtol=0, atol=1)
    for name, shown in zip(METHODS, found.pictures[1:], strict=True):
        if name == "GradCAM":
            continue
        of_name = {
            "GuidedGradCAM": lambda model: GuidedGradCAM(model, "3"),
            "SmoothGrad": lambda m: SmoothGrad(Saliency(m)),
        }
        method = of_name.get(name, getattr(guided_backprop, name))(vision.network)
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


def test_maps_lie_on_the_whole_photo(vision, tmp_path):
    """Of a photo of 64 x 16 the network saw the middle; around it the photo is dimmed, beyond a line of one pixel."""
    cut, path = VisionModel("cut", vision.network, ResizeCrop((16, 16))), tmp_path / "wide.png"
    photo = np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8)
    photo[0, 24:26] = [[0] * 3, [255] * 3]
    Image.fromarray(photo).save(path)
    found = answer(cut, path, Question(1, methods=("GuidedBackprop",), view="overlay"))
    assert_array_equal(found.pictures[0][0], photo)
    attribution = last(GuidedBackprop(vision.network).explain(cut.images([read_image(path)]), 1).attribution)
    shown = found.pictures[1][0].astype(int)
    assert_allclose(shown[:, 24:40], overlay(photo[:, 24:40], attribution), rtol=0, atol=1)
    assert_array_equal(shown[:, :23], as_bytes(dimmed(photo))[:, :23])
    with pytest.raises(AssertionError):
        assert_allclose(shown[:, 23:39], overlay(photo[:, 24:40], attribution), rtol=0, atol=1)
    said = "Warning: the network saw 25% of the photo: the rest of it is not explained"
    assert found.text.splitlines()[1] == said
    neuron = neurons(cut, path, "2", 1)[0]
    assert_array_equal(neuron.picture[:, 41:], as_bytes(dimmed(photo))[:, 41:])
    # What does not look at one upright box of the photo has no place on it.
    turned = VisionModel("turned", vision.network, lambda image: vision.preprocess(image.transpose(0)))
    assert answer(turned, path, Question(1, methods=("Saliency",))).pictures[0][1] == "network's input"


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
    for question, kind, message, field in [
        (Question(methods=()), OptionError, "Tick one", "methods"),
        (Question(channel=1), OptionError, "Choose a layer", "layer"),
        (Question(1, methods=("GuidedGradCAM",)), OptionError, "Choose the last layer", "layer"),
        (Question(1, "6", methods=("GradCAM",)), OptionError, "layer", "layer"),
        (Question(1, "2", 1, ("GuidedGradCAM",)), OptionError, "Take its tick away", "methods"),
        (Question(1, "2", 99), LabelError, "99", "channel"),
        (Question(99), LabelError, "99", "label"),
    ]:
        with pytest.raises(kind, match=message) as refused:
            answer(vision, path, question)
        assert field_of(refused.value, question) == field
    with pytest.raises(ImageError, match="broken.png") as refused:
        look(vision, folder / "broken.png")
    assert field_of(refused.value, Question()) == "photo"


def test_the_last_layer_with_places_is_suggested(vision, folder):
    images = batch(vision, folder / "photo.png")
    assert last_with_positions(vision.network, images) == look(vision, folder / "photo.png").layer == "3"
    # What is added to a block's last layer counts: the block.
    block, head = torch.nn.Sequential(*vision.network[:4]), torch.nn.Sequential(*vision.network[4:])
    nested = torch.nn.Sequential(torch.nn.Sequential(block), head)
    assert last_with_positions(nested, images) == "0"
    assert last_with_positions(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)), images) is None


def test_neurons_are_shown_where_they_are_active(vision, folder):
    images = batch(vision, folder / "photo.png")
    outputs = vision.network[:3](images).detach()[0].numpy()
    found = neurons(vision, folder / "photo.png", "2", 4)
    expected = np.argsort(-outputs.max(axis=(1, 2)))[:4]
    assert [each.channel for each in found] == expected.tolist()
    assert_allclose([each.strongest for each in found], outputs.max(axis=(1, 2))[expected], rtol=1e-6)
    active = np.maximum(outputs[expected[0]], 0)
    resized = np.asarray(Image.fromarray(active).resize((16, 16), Image.Resampling.BILINEAR))
    assert_array_equal(found[0].picture, overlay(last(images), resized))
    with pytest.raises(AssertionError):
        assert_array_equal(found[1].picture, overlay(last(images), resized))


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
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page keeps what is uploaded, in one of its own."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def address(folder: Path, store: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "guided_backprop", "app", "--model", "small_nets:make", "--port", port]
    environment = os.environ | {"TMPDIR": str(store)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
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
            running.wait(60)
    # Whoever ends it: nothing stays.
    assert stored(store) == len([*store.glob("guided-backprop-*")]) == 0


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
    photo = tab.locator(".image-frame img")
    expect(photo).to_be_visible()
    data = io.BytesIO(tab.request.get(photo.get_attribute("src")).body())
    assert_array_equal(np.asarray(Image.open(data).convert("RGB")), np.asarray(read_image(folder / "photo.png")))
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
    expect(said).to_have_value(re.compile("GuidedBackprop: relu x2 guided\n(.*\n)*.*the next class, have a cosine"))
    SCREENS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENS / "desktop.png", full_page=True)

    # Grad-CAM, of the layer that was suggested
    cam = GradCAM(vision.network, "3").explain(images, label).attribution[0].numpy()
    assert_allclose(shown(tab, "GradCAM").astype(int), overlay(last(images), cam), rtol=0, atol=1)

    # A neuron, chosen from the gallery
    tab.get_by_label("neuron", exact=True).check()
    expect(tab.locator(".neurons img")).to_have_count(6)
    choose(tab, "Layer", "2")
    expect(tab.get_by_label("GradCAM", exact=True)).to_have_count(0)
    wanted = next(each for each in neurons(vision, folder / "photo.png", "2") if each.channel == 5)
    tab.locator(".neurons").get_by_text(f"5: {wanted.strongest:.3g}").click()
    expect(said).to_have_value(re.compile("^Channel 5 of 2, where"))
    neuron = GuidedBackprop(vision.network, output_layer="2").explain(images, (5, "max"))
    assert_array_equal(shown(tab, "GuidedBackprop"), colour_picture(last(neuron.attribution)))
    # What is refused is said below its field.
    tab.get_by_label("Channel").fill("77")
    tab.get_by_role("button", name="Explain", exact=True).click()
    refusal = tab.get_by_role("alert")
    expect(refusal).to_contain_text("77")
    field, below = tab.get_by_label("Channel").bounding_box(), refusal.bounding_box()
    assert 0 < below["y"] - field["y"] - field["height"] < 60
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
    refused, refusal = re.compile(r"^image must be a readable image file; received path='broken.png'"), "[role=alert]"
    expect(tab.locator(refusal)).to_have_text(refused)
    tab.get_by_role("button", name="Explain", exact=True).click()
    expect(tab.locator(refusal)).to_have_text(refused)
    expect(said).to_have_value("")
    tab.screenshot(path=SCREENS / "damaged.png")
    assert tab.get_by_text("Traceback").count() == tab.get_by_text("beast").count() == 0


def test_an_upload_that_is_too_large_is_refused(tab, address, folder):
    (folder / "large.png").write_bytes(bytes(21 * 2**20))
    tab.goto(address)
    tab.locator("input[type=file]").first.set_input_files(folder / "large.png")
    expect(tab.get_by_text("exceed the maximum allowed size of 20").first).to_be_visible()
    assert tab.get_by_label("What was done").input_value() == ""


FORM = {"Content-Type": "multipart/form-data; boundary=X"}


def photo_form(pixels: bytes, count: int = 1) -> bytes:
    """Return what a browser sends for photos, as any site can write it."""
    name = 'Content-Disposition: form-data; name="files"; filename="{}.png"'
    parts = [b"--X\r\n" + name.format(place).encode() + b"\r\n\r\n" + pixels + b"\r\n" for place in range(count)]
    return b"".join(parts) + b"--X--\r\n"


def ask(address: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> tuple[int, Any]:
    """Return the status and the headers of the answer to one request: to a POST, if there is a body."""
    said = {name.replace("_", "-"): text for name, text in headers.items()} | (FORM if body else {})
    with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)) as connection:
        connection.request("GET" if body is None else "POST", path, body, said)
        answered = connection.getresponse()
        answered.read()
        return answered.status, answered.headers


def stored(store: Path) -> int:
    return sum(path.is_file() for path in store.rglob("*"))


def test_requests_from_elsewhere_are_refused(address, store):
    own, upload = address.rstrip("/"), "/gradio_api/upload"
    before = stored(store)
    link = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    for path, body, headers, status in [
        (upload, b"1", {"Origin": "https://evil.example"}, 403),
        (upload, b"1", {"Origin": "null"}, 403),
        (upload, b"1", {"Origin": "http://127.0.0.1:1"}, 403),
        (upload, b"1", {"Origin": own.replace("http", "https")}, 403),
        (upload, b"1", {"Sec_Fetch_Site": "cross-site"}, 403),
        (upload, b"1", {"Origin": own, "Sec_Fetch_Site": "same-site"}, 403),
        ("/gradio_api/queue/join", b"1", {"Origin": "https://evil.example"}, 403),
        ("/", b"1", {"Sec_Fetch_Site": "cross-site", **link}, 403),
        # Under a name of its own, which leads to this computer, a site is the page's own origin.
        (upload, b"1", {"Host": "evil.example", "Origin": "http://evil.example", "Sec_Fetch_Site": "same-origin"}, 421),
        ("/", None, {"Host": "evil.example"}, 421),
        ("/", None, {"Host": "127.0.0.1.evil.example"}, 421),
        ("/config", None, {"Sec_Fetch_Site": "cross-site", **link}, 403),
        ("/", None, {"Sec_Fetch_Site": "cross-site", **link, "Sec_Fetch_Dest": "iframe"}, 403),
        # What the server would fetch from elsewhere.
        ("/gradio_api/file=http%3A//127.0.0.1:9/", None, {}, 403),
        ("/gradio_api/proxy=http://127.0.0.1:9/", None, {}, 403),
        # What may be stored.
        (upload, b"1" * (LARGEST_REQUEST + 1), {"Origin": "null"}, 413),
        (upload, iter([b"1"]), {"Transfer_Encoding": "chunked"}, 411),
    ]:
        try:
            answered, said = ask(address, path, photo_form(body) if isinstance(body, bytes) else body, **headers)
        except (BrokenPipeError, ConnectionResetError):
            # It is not read to its end.
            assert status == 413
            continue
        assert (answered, path, headers) == (status, path, headers)
        assert {name.lower() for name in HEADERS} <= {name.lower() for name in said}
        assert "frame-ancestors 'none'" in said["Content-Security-Policy"]
        assert stored(store) == before
    # What the page itself asks, whoever follows a link to it, and a program, are answered.
    for headers in ({"Origin": own, "Sec_Fetch_Site": "same-origin"}, {"Host": "localhost"}):
        assert ask(address, upload, photo_form(repr(headers).encode()), **headers)[0] == 200
    assert stored(store) == before + 2
    assert ask(address, "/", **link, Sec_Fetch_Site="cross-site")[0] == ask(address, "/")[0] == 200


ATTACK = """async (address) => {
    const form = new FormData();
    form.append("files", new Blob(["0".repeat(1000)]), "evil.png");
    for (const mode of ["no-cors", "cors"])
        await fetch(address + "gradio_api/upload", { method: "POST", mode, body: form }).catch(() => null);
    const frame = document.createElement("iframe");
    await new Promise((done) => { frame.onload = done; frame.src = address; document.body.append(frame); });
}"""


def test_another_site_can_neither_upload_nor_show_the_page(browser, address, store):
    """A real browser shows a page of another origin, whose script tries both; on that origin's own server it can."""
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>Elsewhere</title><p>")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    elsewhere, before = f"http://localhost:{server.server_port}/", stored(store)
    page = browser.new_page()
    try:
        page.goto(elsewhere)
        page.evaluate(ATTACK, address)
        assert stored(store) == before
        assert page.frames[1].title() != "guided-backprop"
        page.evaluate(ATTACK, elsewhere)
        assert asked == ["/gradio_api/upload"] * 2
        assert page.frames[2].title() == "Elsewhere"
    finally:
        page.close()
        server.shutdown()
        server.server_close()


def test_the_oldest_uploads_make_room(tmp_path):
    def put(name: str, size: int, age: float) -> Path:
        (tmp_path / name).mkdir()
        path = tmp_path / name / "photo.png"
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - age,) * 2)
        return path

    example, store = put("example", 40, 9), Store(tmp_path, largest=200, most=4)
    store.keep()
    old, new = put("old", 60, 5), put("new", 60, 1)
    assert store.take(40)
    assert all(path.exists() for path in (example, old, new))
    assert store.take(20)
    # 160 bytes and the 60 that arrive are too many.
    assert [path.exists() for path in (example, old.parent, new)] == [True, False, True]
    # Of what arrives at once half of all is the most.
    assert not store.take(41)
    store.took(60)
    assert store.take(100)
    assert new.exists()
    store.took(100)
    for place in range(4):
        put(f"small{place}", 0, 4 - place)
    assert store.take(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example", "new", "small3"]


def test_without_gradio_the_error_says_what_to_install():
    code = "import sys; sys.modules['gradio'] = None; from guided_backprop.commands.main import main; main()"
    result = process("app", code=code)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip().endswith("without gradio. Run: pip install 'guided-backprop[app]'.")


def test_the_examples_are_photos():
    assert [path.name for path in examples()][:2] == ["chelsea.png", "coffee.png"]
    assert all(read_image(path).mode == "RGB" for path in examples())
