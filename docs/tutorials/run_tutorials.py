"""Run the tutorials: in one kernel of this very environment, each with no names and in an empty folder.

They run up to the first error or warning; what they import is imported once.

Run: python docs/tutorials/run_tutorials.py   (make tutorials), or with the paths of some; they are rewritten in place
"""

import base64
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

# Pictures are stored with the text: at 60 dots an inch a row of four photos takes about 0.25 MB.
_KERNEL = ["--log-level=ERROR", "--InlineBackend.print_figure_kwargs={'dpi': 60, 'bbox_inches': 'tight'}"]
# TensorFlow would begin with a page of what it found on the machine.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


# Runs in front of each tutorial, whose cells are then counted from 1. The collector, which a reset calls, leaves
# alone what is there so far: the frameworks, for the most part, for which it takes a second each time.
_ANEW = """import gc, os
gc.freeze()
os.chdir({folder!r})
%reset -f
get_ipython().execution_count = 0"""


# What is left of a line that said how far a call was.
_VANISHED = {"text/plain": ""}


class TutorialError(Exception):
    """A tutorial has outputs that nobody should read, such as warnings."""


def executed(paths: Sequence[Path]) -> Iterator[NotebookNode]:
    """Yield each notebook with fresh outputs and nothing else of the machine that ran it.

    Raises:
        CellExecutionError: a cell failed.
        TutorialError: a cell wrote to the error stream.
    """
    # A kernel of the same name that somebody installed elsewhere is not this environment.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        new_notebook(),
        km=manager,
        timeout=600,
        startup_timeout=120,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=[*_KERNEL],
    )
    with client.setup_kernel(cleanup_kc=True, env={**os.environ, **_QUIET}):
        for path in paths:
            notebook = client.nb = nbformat.read(path, as_version=4)
            with tempfile.TemporaryDirectory() as folder:
                notebook.cells.insert(0, new_code_cell(_ANEW.format(folder=folder)))
                client.execute()
            del notebook.cells[0]
            for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
                cell.execution_count = count
            yield _tidied(notebook, path.name)


def _tidied(notebook: NotebookNode, name: str) -> NotebookNode:
    """Return the notebook without what another run would change.

    Raises:
        TutorialError: a cell wrote to the error stream.
    """
    notebook.metadata = NotebookNode(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = NotebookNode(), f"cell-{number:02}"
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("data") != _VANISHED]
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise TutorialError(f"{name}, cell {number}, wrote to the error stream: {output.text}")
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(picture: str) -> str:
    """Return the same picture without transparency, packed as small as it gets."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    paths = [*map(Path, sys.argv[1:])] or sorted(Path(__file__).parent.glob("*.ipynb"))
    for path, notebook in zip(paths, executed(paths), strict=True):
        nbformat.write(notebook, path)
        print(path.stem, flush=True)
