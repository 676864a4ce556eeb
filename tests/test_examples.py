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
import one_relu


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
