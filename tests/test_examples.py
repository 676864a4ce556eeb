"""The examples do what they say: one map in three frameworks, and the README's picture."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

import compare_methods
import neurons
import one_map
import report_picture
import trust


def test_one_network_in_three_frameworks_has_one_map():
    results = one_map.explain_everywhere()
    assert set(results) == {"torch", "tensorflow", "jax"}
    first = results["torch"]
    assert one_map.EMOTIONS[first["probabilities"].argmax()] == "happy"
    assert first["probabilities"].max() > 0.999 - 5e-4
    scale = np.abs(first["attribution"]).max()
    for result in results.values():
        np.testing.assert_allclose(result["attribution"], first["attribution"], rtol=0, atol=1e-5 * scale)
    # The comparison can fail: another backend's map under another rule is far away.
    with np.testing.assert_raises(AssertionError):
        np.testing.assert_allclose(-first["attribution"], first["attribution"], rtol=0, atol=1e-5 * scale)


def test_the_methods_are_drawn_side_by_side(tmp_path):
    compare_methods.draw(tmp_path / "methods.png")
    with Image.open(tmp_path / "methods.png") as picture:
        assert picture.size == (800, 432)
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_picture_of_a_report(tmp_path):
    page = report_picture.write(tmp_path / "report.html")
    report_picture.draw(page, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1000, 1490)
        assert np.asarray(picture.convert("L")).std() > 10
    assert (tmp_path / "report.png").stat().st_size < 600_000


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
    table = trust.faithfulness(model, images[4000:4003], made, 14).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == ["Saliency", "GuidedBackprop", "edges", "random"]
    assert all(0 <= float(score) <= 1 for line in table[2:] for score in line.strip("| ").split(" | ")[1:])
