"""Photos to pictures: what is read and what is left out, maps at their place on the whole photo, and reading back."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import guided_backprop as gb
from guided_backprop import GuidedBackprop, ImageError, LabelError, OptionError, Saliency, SmoothGrad
from guided_backprop.explained.result import ImageShow
from guided_backprop.models import ResizeCrop, VisionModel, read_image
from guided_backprop.progress import Progress, said_elsewhere
from guided_backprop.show.colours import as_bytes, dimmed, faded
from guided_backprop.show.panels import PANELS
from guided_backprop.show.place import Place

torch.manual_seed(0)
NETWORK = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
).eval()
VISION = VisionModel("small", NETWORK, ResizeCrop((12, 16), resampling="bilinear"), ["cat", "tabby, tom", "crane"])


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two photos, one of them on its side, one in a folder below, a broken one, a text and a pipe."""
    (tmp_path / "below").mkdir()
    photo(20, 15).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x112] = 6
    photo(60, 40, 1).save(tmp_path / "b.jpg", exif=turned, quality=95)
    photo(100, 12, 2).save(tmp_path / "below" / "wide.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("no photo")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


# What is read


def test_a_folder_is_explained_and_what_is_left_out_is_named(folder):
    explained = gb.explain_photos(folder, model=VISION, batch_size=2)
    assert [one.path.name for one in explained] == ["a.png", "b.jpg"]
    assert [Path(failure.name).name for failure in explained.failures] == ["c.png"]
    assert {one.path.name: one.reason.split(",")[0] for one in explained.skipped} == {
        "below": "a folder",
        "notes.txt": "no image",
        "pipe.png": "no regular file",
    }
    assert explained[1].photo.size == explained[1].size == (40, 60)
    assert_array_equal(explained[1].photo, read_image(folder / "b.jpg"))
    # By the network alone, on what the preprocessing makes of the photo.
    images = torch.from_numpy(np.stack([VISION.preprocess(one.photo) for one in explained]))
    expected = GuidedBackprop(NETWORK).explain(images)
    assert_allclose(explained.explanations.attribution, expected.attribution, rtol=1e-5, atol=1e-9)
    with pytest.raises(AssertionError):
        assert_allclose(explained.explanations.attribution[::-1], expected.attribution, rtol=1e-5, atol=1e-9)
    shares = torch.softmax(NETWORK(images[:1]), 1)[0].detach().numpy()
    assert_allclose(sorted(explained[0].classes.values()), np.sort(shares), rtol=1e-6)
    assert (explained.explanations.model, expected.model) == ("small", "Sequential")
    said = repr(explained)
    assert "2 of 3 photos, explained by GuidedBackprop of small: 16 x 12" in said
    assert "left out: image must be a readable image file" in said
    assert "skipped: " in said
    deeper = gb.explain_photos(folder, model=VISION, recursive=True)
    assert [one.path.name for one in deeper] == ["a.png", "b.jpg", "wide.png"]
    assert [one.reason for one in deeper.skipped] == ["no image, by its name", "no regular file"]


def test_photos_may_be_pixels(folder):
    pixels = np.asarray(photo(20, 15))
    grey = Image.fromarray(pixels[..., 0])
    explained = gb.explain_photos([folder / "a.png", pixels, photo(20, 15), grey, pixels[..., 0]], model=VISION)
    maps = explained.explanations.attribution
    assert_array_equal(maps[0], maps[1])
    assert_array_equal(maps[0], maps[2])
    assert_array_equal(maps[3], maps[4])
    assert not np.array_equal(maps[0], maps[3])
    assert [one.name for one in explained[1:3]] == ["photo-00001", "photo-00002"]
    assert explained[1].path is None
    assert len(gb.explain_photos(np.stack([pixels, pixels]), model=VISION)) == 2
    assert grey.mode == "L"


def test_labels_are_ids_names_or_the_best(folder):
    files = [folder / "a.png", folder / "c.png", folder / "b.jpg"]
    by_name = gb.explain_photos(files, model=VISION, labels=["Tom", "crane", 0])
    assert [one.label for one in by_name] == [1, 0]
    best = gb.explain_photos(files[0], model=VISION, labels="top2")
    assert_array_equal(best[0].label, np.argsort(-best[0].explanations.outputs[0])[:2])
    assert best[0].attribution.shape == (2, 3, 12, 16)
    assert len(best.plot(panels=["overlay"]).axes) == 2 + 1
    with pytest.raises(LabelError, match=r"received 'tabb'. Names like it: tabby, tabby, tom"):
        gb.explain_photos(files, model=VISION, labels="tabb")
    with pytest.raises(LabelError, match="received 2 labels for 3 photos"):
        gb.explain_photos(files, model=VISION, labels=[0, 1])
    with pytest.raises(LabelError, match=r"class ids in \[0, 3\); received labels\[2\]=3"):
        gb.explain_photos(files, model=VISION, labels=[0, 0, 3], batch_size=1)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("saliency", "Saliency"),
        (Saliency, "Saliency"),
        (lambda network: SmoothGrad(GuidedBackprop(network), samples=2), "SmoothGrad"),
    ],
)
def test_methods_by_name_or_by_what_makes_them(folder, method, name):
    (explained,) = gb.explain_photos(folder / "a.png", model=VISION, method=method)
    assert explained.explanations.method.startswith(name)


