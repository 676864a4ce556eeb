"""The documentation is complete: public names, options and source files have their place, and the code runs."""

import inspect
import re
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


# The recipes run in a file of their own, which compares what they compute.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if CODE[page] and page.stem != "recipes"], ids=lambda page: page.stem
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_of_each_page_runs(page):
    for block in CODE[page]:
        exec(compile(block, str(page), "exec"), {})


def test_pages_without_code_are_known():
    """A page whose blocks are marked as another language would go untested."""
    without = {f"{page.parent.name}/{page.stem}" for page in PAGES if not CODE[page]}
    docs = {f"docs/{name}" for name in ("api", "benchmarks", "changelog", "contributing", "design", "options")}
    assert without == docs | {"tutorials/index"}


def test_every_public_name_is_on_the_api_page():
    api = (DOCS / "api.md").read_text()
    listed = set(re.findall(r"^\.\. (?:auto\w+|data):: ([\w.]+)", api, re.MULTILINE))
    assert set(guided_backprop.__all__) - listed == set()
    assert {f"guided_backprop.{name}" for name in SUBMODULES} - listed == set()


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
    for heading in (name, "--model"):
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


def test_no_page_loads_anything_from_elsewhere():
    """Pictures and styles are in the repository, so that the documentation can be read without a network."""
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:img|script|link)\b", page.read_text()), page
