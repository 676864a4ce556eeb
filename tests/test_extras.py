"""Each extra alone is enough for what it is for: the wheel, what the extra asks for, and nothing else.

An environment of links to packages that are installed here: those to which the extra's requirements lead, from package
to package, as pip would follow them.
"""

import torchvision_operators  # isort: skip
import os
import pickle
import subprocess
import sys
import tomllib
import venv
import zipfile
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnx
import pillow_heif
import pytest
import timm
import torch
import torchvision
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from guided_backprop import GuidedBackprop, Job

assert torchvision_operators
ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SITE = Path(np.__file__).parents[1]
# The tests have TensorFlow without what it needs of graphics cards.
INSTEAD = {"tensorflow": "tensorflow-cpu"}

# What a user does with each; files that the programs read were made by other environments.
RELU = "import torch\nnetwork = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 4), torch.nn.ReLU())\n"
IN_JAX = "import jax\nnetwork = lambda x: jax.nn.relu(x.reshape(len(x), -1))\n"
EXPLAIN = "print(guided_backprop.GuidedBackprop(network).explain(images, 0).coverage)"
STORED = "import pickle\nexplanations = pickle.loads(open('explanations', 'rb').read())\n"
ENGINE = "from guided_backprop.export.engine import ENGINES\nprint(ENGINES['{}'](Path('map.onnx'), ['outputs']).name)"
LOAD = "network = guided_backprop.load_model({}).network\n"
VISION = "import torchvision_operators\n" + LOAD
PROGRAMS = {
    "torch": RELU + EXPLAIN,
    "tensorflow": "import tensorflow as tf\nnetwork = lambda x: tf.nn.relu(tf.reshape(x, (2, -1)))\n" + EXPLAIN,
    "jax": IN_JAX + EXPLAIN,
    "plot": STORED + "explanations.plot('map.png')",
    "save": STORED + "explanations.save('maps')\nprint(guided_backprop.Explanations.load('maps'))",
    "jobs": "print(len(guided_backprop.read('job')))",
    "heic": "from guided_backprop.models import read_image\nprint(read_image('photo.heic').size)",
    "export": ENGINE.format("onnxruntime"),
    "openvino": ENGINE.format("openvino"),
    "torchvision": VISION.format("'torchvision:squeezenet1_1', random_weights=True") + EXPLAIN,
    "timm": VISION.format("'timm:timm', random_weights=True") + EXPLAIN,
    "transformers": LOAD.format("'hf:resnet', random_weights=True") + EXPLAIN,
    "onnx": VISION.format("'network.onnx', scale=1") + EXPLAIN,
    "demo": "import sys\nsys.argv = ['', 'explain', '--output', 'out', 'photo.png']\n"
    "from guided_backprop.commands.main import main\nmain()",
    "trust": RELU + "print(guided_backprop.sanity_check(guided_backprop.Saliency(network), images, blocks=1))",
    "report": IN_JAX + "from guided_backprop.report import Report\nreport = Report('page.html', network)\n"
    "report.add(images, ['a', 'b'])\nprint(report.finish())",
    "cli": "import sys\nsys.argv = ['', 'explain', '--help']\nfrom guided_backprop.commands.main import main\nmain()",
    "app": "import gradio\nfrom guided_backprop.commands.serving import serve",
}
STATED = {"x": [3, 32, 32], "y": [3072]}
# A framework that whoever takes these has, another than the one that happens to bring what they need.
BESIDE = {"trust": "torch", "report": "jax", "app": "cli"}


def led_to(requirements, *, without=()):
    """Yield the names of all packages to which requirements lead, those of extras included."""
    waiting, known = [Requirement(each) for each in requirements], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in known or name in without:
                continue
            known.add((name, extra))
            asked = EXTRAS.get(extra, ["numpy", "pillow"]) if name == "guided-backprop" else requires(name)
            met = (Requirement(each) for each in asked)
            waiting += [each for each in met if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in known} - {"guided-backprop"}


def requires(name):
    return distribution(INSTEAD.get(name, name)).requires or []


@cache
def is_shared(top):
    """Tell whether several packages may share a folder, which is none by itself: what is in it is linked."""
    folder = SITE / top
    return folder.is_dir() and folder.suffix == "" and not (folder / "__init__.py").exists()


@cache
def parts(name):
    """Return what a package put into the folder of packages, by the list that came with it."""
    files = (file.parts for file in distribution(INSTEAD.get(name, name)).files or [])
    found = {Path(*file[: 1 + is_shared(file[0])]) for file in files if file[0] not in ("..", "__pycache__")}
    return [part for part in sorted(found) if (SITE / part).exists()]


def link(names, packages):
    """Link what packages hold."""
    for part in dict.fromkeys(part for name in names for part in parts(name)):
        (packages / part).parent.mkdir(exist_ok=True)
        os.symlink(SITE / part, packages / part)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the folder of what the wheel holds."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    zipfile.ZipFile(path).extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder of what the programs read."""
    folder = tmp_path_factory.mktemp("files")
    images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    method = GuidedBackprop(network)
    (folder / "explanations").write_bytes(pickle.dumps(method.explain(images, 0)))
    method.export(folder / "map.onnx", images)
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", *axes]) for name, axes in STATED.items()]
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["flat"]), onnx.helper.make_node("Relu", ["flat"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "network", ends[:1], ends[1:])
    imports = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "network.onnx")
    (folder / "hub/checkpoints").mkdir(parents=True)
    name = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "hub/checkpoints" / name)
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), folder / "timm")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(folder / "resnet")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder / "resnet")
    photo = Image.fromarray((images[0].transpose(1, 2, 0) * 255).astype(np.uint8))
    photo.save(folder / "photo.png")
    Job(folder / "job", [folder / "photo.png"], model=str(folder / "network.onnx"), load={"scale": 1}).run()
    pillow_heif.from_pillow(photo).save(folder / "photo.heic")
    return folder


def said(extras, wheel, files, folder, *, without=()):
    """Return what a program says in an environment of the wheel with some extras, and its exit status."""
    venv.create(folder / "v", symlinks=True)
    (packages,) = (folder / "v/lib").glob("python*/site-packages")
    for part in wheel.iterdir():
        os.symlink(part, packages / part.name)
    link(led_to([f"guided-backprop[{','.join(extras)}]"], without=without), packages)
    os.symlink(ROOT / "tests/torchvision_operators.py", packages / "torchvision_operators.py")
    begin = "from pathlib import Path\nimport numpy as np\nimport guided_backprop\n"
    begin += "images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)\n"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "agg", "TORCH_HOME": str(files), "HF_HUB_OFFLINE": "1"}
    command = [folder / "v/bin/python", "-I", "-c", begin + PROGRAMS[extras[0]]]
    done = subprocess.run(
        command, cwd=files, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def test_every_extra_is_tried():
    assert {*PROGRAMS} == {*EXTRAS} - {"docs", "test"}


@pytest.mark.parametrize("extra", PROGRAMS)
def test_an_extra_alone(extra, wheel, files, tmp_path):
    status, text = said([extra, *filter(None, [BESIDE.get(extra)])], wheel, files, tmp_path)
    assert status == 0, text


def test_what_an_extra_lacks_shows(wheel, files, tmp_path):
    status, text = said(["report", "jax"], wheel, files, tmp_path, without=("jinja2",))
    assert status != 0
    assert "pip install 'guided-backprop[report]'" in text