@pytest.mark.parametrize(
    ("photos", "options", "error", "message"),
    [
        ([], {}, OptionError, "photos must contain an image; received none"),
        (3, {}, OptionError, "received int"),
        (b"\x89PNG", {}, OptionError, "received bytes"),
        ([torch.zeros(3, 8, 8)], {}, OptionError, "received Tensor"),
        (np.zeros((8, 8, 3)), {}, ImageError, r"received float64 of shape \(8, 8, 3\)"),
        (np.zeros((8, 8, 5), np.uint8), {}, ImageError, r"received uint8 of shape \(8, 8, 5\)"),
        ("nowhere.png", {}, ImageError, "at least one photo must be readable; received 1"),
        (photo(9, 9), {"model": NETWORK}, OptionError, "received Sequential. Pass guided_backprop.models.VisionModel"),
        (photo(9, 9), {"method": "lime"}, OptionError, "method must be one of guided-backprop, .*received 'lime'"),
        (photo(9, 9), {"method": Saliency(NETWORK)}, OptionError, "has its own model. Pass its class"),
        (photo(9, 9), {"method": id}, OptionError, "received what makes int"),
        (photo(9, 9), {"method": Saliency, "layer": "0"}, OptionError, "layer goes with a method's name"),
        (photo(9, 9), {"batch_size": 0}, OptionError, "received batch_size=0"),
    ],
)
def test_what_cannot_be_is_refused(photos, options, error, message):
    with pytest.raises(error, match=message):
        gb.explain_photos(photos, **{"model": VISION, **options})


def test_a_pipe_and_a_device_are_no_photos(folder):
    """Nobody writes into the pipe: whoever opened it would wait without end."""
    for path in (folder / "pipe.png", "/dev/zero", folder):
        caught: list[BaseException] = []

        def read(path: Any = path, caught: list[BaseException] = caught) -> None:
            try:
                read_image(path)
            except ImageError as error:
                caught.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert "it is no regular file" in str(caught[0])


def test_heic_is_read_as_people_see_it(tmp_path, monkeypatch):
    stripes = np.zeros((40, 64, 3), np.uint8)
    stripes[:20] = 200
    turned = Image.Exif()
    turned[0x112] = 6
    pillow_heif.from_pillow(Image.fromarray(stripes)).save(tmp_path / "a.heic", exif=turned.tobytes(), quality=95)
    before = {*Image.OPEN}
    image = read_image(tmp_path / "a.heic")
    assert (image.size, image.mode) == ((40, 64), "RGB")
    columns = np.asarray(image).mean(axis=(0, 2))
    assert_allclose(columns[[5, 35]], [0, 200], atol=4)  # turned once, to the right
    assert {*Image.OPEN} == before  # Pillow, which others use too, has learned nothing
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="Make it smaller first"):
        read_image(tmp_path / "a.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("guided_backprop.photos.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"it is HEIC.*pip install 'guided-backprop\[heic\]'"):
        read_image(tmp_path / "a.heic")
    with pytest.raises(OptionError, match="HEIC, which needs"):
        gb.explain_photos(tmp_path, model=VISION)


# The whole photo


