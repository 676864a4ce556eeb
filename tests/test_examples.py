"""The examples do what they say: models of each kind, a batch job, pictures."""

import importlib
import io
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

import batch_job
import compare_methods
import neurons
import one_relu
import report_picture
import trust
from guided_backprop import read


def test_the_methods_are_drawn_side_by_side(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    compare_methods.draw(tmp_path / "methods.png", model)
    with Image.open(tmp_path / "methods.png") as picture:
        assert picture.size == (800, 432)
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_picture_of_a_report(tmp_path):
    page = report_picture.write(tmp_path / "report.html")
    report_picture.draw(page, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1000, 1490)
        assert np.asarray(picture.convert("L")).std() > 10
    assert (tmp_path / "report.png").stat().st_size < 800_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("with_pytorch", r"GuidedBackprop: 967 espresso, score 11\.\d+, relu6 x33 guided"),
        ("with_keras", r"[89]\d% of 297 .*: max_pool x1 plain, relu x2 guided, softmax x1 undone"),
        ("with_jax", r"[89]\d% of 297 .*relu x2 guided"),
        ("timm_style", "max_pool x1 plain, relu x5 guided"),
        ("hugging_face_style", r"relu x2 guided; feature 7: \[\d"),
    ],
)
def test_models_of_each_kind(name, said, tmp_path, capsys):
    """As a user runs it, but for the start of another interpreter."""
    target = tmp_path / "maps.png"
    importlib.import_module(name).main(str(target))
    assert re.search(said, capsys.readouterr().out, re.DOTALL)
    with Image.open(target) as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_a_batch_job_is_resumed(tmp_path, capsys):
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    photos.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        shutil.copy(Path(skimage.data_dir) / name, photos)
    (photos / "broken.png").write_bytes(b"no picture")
    batch_job.main(str(photos), str(maps), 2)
    said = capsys.readouterr().out
    assert "2 shards, 3 photos explained" in said
    assert "broken.png" in said
    first = (maps / "shard-00000.parquet").stat()
    (maps / "shard-00001.parquet").unlink()
    shutil.copy(photos / "rocket.jpg", photos / "another.jpg")
    batch_job.main(str(photos), str(maps), 2)
    assert "2 shards, 3 photos explained" in capsys.readouterr().out
    assert (maps / "shard-00000.parquet").stat() == first
    explained = sorted(path for paths in read(maps).paths() for path in paths)
    assert explained == ["another.jpg", "chelsea.png", "coffee.png", "rocket.jpg"]


def test_one_relu_is_drawn_the_same_each_time(tmp_path):
    drawn = [one_relu.backward(method) for method in one_relu.METHODS]
    assert drawn == [[1, 0, 0, -4], [1, 0, 3, 0], [1, 0, 0, 0]]
    for name in ("first.svg", "second.svg"):
        one_relu.draw(tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    drawn = (tmp_path / "first.svg").read_text()
    assert drawn.count(one_relu.CLOSED) == 2 + 2 + 4  # bars where a gate is closed
    assert sum(map(drawn.count, (one_relu.POSITIVE, one_relu.NEGATIVE, one_relu.ZERO))) == 8 * 4


def test_only_arrays_are_unpickled():
    arrays = {"kernel": np.arange(6.0).reshape(2, 3)}
    stored = pickle.dumps(arrays, protocol=3).replace(b"numpy._core.", b"numpy.core.")
    np.testing.assert_array_equal(neurons.ArraysOnly(io.BytesIO(stored)).load()["kernel"], arrays["kernel"])
    with pytest.raises(pickle.UnpicklingError, match=r"needs no \w+.system"):
        neurons.ArraysOnly(io.BytesIO(pickle.dumps(os.system))).load()


def test_patches_of_photos():
    batches = list(neurons.patches())
    assert len(batches) == 3 * len(neurons.PHOTOS)
    assert all(batch.shape[1:] == (3, neurons.SIZE, neurons.SIZE) and len(batch) for batch in batches)
    assert -3 < min(batch.min() for batch in batches) < max(batch.max() for batch in batches) < 3


def test_trust_of_digits(tmp_path):
    images, labels = trust.digits()
    model = trust.train(images[:1500], labels[:1500], epochs=1)
    assert (model(images[4000:]).argmax(1) == labels[4000:]).float().mean() > 0.7
    made = {name: make for name, make in trust.methods("conv2").items() if name in ("Saliency", "GuidedBackprop")}
    checks = trust.check_all(model, images[4000:4003], made, 12)
    assert checks["GuidedBackprop"].blocks == (("fc2",), ("fc1",), ("conv2", "norm2"), ("conv1", "norm1"))
    trust.draw_curves(checks, tmp_path / "curves.png")
    trust.draw_maps(model, images[4000], {"none": ["-"], "fc2": ["fc2"]}, made, tmp_path / "maps.png")
    for name in ("curves.png", "maps.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    table = trust.by_quantus(model, images[4000:4003], made, 14).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == ["Saliency", "GuidedBackprop", "edges", "random"]
    assert all(0 <= float(score) <= 1 for line in table[2:] for score in line.strip("| ").split(" | ")[1:])
