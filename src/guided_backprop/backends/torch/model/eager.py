"""How a model is run so that its autograd graph shows every operation: in eager mode, with gradients.

Everything here is for this thread alone; nothing that another thread could see is changed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import cast

import torch

from guided_backprop.arrays import Model, Outputs, Tensor


def unfused(model: Model) -> Callable[..., Outputs]:
    """Return what runs ``model`` without TorchScript's fused gradients, which hide their ReLUs.

    A scripted module keeps the plan it was optimised to, so its graph is run as a function of its own, on
    the same parameters.
    """
    if not isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        return model  # type: ignore[no-any-return]
    function: Callable[..., Outputs] = torch._C._create_function_from_graph(
        "forward", cast("torch._C.Graph", model.inlined_graph)
    )
    if isinstance(model, torch.jit.ScriptFunction):
        return function
    arguments = model._c._get_method("forward").schema.arguments[1:]

    def forward(*inputs: Tensor, **named: Tensor) -> Outputs:
        names = [argument.name for argument in arguments]
        given = dict(zip(names, inputs, strict=False)) | named
        if len(inputs) > len(names) or not given.keys() <= set(names):
            raise TypeError(f"forward() takes {', '.join(names)}; it was given {len(inputs)} and {sorted(named)}.")
        return function(model._c, *(given.get(argument.name, argument.default_value) for argument in arguments))

    return forward


@contextmanager
def differentiable() -> Iterator[None]:
    """Enable gradients and eager execution, for this thread alone, whatever the caller disabled."""
    optimized_execution: Callable[[bool], AbstractContextManager[None]] = torch.jit.optimized_execution  # type: ignore[attr-defined]
    uncompiled = _eager() if "torch._dynamo" in sys.modules else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), optimized_execution(False), uncompiled:
        yield


@contextmanager
def _eager() -> Iterator[None]:
    """Make compiled modules and functions run their eager original, for this thread alone.

    ``torch.compiler.set_stance`` would do it for the whole process. A compiled function runs its original
    where this thread's tracing context says that a kernel is being traced. Should a version of torch not
    do so, the compiled region is found in the graph and refused.
    """
    from torch._C._dynamo.eval_frame import set_eval_frame  # noqa: PLC0415
    from torch._guards import TracingContext, tracing  # noqa: PLC0415

    # The caller may be compiled himself: then this thread compiles every function that it enters.
    outer = set_eval_frame(None)
    try:
        with tracing(TracingContext(SimpleNamespace(in_kernel_invocation=True, shape_env=None))):  # type: ignore[arg-type]
            yield
    finally:
        set_eval_frame(outer)
