"""Run the tutorials: each in a kernel of this very environment and an empty folder, up to the first error or warning.

Run: python docs/tutorials/run_tutorials.py   (make tutorials), or with the paths of some; they are rewritten in place
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

# Pictures are stored with the text: at 60 dots an inch a row of four photos takes about 0.25 MB.
_KERNEL = ["--log-level=ERROR", "--InlineBackend.print_figure_kwargs={'dpi': 60, 'bbox_inches': 'tight'}"]
# TensorFlow would begin with a page of what it found on the machine.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class TutorialError(Exception):
    """A tutorial has outputs that nobody should read, such as warnings."""


def executed(path: Path) -> NotebookNode:
    """Return the notebook with fresh outputs and nothing else of the machine that ran it.

    Raises:
        CellExecutionError: a cell failed.
        TutorialError: a cell wrote to the error stream.
    """
    notebook = nbformat.read(path, as_version=4)
    # A kernel of the same name that somebody installed elsewhere is not this environment.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=600,
            startup_timeout=120,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
            extra_arguments=[*_KERNEL],
        )
        client.execute(env={**os.environ, **_QUIET})
    notebook.metadata = NotebookNode(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = NotebookNode(), f"cell-{number:02}"
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise TutorialError(f"{path.name}, cell {number}, wrote to the error stream: {output.text}")
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
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(Path(__file__).parent.glob("*.ipynb")):
        print(path.stem, flush=True)
        nbformat.write(executed(path), path)
