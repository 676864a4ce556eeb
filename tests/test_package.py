"""The package as a whole: its public names, what importing it imports, and that its examples run."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import guided_backprop
from guided_backprop import errors

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(guided_backprop.__path__, "guided_backprop.")
    if not module.name.endswith("__main__")
)


def run(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_sorted_and_complete():
    public = [name for name in vars(guided_backprop) if not name.startswith("_")]
    modules = [name for name in public if f"guided_backprop.{name}" in sys.modules]
    assert sorted({*public, "__version__"} - set(modules)) == guided_backprop.__all__


def test_the_tree_of_errors_is_drawn_in_full():
    drawn = re.findall(r"(\w+Error)(?= |$)", errors.__doc__, re.MULTILINE)
    assert {name for name in vars(errors) if name.endswith("Error")} == set(drawn)
    for name in vars(errors):
        if name.endswith("Error"):
            assert issubclass(getattr(errors, name), guided_backprop.GuidedBackpropError)


def test_importing_imports_no_framework():
    heavy = (
        "torch",
        "tensorflow",
        "jax",
        "keras",
        "matplotlib",
        "click",
        "rich",
        "safetensors",
        "jinja2",
        "skimage",
        "scipy",
        "gradio",
    )
    assert run(f"import sys, guided_backprop; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_without_a_framework_the_error_says_what_to_install():
    program = """
import guided_backprop
try:
    guided_backprop.GuidedBackprop(lambda images: images)
except guided_backprop.MissingExtraError as error:
    print(error)
"""
    assert "pip install 'guided-backprop[torch]'" in run(program)


def test_only_the_torch_backend_imports_torch():
    importing = [
        path.relative_to(ROOT / "src/guided_backprop").as_posix()
        for path in sorted((ROOT / "src").rglob("*.py"))
        if re.search(r"^(import|from) torch\b", path.read_text(), re.MULTILINE)
    ]
    assert importing
    importing.remove("models/efficientnet_lite.py")  # the network that is brought along: it is imported to be made
    assert all(name.startswith("backends/torch/") for name in importing)


def test_one_place_knows_of_what_makes_torch_models_faster():
    """The PyTorch backend is the same without ``fast/``: that is looked up where a model is optimised, alone."""
    knowing = [
        path.relative_to(ROOT / "src/guided_backprop").as_posix()
        for path in sorted((ROOT / "src").rglob("*.py"))
        if "fast" not in path.relative_to(ROOT).parts
        and re.search(r"torch[./]fast|torch import fast", path.read_text())
    ]
    assert knowing == ["backends/torch/backend.py"]
    assert len(re.findall(r"torch\.fast", (ROOT / "src/guided_backprop" / knowing[0]).read_text())) == 1


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    assert sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))) >= 5


def test_files_stay_short():
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
