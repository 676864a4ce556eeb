"""PyTorch's tests on a GPU: ``pytest -p on_gpu tests/test_torch_relus.py``. Not for CI, which has none.

What a test or a layer makes lies on the GPU, and what a test reads comes back; what the library makes or reads is left
as it is, so a device that it forgets is an error here.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

DEVICE = os.environ.get("GUIDED_BACKPROP_DEVICE", "cuda")
MAKERS = "arange as_tensor empty eye from_numpy full linspace ones rand randint randn randperm tensor zeros".split()
LIBRARY = f"{os.sep}guided_backprop{os.sep}"
# What calls on behalf of somebody else.
BETWEEN = (str(Path(torch.__file__).parent), f"{os.sep}numpy{os.sep}", "functools.py", __file__)


def is_asked_by_the_library() -> bool:
    """Whether the nearest caller that is neither PyTorch nor NumPy belongs to the library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in BETWEEN):
        frame = frame.f_back
    return LIBRARY in frame.f_code.co_filename


def making(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> torch.Tensor:
        found = make(*args, **options)
        if options.get("device") is not None or "out" in options or is_asked_by_the_library():
            return found
        with torch.no_grad():
            moved = found.to(DEVICE)
        return moved.requires_grad_() if found.requires_grad else moved

    return made


def reading(read: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read)
    def values(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        return read(tensor if is_asked_by_the_library() else tensor.cpu(), *args, **options)

    return values


for name in MAKERS:
    setattr(torch, name, making(getattr(torch, name)))
for name in ("numpy", "__array__"):
    setattr(torch.Tensor, name, reading(getattr(torch.Tensor, name)))

# The tests' tolerances are those of the precision that a test names.
torch.backends.cudnn.allow_tf32 = False
# Some compare a gradient of PyTorch's own with itself, bit by bit.
torch.backends.cudnn.deterministic = True

# The tables of spellings have rows of three frameworks. In the place of one that is not installed something stands that
# can be named while they are imported: no test of PyTorch runs it.
MISSING = [name for name in ("jax", "keras", "tensorflow") if importlib.util.find_spec(name) is None]
sys.modules |= {name: MagicMock(__spec__=ModuleSpec(name, None)) for name in MISSING}


def pytest_collection_finish() -> None:
    for name in MISSING:
        del sys.modules[name]
