"""Which framework a model is written in. Looks only at what is already imported; imports no framework."""

import sys
from typing import Any

from guided_backprop.backends.base import Backend, Vouch
from guided_backprop.errors import MissingExtraError, ModelError

__all__ = ["backend_for"]


def backend_for(model: Any, *, undo_head: bool, vouch: Vouch) -> Backend:
    """Return the backend for ``model``.

    Raises:
        ModelError: the model is not callable.
        MissingExtraError: no supported framework has been imported, so the model cannot be of one.
    """
    if not callable(model):
        raise ModelError(
            "model must be a torch.nn.Module or a callable on tensors; "
            f"received model={model!r:.80}. Pass the model itself."
        )
    if "torch" in sys.modules:
        from guided_backprop.backends.torch import TorchBackend  # noqa: PLC0415

        return TorchBackend(model, undo_head=undo_head, vouch=vouch)
    raise MissingExtraError(
        "model must be written in a supported framework; received "
        f"model={type(model).__qualname__} and no framework is imported. "
        "Run: pip install 'guided-backprop[torch]'."
    )
