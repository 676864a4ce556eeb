"""Serves the local page of ``guided-backprop app`` through its gate to this computer alone, until it is interrupted."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from guided_backprop.commands.gate import LARGEST_PHOTO, Gate, Store
from guided_backprop.commands.widgets import CSS, page
from guided_backprop.errors import OptionError
from guided_backprop.models import VisionModel

if TYPE_CHECKING:
    import gradio as gr


def serve(vision: VisionModel, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page to this computer alone, until it is interrupted.

    Args:
        vision: the model.
        port: a free port.
        ready: is called with the page's address once it can be opened.

    Raises:
        MissingExtraError: Gradio is not installed.
        OptionError: the port is not free.
    """
    with _terminated_as_interrupted(), _private_folder() as folder:
        store = Store(folder)
        blocks = page(vision)
        store.keep()
        ready(_launched(blocks, port, store))
        blocks.block_thread()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let who ends the process leave nothing behind either: a main thread hears it as it does Ctrl+C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Let Gradio keep its files in a folder that is this page's alone, and gone with it, however it ends.

    By itself it takes one folder for all who use this computer, and records what was asked.
    """
    with TemporaryDirectory(prefix="guided-backprop-") as folder:
        ours = {"GRADIO_TEMP_DIR": folder, "GRADIO_RUN_HISTORY": "False"}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _launched(blocks: "gr.Blocks", port: int, store: Store) -> str:
    """Begin to serve the page, and return its address."""
    import gradio as gr  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415

    blocks.queue(default_concurrency_limit=1, max_size=16, api_open=False)
    try:
        _, address, _ = blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(Gate, store=store)]},
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST_PHOTO,
            ssr_mode=False,
            footer_links=[],
            # The usual themes bring fonts.
            theme=gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")).set(
                block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
            ),
            css=CSS,
        )
    except OSError as error:
        raise OptionError(
            f"port must be free; received port={port}, which is not. Pass another one with --port."
        ) from error
    return str(address)