def test_a_map_is_drawn_at_its_place():
    whole = photo(60, 40)
    seen = Place.of(whole, (10, 5, 42, 29), (16, 12))
    attribution = np.random.default_rng(1).normal(size=(12, 16, 3))
    drawn = seen.picture(PANELS["overlay"], attribution)
    pixels = np.asarray(whole)
    assert drawn.shape == pixels.shape
    # Outside, beyond the line of one pixel, it is dimmed; inside it is the overlay of that part of the photo.
    outside = as_bytes(dimmed(pixels))
    assert_array_equal(drawn[:4], outside[:4])
    assert_array_equal(drawn[:, 43:], outside[:, 43:])
    assert_array_equal(drawn[4, 9:43], 70)
    assert_array_equal(drawn[4:30, 42], 70)
    empty = seen.picture(PANELS["overlay"], np.zeros((12, 16, 3)))
    assert_array_equal(empty[5:29, 10:42], as_bytes(faded(pixels[5:29, 10:42])))
    # One strong pixel of the map, (3, 4), is 2 x 2 of the photo.
    one = np.zeros((12, 16, 3))
    one[3, 4] = 1
    marked = seen.picture(PANELS["magnitude"], one, percentile=100).astype(int)
    rows, columns = np.nonzero((255 - marked[5:29, 10:42]).sum(axis=2) > 300)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 7, 8, 9)
    assert_array_equal(seen.picture(PANELS["image"], attribution), pixels)


@pytest.mark.parametrize(
    ("size", "box", "map_size"),
    [
        ((8, 8), (0, 0, 8, 8), (24, 24)),  # a photo that was enlarged
        ((30, 20), (-5, 0, 25, 20), (12, 8)),  # padded on its left
        ((4000, 300), (1850, 0, 2150, 300), (224, 224)),  # a panorama
        ((3000, 2000), (0, 0, 3000, 2000), (10, 10)),  # squashed
        ((50, 1), (0.2, 0.0, 0.3, 1.0), (3, 3)),  # less than a pixel
    ],
)
def test_photos_of_any_size_and_boxes_beyond_them(size, box, map_size):
    place = Place.of(photo(*size), box, map_size)
    height, width = place.photo.shape[:2]
    assert_allclose(width / height, size[0] / size[1], rtol=0.05)
    assert place.box[2] - place.box[0] >= map_size[0] - 1
    assert max(width, height) <= max(1024, round(max(size) * map_size[0] / (box[2] - box[0])) + 1)
    for panel in PANELS.values():
        assert place.picture(panel, np.ones((*map_size[::-1], 3))).shape == (height, width, 3)


def test_less_than_half_of_a_photo_is_a_warning(folder):
    explained = gb.explain_photos(folder, model=VISION, recursive=True)
    wide = folder / "below" / "wide.png"
    said = "the network saw 16% of the photo: the rest of it is not explained"
    assert explained.warnings == [f"{wide}: {said}"]
    assert (explained[0].warning, explained[2].warning) == ("", said)
    assert said in repr(explained)
    assert said in explained._repr_html_()
    assert said in explained.plot().get_supxlabel().replace("\n", " ")
    assert explained._repr_html_().count("<img") == 9
    assert f'width="160" height="{round(160 * 12 / 100)}"' in explained[2]._repr_html_()


def test_a_figure_is_of_whole_photos(folder, tmp_path):
    explained = gb.explain_photos(folder, model=VISION)
    figure = explained.plot(tmp_path / "maps.png", smooth=1, panels=["image", "magnitude"])
    assert (tmp_path / "maps.png").exists()
    shown = [np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes[:4]]
    assert_array_equal(shown[2], explained[1].photo)
    assert_array_equal(shown[3], explained[1].picture("magnitude", smooth=1))
    assert not np.array_equal(shown[3], explained[1].picture("magnitude"))
    assert figure.axes[2].get_title(loc="left").startswith(f"{explained[1].label} ")


def test_a_preprocessing_that_turns_photos_has_no_place(folder):
    """Then the network's input is shown, and no place on the photo is made up."""
    turn = VisionModel("turn", NETWORK, lambda image: VISION.preprocess(image.transpose(Image.Transpose.ROTATE_90)))
    (explained,) = gb.explain_photos(folder / "a.png", model=turn)
    assert explained.view is None
    assert explained.picture().shape == (12, 16, 3)
    assert len(explained.plot().axes) == 5


