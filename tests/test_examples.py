"""The examples do what they say: one map in three frameworks, and the README's picture."""

import numpy as np
from PIL import Image

import compare_methods
import one_map


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
