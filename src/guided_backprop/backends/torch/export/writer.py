"""Says a recorded graph in ONNX's words, node by node."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Node

from guided_backprop.arrays import NumpyArray
from guided_backprop.backends.torch.export.simplify import constant_of
from guided_backprop.errors import ModelError
from guided_backprop.export.onnx_file import OnnxFile, Port

#: From the writer, a node and what its operation is called with, to what its result is called.
Word = Callable[..., Any]

#: The kinds of numbers of a file: floating-point ones are of single precision.
DTYPES: Final = {
    torch.float64: np.float32,
    torch.float32: np.float32,
    torch.float16: np.float32,
    torch.bfloat16: np.float32,
    torch.bool: np.bool_,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
}


# Numbers that are no tensors are sizes, but for these.
_KINDS: Final = {torch.SymFloat: torch.float32, float: torch.float32, bool: torch.bool}


def unknown(module: GraphModule, words: Mapping[str, Word]) -> list[str]:
    """Return the operations of a graph that have no row."""
    targets = {node.target for node in module.graph.nodes if node.op == "call_function"}
    return sorted(name for name in map(_name_of, targets) if name not in words)


def _without_row(what: str) -> ModelError:
    return ModelError(
        f"model must be of operations that have an ONNX row; received {what}. Export the part of the model without it."
    )


def _name_of(target: Any) -> str:
    return target._schema.name.removeprefix("aten::") if hasattr(target, "_schema") else f"number.{target.__name__}"


class Writer:
    """Says a graph in ONNX's words, in single precision.

    Args:
        module: the graph.
        words: the rows, by the operation's name.
        inputs: what its inputs are called.
        outputs: what its outputs are called.
        is_half: whether weights are stored in half precision.

    Raises:
        ModelError: it has operations without a row.
    """

    def __init__(
        self,
        module: GraphModule,
        words: Mapping[str, Word],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        is_half: bool = False,
    ) -> None:
        missing = unknown(module, words)
        if missing:
            raise _without_row(", ".join(missing))
        self.file = OnnxFile(is_half=is_half)
        self._module, self._words = module, words
        self._names: dict[Node, Any] = {}
        # What sizes are called that are free beside the number of images, by what they are made of.
        self._free: dict[str, str] = {}
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        for node in module.graph.nodes:
            self._say(node, inputs, outputs)

    def _say(self, node: Node, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        if node.op == "placeholder":
            name = self._names[node] = inputs[len(self.inputs)]
            self.inputs.append(self._port(name, node))
        elif node.op == "output":
            for name, result in zip(outputs, node.args[0], strict=True):  # type: ignore[arg-type]
                self.file.add("Identity", self.name(result, result.meta["val"].dtype), name=name)
                self.outputs.append(self._port(name, result))
        elif node.op == "call_function":
            try:
                self._names[node] = self._words[_name_of(node.target)](self, node, *node.args, **node.kwargs)
            except TypeError as error:
                # What an operation is called with has no word, as a way to reduce what is scattered.
                raise _without_row(f"{node.target} with {error}") from error

    def _port(self, name: str, node: Node) -> Port:
        """Return what a file says of an input or an output: what is called alike is of one size."""
        value = node.meta["val"]
        sizes = [
            size if isinstance(size, int) else self._free.setdefault(str(size), f"{name}_{axis}") if axis else "N"
            for axis, size in enumerate(value.shape)
        ]
        return Port(name, np.dtype(DTYPES[value.dtype]), sizes)

    def name(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """Return what a value is called: of a node, or a number; cast to a dtype."""
        if not isinstance(value, Node):
            return self.file.constant(np.asarray(value, DTYPES[dtype] if dtype else None))
        constant = constant_of(self._module, value)
        if constant is not None:
            return self.file.constant(as_array(constant if dtype is None else constant.to(dtype)))
        name: str = self._names[value]
        known = value.meta["val"]
        own = known.dtype if isinstance(known, torch.Tensor) else _KINDS.get(type(known), torch.int64)
        return name if dtype is None or DTYPES[own] is DTYPES[dtype] else self.cast(name, dtype)

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """Cast what is called so; return what the result is called."""
        return self.file.add("Cast", name, to=self.file.code(np.dtype(DTYPES[dtype])))

    def parts(self, node: Node) -> Any:
        """Return what the several results of a node are called."""
        return self._names[node]

    def array(self, value: object) -> NumpyArray | None:
        """Return a constant as an array, or None."""
        constant = constant_of(self._module, value)
        return None if constant is None else as_array(constant)

    def sizes(self, sizes: Sequence[Any]) -> str:
        """Return what a list of sizes is called, of which some may depend on the number of images."""
        if all(isinstance(size, int) for size in sizes):
            return self.file.integers(*sizes)
        return self.file.add("Concat", *[self.size(size) for size in sizes], axis=0)

    def size(self, size: Any) -> str:
        """Return what one size is called, as an array of one number."""
        return self.file.integers(size) if isinstance(size, int) else self._names[size]


def as_array(tensor: torch.Tensor) -> NumpyArray:
    """Return a constant as files have it."""
    return tensor.cpu().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).numpy()


def dtype_of(node: Node) -> torch.dtype:
    """Return the kind of numbers of a node's result."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype
