"""Loader: files of PyTorch: exported programs, ``.pt2``; TorchScript, ``.pt``; and what of the others can be read."""

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from guided_backprop.errors import ModelError
from guided_backprop.models.asked import Asked
from guided_backprop.models.vision import VisionModel, is_torch_module


def load(asked: Asked) -> VisionModel:
    """Load a network that was stored with its code.

    Raises:
        MissingExtraError: PyTorch isn't installed.
        ModelError: the file holds weights alone, or has to be unpickled; or doesn't say what the network is shown.
    """
    torch = asked.package("torch", "torch")
    if asked.name.endswith(".safetensors"):
        raise _state(asked, {}, "safetensors.torch.load_file({path!r})")
    if asked.name.endswith(".pt2"):
        return of_program(_read(asked, torch.export.load), asked)
    if _is_script(asked.name):
        return asked.vision_model(_read(asked, partial(torch.jit.load, map_location="cpu")))
    if not asked.trust_pickle:
        raise _not_read(asked, torch)
    loaded = _read(asked, partial(torch.load, map_location="cpu", weights_only=False))
    if not is_torch_module(loaded):
        raise _state(asked, loaded)
    return asked.vision_model(loaded)


def _read(asked: Asked, read: Callable[[str], Any]) -> Any:
    try:
        return read(asked.name)
    # A file that is damaged, of another version or of classes that aren't there makes PyTorch raise anything.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ModelError(
            f"model must be a file that this PyTorch can load; received model={asked.spec!r} "
            f"({type(error).__name__}: {reason:.300}). Load it yourself, and pass file.py:function."
        ) from error


def of_program(program: Any, asked: Asked) -> VisionModel:
    """Return an exported program with what it says and what is said of its input.

    Raises:
        ModelError: that isn't all that has to be known.
    """
    return asked.vision_model(program.module(), _shape(program))


def _shape(program: Any) -> tuple[int | None, ...]:
    """Return the shape of an exported program's only input, None for sizes that are open."""
    names = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return tuple(size if isinstance(size, int) else None for size in shapes[0]) if len(shapes) == 1 else ()


def _is_script(path: str) -> bool:
    """Tell whether a file is TorchScript: it has code beside its data."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _not_read(asked: Asked, torch: Any) -> ModelError:
    """Return the error for a file that would have to be unpickled, or holds weights alone."""
    try:
        # Reads tensors and what holds them; it runs nothing.
        return _state(asked, torch.load(asked.name, map_location="cpu", weights_only=True))
    except Exception:
        return ModelError(
            f"model must be stored with its code, as torch.export.save or torch.jit.save do; received "
            f"model={asked.spec!r}, a pickle. To unpickle it runs whatever it says: pass trust_pickle=True "
            "(--trust-pickle) if you trust who wrote it."
        )


def _state(asked: Asked, loaded: object, read: str = "torch.load({path!r}, weights_only=True)") -> ModelError:
    what = "weights without a network" if isinstance(loaded, dict) else f"a {type(loaded).__name__}"
    path = str(Path(asked.name))
    return ModelError(
        f"model must be a network; received model={asked.spec!r}, which is {what}. Write into net.py, with your class "
        "in the place of Network, and pass net.py:make:\n"
        "    def make():\n"
        "        network = Network()\n"
        f"        network.load_state_dict({read.format(path=path)})\n"
        "        return network"
    )
