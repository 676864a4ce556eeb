"""The documentation is complete: public names, options and source files have their place, and the code runs."""

import importlib
import inspect
import re
import shlex
from pathlib import Path

import click
import pytest

import guided_backprop
from guided_backprop import (
    Box,
    GradCAM,
    GuidedGradCAM,
    Method,
    SmoothGrad,
    compare,
    layer_names,
    load_model,
    neuron_gallery,
    render,
    stack_detections,
)
from guided_backprop.commands.main import command
from guided_backprop.report import Report, Trust

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
CODE = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}
# What is public beside the package's own names, and has a section of the API page.
SUBMODULES = ("captum", "errors", "jax", "models", "quantus", "render", "rules")
WITH_OPTIONS = {
    "methods": (Method, Method.explain, GradCAM, GuidedGradCAM, SmoothGrad),
    "functions": (compare, layer_names, load_model, neuron_gallery, Box, stack_detections),
    "results": (guided_backprop.Explanations.plot, guided_backprop.Explanations.save),
    "pictures": (render.heatmap, render.colour_picture, render.overlay, render.picture),
}
COMMANDS = command().commands


def missing(names: set[str], text: str) -> set[str]:
    """Return the names that are nowhere in the text as code; ``name=`` counts, and so do names inside of a call."""
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    return {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)}


# The recipes and the faults of others run in files of their own, which compare what they compute.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if CODE[page] and page.stem not in ("recipes", "upstream")],
    ids=lambda page: page.stem,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_of_each_page_runs(page):
    for block in CODE[page]:
        exec(compile(block, str(page), "exec"), {})


def test_pages_without_code_are_known():
    """A page whose blocks are marked as another language would go untested."""
    without = {f"{page.parent.name}/{page.stem}" for page in PAGES if not CODE[page]}
    names = "api benchmarks changelog contributing design options page serving suite words"
    docs = {f"docs/{name}" for name in names.split()}
    assert without == docs | {"tutorials/index"}


def test_every_public_name_is_on_the_api_page():
    api = (DOCS / "api.md").read_text()
    listed = set(re.findall(r"^\.\. (?:auto\w+|data):: ([\w.]+)", api, re.MULTILINE))
    assert set(guided_backprop.__all__) - listed == set()
    assert {f"guided_backprop.{name}" for name in SUBMODULES} - listed == set()


# What only a method of one's own has to do with.
INSIDE = {"around", "as_it_is", "cut", "explain_batch", "explains_inside", "held", "is_one_pass", "job", "subject"}


def public() -> dict[str, object]:
    """Return the classes and functions that the API page documents, by their full names; errors have trees instead."""
    names = {f"guided_backprop.{name}": getattr(guided_backprop, name) for name in guided_backprop.__all__}
    for module in map(importlib.import_module, [f"guided_backprop.{name}" for name in SUBMODULES]):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names |= {f"{module.__name__}.{name}": getattr(module, name) for name in getattr(module, "__all__", own)}
    names |= {f"guided_backprop.report.{each.__name__}": each for each in (Report, Trust)}
    chosen = {name: each for name, each in names.items() if inspect.isclass(each) or inspect.isfunction(each)}
    chosen = {name: each for name, each in chosen.items() if not name.rpartition(".")[2].startswith("_")}
    return {name: each for name, each in chosen.items() if not (inspect.isclass(each) and issubclass(each, Exception))}


def without_example(name: str, each: object) -> list[str]:
    """Return what has no example: of a class also methods of its own that the class's example does not use either."""
    text = inspect.getdoc(each) or ""
    lacking = [] if ">>>" in text else [name]
    for member, value in vars(each).items() if inspect.isclass(each) else ():
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function) and not member.startswith("_") and member not in INSIDE:
            is_shown = ">>>" in (function.__doc__ or "") or re.search(rf"(?:>>>|\.\.\. ).*\.{member}\b", text)
            lacking += [] if is_shown else [f"{name}.{member}"]
    return lacking


def test_every_public_name_has_an_example():
    """They run as doctests (test_package.py)."""
    names = public()
    assert {"guided_backprop.Saliency", "guided_backprop.render.overlay", "guided_backprop.report.Report"} <= {*names}
    assert [lacking for name, each in names.items() for lacking in without_example(name, each)] == []

    class Bare:
        """A class.

        Example:
            >>> Bare().shown()
        """

        def shown(self) -> None: ...

        def hidden(self) -> None: ...

    assert without_example("Bare", Bare) == ["Bare.hidden"]
    assert without_example("public", public) == ["public"]


@pytest.mark.parametrize("group", WITH_OPTIONS)
def test_every_option_is_on_the_page_of_options(group):
    page = (DOCS / "options.md").read_text()
    for each in WITH_OPTIONS[group]:
        names = set(inspect.signature(each).parameters) - {"self"}
        assert missing(names, page) == set(), each
    assert missing({"undo_heads"}, page) == {"undo_heads"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_on_the_page_of_options(name):
    page = (DOCS / "options.md").read_text()
    options = {each for option in COMMANDS[name].params if isinstance(option, click.Option) for each in option.opts}
    listed = []
    for heading in (name, "--model") if "--model" in options else (name,):
        assert page.count(f"\n`{heading}`\n") == 1
        section = page.split(f"\n`{heading}`\n")[1].split("\n`")[0]
        listed += re.findall(r"^\| `(--[\w-]+)`", section, re.MULTILINE)
    assert sorted(listed) == sorted(options)


def test_every_source_file_is_in_the_design():
    design = (DOCS / "design.md").read_text()
    listed = re.findall(r"^\| `([\w/]+\.py)` \| .", design, re.MULTILINE)
    package = ROOT / "src/guided_backprop"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert files - set(listed) == set()
    assert set(listed) - files == set()
    assert len(listed) == len(files)


def test_files_that_contributors_are_sent_to_exist():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:src|tests|benchmarks)/[\w/.]+\.py)`", guide)
    assert len(paths) >= 7
    assert [path for path in paths if not (ROOT / path).exists()] == []


TYPED = """
    CNN ResNet YOLO transformer ViT LSTM U-Net regression tabular text audio video MRI embedding saliency heatmap
    Grad-CAM SmoothGrad SHAP occlusion interpretability GPU CUDA OOM batch float16 NaN multi-GPU ONNX timm
    "Hugging Face" Colab torchvision notebook report app Gradio install license cite FAQ segmentation detection
    quantization server
"""


def test_what_people_type_is_somewhere():
    """The site's search finds what stands on a page, and nothing else."""
    text = "\n".join(page.read_text() for page in PAGES)
    typed = shlex.split(TYPED)
    assert len(typed) > 40
    assert [word for word in typed if not re.search(rf"(?<!\w){word}s?(?!\w)", text, re.IGNORECASE)] == []


def test_no_page_loads_anything_from_elsewhere():
    """Pictures and styles are in the repository, so that the documentation can be read without a network."""
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:img|script|link)\b", page.read_text()), page
