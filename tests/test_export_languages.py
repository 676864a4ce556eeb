"""What the documentation runs an exported file by, in Python, C++ and JavaScript: it is run, and gives the maps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from guided_backprop import GuidedBackprop
from guided_backprop.export import cache
from guided_backprop.page.engine import PACKAGE, VERSION, Engine

TEXT = (Path(__file__).parents[1] / "docs" / "export.md").read_text().partition("## Running it")[2]
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def code(language: str) -> str:
    """Return the first block of a language that the section has."""
    return re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    return GuidedBackprop(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10)).eval())


@pytest.fixture(scope="module")
def exported(method, tmp_path_factory):
    return method.export(tmp_path_factory.mktemp("exported") / "map.onnx", IMAGES[:2]).path


def in_python(folder):
    # No package of this environment but NumPy and the engine, whose own imports are these.
    hidden = "import sys; sys.modules['torch'] = sys.modules['guided_backprop'] = None\n"
    (folder / "map.py").write_text(hidden + code("py"))
    return [sys.executable, "map.py"]


def in_cpp(folder):
    (folder / "map.cpp").write_text(code("cpp"))
    return ["bash", "-ec", code("sh")]


def in_javascript(folder):
    Engine.found()
    package = folder / "node_modules" / PACKAGE
    shutil.copytree(cache.home() / f"{PACKAGE}-{VERSION}", package)
    # What of it a page includes is the whole engine, and the only part that is kept.
    (package / "package.json").write_text(json.dumps({"main": "ort.wasm.min.js"}))
    (folder / "map.mjs").write_text(code("js"))
    return ["node", "map.mjs"]


@pytest.mark.parametrize("written", [in_python, in_cpp, in_javascript])
def test_what_is_documented_gives_the_maps(written, method, exported, tmp_path):
    shutil.copy(exported, tmp_path)
    command = written(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(images, command):
        (tmp_path / "images.bin").write_bytes(images.numpy().tobytes())
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, check=False).returncode

    assert run(IMAGES, command) == 0
    found = np.fromfile(tmp_path / "map.bin", np.float32).reshape(IMAGES.shape)
    wanted = method.explain(IMAGES)
    assert_allclose(found, wanted.attribution, atol=1e-7, rtol=1e-5)
    # A planted fault: the map of another class.
    assert not np.allclose(found, method.explain(IMAGES, (wanted.labels + 1) % 10).attribution, atol=1e-7, rtol=1e-5)
    # An image that holds no number is told; Node, which opens its engine for two seconds, is not asked that as well.
    again = {in_python: command, in_cpp: ["./map"]}.get(written)
    assert again is None or run(torch.full_like(IMAGES, torch.nan), again) != 0
