"""The tutorials run, say nothing on the error stream, and what is stored of them is what they give."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parents[1] / "docs/tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in TUTORIALS]


def run(*paths):
    """Rewrite notebooks with fresh outputs, in another process, and return its exit status and what it says."""
    program = [sys.executable, FOLDER / "run_tutorials.py", *paths]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stderr


def kinds(notebook):
    """Return of each cell its source and what kinds of outputs it has."""
    return [
        (cell.source, [(each.output_type, sorted(each.get("data", ()))) for each in cell.get("outputs", ())])
        for cell in notebook.cells
    ]


def test_all_tutorials_are_found():
    assert {"getting_started", "going_further"} < {*NAMES}
    index = (FOLDER / "index.md").read_text()
    assert all(f"({path.name})" in index for path in TUTORIALS)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Return a folder of copies of all tutorials that ran one after the other: what they import takes long."""
    folder = tmp_path_factory.mktemp("tutorials")
    status, said = run(*(shutil.copy(path, folder) for path in TUTORIALS))
    assert status == 0, said
    return folder


@pytest.mark.parametrize("path", TUTORIALS, ids=NAMES)
def test_tutorials_run(path, copies):
    stored, fresh = (nbformat.read(each, as_version=4) for each in (path, copies / path.name))
    assert kinds(fresh) == kinds(stored), "run make tutorials"
    # The comparison can fail: without the outputs of one cell a notebook is another.
    next(cell for cell in stored.cells if cell.get("outputs")).outputs = []
    assert kinds(fresh) != kinds(stored)


@pytest.mark.parametrize("path", TUTORIALS, ids=NAMES)
def test_what_is_stored(path):
    """Small, in order, with pictures, and without a word of the machine that ran it."""
    assert path.stat().st_size < 1_500_000
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    said = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert not re.search(r"Warning|Error\b|0x[0-9a-f]{6}|/(home|root|tmp|work|usr)/|site-packages|20\d\d-\d\d", said)
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert all(not cell.metadata for cell in notebook.cells)


@pytest.mark.parametrize(
    ("code", "error"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings\nwarnings.warn('unread')", "TutorialError.*unread")],
)
def test_a_tutorial_that_fails_or_warns_is_not_stored(code, error, tmp_path):
    path = tmp_path / "bad.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("A title"), new_code_cell(code)]), path)
    before = path.read_bytes()
    status, said = run(path)
    assert status != 0
    assert re.search(error, said, re.DOTALL)
    assert path.read_bytes() == before
