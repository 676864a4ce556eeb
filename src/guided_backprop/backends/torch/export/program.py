"""A recorded graph as a program that PyTorch stores and runs, ``map.pt2``, without the model and this library."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.export import Dim
from torch.fx import GraphModule
from torch.fx.node import Argument, map_aggregate

from guided_backprop.arrays import NumpyArray, as_numpy
from guided_backprop.backends.torch.export.trace import TRACING
from guided_backprop.errors import ModelError
from guided_backprop.export.engine import Engine

#: What the file ends in, and what it says of itself is called in it.
PROGRAM: Final = ".pt2"
_SAID: Final = "guided_backprop.json"


class Program(Engine):
    """A stored program in PyTorch."""

    def __init__(self, path: Path, outputs: Sequence[str], threads: int = 0) -> None:
        self.name = f"torch {torch.__version__}"
        self._module, self._outputs = torch.export.load(path).module(), outputs

    def run(self, inputs: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        with torch.no_grad():
            results = self._module(*[torch.as_tensor(array) for array in inputs.values()])
        return {name: as_numpy(result) for name, result in zip(self._outputs, results, strict=True)}


def store(
    module: GraphModule,
    examples: Sequence[torch.Tensor],
    path: Path,
    metadata: Mapping[str, str],
    free: Sequence[Mapping[int, tuple[str, int]]],
) -> None:
    """Store a graph, in single precision.

    Args:
        module: the graph.
        examples: what it was recorded with.
        path: where it is stored.
        metadata: what it says of itself.
        free: for each example the axes whose size is free beside the number of images: what that is called, and the
            least that it may be.

    Raises:
        ModelError: PyTorch finds that it holds for one size.
    """
    single = _in_single(module)
    given = tuple(_single(tensor) for tensor in examples)
    count = Dim("count")
    dims = {name: Dim(name, min=least) for axes in free for name, least in axes.values()}
    shapes = tuple({0: count, **{axis: dims[name] for axis, (name, _) in axes.items()}} for axes in free)
    # What it cannot tell of all sizes it asks in each run: the recording has shown from where on it holds.
    asked: dict[str, Any] = {"prefer_deferred_runtime_asserts_over_guards": True} if dims else {}
    with TRACING, torch.no_grad():
        try:
            program = torch.export.export(single, given, dynamic_shapes=shapes, **asked)
        except (torch._dynamo.exc.UserError, TypeError) as error:
            # A former version of PyTorch does not know how it is asked.
            raise ModelError(
                "a program that PyTorch stores must hold for all sizes that it is told to; received "
                f"{' '.join(str(error).split()):.300}. Write map.onnx, or leave sizes out."
            ) from error
    torch.export.save(program, path, extra_files={_SAID: json.dumps(dict(metadata))})


def _in_single(module: GraphModule) -> GraphModule:
    """Return a graph whose numbers are of single precision, as a file of ONNX has them."""
    single = copy.deepcopy(module)
    for name, constant in [*single.named_buffers(), *single.named_parameters()]:
        # Stored is what lies in memory: of what was expanded, that is not all of it.
        _put(single, name, _single(constant.detach()).clone(memory_format=torch.contiguous_format))
    for node in single.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, _kind), map_aggregate(node.kwargs, _kind)
    single.recompile()
    return single


def _put(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    where, _, last = name.rpartition(".")
    owner = module.get_submodule(where)
    delattr(owner, last)
    owner.register_buffer(last, value)


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _kind(value: Argument) -> Argument:
    return torch.float32 if value in (torch.float64, torch.float16, torch.bfloat16) else value
