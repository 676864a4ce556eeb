"""Keras 3 on each of its backends: a process holds one backend, so its cases run once per process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("backend", ["torch", "tensorflow", "jax"])
def test_keras(backend):
    # Keras' variables have no copy keyword yet, which NumPy says at each conversion.
    command = [sys.executable, "-m", "pytest", "-W", "ignore::DeprecationWarning", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(HERE / "keras_cases.py"), str(HERE / "keras_layers.py")],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert re.search(r"\d+ passed in ", done.stdout)
    assert "skipped" not in done.stdout
