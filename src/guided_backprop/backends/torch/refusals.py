"""What is refused, and how the error says it: parts that hide what they compute, ReLUs spelled as arithmetic."""

from typing import Final

import torch

from guided_backprop.backends.base import Vouch
from guided_backprop.backends.refusals import hidden
from guided_backprop.backends.torch.graph import nodes
from guided_backprop.errors import ModelError, OpaqueRegionError

# The modes in which tensors have no values.
_TRACES: Final = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)

_LIKE_WEIGHTS = (
    'Pass images.to(next(model.parameters())), which have its dtype and device; of NumPy images.astype("float32").'
)
#: What to do where an error of torch says this.
HINTS: Final = {
    "inference tensors": "Build or load the model outside torch.inference_mode().",
    "should be the same": _LIKE_WEIGHTS,
    "same dtype": _LIKE_WEIGHTS,
    "on the same device": _LIKE_WEIGHTS,
    "cudnn RNN backward": "Explain it under torch.backends.cudnn.flags(enabled=False), or on the processor.",
    "mat1 and mat2 shapes": "Give the images the size that the model was built for.",
}

# Parts of PyTorch that hide what they compute, and the way out.
_PARTS: Final = {
    "CompiledFunction": ("a torch.compile region", "Pass the model before compiling."),
    "CheckpointFunction": ("a reentrant checkpoint", "Use checkpoint(..., use_reentrant=False)."),
    "torch::jit": (
        "a fused TorchScript region",
        "Pass the scripted module itself as the model, or the module before scripting.",
    ),
}


def refuse_traced() -> None:
    """Raise if the caller is being compiled, traced, or transformed by torch.func: its tensors have no values then."""
    if torch.compiler.is_compiling():
        caller = "torch.compile"
    elif torch._C._functorch.peek_interpreter_stack() is not None:
        caller = "a transform of torch.func"
    elif any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACES):
        caller = "a trace"
    else:
        return
    raise ModelError(
        f"explain must not be compiled or transformed itself; received a call from inside {caller}. "
        "Call it from eager code."
    )


def refuse_opaque(path: nodes.Path, vouch: Vouch, *, is_gating: bool) -> None:
    """Raise if a part of the graph hides what it computes, to a rule of ReLUs, or has no derivative, to any."""
    for node in path.doubts:
        name = nodes.opaque_name(node)
        if name is not None and name.endswith("NotImplemented"):
            raise ModelError(
                "model must have a derivative throughout; received an operation on the way to the images that "
                "PyTorch has none for, as in quantised modules. Pass the model before it was quantised."
            )
        if is_gating and name is not None and name not in vouch:
            part, way_out = _PARTS.get("torch::jit" if name.startswith("torch::jit") else name, ("", ""))
            text = f"{part} hides its ReLUs; received {name} between score and image. {way_out}"
            raise OpaqueRegionError(text) if part else hidden(name)


def training_error(name: str) -> ModelError:
    return ModelError(
        f"model must be in eval mode, or its map is random; received {name} in training mode. Call model.eval()."
    )
