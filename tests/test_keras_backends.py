"""Keras 3 on PyTorch and on JAX: a process holds one backend, so these files run in one for each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import one_map

HERE = Path(__file__).parent
BACKENDS = ("torch", "jax")
FILES = ["test_keras.py", "test_keras_layers.py"]
ALONE = {"torch": [], "jax": ["keras_on_jax.py"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return where each process stores its map of the example's network."""
    return tmp_path_factory.mktemp("maps")


@pytest.fixture(scope="module", params=BACKENDS)
def said(request, folder):
    """Return what the process of one backend says."""
    backend = request.param
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(HERE / name for name in FILES + ALONE[backend])],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "ONE_MAP": str(folder / f"{backend}.npz"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout


@pytest.fixture(scope="module")
def here():
    return one_map.explained()


def test_keras(said):
    assert re.search(r"\d+ passed", said)
    assert "skipped" not in said


def test_one_network_in_three_frameworks_has_one_map(said, folder, here):
    """With PyTorch and with JAX beneath Keras as with TensorFlow, which is beneath it here."""
    assert one_map.EMOTIONS[here["probabilities"].argmax()] == "happy"
    assert here["probabilities"].max() > 0.999 - 5e-4
    scale = np.abs(here["attribution"]).max()
    stored = [*folder.glob("*.npz")]
    assert stored
    for path in stored:
        with np.load(path) as there:
            np.testing.assert_allclose(there["attribution"], here["attribution"], rtol=0, atol=1e-5 * scale)
            # The comparison can fail: a map with its sign turned is far away.
            with np.testing.assert_raises(AssertionError):
                np.testing.assert_allclose(-there["attribution"], here["attribution"], rtol=0, atol=1e-5 * scale)