def test_show_opens_the_systems_viewer_or_says_that_there_is_none(folder, monkeypatch):
    explained = gb.explain_photos(folder / "a.png", model=VISION)
    opened: list[tuple[int, int]] = []
    monkeypatch.setattr(ImageShow, "show", lambda image, title: opened.append(image.size) is None)
    explained.show()
    assert opened
    monkeypatch.setattr(ImageShow, "show", lambda image, title: False)
    with pytest.raises(OptionError, match="needs a notebook or a viewer"):
        explained[0].show()


# Reading back


def test_what_was_saved_is_read_back(folder, tmp_path):
    explained = gb.explain_photos(folder, model=VISION)
    saved = gb.read(explained.save(tmp_path / "maps"))
    found = explained.explanations
    assert_array_equal(saved, found.attribution)
    assert_array_equal(saved.labels, found.labels)
    assert_array_equal(saved.scores, found.scores)
    assert (saved.method, str(saved.coverage), saved.reducer) == ("GuidedBackprop", "relu x1 guided", None)
    assert list(saved.names) == [one.name for one in explained]
    assert_array_equal(saved[-1], explained[1].attribution)
    assert (saved[1].label, saved[1].score) == (explained[1].label, explained[1].score)
    assert_array_equal(saved[1].picture(), explained[1].picture())
    assert [one.name for one in saved[:1]] == [explained[0].name]
    with pytest.raises(OptionError, match="received 'heatmap'"):
        saved[0].picture("heatmap")
    with pytest.raises(IndexError):
        saved[2]
    (tmp_path / "maps" / "attribution.safetensors").write_bytes(b"torn")
    with pytest.raises(ImageError, match="must be as it was saved"):
        gb.read(tmp_path / "maps")[0]


@pytest.mark.parametrize("manifest", ["{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_what_was_not_saved_is_refused(tmp_path, manifest):
    with pytest.raises(OptionError, match=r"folder must be one that save\(\) or the command explain wrote"):
        gb.read(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(OptionError, match="cannot be read"):
        gb.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["images"][0]["files"].update(overlay="../../etc/passwd"),
        lambda said: said["images"][0]["files"].update(overlay="/etc/x_overlay.png"),
        lambda said: said["images"].append(said["images"][0]),
        lambda said: said["scores"].append(0.5),
        lambda said: said.update(method=["x"]),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(folder, tmp_path, change):
    place = gb.explain_photos(folder / "a.png", model=VISION).save(tmp_path / "maps")
    manifest = json.loads((place / "manifest.json").read_text())
    change(manifest)
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OptionError, match=r"manifest.json cannot be read \("):
        gb.read(place)


# Progress


class Terminal:
    """Standard error as a terminal, and what was written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_to_who_waits_on_a_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("guided_backprop.progress.time.monotonic", lambda: now[0])

    def go(shown: bool | None, seconds: float) -> None:
        with Progress(4, shown=shown) as progress:
            for _ in range(4):
                now[0] += seconds
                progress.advance()

    go(None, 10)  # not a terminal
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    go(None, 0.5)  # done by then
    go(False, 10)
    assert terminal.text == ""
    go(None, 1.5)
    assert terminal.text.split("\r")[1:3] == ["2 of 4 images, 3 s left", "3 of 4 images, 2 s left"]
    assert terminal.text.endswith("\r" + " " * len("3 of 4 images, 2 s left") + "\r")


def test_a_call_inside_of_another_one_says_nothing(monkeypatch):
    """Nor does one under the bar of a command; afterwards calls do again."""
    monkeypatch.setattr("guided_backprop.progress._PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    slow = GuidedBackprop(NETWORK, batch_size=2)

    def said() -> str:
        sys.stderr.text = ""
        slow.explain(torch.rand(4, 3, 9, 9), 1)
        return sys.stderr.text

    assert "2 of 4 images" in said()
    with Progress(9):
        assert said() == ""
    with said_elsewhere():
        assert said() == ""
    assert "2 of 4 images" in said()


def test_explain_says_how_far_it_is(capsys):
    images = torch.rand(4, 3, 9, 9)
    GuidedBackprop(NETWORK, batch_size=2).explain(images, 1, progress=True)
    assert "2 of 4 images, 0 s left" in capsys.readouterr().err
    SmoothGrad(GuidedBackprop(NETWORK, batch_size=4), samples=2)(images, 1, progress=True)
    assert "4 of 8 copies of images" in capsys.readouterr().err
    GuidedBackprop(NETWORK, batch_size=2).explain(images, 1)
    assert capsys.readouterr().err == ""
